"""A language model and its tokenizer: a directory, a name on the Hub, a GGUF file, a LoRA adapter.

transformers loads them. Here stands what it passes over in silence: weights that are missing,
unknown or no numbers, fields of config.json that it does not know, and tokenizers that differ.
A saved FusionRoute takes this file with it, so it imports nothing of this repository.
"""

import dataclasses
import inspect
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
)
from transformers.utils.peft_utils import find_adapter_config_file

try:
    import peft
except ImportError:  # only LoRA adapters need it
    peft = None

# Fields of config.json that change nothing in the model that transformers computes.
HARMLESS = {
    "auto_map",
    "quantization_config",
    "cache_implementation",
    "is_llama_config",
    "transformers.js_config",
    "unsloth_version",
    "unsloth_fixed",
}


class Unusable(ValueError):
    """A model, or models that do not fit together: which, and what is wrong, in one line."""


def note(text):
    """Say something on stderr, in one process of several."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)


def split(path):
    """A GGUF file's folder, and what from_pretrained needs to read it; other paths alone."""
    path = Path(path)
    return (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})


def could_be(path):
    """Whether it is a path on this machine, or may be a name on the Hub."""
    return Path(path).exists() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path))


def adapter_config(path):
    """PEFT's configuration of a LoRA adapter; None if path is a whole model."""
    if not could_be(path):
        raise Unusable(f"there is no {path}, and it is no name on the Hub")
    if split(path)[1] or find_adapter_config_file(str(path)) is None:
        return None
    if peft is None:
        raise Unusable(f"{path} is a LoRA adapter: pip install peft")
    with reading(path, "a LoRA adapter"):
        adapter = peft.PeftConfig.from_pretrained(str(path))
    if not could_be(base := adapter.base_model_name_or_path):
        raise Unusable(f"{path}: its base {base} is not here; correct it in adapter_config.json")
    return adapter


@contextmanager
def reading(path, what):
    """Whatever a library raises about a file becomes one line that names it."""
    try:
        yield
    except Unusable:
        raise
    except Exception as e:
        raise Unusable(
            f"{path} cannot be loaded as {what}: {' '.join(str(e).split())[:200]}"
        ) from e


def load(path, ignore=(), **how):
    """The model in `path`, frozen, in evaluation mode. An adapter is loaded with its base.

    ignore: fields of config.json that may be unknown. how: what from_pretrained knows, such as
    dtype, device_map and quantization_config. Unusable: says what is wrong.
    """
    adapter = adapter_config(path)
    if adapter:
        base = load(adapter.base_model_name_or_path, ignore, **how)
        return wear(peft.get_peft_model(base, adapter), path, "default")
    folder, gguf = split(path)
    with reading(path, "a language model"):
        if gguf:  # as numbers of --dtype: else it could be neither trained nor saved
            how = {"quantization_config": GgufConfig(dequantize=True)} | how
        else:
            check_fields(path, ignore)
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder), output_loading_info=True, ignore_mismatched_sizes=True, **gguf, **how
        )
    other_size = [name for name, *_ in info["mismatched_keys"]]
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"], *other_size}):
        raise Unusable(
            f"{path} has not the weights that its config.json asks for: "
            f"{', '.join(wrong[:3])} ({len(wrong)} missing, unknown or of another size)"
        )
    check_finite(path, model.named_parameters())
    model.name_or_path = str(path)
    return model.eval().requires_grad_(False)


def wear(model, path, name):
    """Put the adapter in `path` on a PeftModel, under a name; returns the model."""
    if name not in model.peft_config:
        model.add_adapter(name, adapter_config(path))
    with reading(path, "a LoRA adapter"):
        weights = peft.load_peft_weights(str(path), device="cpu")
    expected = peft.get_peft_model_state_dict(model, adapter_name=name)
    sizes, right = ({(k, v.shape) for k, v in x.items()} for x in (weights, expected))
    if wrong := sorted({k for k, _ in sizes ^ right}):
        raise Unusable(
            f"{path} has not the weights that its adapter_config.json asks for: "
            f"{', '.join(wrong[:3])} ({len(wrong)} missing, unknown or of another size)"
        )
    check_finite(path, weights.items())
    peft.set_peft_model_state_dict(model, weights, adapter_name=name)
    return model.eval().requires_grad_(False)


class Worn(torch.nn.Module):
    """A LoRA adapter as a model of its own: its base wears it while it reads, and no longer.

    base: a PeftModel, shared with other adapters. name: None for the base without an adapter.
    """

    def __init__(self, base, name):
        super().__init__()
        self.base, self.name = base, name
        self.config, self.name_or_path = base.config, base.name_or_path

    @property
    def device(self):  # asked each time: .to() may have moved the base
        return self.base.device

    def get_output_embeddings(self):
        return self.base.get_output_embeddings()

    def forward(self, *args, **kwargs):
        before = self.base.active_adapter
        if self.name is None:
            with self.base.disable_adapter():
                return self.base(*args, **kwargs)
        self.base.set_adapter(self.name, inference_mode=True)
        try:
            return self.base(*args, **kwargs)
        finally:
            self.base.set_adapter(before, inference_mode=True)


def load_experts(paths, router, ignore=(), **how):
    """The models of [(name, path)], for reading only. Adapters over one base share it in memory.

    If the router is an adapter, its base is shared too.
    """
    experts, bases = [], {}  # bases: path -> PeftModel
    if base := getattr(router, "peft_config", {}).get("default"):
        bases[same(base.base_model_name_or_path)] = router
    for name, path in paths:
        if not could_be(path):
            raise Unusable(f"there is no {path}; if {name} has moved: --experts {name}=DIR")
        adapter = adapter_config(path)
        base = same(adapter.base_model_name_or_path if adapter else path)
        if adapter and base not in bases:
            bases[base] = peft.get_peft_model(load(base, ignore, **how), adapter, f"expert_{name}")
        if adapter:
            experts.append(Worn(wear(bases[base], path, f"expert_{name}"), f"expert_{name}"))
        else:
            experts.append(Worn(bases[base], None) if base in bases else load(path, ignore, **how))
    return experts


def longest(*models):
    """How many tokens the models read at most: all of them, where one has no limit."""
    configs = [model.config.get_text_config() for model in models]
    return min(getattr(c, "max_position_embeddings", None) or 2**31 for c in configs)


def same(path):
    """One name for one place: absolute, if it is on this machine."""
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def check_finite(path, weights):
    for name, p in weights:
        if p.is_floating_point() and not p.isfinite().all():
            raise Unusable(f"{path}: the weight {name} has values that are no numbers")


def check_fields(path, ignore):
    """Unusable if config.json has a field, with a value, that transformers' code never mentions."""
    raw, _ = PreTrainedConfig.get_config_dict(str(path))
    config = AutoConfig.from_pretrained(str(path))
    fields = [f.name for f in dataclasses.fields(config)]
    known = {*fields, *config.attribute_map, *HARMLESS, *ignore}
    unknown = [name for name in raw if name in vars(config) and name not in known and raw[name]]
    model = AutoModelForCausalLM._model_mapping.get(type(config), type(config))
    code = "".join(Path(inspect.getfile(c)).read_text("utf-8") for c in (type(config), model))
    for name in unknown:
        if not name.startswith("_") and not re.search(rf"\b{re.escape(name)}\b", code):
            raise Unusable(
                f"{path}: transformers does not know the field {name} = {raw[name]!r} of its "
                f"config.json; if it changes nothing, let it pass: --ignore {name}"
            )


# --- tokenizers ----------------------------------------------------------------------------------


def load_tokenizer(path):
    """The tokenizer in `path`; of an adapter that brings none, its base's."""
    folder, gguf = split(path)
    adapter = adapter_config(path)
    try:
        with reading(path, "a tokenizer"):
            # `generate` goes on at the right end of each row, so padding stands on the left.
            return AutoTokenizer.from_pretrained(str(folder), padding_side="left", **gguf)
    except Unusable:
        if adapter is None:
            raise
    return load_tokenizer(adapter.base_model_name_or_path)


def shared_tokens(tokenizers):
    """How many ids mean the same token in all of {name: tokenizer}. Ids above it are padding.

    Unusable: the ids below it are not the same tokens.
    """
    words = {name: {i: word for word, i in t.get_vocab().items()} for name, t in tokenizers.items()}
    size = min(max(w) + 1 for w in words.values())
    (first, theirs), *others = words.items()
    for name, mine in others:
        different = [i for i in range(size) if mine.get(i) != theirs.get(i)]
        if different:
            i = different[0]
            raise Unusable(
                f"{first} and {name} do not have the same tokens: id {i} is "
                f"{theirs.get(i)!r} and {mine.get(i)!r} ({len(different)} differ); "
                "their logits cannot be added; --fuse bytes can do without (docs/tokenizers.md)"
            )
    for name, t in tokenizers.items():
        if t.chat_template != tokenizers[first].chat_template:
            note(f"{name} has another chat template than {first}, whose template all will read")
        if t.eos_token_id != tokenizers[first].eos_token_id:
            note(f"{name} ends an answer with {t.eos_token}, {first} with another token")
        if t.eos_token_id is not None and t.eos_token_id >= size:
            raise Unusable(f"the end token {t.eos_token} of {name} is not in all vocabularies")
    return size
