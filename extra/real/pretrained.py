"""Real models: directories in the format of Hugging Face, Llama and Gemma-2, to and from the GPT of extra/gpt.py.

    model = load("DIR", device="cuda", dtype=torch.bfloat16)
    logits, hidden = model(ids)
    save(model, "ANOTHER")

A directory holds config.json (the architecture) and model.safetensors or several such files with an index (the weights); its tokenizer
is read by pretrained_tokenizer.py. Nothing in it is executed, and no pickle is read. What config.json asks for and gpt.py does not do
is refused by name, and so is every key that is not known here: a model that is computed almost right is worse than none.

The packages that this takes are in requirements-real.txt; the toy experiment needs none of them.
"""

import importlib
import json
import os
import shutil
from pathlib import Path

import torch

from extra.gpt import GPT, GPTConfig, rope_table
from toy_experts.run import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LARGEST = 2**20  # of any number in a config.json: well above all real ones, and far below what would exhaust the memory


def extra(package):
    """A module of the optional packages. UserError when it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise UserError(f"real models need the package {package.split('.')[0]}: pip install -r requirements-real.txt") from e


def read_json(path, missing=None):
    """The object (a dict) in a JSON file; `missing` where there is no such file, if given. UserError when it is not one."""
    if missing is not None and not path.is_file():
        return missing
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"there is no {path}: a model's directory has config.json, its weights as .safetensors, and tokenizer.json") from e
    except OSError as e:
        raise UserError(f"cannot read {path} ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is truncated or not JSON ({str(e)[:80]})") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


# --- config.json <-> GPTConfig --------------------------------------------------------------------------------------------------------

SHARED = {"vocab_size": "vocab_size", "d_model": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
          "n_kv_head": "num_key_value_heads", "head_dim": "head_dim", "d_ff": "intermediate_size",
          "max_len": "max_position_embeddings", "norm_eps": "rms_norm_eps", "tied": "tie_word_embeddings"}
GEMMA = {"query_scalar": "query_pre_attn_scalar", "attn_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping",
         "window": "sliding_window"}
GEMMA_ALWAYS = {"gelu": True, "post_norm": True, "one_plus": True, "embed_scaled": True}
# What an absent key means in each family; a key that is not here must be present.
DEFAULTS = {"llama": {"num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
                      "tie_word_embeddings": False},
            "gemma2": {"num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
                       "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
                       "final_logit_softcapping": 30.0, "sliding_window": 4096}}
# Keys with one value that gpt.py computes: those that `save` writes, and others.
ONLY = {"llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
                  "hidden_act": "silu"},
        "gemma2": {"architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
                   "hidden_activation": "gelu_pytorch_tanh"}}
ONLY_TOO = {"is_encoder_decoder": False, "partial_rotary_factor": 1.0, "rope_interleaved": False, "use_bidirectional_attention": False}
# Keys that change nothing in what a model computes from token ids. (Gemma-2 goes by hidden_activation, never by hidden_act.)
HARMLESS = set("""model_type hidden_act bos_token_id eos_token_id pad_token_id dtype torch_dtype transformers_version use_cache
    initializer_range pretraining_tp cache_implementation _name_or_path _attn_implementation _attn_implementation_autoset
    is_llama_config transformers.js_config unsloth_version unsloth_fixed output_attentions output_hidden_states return_dict
    problem_type id2label label2id chunk_size_feed_forward""".split())
ROPE = {"factor": "rope_factor", "low_freq_factor": "rope_low", "high_freq_factor": "rope_high",
        "original_max_position_embeddings": "rope_original"}


def shown(value):
    """A value from a file, short enough for a message."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def number(path, key, value, kind):
    """value as the type `kind` (int, float or bool). UserError unless it is such a number: finite, positive, not huge."""
    ok = type(value) is bool if kind is bool else type(value) in ((int,) if kind is int else (int, float))
    if not ok or kind is not bool and not 0 < value <= LARGEST * (1 if kind is int else LARGEST):
        raise UserError(f"{path}: {key} is {shown(value)}, and must be " + {bool: "true or false", float: "a number above zero",
                                                                           int: f"a whole number from 1 to {LARGEST}"}[kind])
    return kind(value)


def rope_fields(path, raw, max_len):
    """GPTConfig's rope_* fields, from the key rope_parameters or from the older rope_theta and rope_scaling."""
    given = {}
    for source in ({"rope_theta": raw.get("rope_theta")}, raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}):
        if not isinstance(source, dict):
            raise UserError(f"{path}: rope_scaling or rope_parameters is {shown(source)}, and must be an object or null")
        for key, value in source.items():
            key = "rope_type" if key == "type" else key
            if value is not None and given.setdefault(key, value) != value:
                raise UserError(f"{path}: {key} is given as {shown(given[key])} and as {shown(value)}")
    kind = given.pop("rope_type", "default")
    if kind not in ("default", "llama3"):
        raise UserError(f"{path}: rope_type {shown(kind)} is not supported, only \"default\" and \"llama3\"")
    out = {"rope_theta": number(path, "rope_theta", given.pop("rope_theta", 10000.0), float), "rope_float32": True}
    if kind == "llama3":
        given.setdefault("original_max_position_embeddings", max_len)
        for key, ours in ROPE.items():
            if key not in given:
                raise UserError(f"{path}: rope_type is llama3, and {key} is missing")
            out[ours] = number(path, key, given.pop(key), int if ours == "rope_original" else float)
        if out["rope_low"] >= out["rope_high"]:
            raise UserError(f"{path}: low_freq_factor is {out['rope_low']}, and must be below high_freq_factor, {out['rope_high']}")
    if given:
        raise UserError(f"{path}: {next(iter(given))} is not supported with rope_type {kind}")
    return out


def read_config(directory):
    """The GPTConfig for a directory's config.json. UserError names whatever in it is wrong, not supported or not known."""
    path = Path(directory) / "config.json"
    raw = read_json(path)
    family = raw.get("model_type")
    if family not in ("llama", "gemma2"):
        raise UserError(f"{path}: model_type {shown(family)} is not supported, only \"llama\" and \"gemma2\"")
    names = {**SHARED, **(GEMMA if family == "gemma2" else {})}
    only, absent = {**ONLY_TOO, **ONLY[family]}, DEFAULTS[family]
    layer_types = raw.pop("layer_types", None) if family == "gemma2" else None
    if family == "gemma2":
        only["sliding_window_size"] = raw.get("sliding_window")  # some of Google's own files say it twice
    known = {*only, *names.values(), *HARMLESS, "rope_theta", "rope_scaling", "rope_parameters"}
    for key, value in raw.items():
        if value is not None and key in only and value != only[key]:
            raise UserError(f"{path}: {key} = {shown(value)} is not supported, only {shown(only[key])}")
        if value is not None and key not in known:
            raise UserError(f"{path}: {key} = {shown(value)} is not known here, so it cannot be said what the model computes; if it "
                            "has no influence on that, remove the key")
    fields = {}
    for ours, theirs in names.items():
        if theirs not in raw and theirs not in absent:
            raise UserError(f"{path}: {theirs} is missing")
        value, kind = raw.get(theirs, absent.get(theirs)), type(getattr(GPTConfig, ours))
        if value is None and ours in ("attn_cap", "logit_cap", "window"):
            fields[ours] = kind(0)  # none
        elif value is None and ours == "n_kv_head":
            fields[ours] = fields["n_head"]
        elif value is None and ours == "head_dim":
            fields[ours] = fields["d_model"] // fields["n_head"]
        else:
            fields[ours] = number(path, theirs, value, kind)
    fields.update(rope_fields(path, raw, fields["max_len"]))
    if family == "gemma2":
        fields.update(GEMMA_ALWAYS)
        if layer_types == ["full_attention"] * fields["n_layer"]:
            fields["window"] = 0
        elif layer_types not in (None, alternating(fields["n_layer"])):
            raise UserError(f"{path}: layer_types is not supported, only sliding_attention and full_attention by turns")
    return GPTConfig(**fields)


def alternating(n_layer):
    return [f"{'full' if layer % 2 else 'sliding'}_attention" for layer in range(n_layer)]


def write_config(config):
    """The content of config.json for a GPTConfig, in the older form of the rope keys, which every transformers reads.

    UserError when the config is a mixture that neither family is.
    """
    switches = {name: getattr(config, name) for name in GEMMA_ALWAYS}
    family = "gemma2" if switches == GEMMA_ALWAYS else "llama"
    if family == "llama" and any([*switches.values(), *(getattr(config, name) for name in GEMMA)]):
        raise UserError(f"neither Llama nor Gemma-2 has {switches} together with the settings {', '.join(GEMMA)} of this model")
    out = {"model_type": family, **ONLY[family], **{theirs: getattr(config, ours) for ours, theirs in SHARED.items()}}
    if family == "gemma2":
        out.update({theirs: getattr(config, ours) or None for ours, theirs in GEMMA.items()})
        scalar = config.query_scalar or config.head_dim
        out["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar  # transformers insists on int
        out["layer_types"] = alternating(config.n_layer) if config.window else ["full_attention"] * config.n_layer
    scaling = {"rope_type": "llama3", **{theirs: getattr(config, ours) for theirs, ours in ROPE.items()}}
    return {**out, "rope_theta": config.rope_theta, "rope_scaling": scaling if config.rope_factor != 1 else None}


# --- weights: safetensors <-> GPT -----------------------------------------------------------------------------------------------------

OUTSIDE = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}
BLOCK = {"attn_norm": "input_layernorm", "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj",
         "wo": "self_attn.o_proj", "w_gate": "mlp.gate_proj", "w_up": "mlp.up_proj", "w_down": "mlp.down_proj"}
NORMS = {False: {"ff_norm": "post_attention_layernorm"},  # the same name stands for another norm in Gemma-2
         True: {"attn_post_norm": "post_attention_layernorm", "ff_norm": "pre_feedforward_layernorm",
                "ff_post_norm": "post_feedforward_layernorm"}}


def tensor_names(config):
    """Our name -> the name in the file, of every weight that a file must have (a tied head is not one of them).

    >>> tensor_names(GPTConfig())["blocks.2.wq.weight"]
    'model.layers.2.self_attn.q_proj.weight'
    """
    out = {ours: theirs for ours, theirs in OUTSIDE.items() if not (config.tied and ours == "head.weight")}
    for layer in range(config.n_layer):
        for ours, theirs in {**BLOCK, **NORMS[config.post_norm]}.items():
            out[f"blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return out


def open_tensors(path):
    """A safetensors file, opened: use in a `with`. UserError when it is missing or truncated."""
    safetensors = extra("safetensors")
    try:
        return safetensors.safe_open(path, framework="pt")
    except FileNotFoundError as e:
        raise UserError(f"there is no {path}, which the model's index names") from e
    except OSError as e:
        raise UserError(f"cannot read {path} ({e.strerror or e})") from e
    except safetensors.SafetensorError as e:
        raise UserError(f"{path} is truncated or not a safetensors file ({e})") from e


def where_tensors_are(directory):
    """The tensors of a directory: name -> (file, shape, dtype's name, name in the file). Only the files' headers are read."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        weight_map = read_json(index).get("weight_map")
        names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
        bad = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if not names or bad:
            raise UserError(f"{index}: its weight_map must name .safetensors files beside it, not {shown((bad or [None])[0])}")
        files = [directory / name for name in names]
    else:
        other = "; only safetensors files are read, no pickles" if list(directory.glob("*.bin")) else ""
        raise UserError(f"there is neither {single.name} nor {index.name} in {directory}{other}")
    out = {}
    for file in files:
        with open_tensors(file) as f:
            for stored in f.keys():
                name = usual(stored)
                if name in out:
                    raise UserError(f"{name} is both in {out[name][0]} and in {file}")
                piece = f.get_slice(stored)
                out[name] = file, piece.get_shape(), piece.get_dtype(), stored
    return out


def usual(name):
    """A tensor's name as most files have it. Models saved without their head lack the first "model.", others have it twice.

    >>> usual("layers.0.mlp.up_proj.weight"), usual("model.lm_head.weight")
    ('model.layers.0.mlp.up_proj.weight', 'lm_head.weight')
    """
    rest = name.removeprefix("model.").removeprefix("model.")
    return f"model.{rest}" if rest.partition(".")[0] in ("embed_tokens", "layers", "norm") else rest if rest == "lm_head.weight" else name


def head_or_tied(directory, config, where):
    """Settle what the output layer is where config.json says that it is the embedding, as transformers does.

    A file may hold the two once, under either name, or twice. Twice and different, they are two layers.
    """
    embed, head = OUTSIDE["embed.weight"], OUTSIDE["head.weight"]
    if not config.tied or head not in where:
        return
    if embed not in where:
        where[embed] = where.pop(head)
    elif where[embed][1] != where[head][1] or not torch.equal(read_tensor(where, embed), read_tensor(where, head)):
        config.tied = False
        print(f"note: {directory}: tie_word_embeddings is true, but {head} is not the embedding: both are used, as transformers 5 does")


def read_tensor(where, name, rows=None):
    """One tensor, its first `rows` rows only if given. The file is closed after each, and with it what the system had read of it."""
    file, _, _, stored = where[name]
    with open_tensors(file) as f:
        return f.get_slice(stored)[:rows] if rows else f.get_tensor(stored)


def check_tensors(directory, config, names, where):
    """UserError unless the files hold exactly the tensors of this config, with its shapes, as plain floats."""
    for theirs in where:
        if theirs not in names.values() and not theirs.endswith(".rotary_emb.inv_freq") and not (
                theirs == "lm_head.weight" and config.tied):
            raise UserError(f"{directory}: the tensor {theirs[:100]} has no place in the model of its config.json")
    missing = [theirs for theirs in names.values() if theirs not in where]
    if missing:
        raise UserError(f"{directory}: the tensor {missing[0]} is missing{f', and {len(missing) - 1} more' * (len(missing) > 1)}")
    with torch.device("meta"):  # shapes without memory
        shapes = {name: list(p.shape) for name, p in GPT(config).state_dict().items()}
    for ours, theirs in names.items():
        file, shape, kind, _ = where[theirs]
        if list(shape) != shapes[ours]:
            raise UserError(f"{file}: the tensor {theirs} has the shape {shape}, and config.json asks for {shapes[ours]}")
        if kind not in ("F64", "F32", "F16", "BF16"):
            raise UserError(f"{file}: the tensor {theirs} is stored as {kind}; only F32, F16, BF16 and F64 are read, nothing quantised")


def check_numbers(name, tensor, may_be_zero=True):
    """UserError when a tensor holds no numbers that a trained model has."""
    if not tensor.numel():
        return
    low, high = tensor.aminmax()  # both NaN where one value is; no copy of the tensor, as isfinite() would need
    if not (low.isfinite() and high.isfinite()):
        bad, kind = int((~tensor.isfinite()).sum()), "NaN" if tensor.isnan().any() else "infinite"
        small = ", or float16 is too small for it" if tensor.dtype == torch.float16 else ""
        raise UserError(f"{name} has {bad} values of {tensor.numel()} that are {kind} as {str(tensor.dtype).removeprefix('torch.')}: "
                        f"the model is damaged, or its training diverged{small}")
    if not may_be_zero and low == high == 0:
        raise UserError(f"{name} is zero everywhere: the file was not written whole")


def load(directory, device="cpu", dtype=torch.float32, vocab_size=None):
    """The GPT in a directory, its weights as `dtype` (a torch.dtype or its name), ready for training or, frozen, for use.

    vocab_size cuts the rows of embedding and head to so many: what stands beyond a tokenizer's vocabulary (see `agree`) is padding.
    Weights are read one at a time: the memory needed is that of the model plus one tensor. UserError names what is wrong.
    """
    directory = Path(directory)
    dtype = DTYPES.get(dtype, dtype)
    if dtype not in DTYPES.values():
        raise UserError(f"the dtype is {dtype}, and must be one of {', '.join(DTYPES)}")
    config = read_config(directory)
    where = where_tensors_are(directory)
    if config.n_layer > len(where):
        raise UserError(f"{directory}: config.json asks for {config.n_layer} layers, and the files have {len(where)} tensors")
    head_or_tied(directory, config, where)
    names = tensor_names(config)
    try:
        check_tensors(directory, config, names, where)
    except ValueError as e:
        raise UserError(f"{directory / 'config.json'}: {e}") from e
    if vocab_size is not None:
        if vocab_size > config.vocab_size:
            raise UserError(f"{directory}: the model has rows for {config.vocab_size} tokens, and the vocabulary has {vocab_size}")
        config.vocab_size = vocab_size
    with torch.device("meta"):
        model = GPT(config)
    state = {}
    for ours, theirs in names.items():
        rows = config.vocab_size if ours in ("embed.weight", "head.weight") else None
        state[ours] = read_tensor(where, theirs, rows).to(device, dtype, copy=True)  # a copy: the file may change or go
        check_numbers(f"{where[theirs][0]}: the tensor {theirs}", state[ours], may_be_zero=ours not in OUTSIDE or config.one_plus)
    if config.tied:
        state["head.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True)
    if config.tied:
        model.head.weight = model.embed.weight
    model.cos, model.sin = (table.float().to(device, dtype) for table in rope_table(config))
    return model.eval()


def save(model, directory, tokenizer=None):
    """Write a GPT as config.json and model.safetensors, which `load` and transformers read, and the files of its Tokenizer, if given.

    All files are complete on the disk before the first takes the place of an older one. UserError when the directory holds a model
    in several files (which would be left behind), or cannot be written.
    """
    directory, save_file = Path(directory), extra("safetensors.torch").save_file
    if (directory / "model.safetensors.index.json").exists():
        raise UserError(f"{directory} holds a model in several files: save to another directory")
    names, state = tensor_names(model.config), model.state_dict()
    weights = {theirs: state[ours].detach().contiguous() for ours, theirs in names.items()}
    content = {**write_config(model.config), "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
               "bos_token_id": None, "eos_token_id": None}
    content["torch_dtype"] = content["dtype"]  # the key's older name
    files = dict(tokenizer.files) if tokenizer else {}
    if tokenizer:
        content["eos_token_id"] = tokenizer.ends
    files["config.json"] = (json.dumps(content, indent=2) + "\n").encode()
    ready = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in [*files, "model.safetensors"]:
            ready[name] = path = directory / f"{name}.{os.getpid()}.tmp"
            if name in files:
                path.write_bytes(files[name])
            else:
                save_file(weights, path, metadata={"format": "pt"})
                shutil.copymode(ready["config.json"], path)  # some versions leave it readable by its owner only
            with open(path, "rb") as f:
                os.fsync(f.fileno())
        for name, path in ready.items():
            os.replace(path, directory / name)
    except (OSError, extra("safetensors").SafetensorError) as e:
        for path in ready.values():
            path.unlink(missing_ok=True)
        raise UserError(f"cannot write {directory} ({getattr(e, 'strerror', None) or e}); what was there before is unchanged") from e
