"""toy_experts/weights: the trained run that comes with the code, and the commands that use it."""

import json
import shutil

import pytest
import torch

import decode
from toy_experts import curves, pictures, script, show, tasks, weights
from toy_experts.batch import METHODS, decode_batch
from toy_experts.script import EXPERTS, load_router


@pytest.fixture(scope="module")
def check():
    return json.loads((script.WEIGHTS / "check.json").read_text())


def test_they_answer_as_the_run_that_they_came_from(check, monkeypatch):
    """check.json has digests of 1,000 answers that the run itself gave, in single precision. Every tenth is repeated here."""
    items, recorded = weights.test_items(check["seed"])[::10], check["answers of the run"][::10]
    monkeypatch.setattr(weights, "test_items", lambda seed: items)
    answers, right = weights.outcome(script.WEIGHTS, check["seed"])
    assert (
        len(answers) == len(recorded) == 100
        and sum(a == b for a, b in zip(answers, recorded)) >= 99
    )
    assert check["equal answers of 1000"] >= 995
    for bench, share in check[
        "right, the run"
    ].items():  # outcome counts of 200: these are 20 of them
        assert (
            abs(10 * right[bench] - share) <= 0.25
            and abs(check["right, half precision"][bench] - share) <= 0.01
        )


def test_they_are_small_and_in_half_precision():
    files = sorted(script.WEIGHTS.glob("*.pt"))
    assert [f.stem for f in files] == sorted(EXPERTS + weights.ROUTERS)
    assert sum(f.stat().st_size for f in files) <= 4_000_000
    for f in files:
        model = torch.load(f, weights_only=True)["model"]
        assert all(p.dtype == torch.float16 for p in model.values())
    router, experts, _ = load_router(script.WEIGHTS, "router", "cpu", "")
    assert all(p.dtype == torch.float32 for m in (router, *experts) for p in m.parameters())


def test_half_precision_stores_a_tied_head_once(tmp_path):
    x = torch.rand(1000, 100)
    torch.save(weights.half({"model": {"embed": x, "head": x}}), tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 1.2 * x.numel() * 2


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: f.unlink(), "there is no"),
        (lambda f: f.write_bytes(f.read_bytes()[:1000]), "truncated"),
        (
            lambda f: torch.save(torch.load(f, weights_only=True) | {"vocabulary": "x"}, f),
            "vocabulary",
        ),
        (lambda f: shutil.copy(f.with_name("math.pt"), f), "was made with code"),
    ],
)
def test_damaged_weights_are_one_line(damage, message, tmp_path, monkeypatch):
    folder = shutil.copytree(script.WEIGHTS, tmp_path / "weights")
    damage(folder / "code.pt")
    monkeypatch.setattr(run, "WEIGHTS", folder)
    monkeypatch.chdir(tmp_path)  # no run of one's own here
    with pytest.raises(script.UserError, match=message):
        decode.main(["What is 38 mod 5?"])


def test_the_first_answer_needs_no_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    decode.main(["What is 38 mod 5?"])
    out, err = capsys.readouterr()
    assert "toy_experts/weights" in err and len(err.splitlines()) == 1 and "answer is" in out
    with pytest.raises(script.UserError, match="there is no .*--seed 1"):
        decode.main(["--seed", "1", "What is 38 mod 5?"])  # not the shipped run


def test_a_run_of_ones_own_comes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(script.WEIGHTS, tmp_path / "out" / "seed0")
    decode.main(["What is 38 mod 5?"])
    assert not capsys.readouterr().err


def test_the_pictures_are_what_the_commands_draw():
    rows, alone = pictures.routed()
    docs, readme = pictures.ROOT / "docs", (pictures.ROOT / "README.md").read_text()
    assert (docs / "answer.svg").read_text() == show.svg(pictures.PROMPT, rows)
    assert pictures.BEGIN + pictures.lines(alone) + pictures.END in readme
    if curves.plt is not None:
        drawn = curves.draw(script.WEIGHTS, "")
        assert drawn.count("<path") == (docs / "curves.svg").read_text().count("<path")


def test_the_picture_shows_what_the_readme_says():
    """Only the sum answers this prompt: the math expert lacks "done", the router miscalculates."""
    rows, alone = pictures.routed()
    said = "".join(r["token"] for r in rows)
    assert said.endswith("The answer is 11.\ndone")
    assert alone["math"].endswith("The answer is 11.")
    assert alone["router"].endswith("done") and "answer is 11" not in alone["router"]
    key = "gsm 21 21 - 3 = 18 lose 18 - 7 = 11"
    assert tasks.split_of(key) == "test"
    router, experts, _ = load_router(script.WEIGHTS, "router", "cpu", "")
    ids = decode.encode(pictures.PROMPT, 256)
    for method in EXPERTS:
        text = decode_batch(router, experts, [ids], **METHODS[method])[0].text()
        assert not text.endswith("The answer is 11.\ndone")


def test_curves_need_logs(tmp_path):
    if curves.plt is None:
        pytest.skip("pip install matplotlib")
    with pytest.raises(script.UserError, match="python train_sft.py"):
        curves.main(["--out", str(tmp_path)])


def test_what_the_readme_says_of_the_shipped_curves():
    """The rejected answers become less likely, the chosen ones hardly move, and the biases are negative on average."""
    log = [
        json.loads(line) for line in (script.WEIGHTS / "router.log.jsonl").read_text().splitlines()
    ]
    pairs = [r for r in log if r.get("kind") == "pair"]
    last = pairs[-len(pairs) // 4 :]
    mean = lambda rows, name: sum(r[name] for r in rows) / len(rows)
    assert mean(pairs, "bias") < 0
    assert mean(last, "reward_rejected") < -0.5 and abs(mean(last, "reward_chosen")) < 0.2
