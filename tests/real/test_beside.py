"""extra/real/beside.py: the page against its JSON, and that a comparison of different things stops. TRL itself is not needed."""

import json

import pytest
import torch

from extra.common import fill
from extra.gpt import GPT, GPTConfig
from extra.real import beside
from model import generate
from toy_experts import run


def test_the_page_says_what_was_measured():
    page, result = beside.PAGE.read_text(), json.loads(beside.RESULT.read_text())
    assert fill(page, {"beside": beside.block(result)}, beside.COMMAND) == page
    result["training"]["sft"]["seconds"]["TRL"]["median"] += 1
    assert fill(page, {"beside": beside.block(result)}, beside.COMMAND) != page
    assert max(result["training"][kind]["losses_apart"] for kind in ("sft", "dpo")) < beside.CLOSE


def test_different_losses_stop_the_comparison():
    assert beside.agree({"ours": [1.0, 2.0], "theirs": [1.0, 2.00002]}) == pytest.approx(1e-5, rel=0.1)
    with pytest.raises(run.UserError, match="not compute the same"):
        beside.agree({"ours": [1.0, 2.0], "theirs": [1.0, 2.1]})
    with pytest.raises(ValueError):
        beside.agree({"ours": [1.0, 2.0], "theirs": [1.0]})


def test_a_missing_package_and_an_odd_batch_are_named():
    with pytest.raises(run.UserError, match="no nosuchpackage: pip install -r requirements-trl.txt"):
        beside.needed("nosuchpackage")
    with pytest.raises(run.UserError, match="--batch is 3"):
        beside.Settings(batch=3)


def test_guesses_change_no_token():
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=40, d_model=24, n_layer=1, n_head=1, n_kv_head=1, d_ff=32, max_len=96)
    lm, prompt = GPT(config).eval().requires_grad_(False), [1, 2, 3, 1, 2, 3, 1, 2]
    tokens, passes = beside.with_guesses(lm, prompt, 30)
    assert tokens == generate(lm, [prompt], 30, -1)[0] and 0 < passes["model"] <= 30


def test_scores_are_random_numbers_or_nothing():
    sft = [([1, 2], [3, 4]), ([1], [5])]
    none, some = beside.packed(sft, 3, False), beside.packed(sft, 3, True)
    assert not none.logp.any() and not none.choice.any() and some.logp.shape == (2, 3, 3) and (some.logp < 0).any()
    assert torch.equal(none.ids, some.ids) and none.mask.sum() == 3
