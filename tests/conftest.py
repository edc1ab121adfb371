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

from model import GPTConfig
from toy_experts import experts, pairs
from toy_experts.script import UserError

ROOT = Path(__file__).parent.parent
STEPS = {"base": 12, "math": 6, "code": 6, "instruct": 6}
TINY = {"train_sft": "--samples 60 --epochs 4", "train_cdpo": "--prompts 36 --epochs 2"}
torch.set_num_threads(1)  # the tests' models are tiny: a second thread only waits
# Experts are made one after another: a process of its own would not see what a test has patched.
experts.side_by_side = lambda jobs: [experts.make_expert(*job) for job in jobs]


def run_script(name, *args, status=0, prefix=()):
    """Run a script in a process of its own, as a user would, under a command `prefix` if given."""
    command = [*prefix, sys.executable, str(ROOT / f"{name}.py"), *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    p = subprocess.run(command, text=True, capture_output=True, cwd=ROOT, env=env, timeout=120)
    assert p.returncode == status and "Traceback" not in p.stderr, p.stderr
    return p


def mistake(name, *args):
    """A script's complaint about a user's mistake, in this process: starting Python takes long."""
    with pytest.raises(UserError) as caught:
        importlib.import_module(name).main([str(a) for a in args])
    return str(caught.value)


def make_tiny(patch):
    """Let toy_experts.experts make tiny models in a few steps. patch: a MonkeyPatch."""
    patch.setattr(experts, "STEPS", STEPS)
    patch.setattr(experts, "GPTConfig", functools.partial(GPTConfig, d_model=24, n_layer=1))


def train_tiny(out, *names, seed=0):
    """Run these scripts (of TINY) with tiny experts in this process. Returns what they print."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        make_tiny(patch)
        patch.setattr(pairs, "MAX_NEW", 24)  # tiny models never stop
        for name in names:
            flags = ["--out", str(out), "--seed", str(seed), "--device", "cpu"]
            importlib.import_module(name).main(flags + TINY[name].split())
    return said.getvalue()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A whole tiny run of seed 0: its --out, and what each of the two trainings prints."""
    out = tmp_path_factory.mktemp("world")
    return out, {name: train_tiny(out, name) for name in TINY}


@pytest.fixture(scope="session")
def world(tiny_run):
    """The --out of that run: experts, phase 1, phase 2. Tests must not change it."""
    return tiny_run[0]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
