import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import common

ROOT = Path(__file__).parent.parent
TINY = {"toy_experts.train": "--d_model 24 --n_layer 1 --base_steps 12 --math_steps 6 --code_steps 6 --instruct_steps 6",
        "train_sft": "--samples 60 --epochs 4 --batch 8 --save_every 5",
        "train_cdpo": "--prompts 36 --tries 1 --epochs 2 --batch 8 --save_every 3"}


def script(name, *args, status=0, stdin="", prefix=(), env=None):
    """Run a script in a process of its own, as a user would."""
    module = ["-m", name] if "." in name else [str(ROOT / f"{name}.py")]
    p = subprocess.run([*prefix, sys.executable, *module, *map(str, args)], input=stdin, text=True, capture_output=True, cwd=ROOT,
                       env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, timeout=240)
    assert p.returncode == status, p.stderr
    if status:  # a user's mistake: one line, behind progress bars at most
        last = p.stderr.replace("\r", "\n").strip().splitlines()
        assert last[-1].startswith("error: ") and "Traceback" not in p.stderr
        assert sum(line.startswith("error: ") for line in last) == 1
    return p


def mistake(name, *args):
    """A script's complaint about a user's mistake, in this process (starting Python and torch takes seconds each time)."""
    with pytest.raises(common.UserError) as caught:
        importlib.import_module(name).main([str(a) for a in args])
    return str(caught.value)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder of a whole tiny run (--out), seed 0: experts, phase 1, phase 2. Tests must not change it."""
    out = tmp_path_factory.mktemp("world")
    for name, flags in TINY.items():
        script(name, "--out", out, "--device", "cpu", *flags.split())
    return out


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
