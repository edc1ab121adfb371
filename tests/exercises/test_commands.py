"""python -m exercises: which steps pass, what is said of the others, and the trainings."""

import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_cdpo
import train_sft
from exercises import __main__ as main
from exercises import checks, solutions
from exercises import train as exercise
from fusionroute import Router
from toy_experts import pairs as preference
from toy_experts import script
from toy_experts.data import scored
from toy_experts.experts import sft_samples

ROOT = Path(__file__).resolve().parents[2]
FILES = [file for file, _ in checks.STEPS.values()]


@pytest.fixture
def folder(tmp_path):
    """A copy of exercises/ to write in."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "exercises", tmp_path / "exercises", ignore=ignore)
    return tmp_path / "exercises"


def solve(folder, *steps):
    for step in steps:
        file, functions = checks.STEPS[step]
        with open(folder / f"{file}.py", "a") as f:
            f.write(f"\n\nfrom exercises.solutions import {', '.join(functions)}\n")


@pytest.fixture
def command(folder, monkeypatch, capsys):
    """python -m exercises ARGS with this copy, in this process: exit status and what it prints."""
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
    named = [line.split()[-1] for line in said.splitlines()[: len(FILES)]]
    assert named == [f"exercises/{file}.py" for file in FILES]
    assert said.endswith("0 of 9 steps pass. Next: exercises/step1_fuse.py\n")


def test_all_steps_pass_with_our_functions(folder, command):
    solve(folder, *checks.STEPS)
    status, said = command()
    assert (
        status == 0 and said.count("passes") == len(FILES) and "python -m exercises train" in said
    )


def test_a_mistake_is_reported_and_the_other_steps_are_still_checked(folder, command):
    solve(folder, 1, 3, 4, 7)
    no_colon = "import torch\n\n\ndef informative(choice)\n    return choice\n"
    (folder / "step2_informative.py").write_text(no_colon)
    (folder / "step5_sequence_logp.py").unlink()
    (folder / "step6_cdpo_loss.py").write_text("from nowhere import anything\n")
    step8 = folder / "step8_routing_dp.py"
    wrong = step8.read_text().replace("raise NotImplementedError", "return rewards[9], []")
    step8.write_text(wrong)
    status, said = command()
    assert status == 1
    verdict, detail = {}, {}
    for line in said.splitlines():
        if line.startswith("step"):
            step = int(line.split()[1])
            verdict[step] = line.split()[-1]
        elif line.startswith(" "):
            detail[step] = line
    assert [n for n in verdict if verdict[n] == "passes"] == [1, 3, 4, 7]
    assert [n for n in verdict if verdict[n] == "wrong"] == list(detail) == [2, 5, 6, 8]
    expected = "not Python yet: expected ':' (exercises/step2_informative.py, line 4)"
    assert expected in detail[2]
    assert "cannot read exercises/step5_sequence_logp.py" in detail[5]
    assert "No module named 'nowhere' (exercises/step6_cdpo_loss.py, line 1)" in detail[6]
    line = 1 + wrong.splitlines().index("    return rewards[9], []")
    expected = f"IndexError: list index out of range (exercises/step8_routing_dp.py, line {line})"
    assert expected in detail[8]


def test_one_step_and_wrong_commands(folder, command):
    solve(folder, 3)
    status, said = command("3")
    assert (status, len(said.splitlines())) == (0, 1)
    with pytest.raises(script.UserError, match="'10' is neither a step, 1 to 9, nor train"):
        command("10")
    with pytest.raises(script.UserError, match="step 1 is not written yet, .* -m exercises 1"):
        command("train")


def test_a_function_with_another_name(folder, command):
    (folder / "step1_fuse.py").write_text("def fusion(a, b):\n    return a + b\n")
    assert "has no function fuse any more" in command("1")[1]


def test_checking_leaves_no_stand_in_behind(folder, command):
    """While step 4 is checked, step 2 is ours; afterwards it is the reader's again."""
    name = "exercises.step2_informative"
    before = sys.modules.get(name)
    command()
    assert sys.modules.get(name) is before


# --- training ------------------------------------------------------------------------------------

SMALL = exercise.Settings(samples=16, prompts=6, tests=1)
MINE = {n: getattr(solutions, n) for _, functions in checks.STEPS.values() for n in functions}


def weights(router):
    return torch.cat([p.flatten() for p in router.parameters()])


def test_our_functions_handed_in_train_as_the_scripts_do():
    """To the bit: phases() is train_sft.main and train_cdpo.main with two functions replaced."""
    experts = script.load_router(script.WEIGHTS, "router", "cpu", "")[1]
    first, second = exercise.phases(SMALL, SimpleNamespace(**MINE), experts)

    torch.manual_seed(0)
    sft = scored(sft_samples(SMALL.samples, 0), experts)
    instruct = experts[script.EXPERTS.index("instruct")]
    router = Router(deepcopy(instruct), 3).requires_grad_(True)
    train_sft.train(train_sft.Settings(), router, sft)
    assert torch.equal(weights(router), weights(first))

    router_sft = deepcopy(router).requires_grad_(False)
    found = preference.make_pairs(router_sft, experts, 0, SMALL.prompts)
    pairs, ref = train_cdpo.scored_pairs(found, experts, router_sft.lm)
    s = train_cdpo.Settings()
    plan = train_cdpo.make_plan(s, sft.lengths, pairs.lengths)
    train_cdpo.train(s, router, sft, pairs, ref, plan)
    assert torch.equal(weights(router), weights(second))
    assert not torch.equal(weights(router), weights(first))


def test_the_reader_s_functions_are_what_trains():
    x = checks.sft_inputs()
    marked = {
        "sft_loss": lambda *a: torch.tensor(7.0),
        "cdpo_loss": lambda *a: a[0].sum() + 10 * a[4].sum(),
        "sequence_logp": lambda *a: torch.tensor([1.0, 2.0]),
        "routed_logp": lambda *a: torch.tensor([3.0, 4.0]),
    }
    loss, pair_loss = exercise.losses(SimpleNamespace(**MINE | marked))
    assert loss(*x.values(), 0.5)[0] == 7
    parts = [x[name] for name in ("logits", "w", "targets", "mask", "logp")]
    assert pair_loss(*parts, torch.zeros(1, 2), 0.1)[0] == 1 + 10 * 3


def test_the_whole_training_in_a_process_of_its_own(folder):
    solve(folder, *range(1, 8))  # step 8 is not needed
    p = subprocess.run(
        [sys.executable, "-m", "exercises", "train"] + "--samples 16 --prompts 6 --tests 1".split(),
        cwd=folder.parent,
        text=True,
        capture_output=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert p.returncode == 0 and "Traceback" not in p.stderr
    rows = [line.split("  ")[0] for line in p.stdout.splitlines() if line.endswith("%")]
    assert rows == ["yours, phase 1", "yours, phase 2", "ours, phase 2"]
