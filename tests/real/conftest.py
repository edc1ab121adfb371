"""What the tests of extra/real share: small random models in directories of Hugging Face's form, data, and the scripts' mistakes."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from extra.gpt import GPT, GPTConfig
from extra.real import save
from extra.real.pretrained_tokenizer import Tokenizer
from toy_experts.run import UserError

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LLAMA = GPTConfig(vocab_size=29, d_model=16, n_layer=2, n_head=4, n_kv_head=2, head_dim=6, d_ff=20, max_len=64, rope_float32=True)
GEMMA = replace(LLAMA, gelu=True, post_norm=True, one_plus=True, embed_scaled=True, query_scalar=9.0, attn_cap=5.0, logit_cap=6.0, window=8)
LLAMA3 = replace(LLAMA, tied=False, rope_factor=8.0, rope_low=1.0, rope_high=4.0, rope_original=16)

CHAT = ("{{ bos_token }}{% for m in messages %}\n<|{{ m['role'] }}|>{{ m['content'] | trim }}<|turn|>\n  {% endfor %}\n"
        "{% if add_generation_prompt %}\n<|assistant|>{% endif %}")  # line breaks after blocks, and spaces before them, do not count
SPECIAL = ["<s>", "</s>", "<|turn|>", "<|user|>", "<|assistant|>"]
SFT = [{"prompt": p, "completion": c} for p, c in [
    ("the cat", "what cat"), ("what?", "the"), ("Zoë 東", "naïve 🙂"), ("a", "b"), ("the theatre", "then the cat sat at the theatre"),
    ("two\nlines", "one\n"), ("x" * 20, "y")]]
PAIRS = [{"prompt": p["prompt"], "chosen": p["completion"], "rejected": r}
         for p, r in zip(SFT, ["no", "that", "cat cat", "the", "the cat"])]
SIZES = {"start": (LLAMA, 272), "math": (GEMMA, 267), "code": (replace(LLAMA, d_model=24, n_layer=1, tied=False), 280)}


def refused(call, *args):
    """The complaint, one line, of a call that must refuse what it is given."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def main(name, *args):
    """A script of extra/real in this process: starting Python and torch takes seconds each time."""
    importlib.import_module(f"extra.real.{name}").main([str(a) for a in args])


def mistake(name, *args):
    return refused(main, name, *args)


def script(name, *args, status=0, stdin=""):
    """A script of extra/real in a process of its own, as a user would run it."""
    p = subprocess.run([sys.executable, "-m", f"extra.real.{name}", *map(str, args)], input=stdin, text=True, capture_output=True, cwd=ROOT,
                       env=ENV, timeout=240)
    assert p.returncode == status, p.stdout + p.stderr
    return p


def lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def write_tokenizer(path, template=CHAT, eos=1, special=SPECIAL, ordinary=(), **settings):
    """Make the directory `path` with a byte-level BPE tokenizer of 267 tokens and `settings`."""
    lib = pytest.importorskip("tokenizers")
    pytest.importorskip("jinja2")
    alphabet = sorted(lib.pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("Ġ", "w"), ("a", "t")]
    words = SPECIAL + alphabet + [a + b for a, b in merges]
    encoding = lib.Tokenizer(lib.models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    encoding.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = lib.decoders.ByteLevel()
    encoding.add_special_tokens(list(special))
    encoding.add_tokens(list(ordinary))
    encoding.post_processor = lib.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    path.mkdir()
    encoding.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "chat_template": template, **settings}))
    (path / "config.json").write_text(json.dumps({"eos_token_id": eos}))
    return path


@pytest.fixture
def folder(tmp_path):
    """write_tokenizer for a directory of a given name in tmp_path."""
    pytest.importorskip("tokenizers")
    return lambda name="a", *args, **settings: write_tokenizer(tmp_path / name, *args, **settings)


class Flags:
    """The command lines of the three scripts in a folder."""

    def __init__(self, at):
        self.at, self.experts = at, ["--experts", f"math={at / 'math'}", f"code={at / 'code'}"]
        self.out = ["--out", str(at / "out"), "--device", "cpu"]
        self.sft = ["--init", str(at / "start"), *self.experts, "--data", str(at / "train.jsonl"), *self.out]
        self.cdpo = [*self.experts, "--data", str(at / "train.jsonl"), "--pairs", str(at / "pairs.jsonl"), *self.out]
        self.decode = ["--router", str(at / "out/seed0/router"), *self.experts, "--device", "cpu", "--max_new", "20"]


def make_models(at, family="llama", sft=SFT, pairs=PAIRS, **changes):
    """Make the directories start, math and code (embeddings padded to different sizes) and data in a folder; returns its Flags."""
    pytest.importorskip("safetensors")
    for name, (config, rows) in SIZES.items():
        write_tokenizer(at / name)
        config = replace(config, vocab_size=rows, **changes.get(name, {}))
        if name == "start" and family == "gemma":
            config = replace(GEMMA, vocab_size=rows)
        save(GPT(config), at / name, Tokenizer(at / name))
    lines(at / "train.jsonl", sft)
    lines(at / "pairs.jsonl", pairs)
    return Flags(at)


@pytest.fixture
def dirs(tmp_path):
    """make_models in tmp_path."""
    return lambda *args, **changes: make_models(tmp_path, *args, **changes)
