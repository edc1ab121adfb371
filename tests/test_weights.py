"""toy_experts/weights: the trained run that comes with the code, and the commands that use it."""

import json
import shutil

import pytest
import torch

import decode
from decode import METHODS
from docs.tools import answer_picture, curves, shipped_weights
from tests.conftest import ROOT
from toy_experts import script, tasks
from toy_experts.decode_batch import decode_batch
from toy_experts.script import EXPERTS, load_router

QUESTION = "What is 38 mod 5?"


def test_they_answer_as_the_run_that_they_came_from():
    """check.json has digests of 100 answers of the run itself, in single precision."""
    check = json.loads((script.WEIGHTS / "check.json").read_text())
    answers = shipped_weights.digests(script.WEIGHTS, check["seed"])
    pairs = list(zip(answers, check["answers of the run"], strict=True))
    assert len(pairs) == 100 and sum(a == b for a, b in pairs) >= 99


def test_they_are_small_and_in_half_precision(tmp_path):
    paths = sorted(script.WEIGHTS.glob("*.pt"))
    assert [p.stem for p in paths] == sorted(EXPERTS + shipped_weights.ROUTERS)
    assert sum(p.stat().st_size for p in paths) <= 4_000_000
    for p in paths:
        model = torch.load(p, weights_only=True)["model"]
        assert {x.dtype for x in model.values()} == {torch.float16}
    router, experts, _ = load_router(script.WEIGHTS, "router", "cpu", "")
    assert {p.dtype for m in (router, *experts) for p in m.parameters()} == {torch.float32}
    x = torch.rand(1000, 100)  # a tied head is stored once
    torch.save(shipped_weights.half({"model": {"embed": x, "head": x}}), tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 1.2 * x.numel() * 2


def test_the_first_answer_needs_no_training(tmp_path, monkeypatch, capsys):
    """Without a run in out/ the shipped one answers, with a note on stderr.

    A run of one's own comes first, and a seed that is asked for is never the shipped run.
    """
    (tmp_path / "out" / "seed0").mkdir(parents=True)  # as a training that failed leaves it
    monkeypatch.chdir(tmp_path)
    decode.main(
        ["Tom has 12 eggs. He buys 5 more. Then he doubles the number. How many are there?"]
    )
    out, err = capsys.readouterr()
    assert "The answer is 34." in out and "[math:" in out and "\033" not in out
    assert err.count("\n") == 1 and "toy_experts/weights" in err
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "seed0"]
    with pytest.raises(script.UserError, match="there is no .*--seed 1"):
        decode.main(["--seed", "1", QUESTION])
    shutil.copytree(script.WEIGHTS, tmp_path / "out" / "seed0", dirs_exist_ok=True)
    decode.main([QUESTION])
    assert not capsys.readouterr().err


# --- the pictures -------------------------------------------------------------------------------


def test_the_picture_shows_what_the_readme_says():
    """Only the sum answers this prompt: experts lack "done", the router miscalculates."""
    rows, alone = answer_picture.routed()
    assert "".join(r["token"] for r in rows).endswith("The answer is 11.\ndone")
    assert alone["math"].endswith("The answer is 11.")
    assert alone["router"].endswith("done") and "answer is 11" not in alone["router"]
    assert tasks.split_of("gsm 21 21 - 3 = 18 lose 18 - 7 = 11") == "test"
    router, experts, _ = load_router(script.WEIGHTS, "router", "cpu", "")
    ids = decode.encode(answer_picture.PROMPT, 256)
    for method in EXPERTS:
        text = decode_batch(router, experts, [ids], **METHODS[method])[0].text()
        assert not text.endswith("The answer is 11.\ndone")


def test_what_the_readme_says_of_the_curves():
    """Rejected answers become less likely, chosen ones hardly move, biases are negative."""
    lines = (script.WEIGHTS / "router.log.jsonl").read_text().splitlines()
    pairs = [r for r in map(json.loads, lines) if r["kind"] == "pair"]
    mean = lambda rows, name: sum(r[name] for r in rows) / len(rows)
    last = pairs[-len(pairs) // 4 :]
    assert mean(pairs, "bias") < 0 and mean(last, "reward_rejected") < -0.5
    assert abs(mean(last, "reward_chosen")) < 0.2


def test_curves():
    """Another version of matplotlib draws other lines, but as many."""
    if curves.plt is None:
        pytest.skip("pip install matplotlib")
    drawn = (ROOT / "docs" / "curves.svg").read_text()
    made = curves.draw()
    assert made.count("<path") == drawn.count("<path")
    if f"Matplotlib v{curves.plt.matplotlib.__version__}," in drawn:
        assert made == drawn, "run python -m docs.tools.curves"
