"""What the tests share: running a script, catching a user's mistake, and a whole tiny run."""

import contextlib
import functools
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import GPT, GPTConfig
from toy_experts import batch, pairs, script, tokenizer
from toy_experts import train as toy
from toy_experts.batch import show_accuracy

ROOT = Path(__file__).parent.parent
STEPS = {"base": 12, "math": 6, "code": 6, "instruct": 6}
TINY = {"train_sft": "--samples 60 --epochs 4", "train_cdpo": "--prompts 36 --epochs 2"}
torch.set_num_threads(1)  # the tests' models are tiny: a second thread only waits


def script(name, *args, status=0, stdin="", prefix=(), env=None, cwd=ROOT):
    """Run a script in a process of its own, as a user would. name: "decode" or "toy_experts.train"."""
    module = ["-m", name] if "." in name else [str(ROOT / f"{name}.py")]
    p = subprocess.run([*prefix, sys.executable, *module, *map(str, args)], input=stdin, text=True, capture_output=True, cwd=cwd,
                       env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, timeout=240)
    assert p.returncode == status, p.stderr
    if status:  # a user's mistake: one line, after progress bars at most
        last = p.stderr.replace("\r", "\n").strip().splitlines()
        assert last[-1].startswith("error: ") and "Traceback" not in p.stderr
        assert sum(line.startswith("error: ") for line in last) == 1
    return p


def mistake(name, *args):
    """A script's complaint about a user's mistake, in this process (starting Python and torch takes seconds each time)."""
    with pytest.raises(script.UserError) as caught:
        importlib.import_module(name).main([str(a) for a in args])
    return str(caught.value)


def make_tiny(patch):
    """Let toy_experts.train make tiny experts in a few steps. patch: a MonkeyPatch."""
    patch.setattr(toy, "STEPS", STEPS)
    patch.setattr(toy, "new_gpt", lambda: GPT(GPTConfig(vocab_size=tokenizer.VOCAB_SIZE, d_model=24, n_layer=1)))


def train_tiny(out, *names, seed=0):
    """Run these scripts (of TINY) with tiny experts in this process. Returns what they print."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        make_tiny(patch)
        patch.setattr(batch, "answers", functools.partial(batch.answers, max_new=16))  # tiny models never stop: 96 tokens take long
        patch.setattr(pairs, "MAX_NEW", 24)
        for name in names:
            module = importlib.import_module(name)
            patch.setattr(module, "show_accuracy", functools.partial(show_accuracy, n=2))
            module.main(["--out", str(out), "--seed", str(seed), "--device", "cpu", *TINY[name].split()])
    return said.getvalue()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A whole tiny run of seed 0, made in this process: its --out, and what the two trainings print."""
    out = tmp_path_factory.mktemp("world")
    return out, {name: train_tiny(out, name) for name in TINY}


@pytest.fixture(scope="session")
def world(tiny_run):
    """The folder of a whole tiny run (--out), seed 0: experts, phase 1, phase 2. Tests must not change it."""
    return tiny_run[0]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
