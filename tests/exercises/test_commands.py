"""python -m exercises: which steps pass, what is said of the others, and both trainings with a reader's functions."""

import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

import train_cdpo
import train_sft
from exercises import __main__ as main
from exercises import checks, solutions
from exercises import train as exercise
from fusionroute import Router, score
from toy_experts import pairs as toy_pairs
from toy_experts import script, tasks
from toy_experts import train as toy
from toy_experts.data import Data, scored

ROOT = Path(__file__).resolve().parents[2]
FILES = [file for file, _ in checks.STEPS.values()]


@pytest.fixture
def folder(tmp_path):
    """A copy of exercises/ to write in."""
    shutil.copytree(ROOT / "exercises", tmp_path / "exercises", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "exercises"


def solve(folder, *steps):
    for step in steps:
        file, functions = checks.STEPS[step]
        with open(folder / f"{file}.py", "a") as f:
            f.write(f"\n\nfrom exercises.solutions import {', '.join(functions)}\n")


@pytest.fixture
def command(folder, monkeypatch, capsys):
    """python -m exercises ARGS with this copy, in this process: its exit status and what it prints."""
    monkeypatch.setattr(main, "FOLDER", folder)

    def call(*args):
        try:
            main.main(list(args))
            status = 0
        except SystemExit as e:
            status = e.code
        return status, capsys.readouterr().out
    return call


def test_untouched_files_are_to_be_written(command):
    status, said = command()
    assert status == 1
    assert [line.split()[-1] for line in said.splitlines()[:8]] == [f"exercises/{file}.py" for file in FILES]
    assert said.endswith("0 of 8 steps pass. Next: exercises/step1_fuse.py\n")


def test_all_steps_pass_with_our_functions(folder, command):
    solve(folder, *checks.STEPS)
    status, said = command()
    assert status == 0 and said.count("passes") == 8 and "python -m exercises train" in said


def test_a_mistake_is_reported_and_the_other_steps_are_still_checked(folder, command):
    solve(folder, 1, 3, 4, 6, 7)
    (folder / "step2_informative.py").write_text("import torch\n\n\ndef informative(choice)\n    return choice\n")
    (folder / "step5_sequence_logp.py").unlink()
    step8 = folder / "step8_routing_dp.py"
    step8.write_text(step8.read_text().replace("raise NotImplementedError", "return rewards[9], []"))
    (folder / "step6_cdpo_loss.py").write_text("from nowhere import anything\n")
    status, said = command()
    assert status == 1
    lines = said.splitlines()
    verdicts = {line.split()[1]: line.split()[-1] for line in lines if line.startswith("step")}
    assert verdicts == {"1": "passes", "2": "wrong", "3": "passes", "4": "passes", "5": "wrong", "6": "wrong", "7": "passes", "8": "wrong"}
    after = {line.split()[1]: lines[i + 1] for i, line in enumerate(lines[:-1]) if line.startswith("step")}
    assert "not Python yet: expected ':' (exercises/step2_informative.py, line 4)" in after["2"]
    assert "cannot read exercises/step5_sequence_logp.py" in after["5"]
    assert "ModuleNotFoundError: No module named 'nowhere' (exercises/step6_cdpo_loss.py, line 1)" in after["6"]
    place = 1 + step8.read_text().splitlines().index("    return rewards[9], []")
    assert f"IndexError: list index out of range (exercises/step8_routing_dp.py, line {place})" in after["8"]


def test_one_step_and_wrong_commands(folder, command):
    solve(folder, 3)
    status, said = command("3")
    assert (status, len(said.splitlines())) == (0, 1)
    with pytest.raises(script.UserError, match="'9' is neither a step, 1 to 8, nor train"):
        command("9")
    with pytest.raises(script.UserError, match="step 1 is not written yet, .* see python -m exercises 1"):
        command("train")


def test_a_function_with_another_name(folder, command):
    (folder / "step1_fuse.py").write_text("def fusion(a, b):\n    return a + b\n")
    assert "has no function fuse any more" in command("1")[1]


def test_checking_leaves_no_stand_in_behind(folder, command):
    """While step 4 is checked, step 2 is ours; afterwards it is the reader's again."""
    command()
    assert "exercises.step2_informative" not in sys.modules


# --- training --------------------------------------------------------------------------------------------------------

SMALL = exercise.Settings(samples=16, prompts=6, tests=1)
MINE = {name: getattr(solutions, name) for _, functions in checks.STEPS.values() for name in functions}


@pytest.fixture(scope="module")
def experts():
    return toy.load_router(script.WEIGHTS, "router", "cpu", "")[1]


@pytest.fixture(scope="module")
def trained(experts):
    return exercise.phases(SMALL, SimpleNamespace(**MINE), experts)


def weights(router):
    return torch.cat([p.flatten() for p in router.parameters()])


def test_our_functions_handed_in_train_as_the_scripts_do(experts, trained):
    """To the bit: phases() is what train_sft.main and train_cdpo.main do, with two functions replaced."""
    torch.manual_seed(0)
    items = tasks.mixed("train", SMALL.samples, Random("sft 0"))
    sft = scored([toy.sample(item) for item in items], experts)
    router = Router(deepcopy(experts[toy.EXPERTS.index("instruct")]), 3).requires_grad_(True)
    train_sft.train(train_sft.Settings(), router, sft)
    assert torch.equal(weights(router), weights(trained[0]))
    found = toy_pairs.sample(deepcopy(router).requires_grad_(False), experts, 0, SMALL.prompts)
    both = scored(toy_pairs.samples(found), experts)
    ref = (score([router.lm], both.ids, both.lengths)[0][..., 0] * both.mask[:, 1:]).sum(-1)
    pairs, s = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both)), train_cdpo.Settings()
    train_cdpo.train(s, router, sft, pairs, ref.view(-1, 2), train_cdpo.make_plan(s, sft.lengths, pairs.lengths))
    assert torch.allclose(weights(router), weights(trained[1]), atol=1e-5)
    assert not torch.equal(weights(router), weights(trained[0]))


def test_the_reader_s_functions_are_what_trains():
    x = checks.sft_inputs()
    marked = {"sft_loss": lambda *a: torch.tensor(7.0), "cdpo_loss": lambda *a: a[0].sum() + 10 * a[4].sum(),
              "sequence_logp": lambda *a: torch.tensor([1.0, 2.0]), "routed_logp": lambda *a: torch.tensor([3.0, 4.0])}
    loss, pair_loss = exercise.losses(SimpleNamespace(**MINE | marked))
    assert loss(*x.values(), 0.5)[0] == 7
    assert pair_loss(x["logits"], x["w"], x["targets"], x["mask"], x["logp"], torch.zeros(1, 2), 0.1)[0] == 1 + 10 * 3


def test_the_whole_training_in_a_process_of_its_own(folder):
    solve(folder, *range(1, 8))                                          # step 8 is not needed
    p = subprocess.run([sys.executable, "-m", "exercises", "train", "--samples", "16", "--prompts", "6", "--tests", "1"],
                       cwd=folder.parent, text=True, capture_output=True, timeout=240,
                       env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert p.returncode == 0 and "Traceback" not in p.stderr
    rows = [line for line in p.stdout.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["yours, phase 1", "yours, phase 2", "ours, phase 2"]


def test_the_seven_answers_name_tests_that_exist():
    text, tests = (ROOT / "exercises" / "README.md").read_text(), "".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", text)
    assert len(names) >= 7 and text.count("<details>") == 7
    assert all(f"def {name}(" in tests for name in names)
