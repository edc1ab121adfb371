"""run.sh hands its flags to every script, and refuses wrong ones before minutes are spent."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

PYTHON = """#!/bin/sh
case "$1 $2" in "-c "* | "-m pip") exit ;; esac  # run.sh looks whether this Python works
read -r line && set -- "$@" "< $line"
echo "$@" >> ran
"""


@pytest.fixture
def run_sh(tmp_path):
    """run.sh in a folder of its own, with a Python that only notes what it is asked to run."""
    if os.name == "nt":
        pytest.skip("the stand-in for Python is a shell script")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("pip", "python"):
        (tmp_path / ".venv/bin" / name).write_text(PYTHON)
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    for name in ("requirements.txt", ".venv/installed.txt"):
        shutil.copy(ROOT / "requirements.txt", tmp_path / name)
    shutil.copy(ROOT / "run.sh", tmp_path)

    def run(*args, status=0):
        command = ["bash", tmp_path / "run.sh", *args]
        p = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert p.returncode == status, p.stderr
        ran = tmp_path / "ran"
        return p, ran.read_text().splitlines() if ran.exists() else []

    return run


def test_flags_go_to_every_script(run_sh):
    p, ran = run_sh("--seed", "1", "--out", "a b", "--device=cpu")
    flags = "--seed 1 --out a b --device=cpu"
    scripts = ("train_sft.py", "train_cdpo.py", "-m toy_experts.evaluate")
    assert ran[:3] == [f"{name} {flags}" for name in scripts]
    assert len(ran) == 4 and ran[3].startswith(f"decode.py {flags} < Tom has")
    assert p.stdout.endswith("decode.py --seed 1 --out a\\ b --device=cpu\n")  # to be pasted


def test_without_flags_it_answers_first(run_sh):
    p, ran = run_sh()
    assert [line.split()[0] for line in ran[1:4]] == ["train_sft.py", "train_cdpo.py", "-m"]
    assert ran[0].startswith("decode.py < Tom has") and ran[4] == ran[0]
    assert p.stdout.count("right answers: ") == 2


def test_its_tests(run_sh):
    assert run_sh("test", "-k", "word", "--co")[1] == ["-m pytest -k word --co"]


@pytest.mark.parametrize(
    "args, says",
    [
        (["--gap", "0"], "--gap"),
        (["--seed", "1", "--epochs", "1"], "--epochs"),
        (["--seed"], "a value"),
        (["What is 38 mod 5?"], "What is 38 mod 5?"),
        (["--seed", "1", "test"], "test"),
    ],
)
def test_it_refuses_before_it_starts(run_sh, args, says):
    p, ran = run_sh(*args, status=2)
    assert p.stderr.startswith("error: ") and says in p.stderr
    assert p.stderr.count("\n") == 1 and not ran


def test_it_helps(run_sh):
    p, ran = run_sh("--help")
    assert "--seed N" in p.stdout and "bash run.sh test" in p.stdout and not ran
