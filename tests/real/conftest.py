"""What the tests of extra/real share: tiny random models, a tokenizer, data, complaints."""

import importlib
import json
import os
from importlib.util import find_spec

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is on the Hub

import pytest
import torch

from fusionroute import fuse
from toy_experts.script import UserError

COMPLETE = all(map(find_spec, ("transformers", "peft", "datasets", "accelerate")))

if COMPLETE:
    import transformers as hf
    from datasets.utils.logging import disable_progress_bar
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from extra.real.loading import Unusable

    disable_progress_bar()
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()


class Skipped(pytest.Module):
    """A test file without what it needs. A skip of this conftest itself would stop pytest."""

    def collect(self):
        pytest.skip("extra/real needs requirements-real.txt")


def pytest_pycollect_makemodule(module_path, parent):
    if not COMPLETE:
        return Skipped.from_parent(parent, path=module_path)


CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
WORDS = 266  # tokens of the tokenizer; models have some more rows
SMALL = {
    "vocab_size": 272,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
SLIDING = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
FAMILIES = {
    "Llama": {},
    "Gemma2": SLIDING,
    "Gemma3Text": SLIDING | {"layer_types": ["sliding_attention", "full_attention"]},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"head_dim": 8, "sliding_window": 8},
    "Phi3": {"tie_word_embeddings": False, "sliding_window": None},
    "Olmo2": {},
    "SmolLM3": {},
    "Cohere": {},
    "Granite": {"logits_scaling": 3.0},
    "GPTNeoX": {},
    "GPT2": {},  # absolute positions: padding must not count
    "Qwen3Moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}


def tokenizer(template=CHAT, special=SPECIAL, swap=(), **how):
    """A byte-level BPE tokenizer of 266 tokens; swap: two tokens that change places."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("Ġ", "w"), ("a", "t")]
    ids = {w: i for i, w in enumerate(SPECIAL + alphabet + [a + b for a, b in merges])}
    if swap:
        ids[swap[0]], ids[swap[1]] = ids[swap[1]], ids[swap[0]]
    lib = Tokenizer(models.BPE(vocab=ids, merges=merges))
    lib.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lib.decoder = decoders.ByteLevel()
    lib.add_special_tokens(special)
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=lib, chat_template=template, **named | how)


def make(path, family="Llama", seed=0, tok=None, **changes):
    """Save a tiny random model and its tokenizer in a directory; returns its path as a text."""
    torch.manual_seed(seed)
    settings = SMALL | FAMILIES[family] | changes
    if family in ("GPTNeoX", "GPT2"):
        settings.pop("num_key_value_heads")
    if family == "GPT2":
        settings["n_inner"] = settings.pop("intermediate_size")
    config = getattr(hf, f"{family}Config")(**settings)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for p in model.parameters():
        if p.dim() > 1:
            p.data.mul_(4)  # logits that differ
    model.save_pretrained(path)
    (tok or tokenizer()).save_pretrained(path)
    return str(path)


def prompts(n=1, length=7, seed=0):
    return torch.randint(4, WORDS, (n, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def hidden(model, ids):
    """What the router's output layer reads, (B, T, d)."""
    seen = []
    head = model.router.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.router(input_ids=ids)
    hook.remove()
    return seen[0]


@torch.no_grad()
def by_definition(model, ids, new):
    """Greedy decoding of Eq. (1) without caches, of one row; ids and the picked experts."""
    ids, picks = ids.clone(), []
    for _ in range(new):
        router = model.router(input_ids=ids).logits[0, -1, :WORDS]
        picks.append(int(model.W(hidden(model, ids)[0, -1]).argmax()))
        expert = model.experts[picks[-1]](input_ids=ids).logits[0, -1, :WORDS]
        ids = torch.cat([ids, fuse(router, expert).argmax().view(1, 1)], 1)
        if int(ids[0, -1]) == model.generation_config.eos_token_id:
            break
    return ids, picks


def routed(model):
    """A model with a W that picks each of its two experts about as often."""
    mean = hidden(model, prompts(8, 20, seed=9)).mean((0, 1))
    direction = torch.randn(len(mean), generator=torch.Generator().manual_seed(1))
    direction -= mean * (direction @ mean) / (mean @ mean)
    model.W.weight.data = torch.stack([direction, -direction])
    return model


def lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def main(name, *args):
    """A script of extra/real in this process: starting Python takes seconds each time."""
    importlib.import_module(f"extra.real.{name}").main([str(a) for a in args])


def refused(call, *args, **how):
    """The complaint, one line, of a call that must refuse what it is given."""
    with pytest.raises((UserError, Unusable)) as caught:
        call(*args, **how)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


SFT = [
    {"prompt": f"what is {i} + {i}?", "completion": f"the answer is {2 * i}" * (1 + i % 2)}
    for i in range(11)
]
PAIRS = [
    {"prompt": f"what is {i}?", "chosen": f"the {i}", "rejected": f"cat cat {i}"} for i in range(6)
]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with the models start, math and code, padded differently, and data. Read only."""
    at = tmp_path_factory.mktemp("real")
    make(at / "start", seed=0)
    make(at / "math", "Qwen2", seed=1, vocab_size=266)
    make(at / "code", seed=2, vocab_size=280, hidden_size=24, num_attention_heads=2)
    lines(at / "train.jsonl", SFT)
    lines(at / "pairs.jsonl", PAIRS)
    return at


@pytest.fixture(scope="session")
def flags(world):
    """The flags of both trainings, but for --out: small, and quick to move weights."""
    hurry = "--batch 4 --lr 1e-3 --lr_w 0.1 --device cpu --max_len 64".split()
    experts = ["--experts", f"math={world}/math", f"code={world}/code"]
    sft = ["--init", f"{world}/start", *experts, "--data", f"{world}/train.jsonl", *hurry]
    cdpo = ["--data", f"{world}/train.jsonl", "--pairs", f"{world}/pairs.jsonl", *hurry]
    return {"train_sft": sft, "train_cdpo": cdpo}


@pytest.fixture(scope="session")
def trained(world, flags):
    """--out of both phases. Tests must not change it."""
    out = world / "trained"
    for name, how in flags.items():
        main(name, *how, "--out", out)
    return out
