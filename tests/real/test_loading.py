"""Models as they come: loaded anywhere, adapters, quantised, GGUF; and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf

from extra.real import FusionRoute
from extra.real.loading import load, load_tokenizer, shared_tokens
from tests.real.conftest import hidden, make, prompts, refused, routed, tokenizer

GREEDY = {"max_new_tokens": 12, "do_sample": False}


def adapter(path, base, seed, **how):
    """Save a random LoRA adapter, and the same merged into a full model beside it."""
    torch.manual_seed(seed)
    how = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | how
    model = peft.get_peft_model(load(base), peft.LoraConfig(init_lora_weights=False, **how))
    model.save_pretrained(path)
    model.merge_and_unload().save_pretrained(f"{path}_full")
    tokenizer().save_pretrained(f"{path}_full")
    return str(path)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A folder with base, and r, math and code: adapters over it, and merged: r_full, ..."""
    at = tmp_path_factory.mktemp("lora")
    make(at / "base", "Qwen2")
    for seed, name in enumerate(("r", "math", "code")):
        adapter(at / name, at / "base", seed, r=seed + 2)
    return at


def fused(at, router, *experts, **how):
    return routed(
        FusionRoute.start(at / router, {f"e{i}": at / e for i, e in enumerate(experts)}, **how)
    )


def numbers(model):
    return sum(p.numel() for p in model.parameters())


def test_adapters_are_their_merged_models_and_share_one_base(adapters):
    """Three adapters over one base, one of them the router: one base in memory."""
    light = fused(adapters, "r", "math", "code")
    full = fused(adapters, "r_full", "math_full", "code_full")
    full.W.weight.data = light.W.weight.data
    ids = prompts(2)
    assert torch.allclose(light(ids).logits, full(ids).logits, atol=1e-4)
    assert torch.equal(light.generate(ids, **GREEDY), full.generate(ids, **GREEDY))
    assert light.experts[0].name_or_path == str(adapters / "base")
    assert set(light.trace.picks.flatten().tolist()) == {0, 1}
    one = prompts(1, seed=5)
    drafted = light.generate(one, assistant_model=light.router, **GREEDY)
    assert torch.equal(drafted, full.generate(one, **GREEDY))
    base = numbers(load(adapters / "base"))
    assert base < numbers(light) < 1.7 * base and numbers(full) > 2.9 * base
    # over a router that is a full model, the adapters still share a base
    assert numbers(fused(adapters, "r_full", "math", "code")) < 2.7 * base
    assert light.to("meta").experts[0].device.type == "meta"  # where its base is now


def test_a_base_that_is_an_expert_itself_is_in_memory_once(adapters):
    light = fused(adapters, "r", "base", "math")
    full = fused(adapters, "r_full", "base", "math_full")
    full.W.weight.data = light.W.weight.data
    assert torch.allclose(light(prompts(2)).logits, full(prompts(2)).logits, atol=1e-4)
    assert numbers(light) < 1.7 * numbers(load(adapters / "base"))


def test_a_saved_adapter_router_is_small_and_comes_back(adapters, tmp_path):
    model = fused(adapters, "r", "math", "code")
    model.save_pretrained(tmp_path / "out")
    files = {p.name for p in (tmp_path / "out/router").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    again = FusionRoute.from_pretrained(tmp_path / "out")
    assert torch.equal(again.generate(prompts(), **GREEDY), model.generate(prompts(), **GREEDY))


CLEAN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
out, ids = sys.argv[1], torch.tensor(json.loads(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(out)
answer = model.generate(ids, max_new_tokens=12, do_sample=False)
model.save_pretrained(out + "_again")
again = AutoModelForCausalLM.from_pretrained(out + "_again", trust_remote_code=True)
assert torch.equal(again.generate(ids, max_new_tokens=12, do_sample=False), answer)
assert not {"fusionroute", "extra", "toy_experts"} & set(sys.modules)
print(json.dumps([answer.tolist(), model.trace.picks.tolist(), len(tokenizer)]))
"""


def test_a_clean_process_without_this_repository(adapters, tmp_path):
    """AutoModelForCausalLM with trust_remote_code; adapters are the hardest case."""
    model = fused(adapters, "r", "math", "code")
    model.save_pretrained(tmp_path / "out")
    answer = model.generate(prompts(), **GREEDY)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    args = [sys.executable, "-c", CLEAN, str(tmp_path / "out"), json.dumps(prompts().tolist())]
    p = subprocess.run(args, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=240)
    assert p.returncode == 0, p.stderr
    assert json.loads(p.stdout) == [
        answer.tolist(),
        model.trace.picks.tolist(),
        len(model.tokenizer),
    ]


def test_experts_that_have_moved(world, tmp_path):
    model = FusionRoute.start(world / "start", {n: world / n for n in ("math", "code")})
    model.save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    config["experts"] = [["math", "/gone/math"], ["code", "/gone/code"]]
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert "there is no /gone/math" in refused(FusionRoute.from_pretrained, tmp_path / "out")
    paths = {n: world / n for n in ("code", "math")}
    again = FusionRoute.from_pretrained(tmp_path / "out", expert_paths=paths)
    assert torch.equal(again(prompts()).logits, model(prompts()).logits)
    message = refused(FusionRoute.from_pretrained, tmp_path / "out", expert_paths={"law": "x"})
    assert "has no expert law: it routes among math, code" in message


def test_the_attention_of_a_loaded_model_is_kept(world):
    """A config that two models share loses it: silently, and the losses differ."""
    model = FusionRoute.start(world / "start", {"math": world / "math"})
    assert model.router.config._attn_implementation == "sdpa"
    how = {"attn_implementation": "eager"}
    model = FusionRoute.start(world / "start", {"math": world / "math"}, expert_how=how, **how)
    assert model.router.config._attn_implementation == "eager"
    assert model.experts[0].config._attn_implementation == "eager"


def test_w_reads_what_the_head_reads(tmp_path, world):
    """In some families that is not hidden_states[-1] times one: the head's own input counts."""
    make(tmp_path / "granite", "Granite")
    model = FusionRoute.start(tmp_path / "granite", {"math": world / "math"})
    torch.nn.init.normal_(model.W.weight)
    assert torch.allclose(model(prompts()).w, model.W(hidden(model, prompts())), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_experts(bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    for seed, name in enumerate(("start", "math")):
        make(tmp_path / name, seed=seed, hidden_size=128, intermediate_size=128)
    paths = tmp_path / "start", {"math": tmp_path / "math"}
    quantised = hf.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = FusionRoute.start(*paths, expert_how={"quantization_config": quantised})
    assert "bitsandbytes" in type(model.experts[0].model.layers[0].mlp.up_proj).__module__
    assert type(model.router.model.layers[0].mlp.up_proj) is torch.nn.Linear
    exact = FusionRoute.start(*paths)
    a, b = model(prompts()).logits.flatten(), exact(prompts()).logits.flatten()
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9 and not torch.equal(a, b)
    assert model.generate(prompts(), **GREEDY).shape == (1, 19)


def test_an_expert_from_a_gguf_file(tmp_path, world):
    """A tiny Llama written by hand in llama.cpp's format, in which Q and K have rows in pairs."""
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    path = make(tmp_path / "full", seed=4, vocab_size=266)
    model, file = load(path), tmp_path / "gguf/tiny.gguf"
    file.parent.mkdir()
    w = gguf.GGUFWriter(file, "llama")
    for key, value in {
        "vocab_size": 266, "context_length": 256, "embedding_length": 32, "block_count": 2,
        "feed_forward_length": 48, "head_count": 4, "head_count_kv": 2, "layer_norm_rms_eps": 1e-6,
        "rope_freq_base": 10000.0,
    }.items():  # fmt: skip
        getattr(w, f"add_{key}")(value)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm", "o_proj": "attn_output", "up_proj": "ffn_up",
             "gate_proj": "ffn_gate", "down_proj": "ffn_down", "q_proj": "attn_q",
             "k_proj": "attn_k", "v_proj": "attn_v"}  # fmt: skip
    for name, p in model.state_dict().items():
        parts = name.split(".")
        if parts[-2] in ("q_proj", "k_proj"):
            heads = 4 if parts[-2] == "q_proj" else 2
            p = p.view(heads, 2, -1, p.size(1)).transpose(1, 2).reshape(p.shape)
        if parts[0] != "lm_head":
            block = f"blk.{parts[2]}." if parts[1] == "layers" else ""
            w.add_tensor(f"{block}{names[parts[-2]]}.weight", p.numpy().copy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    tokenizer().save_pretrained(file.parent)
    model = FusionRoute.start(world / "start", {"tiny": file})
    full = FusionRoute.start(world / "start", {"tiny": path})
    assert torch.allclose(model(prompts()).logits, full(prompts()).logits, atol=1e-3)


# --- what is refused -----------------------------------------------------------------------------


def edit(path, **fields):
    config = json.loads((Path(path) / "config.json").read_text())
    (Path(path) / "config.json").write_text(json.dumps(config | fields))
    return path


def damaged(path, what):
    """A tiny model with one thing wrong."""
    path = make(path)
    file = Path(path) / "model.safetensors"
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:-50])
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "no weights":
        file.unlink()
    elif what == "no numbers":
        model = load(path)
        model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
        model.save_pretrained(path)
    elif what == "no JSON":
        (Path(path) / "config.json").write_text('{"model_type": ')
    elif what == "no tokenizer":
        (Path(path) / "tokenizer.json").write_text("{")
    return path


@pytest.mark.parametrize("fields, says", [
    ({"num_hidden_layers": 3}, "(9 missing, unknown or of another size)"),
    ({"num_hidden_layers": 1}, "(9 missing, unknown or of another size)"),
    ({"intermediate_size": 64}, "(6 missing, unknown or of another size)"),
    ({"final_logit_softcapping": 30.0}, "does not know the field final_logit_softcapping = 30.0"),
    ({"model_type": "gpt9"}, "cannot be loaded as a language model"),
    ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}, "model_type": "evil"}, "cannot be loaded"),
])  # fmt: skip
def test_a_config_that_does_not_fit(fields, says, tmp_path):
    assert says in refused(load, edit(make(tmp_path / "a"), **fields))


@pytest.mark.parametrize("what, says", [
    ("truncated", "cannot be loaded as a language model: Error while deserializing"),
    ("empty", "cannot be loaded"), ("no weights", "no file named model.safetensors"),
    ("no numbers", "layers.1.mlp.up_proj.weight has values that are no numbers"),
    ("no JSON", "config.json' is not a valid JSON file"),
])  # fmt: skip
def test_a_damaged_model(what, says, tmp_path):
    assert says in refused(load, damaged(tmp_path / "a", what))


def test_fields_of_a_config_that_may_pass(tmp_path):
    """What --ignore names, what has no value, and what only some families' code mentions."""
    path = edit(make(tmp_path / "a"), unsloth_version="2024.9", rope_interleaved=False, strange=1)
    assert "--ignore strange" in refused(load, path)
    assert load(path, ignore=["strange"]).config.strange == 1
    assert "cannot be loaded as a tokenizer" in refused(
        load_tokenizer, damaged(tmp_path / "b", "no tokenizer")
    )


def test_a_damaged_adapter_and_router(adapters, tmp_path):
    for fields, says in (
        ({"r": 5}, "of another size"),
        ({"target_modules": ["q_proj"]}, "missing, unknown or"),
        ({"base_model_name_or_path": "/gone/qwen"}, "base /gone/qwen is not here"),
    ):
        path = adapter(tmp_path / next(iter(fields)), adapters / "base", 1)
        file = Path(path) / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        assert says in refused(load, path)
    fused(adapters, "r", "math", "code").save_pretrained(tmp_path / "out")
    file = tmp_path / "out/W.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    assert "W.safetensors" in refused(FusionRoute.from_pretrained, tmp_path / "out")


def test_vocabularies_that_differ_and_padded_rows(world, tmp_path, capsys):
    other = make(tmp_path / "other", tok=tokenizer(swap=("th", "the")))
    message = refused(FusionRoute.start, world / "start", {"other": other})
    says = "the router and other do not have the same tokens: id 260 is 'th' and 'the' (2 differ)"
    assert says in message
    model = FusionRoute.start(world / "start", {n: world / n for n in ("math", "code")})
    assert model.config.n_tokens == 266 and model(prompts()).logits.size(-1) == 266
    more = tokenizer()
    more.add_tokens(["<extra>"])  # an expert that has one token more: cut off
    assert shared_tokens({"a": tokenizer(), "b": more}) == 266
    capsys.readouterr()
    other = tokenizer(template="{{ messages }}", eos_token="<s>")
    assert shared_tokens({"the router": tokenizer(), "b": other}) == 266
    said = capsys.readouterr().err
    assert "note: b has another chat template" in said and "note: b ends an answer with <s>" in said
