"""run.sh hands its flags to every script, and refuses wrong ones before minutes are spent."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

PYTHON = """#!/bin/sh
case "$1 $2" in
    "-c "* | "-m pip") exit ;;  # run.sh looks whether this Python works
    "-m venv")
        mkdir -p .venv/bin .venv/Scripts
        cp "$0" .venv/bin/python
        cp "$0" .venv/Scripts/python.exe
        exit ;;
esac
read -r line && set -- "$@" "< $line"
echo "$@" >> ran
"""


@pytest.fixture
def clone(tmp_path):
    """run.sh in a folder of its own, beside a Python that only notes what it is asked to run."""
    if os.name == "nt":
        pytest.skip("the stand-in for Python is a shell script")
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("run.sh", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    (tmp_path / "fake").write_text(PYTHON)
    (tmp_path / "fake").chmod(0o755)
    return folder


@pytest.fixture
def run_sh(clone):
    def run(*args, status=0, script=clone / "run.sh", **env):
        env = {**os.environ, "PYTHON": str(clone.parent / "fake"), **env}
        how = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        p = subprocess.run(["bash", script, *args], cwd="/", env=env, **how)
        assert p.returncode == status, p.stderr
        ran = clone / "ran"
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


# --- its .venv ----------------------------------------------------------------------------------


def dead_link(venv):
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/no/such/python")


def too_old(venv):
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").write_text("#!/bin/sh\nexit 1\n")
    (venv / "bin/python").chmod(0o755)


VENVS = {
    "none": lambda venv: None,
    "its Python is gone": dead_link,
    "too old": too_old,
    "of Windows": lambda venv: (venv / "Scripts").mkdir(parents=True),
    "a dead link": lambda venv: venv.symlink_to("/no/such/folder"),
}


@pytest.mark.parametrize("venv", VENVS)
def test_it_makes_a_bad_venv_anew(run_sh, clone, venv):
    VENVS[venv](clone / ".venv")
    p, ran = run_sh("test")
    assert "making .venv" in p.stdout and ran == ["-m pytest"]
    p, _ = run_sh("test")
    assert "making" not in p.stdout and "installing" not in p.stdout


def test_through_a_link_in_git_bash_and_without_python(run_sh, clone):
    link = clone.parent / "link.sh"
    link.symlink_to(clone / "run.sh")
    assert run_sh("test", script=link, OSTYPE="msys")[1] == ["-m pytest"]
    shutil.rmtree(clone / ".venv")
    p, _ = run_sh("test", status=2, PYTHON="/no/such/python")
    assert len(p.stderr.splitlines()) == 1 and "/no/such/python" in p.stderr
