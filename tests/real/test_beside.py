"""beside.py: the page says what the file says, both sides compute the same, and they take turns."""

import importlib
import json
import threading
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks, register_optimizer_step_pre_hook

from extra.common import RESULTS, fill
from extra.gpt import GPT, Router
from extra.real import beside
from extra.speed.equal import PAGE
from model import generate
from tests.real.conftest import LLAMA, main, make_models, mistake
from train_cdpo import pair_loss

MEASURED = (RESULTS / "beside.json").exists()


def test_without_a_file_the_page_says_that_nothing_was_measured():
    assert MEASURED or fill(PAGE.read_text(), {"beside": "Not measured yet: `python -m extra.real.beside` does it."}, beside.COMMAND) == PAGE.read_text()


@pytest.mark.skipif(not MEASURED, reason="python -m extra.real.beside has not been run: there is no extra/results/beside.json")
def test_the_page_says_what_the_file_says():
    r, page = json.loads((RESULTS / "beside.json").read_text()), PAGE.read_text()
    assert fill(page, {"beside": beside.block(r)}, beside.COMMAND) == page
    for change in (lambda r: r["training"]["sft"]["trl_over"]["plain SFT"], lambda r: r["training"]["dpo"]["seconds"]["TRL"],
                   lambda r: r["decode"]["methods"]["ours"]["over_generate"]):
        changed = deepcopy(r)
        change(changed)["median"] += 0.5
        assert beside.block(changed) != beside.block(r)


@pytest.mark.skipif(not MEASURED, reason="python -m extra.real.beside has not been run: there is no extra/results/beside.json")
def test_the_file_is_of_the_default_settings_and_of_equal_work():
    r = json.loads((RESULTS / "beside.json").read_text())
    default = vars(beside.Settings())
    assert r["meta"]["settings"] == {k: default[k] for k in r["meta"]["settings"]} and set(default) - set(r["meta"]["settings"]) == {"model", "out"}
    assert "SmolLM2-135M" in r["meta"]["model"]
    for kind in ("sft", "dpo"):
        x = r["training"][kind]
        assert x["losses_apart"] < beside.CLOSE < max(x["losses"]) - min(x["losses"])  # so small a difference could not hide another loss
        assert x["trl_over"]["TRL"]["median"] == 1 and len(x["losses"]) == r["meta"]["settings"]["steps"] + 1
    methods = r["decode"]["methods"]
    assert methods["generate"]["over_generate"]["median"] == 1 and methods["ours, fused, token by token"]["passes"] == {"model": 1, "draft": 1}


def training(order, steps, fails=None):
    """A training of one number that notes whose turn it is."""
    def train():
        p = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([p], lr=0.1)
        for step in range(steps):
            order.append(threading.current_thread().name)
            if step == fails:
                raise ValueError("it failed")
            optimizer.zero_grad()
            (p ** 2).sum().backward()
            optimizer.step()
        return [float(p.detach())]
    return train


def test_trainings_take_turns_after_each_step():
    order = []
    results, seconds = beside.in_turns({name: training(order, 4) for name in "abc"})
    assert "".join(order) == "abc" * 4
    assert {name: len(x) for name, x in seconds.items()} == {"a": 3, "b": 3, "c": 3}  # the first step does not count
    assert results["a"] == results["b"] == results["c"] == [pytest.approx(0.8**4)]
    order.clear()
    with pytest.raises(ValueError, match="it failed"):  # and nobody waits for ever
        beside.in_turns({"a": training(order, 4), "b": training(order, 4, fails=1)})
    assert "".join(order) == "ababaa"
    before = len(_global_optimizer_post_hooks)
    beside.in_turns({"a": training([], 1)})
    assert len(_global_optimizer_post_hooks) == before


def test_a_step_is_timed_in_its_own_turn_only(monkeypatch):
    """By a clock that only the slow one of two moves on."""
    now = [0.0]
    monkeypatch.setattr(beside, "clock", lambda: now[0])
    slow = training([], 4)

    def moving():
        hook = register_optimizer_step_pre_hook(
            lambda *_: now.__setitem__(0, now[0] + 5 * (threading.current_thread().name == "slow")))
        try:
            return slow()
        finally:
            hook.remove()
    assert beside.in_turns({"slow": moving, "fast": training([], 4)})[1] == {"slow": [5.0] * 3, "fast": [0.0] * 3}


def test_other_losses_are_refused():
    assert beside.agree({"ours": [2.0, 1.0], "TRL": [2.0, 1.00005]}) == pytest.approx(5e-5, rel=1e-3)
    with pytest.raises(beside.UserError, match="do not compute the same"):
        beside.agree({"ours": [2.0, 1.0], "TRL": [2.0, 1.001]})


def test_experts_that_say_nothing_make_our_step_dpo():
    logits, w = torch.randn(4, 5, 7), torch.randn(4, 5, 3)
    data = beside.packed([([1, 2], [3, 4, 5, 6], [6]), ([1], [2, 3], [4, 4, 4, 4, 4])], 3, False)
    assert data.lengths.tolist() == [6, 3, 3, 6] and data.mask.sum(1).tolist() == [4, 1, 2, 5]
    ref = torch.randn(2, 2)
    loss, _ = pair_loss(logits, w, data.ids[:, 1:], data.mask[:, 1:], data.logp, ref, 0.1)
    logp = (logits.log_softmax(-1).gather(-1, data.ids[:, 1:, None])[..., 0] * data.mask[:, 1:]).sum(1).view(2, 2)
    torch.testing.assert_close(loss, -F.logsigmoid(0.1 * (logp - ref).diff(dim=1)[:, 0].neg()).mean())


def test_guesses_change_no_token_and_save_passes():
    lm = GPT(LLAMA).eval().requires_grad_(False)
    lm.embed.weight.mul_(5)  # sure of its tokens, and soon in a loop
    tokens = generate(lm, [[3, 7, 1]], 20, -1)[0]
    prompt = [3, 7, 1] + tokens
    said, passes = beside.with_guesses(lm, prompt, 20)
    assert said == generate(lm, [prompt], 20, -1)[0] and len(said) == 20 and passes["model"] <= 20


def test_mistakes(tmp_path, monkeypatch):
    real = importlib.import_module

    def without(name, *args):
        if name == "trl":
            raise ImportError("No module named 'trl'")
        return real(name, *args) if name not in ("transformers", "datasets", "accelerate") else None
    monkeypatch.setattr(importlib, "import_module", without)
    assert "there is no trl: pip install -r requirements-trl.txt" in (said := refused_by(tmp_path)) and "\n" not in said
    monkeypatch.setattr(importlib, "import_module", lambda name, *args: real(name, *args) if name.startswith("extra") else None)
    assert "there is no directory" in refused_by(tmp_path / "nowhere")
    monkeypatch.undo()
    assert "--batch is 3, and must be even" in mistake("beside", "--batch", "3")
    assert "--steps is 0" in mistake("beside", "--steps", "0")


def refused_by(directory):
    with pytest.raises(beside.UserError) as caught:
        beside.main(["--model", str(directory)])
    return str(caught.value)


def test_both_sides_compute_the_same(tmp_path, monkeypatch, capsys):
    """The whole command with a tiny model: it would stop at another loss or another answer."""
    pytest.importorskip("trl")
    make_models(tmp_path, start={"max_len": 1024})
    monkeypatch.setattr(beside, "RESULT", None)  # nothing that is not SmolLM2 is published
    main("beside", "--model", tmp_path / "start", "--out", tmp_path / "out", "--steps", "2", "--prompts", "2", "--new", "9", "--rounds", "1")
    r = json.loads((tmp_path / "out/beside.json").read_text())
    assert "all answers are equal" in capsys.readouterr().out and r["training"]["dpo"]["losses_apart"] < beside.CLOSE
    assert set(r["decode"]["methods"]) == set(json.loads((RESULTS / "beside.json").read_text())["decode"]["methods"])
