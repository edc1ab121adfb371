"""pretrained.py against transformers on many small random models, and against files that are wrong in every way thought of.

transformers is used here only. What needs a package of requirements-real.txt is skipped where it is missing; the rest never is.
"""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from extra.gpt import GPT, GPTConfig, Router
from extra.real import convert_smollm2, load, pretrained, save
from extra.real.decode import decode_batch
from extra.real.pretrained import read_config, write_config
from extra.real.pretrained_tokenizer import Tokenizer
from fusionroute import naive_fused_greedy
from model import generate, rotate
from tests.real.conftest import GEMMA, LLAMA, LLAMA3, ROOT, refused


@pytest.fixture
def safetensors():
    return pytest.importorskip("safetensors.torch")


@pytest.fixture
def transformers(safetensors):
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


# --- against transformers ----------------------------------------------------------------------------------------------------------------


def theirs(transformers, family, seed):
    """A random small model of transformers, with weights large enough that caps, norms and windows all show in the logits."""
    rng = Random(f"{family} {seed}")
    kv, group = rng.choice([1, 2, 3]), rng.choice([1, 2, 4])
    c = {"vocab_size": rng.randint(30, 80), "hidden_size": kv * group * rng.choice([4, 8]), "num_hidden_layers": rng.randint(1, 4),
         "num_attention_heads": kv * group, "num_key_value_heads": kv, "intermediate_size": rng.randint(10, 50),
         "max_position_embeddings": 256, "rms_norm_eps": rng.choice([1e-5, 1e-6]), "tie_word_embeddings": seed % 2 == 0,
         "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([100.0, 10000.0, 500000.0])},
         "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if seed % 3 == 0 and (family == "llama" or transformers.__version__ >= "5"):  # older ones pass over it in Gemma-2
        c["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    if transformers.__version__ < "5":  # the older form of the keys
        scaling = c.pop("rope_parameters")
        c.update(rope_theta=scaling.pop("rope_theta"), rope_scaling=scaling if "factor" in scaling else None)
    if family == "llama":
        if seed % 4 == 3:
            c["head_dim"] = rng.choice([2, 6, 10])
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**c, attn_implementation="eager"))
    else:
        c.update(head_dim=rng.choice([2, 6, 10]), query_pre_attn_scalar=rng.choice([4, 10, 144]), sliding_window=rng.choice([2, 5, 16]),
                 attn_logit_softcapping=rng.choice([None, 2.0, 50.0]), final_logit_softcapping=rng.choice([None, 5.0, 30.0]))
        model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**c, attn_implementation="eager"))
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        p.data = 1 - (family == "gemma2") + 0.3 * torch.randn_like(p) if p.dim() == 1 else 1.5 * torch.randn_like(p) / p.size(1) ** 0.5
    return model.eval()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("seed", range(16))
@torch.no_grad()
def test_logits_equal_those_of_transformers(family, seed, transformers, tmp_path):
    """Without a cache, with one (in pieces, rows of different lengths), and in the other direction, past the sliding window.

    (No window of 1 here: transformers 5.23 with its cache then differs from itself without one; ours agrees with the latter.)
    """
    model = theirs(transformers, family, seed)
    model.save_pretrained(tmp_path, max_shard_size="10KB" if seed % 5 == 0 else "1GB")
    ours = load(tmp_path)
    ids = torch.randint(0, ours.config.vocab_size, (3, 60))
    expected = model(ids).logits                                                  # (3, 60, V)
    assert expected.std() > 0.3, "logits that are all alike would show little"
    logits, _ = ours(ids)
    assert (logits - expected).abs().max() < 1e-4
    cache = ours.new_cache(3)
    pieces = [ours(ids[:, a:b], cache)[0] for a, b in ((0, 20), (20, 21), (21, 50))]
    assert (torch.cat(pieces, 1) - expected[:, :50]).abs().max() < 1e-4
    new = torch.tensor([1, 10, 4])                                                # padding in the place of what a row has not got
    logits, _ = ours(ids[:, 50:], cache, new)
    for b in range(3):
        assert (logits[b, -1] - expected[b, 49 + new[b]]).abs().max() < 1e-4
    assert generate(ours, [ids[0, :7].tolist()], 20, end=-1)[0] == model.generate(
        ids[:1, :7], max_new_tokens=20, do_sample=False)[0, 7:].tolist()

    save(ours, tmp_path / "again")
    again, report = type(model).from_pretrained(tmp_path / "again", attn_implementation="eager", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again(ids).logits, expected)


@torch.no_grad()
def test_far_positions_equal_those_of_transformers(transformers, tmp_path):
    """1500 tokens and sharp attention: with angles that are not rounded as theirs are, the logits differ by 1e-3."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
                                      num_key_value_heads=2, initializer_range=0.3, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, 100, (1, 1500))
    assert (load(tmp_path)(ids)[0] - model(ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@torch.no_grad()
def test_a_hundred_greedy_tokens_equal_those_of_transformers(family, transformers, tmp_path):
    model = theirs(transformers, family, seed=1)  # untied: a tied random model repeats its last token
    model.save_pretrained(tmp_path)
    prompts = torch.randint(0, model.config.vocab_size, (4, 12))
    expected = model.generate(prompts, max_new_tokens=100, do_sample=False)[:, 12:].tolist()
    assert generate(load(tmp_path), prompts.tolist(), 100, end=-1) == expected
    assert len(set(map(tuple, expected))) == 4 and max(len(set(x)) for x in expected) > 10, "texts too dull to show much"


@torch.no_grad()
def test_bfloat16_is_as_close_to_float32_as_that_of_transformers(transformers, tmp_path):
    """No equality in 8 bits, where every rounding has its order (two that matter are by hand in test_gpt.py)."""
    for family in ("llama", "gemma2"):
        model = theirs(transformers, family, seed=8)
        model.save_pretrained(tmp_path / family)
        ids = torch.randint(0, model.config.vocab_size, (8, 40))
        exact, short = model(ids).logits, load(tmp_path / family, dtype=torch.bfloat16)
        assert {p.dtype for p in short.parameters()} == {torch.bfloat16} == {short.cos.dtype}
        ours, hf = short(ids)[0] - exact, model.bfloat16()(ids).logits - exact
        assert ours.std() < 1.5 * hf.std()


@torch.no_grad()
def test_a_gemma_router_over_llama_experts():
    """Fused decoding with caches that lag behind equals the definition, whatever the families, past the sliding window."""
    router, experts = Router(GPT(GEMMA), 2), [GPT(LLAMA), GPT(LLAMA3)]
    for p in [*router.parameters(), *experts[0].parameters(), *experts[1].parameters()]:
        p.data = 1.5 * p.data + 0.3 * torch.randn_like(p)
    prompts = [torch.randint(0, 29, (n,)).tolist() for n in (3, 11, 20)]
    traces = decode_batch(router, experts, prompts, [4], 30)
    assert {i for trace in traces for i in trace.pick} == {0, 1}
    for prompt, trace in zip(prompts, traces):
        tokens, picks = naive_fused_greedy(router, experts, prompt, end=4, max_new=30)
        assert ([t for t in trace.tokens if t != 4], trace.pick) == (tokens, picks)


# --- our own round trip ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [replace(GPTConfig(), rope_float32=True), LLAMA, LLAMA3, GEMMA,
                                    replace(GEMMA, window=0, attn_cap=0.0, logit_cap=0.0)])
def test_config_round_trip(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(write_config(config)))
    again = read_config(tmp_path)
    assert again == config and all(type(a) is type(b) for a, b in zip(vars(again).values(), vars(config).values()))


@pytest.mark.parametrize("config", [LLAMA, LLAMA3, GEMMA])
def test_round_trip_to_the_last_bit(config, safetensors, tmp_path):
    model, ids = GPT(config), torch.randint(0, 29, (2, 30))
    save(model, tmp_path / "new" / "folder")
    again = load(tmp_path / "new" / "folder")
    assert torch.equal(again(ids)[0], model(ids)[0]) and again.config == config
    assert all(p.requires_grad and p.is_leaf for p in again.parameters())
    assert (again.head.weight is again.embed.weight) == config.tied
    assert not list(tmp_path.rglob("*.tmp"))
    save(GPT(replace(config, n_layer=1)), tmp_path / "new" / "folder")  # in the place of the first
    assert load(tmp_path / "new" / "folder").config.n_layer == 1


def test_rows_beyond_the_vocabulary_are_cut_off(safetensors, tmp_path):
    for config in (LLAMA, LLAMA3):
        model, ids = GPT(config), torch.randint(0, 25, (2, 9))
        save(model, tmp_path / str(config.tied))
        short = pretrained.load(tmp_path / str(config.tied), vocab_size=25)
        torch.testing.assert_close(short(ids)[0], model(ids)[0][..., :25])
        assert short.embed.weight.shape == short.head.weight.shape == (25, 16) and short.config.vocab_size == 25
    assert "29 tokens, and the vocabulary has 30" in refused(lambda: pretrained.load(tmp_path / "True", vocab_size=30))


def test_a_failed_save_leaves_what_was_there(safetensors, tmp_path, monkeypatch):
    save(GPT(LLAMA), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refused(save, GPT(GEMMA), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_mixture_of_families_is_not_saved():
    assert "neither Llama nor Gemma-2" in refused(write_config, replace(LLAMA, window=8))
    assert "neither Llama nor Gemma-2" in refused(write_config, replace(GEMMA, gelu=False))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory where Linux keeps it")
def test_memory_is_about_the_size_of_the_model(safetensors, tmp_path):
    """80 MB in 20 tensors of 4 MB and their small companions: reading them may take one more, not as much again."""
    config = replace(LLAMA, d_model=256, d_ff=4096, n_layer=6, vocab_size=4096, tied=False, n_head=1, n_kv_head=1)
    save(GPT(config), tmp_path)
    save(GPT(LLAMA), tmp_path / "small")  # read first: what torch loads at its first use is none of the model's
    code = f"""if True:
        from extra.real import pretrained; import safetensors, torch
        peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
        pretrained.load({str(tmp_path / "small")!r})
        before, model = peak(), pretrained.load({str(tmp_path)!r})
        print(peak() - before, sum(p.numel() * 4 for p in model.parameters()) / 2**20)"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    peak, size = map(float, out.split())
    assert size > 75 and peak < 1.3 * size


# --- config.json -------------------------------------------------------------------------------------------------------------------------


def config_json(folder, config=LLAMA, **changes):
    """Write config.json with some keys changed, or removed where the value is ...; returns the folder."""
    content = {**write_config(config), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    return folder


@pytest.mark.parametrize("changes, words", [
    ({"model_type": "mistral"}, 'model_type "mistral" is not supported'),
    ({"model_type": ...}, "model_type null"),
    ({"attention_bias": True}, "attention_bias = true is not supported, only false"),
    ({"mlp_bias": True}, "mlp_bias = true"),
    ({"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported, only "silu"'),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
    ({"quantization_config": {"quant_method": "gptq", "x" * 900: 1}}, "quantization_config"),
    ({"sliding_window": 4096}, "sliding_window = 4096 is not known"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_type "linear" is not supported'),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 'rope_type "yarn"'),
    ({"rope_scaling": {"rope_type": ["llama3"]}}, "rope_type"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "high_freq_factor is missing"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}}, "below high_freq_factor"),
    ({"rope_scaling": {"rope_type": "default", "factor": 8.0}}, "factor is not supported with rope_type default"),
    ({"rope_scaling": "llama3"}, "must be an object"),
    ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta is given as 500.0 and as 7.0"),
    ({"hidden_size": ...}, "hidden_size is missing"),
    ({"hidden_size": "16"}, 'hidden_size is "16"'),
    ({"hidden_size": 16.5}, "a whole number"),
    ({"num_hidden_layers": True}, "num_hidden_layers is true"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"max_position_embeddings": 10**12}, "from 1 to 1048576"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN"),
    ({"tie_word_embeddings": "yes"}, "true or false")])
def test_an_unsupported_llama_is_refused_by_name(changes, words, tmp_path):
    message = refused(read_config, config_json(tmp_path, **changes))
    assert words in message and "config.json" in message


@pytest.mark.parametrize("changes, words", [
    ({"hidden_activation": "silu"}, 'hidden_activation = "silu" is not supported, only "gelu_pytorch_tanh"'),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"sliding_window_size": 4096}, "sliding_window_size = 4096 is not supported, only 8"),
    ({"sliding_window": -1}, "sliding_window is -1"),
    ({"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0"),
    ({"mlp_bias": False}, "mlp_bias = false is not known")])
def test_an_unsupported_gemma_is_refused_by_name(changes, words, tmp_path):
    assert words in refused(read_config, config_json(tmp_path, GEMMA, **changes))


def test_old_and_new_rope_keys_mean_the_same(tmp_path):
    llama3 = {"factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0, "original_max_position_embeddings": 16, "rope_type": "llama3"}
    older = read_config(config_json(tmp_path, rope_theta=7, rope_scaling=llama3))
    newer = read_config(config_json(tmp_path, rope_theta=..., rope_scaling=..., rope_parameters={**llama3, "rope_theta": 7.0}))
    assert older == newer == replace(LLAMA3, rope_theta=7.0, tied=True)
    assert read_config(config_json(tmp_path, rope_theta=...)).rope_theta == 10000.0


def test_absent_keys_mean_what_they_mean_in_transformers(tmp_path):
    absent = dict.fromkeys(["num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "rope_theta"], ...)
    c = read_config(config_json(tmp_path, **absent))
    assert (c.n_kv_head, c.head_dim, c.norm_eps, c.tied, c.rope_theta) == (4, 4, 1e-6, False, 10000.0)
    absent |= dict.fromkeys([*pretrained.GEMMA.values(), "layer_types"], ...)
    c = read_config(config_json(tmp_path, GEMMA, **absent))
    assert (c.n_kv_head, c.head_dim, c.tied, c.query_scalar, c.attn_cap, c.logit_cap, c.window) == (4, 256, True, 256.0, 50.0, 30.0, 4096)
    assert read_config(config_json(tmp_path, GEMMA, sliding_window_size=8)) == GEMMA
    c = read_config(config_json(tmp_path, GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None, sliding_window=None))
    assert (c.attn_cap, c.logit_cap, c.window) == (0.0, 0.0, 0)


@pytest.mark.parametrize("content", [b"", b'{"model_type": "lla', b"[]", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000])
def test_a_broken_config_is_one_clear_line(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json" in refused(read_config, tmp_path)


def test_no_such_directory(tmp_path):
    assert "there is no" in refused(read_config, tmp_path / "nothing")


# --- weights -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(safetensors, tmp_path):
    """A function that saves a tied Llama whose tensors or files have been tampered with, and returns the complaint on loading it."""
    def complaint(tensors=lambda t: t, files=lambda folder: None, config=LLAMA, **changes):
        save(GPT(config), tmp_path)
        t = safetensors.load_file(tmp_path / "model.safetensors")
        safetensors.save_file(tensors(t), tmp_path / "model.safetensors")
        config_json(tmp_path, config, **changes)
        files(tmp_path)
        return refused(pretrained.load, tmp_path)
    return complaint


Q, EMBED = "model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("tamper, words", [
    (lambda t: {name: t[name] for name in t if name != Q}, f"{Q} is missing"),
    (lambda t: {name: t[name] for name in t if "layers.0" not in name}, "model.layers.0.input_layernorm.weight is missing, and 8 more"),
    (lambda t: t | {Q.replace("weight", "bias"): torch.zeros(24)}, "q_proj.bias has no place"),
    (lambda t: t | {Q: t[Q].T.contiguous()}, f"{Q} has the shape [16, 24], and config.json asks for [24, 16]"),
    (lambda t: t | {Q: t[Q].to(torch.int8)}, f"{Q} is stored as I8"),
    (lambda t: t | {Q: t[Q] / 0 * 0}, f"the tensor {Q} has 384 values of 384 that are NaN as float32: the model is damaged"),
    (lambda t: t | {Q: t[Q].clone().index_fill_(0, torch.tensor(3), float("inf"))}, f"{Q} has 16 values of 384 that are infinite"),
    (lambda t: t | {"model.norm.weight": 0 * t["model.norm.weight"]}, "the tensor model.norm.weight is zero everywhere"),
    (lambda t: t | {EMBED: 0 * t[EMBED]}, f"the tensor {EMBED} is zero everywhere: the file was not written whole"),
    (lambda t: t | {Q.removeprefix("model."): t[Q].clone()}, f"{Q} is both in"),
    (lambda t: t | {"lm_head.weight": t[EMBED][:7].clone()}, "lm_head.weight has the shape [7, 16], and config.json asks for [29, 16]")])
def test_wrong_tensors_are_named(tamper, words, broken):
    assert words in broken(tamper)


def test_tensors_that_do_no_harm(safetensors, tmp_path):
    """Old files repeat a tied head, and hold tables that follow from the config."""
    model = GPT(LLAMA)
    save(model, tmp_path)
    t = safetensors.load_file(tmp_path / "model.safetensors")
    t |= {"lm_head.weight": t[EMBED].clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}
    safetensors.save_file(t, tmp_path / "model.safetensors")
    assert torch.equal(pretrained.load(tmp_path).embed.weight, model.embed.weight)


STORED = {  # how a file may hold a tied head, and the names
    "once": lambda t: t, "twice": lambda t: t | {"lm_head.weight": t[EMBED].clone()},
    "as the head": lambda t: {name: x for name, x in t.items() if name != EMBED} | {"lm_head.weight": t[EMBED]},
    "in the model": lambda t: t | {"model.lm_head.weight": t[EMBED].clone()},
    "without model.": lambda t: {name.removeprefix("model."): x for name, x in t.items()},
    "with model. twice": lambda t: {f"model.{name}": x for name, x in t.items()},
    "two different": lambda t: t | {"lm_head.weight": t[EMBED] + 0.5}}


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma"])
@pytest.mark.parametrize("how", STORED)
@torch.no_grad()
def test_a_tied_head_is_read_however_it_is_stored(how, config, safetensors, tmp_path, capsys):
    model, ids = GPT(config), torch.randint(0, 29, (2, 9))
    save(model, tmp_path)
    t = safetensors.load_file(tmp_path / "model.safetensors")
    safetensors.save_file(STORED[how](t), tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, expected = load(tmp_path), model(ids)[0]
    if how == "two different":
        assert "lm_head.weight is not the embedding: both are used" in capsys.readouterr().out
        expected = pretrained.GPT(replace(config, tied=False))
        expected.load_state_dict(model.state_dict() | {"head.weight": t[EMBED] + 0.5})
        expected = expected(ids)[0]
    assert (again.head.weight is again.embed.weight) == (how != "two different") and torch.equal(again(ids)[0], expected)
    save(again, tmp_path / "again")
    assert torch.equal(load(tmp_path / "again")(ids)[0], expected)


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma"])
@torch.no_grad()
def test_a_tied_head_is_read_as_transformers_reads_it(config, transformers, safetensors, tmp_path):
    if transformers.__version__ < "5":
        pytest.skip("pip install transformers>=5: older ones read some of these otherwise")
    model, ids = GPT(config), torch.randint(0, 29, (2, 9))
    save(model, tmp_path)
    t = safetensors.load_file(tmp_path / "model.safetensors")
    for stored in STORED.values():
        safetensors.save_file(stored(t), tmp_path / "model.safetensors", metadata={"format": "pt"})
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
        assert (theirs(ids).logits - load(tmp_path)(ids)[0]).abs().max() < 1e-4


def test_a_model_that_float16_is_too_small_for_is_named(safetensors, tmp_path):
    model = GPT(LLAMA)
    model.blocks[0].wq.weight.data[0, 0] = 1e6
    save(model, tmp_path)
    assert torch.equal(load(tmp_path).embed.weight, model.embed.weight)
    assert "infinite as float16: the model is damaged, or its training diverged, or float16 is too small for it" in refused(
        load, tmp_path, "cpu", "float16")


@pytest.mark.parametrize("changes, words", [
    ({"num_hidden_layers": 10**6}, "1000000 layers, and the files have 20 tensors"),
    ({"num_hidden_layers": 1}, "has no place"),
    ({"num_attention_heads": 3}, "multiple"),
    ({"head_dim": 7}, "the size even"),
    ({"vocab_size": 2**20, "hidden_size": 2**20, "intermediate_size": 2**20, "head_dim": 2**20}, "has the shape")])
def test_a_config_that_does_not_fit_the_tensors(changes, words, broken):
    assert words in broken(**changes)


def rewritten(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def sharded(weight_map):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return change


@pytest.mark.parametrize("files, words", [
    (rewritten("model.safetensors", lambda b: b[:-1]), "truncated or not a safetensors"),
    (rewritten("model.safetensors", lambda b: b[:100]), "truncated or not a safetensors"),
    (rewritten("model.safetensors", lambda b: b""), "truncated or not a safetensors"),
    (rewritten("model.safetensors", lambda b: b"\xff" * 8 + b[8:]), "truncated or not a safetensors"),
    (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
    (sharded({"x": "a.safetensors", "y": "b.safetensors"}), "b.safetensors, which the model's index names"),
    (sharded({"x": "../a.safetensors"}), 'not "../a.safetensors"'),
    (sharded({"x": "/etc/passwd"}), 'not "/etc/passwd"'),
    (sharded({"x": ["a"]}), "must name .safetensors files"),
    (sharded({}), "must name .safetensors files"),
    (sharded([]), "must name .safetensors files")])
def test_broken_files_are_one_clear_line(files, words, broken):
    assert words in broken(files=files)


def test_a_pickle_is_never_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "no pickles" in refused(pretrained.load, config_json(tmp_path))
    assert not (tmp_path / "exploded").exists()


def test_a_wrong_dtype(tmp_path):
    assert "must be one of float32, bfloat16" in refused(pretrained.load, tmp_path, "cpu", "int8")


@pytest.mark.parametrize("package, call", [
    ("safetensors", lambda folder: load(folder)),
    ("safetensors.torch", lambda folder: save(GPT(LLAMA), folder))])
def test_a_missing_package_is_one_clear_line(package, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # what import then finds is: nothing
    config_json(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert refused(call, tmp_path) == "real models need the package safetensors: pip install -r requirements-real.txt"


# --- convert_smollm2.py ------------------------------------------------------------------------------------------------------------------


def test_q_and_k_rows_from_neighbours_to_halves():
    """Scores do not change: neighbours rotated before the reordering are halves rotated after it, head by head."""
    weight, x = torch.randn(2 * 6, 5), torch.randn(1, 4, 5)                           # 2 heads of 6 rows
    angle = torch.rand(1, 4, 1, 3)
    cos, sin = angle.cos(), angle.sin()
    pairs = torch.view_as_complex((x @ weight.T).view(1, 4, 2, 3, 2)) * torch.polar(torch.ones(1), angle)
    ours = rotate((x @ convert_smollm2.in_halves(weight, 2).T).view(1, 4, 2, 6), cos, sin)
    torch.testing.assert_close(ours, torch.cat([pairs.real, pairs.imag], -1))
    assert convert_smollm2.in_halves(torch.arange(8)[:, None], 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_not_the_wheel(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "x.whl").write_bytes(b"PK")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert "no wheel" in refused(convert_smollm2.main, [str(tmp_path / "x.whl"), str(tmp_path / "out")])
    assert "not all of it" in refused(convert_smollm2.main, [str(tmp_path / "x.gguf"), str(tmp_path / "out")])


@pytest.mark.skipif("SMOLLM2" not in os.environ, reason="SMOLLM2=DIR, made by extra/real/convert_smollm2.py, is not given")
@torch.no_grad()
def test_smollm2_continues_as_it_does_in_transformers(transformers):
    folder = os.environ["SMOLLM2"]
    ours, tokenizer = load(folder), Tokenizer(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = tokenizer.encode("The capital of France is")
    answer = generate(ours, [ids], 100, end=-1)[0]
    assert tokenizer.decode(answer).startswith(" Paris.")
    assert (ours(torch.tensor([ids]))[0] - model(torch.tensor([ids])).logits).abs().max() < 1e-4
    assert answer == model.generate(torch.tensor([ids]), max_new_tokens=100, do_sample=False, eos_token_id=None)[0, len(ids):].tolist()
    prompt = tokenizer.encode_prompt("What is the capital of France?")
    assert tokenizer.decode(generate(ours, [prompt], 30, tokenizer.END)[0]) == "The capital of France is Paris."
