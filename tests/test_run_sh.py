"""run.sh: it hands its flags to every script, and refuses what not every script takes before minutes are spent."""

import shutil
import subprocess

import pytest

from tests.conftest import ROOT


@pytest.fixture
def run_sh(tmp_path):
    """run.sh in a folder of its own, with a Python that only notes what it is asked to run."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("pip", "python"):
        (tmp_path / ".venv/bin" / name).write_text('#!/bin/sh\nread -r line && set -- "$@" "< $line"\necho "$@" >> ran\n')
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    for name in ("requirements.txt", ".venv/installed.txt"):
        shutil.copy(ROOT / "requirements.txt", tmp_path / name)
    shutil.copy(ROOT / "run.sh", tmp_path)

    def run(*args, status=0):
        p = subprocess.run(["bash", tmp_path / "run.sh", *args], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert p.returncode == status, p.stderr
        return p, (tmp_path / "ran").read_text().splitlines() if (tmp_path / "ran").exists() else []
    return run


def test_run_sh_hands_its_flags_to_every_script(run_sh):
    p, ran = run_sh("--seed", "1", "--out", "a b", "--device=cpu")
    flags = "--seed 1 --out a b --device=cpu"
    assert ran[:3] == [f"{name} {flags}" for name in ("train_sft.py", "train_cdpo.py", "-m toy_experts.evaluate")]
    assert ran[3].startswith(f"decode.py {flags} < ")
    assert p.stdout.endswith("decode.py --seed 1 --out a\\ b --device=cpu\n")  # to be pasted


def test_run_sh_tests(run_sh):
    assert run_sh("test", "-k", "word", "--co")[1] == ["-m pytest -k word --co"]


@pytest.mark.parametrize("args, says", [(["--gap", "0"], "--gap"), (["--seed", "1", "--epochs", "1"], "--epochs"), (["--seed"], "a value"),
                                        (["What is 38 mod 5?"], "What is 38 mod 5?"), (["--seed", "1", "test"], "test")])
def test_run_sh_refuses_before_it_starts(run_sh, args, says):
    p, ran = run_sh(*args, status=2)
    assert p.stderr.startswith("error: ") and says in p.stderr and len(p.stderr.splitlines()) == 1 and not ran


def test_run_sh_helps(run_sh):
    p, ran = run_sh("--help")
    assert "--seed N" in p.stdout and "bash run.sh test" in p.stdout and len(p.stdout.splitlines()) == 3 and not ran
