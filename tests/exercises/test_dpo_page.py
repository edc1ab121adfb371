"""docs/dpo.md: its numbers are those of docs/dpo.json, its sentences hold for them, and the pair comes out again."""

import json
import math
import re

import pytest
import torch

from fusionroute import Router, cdpo_loss, routed_logp
from model import GPT, GPTConfig
from toy_experts import dpo_example as example
from toy_experts import script
from toy_experts.script import load_router

PAGE = (example.DOCS / "dpo.md").read_text()
D = json.loads((example.DOCS / "dpo.json").read_text())


def test_the_page_shows_the_file_s_numbers():
    assert example.filled(PAGE, example.blocks(D)) == PAGE


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(script.UserError, match="must be there once each"):
        example.filled(PAGE.replace("<!-- end: pair -->", ""), example.blocks(D))


def test_the_shipped_weights_give_the_pair_s_six_numbers():
    """They are the run's in half precision: a few thousandths of each log-probability."""
    router_sft, experts, _ = load_router(script.WEIGHTS, "router_sft", "cpu", "")
    router = load_router(script.WEIGHTS, "router", "cpu", "")[0]
    p, stored = json.loads((script.WEIGHTS / "pair.json").read_text()), D["pair"]
    assert {k: stored[k] for k in p} == p
    ours = example.one_pair(p, router_sft, router, experts, D["beta"])
    for when in ("before", "after"):
        for name in ("theta", "ref", "expert"):
            assert ours[when][name] == pytest.approx(stored[when][name], abs=0.05)


def test_the_arithmetic_by_hand():
    for when in ("before", "after"):
        t, beta = D["pair"][when], D["beta"]
        margin = beta * ((t["theta"][0] - t["ref"][0]) - (t["theta"][1] - t["ref"][1]))
        bias = beta * (t["expert"][0] - t["expert"][1])
        assert (t["margin"], t["bias"]) == (pytest.approx(margin, abs=1e-4), pytest.approx(bias, abs=1e-4))
        assert t["loss"] == pytest.approx(math.log(1 + math.exp(-margin - bias)), abs=1e-4)
        six = [torch.tensor([x]) for name in ("theta", "ref", "expert") for x in t[name]]
        assert t["loss"] == pytest.approx(float(cdpo_loss(*six, beta)[0]), abs=1e-4)
    before = D["pair"]["before"]
    assert before["theta"] == before["ref"] and before["margin"] == 0


def test_the_weight_is_the_gradient_s():
    """Section 5: the gradient for log pi_theta(y_w) is -weight * beta."""
    t = D["pair"]["after"]
    six = [torch.tensor([x], dtype=torch.float64) for name in ("theta", "ref", "expert") for x in t[name]]
    six[0].requires_grad_()
    cdpo_loss(*six, D["beta"])[0].backward()
    assert float(six[0].grad) == pytest.approx(-t["weight"] * D["beta"], abs=1e-4)


def test_nobody_gets_a_gradient_through_the_bias_but_a_mixture_would_give_one():
    """Section 5, on a real router: with the pick nothing reaches W or theta_LM; with softmax(w) both are reached."""
    router = Router(GPT(GPTConfig(vocab_size=20, d_model=16, n_layer=1, n_head=2, n_kv_head=1, head_dim=8, d_ff=16)), 3)
    torch.nn.init.normal_(router.W.weight)
    logp, mask = torch.randn(2, 5, 3).log_softmax(-1), torch.ones(2, 5, dtype=torch.bool)
    w = router(torch.randint(20, (2, 5)))[1]
    assert not routed_logp(w, logp, mask).requires_grad
    ((w.softmax(-1) * logp).sum(-1) * mask).sum().backward()
    assert router.W.weight.grad.any() and router.lm.blocks[0].wq.weight.grad.any()


def test_what_the_sentences_say():
    start, first, rows, length = D["start"], D["first"], D["changes"], D["length"]
    assert abs(first["loss"] - math.log(2)) > 0.1 and abs(first["margin"]) < 0.01          # section 7
    assert start["negative"] > 0.5 and start["bias"] < 0
    before, after = D["pair"]["before"], D["pair"]["after"]                                # section 6
    assert before["bias"] > 0 and before["weight"] < 0.5 and before["ref"][0] < before["ref"][1]
    assert after["theta"][0] > after["ref"][0] and after["theta"][1] < after["ref"][1]
    ours, fails = rows[0], rows[-1]                                                        # section 8
    assert (fails["batches"], rows[2]["batches"], fails["epochs"]) == ("pairs only", "pairs and SFT", rows[2]["epochs"])
    assert 0 < ours["chosen"] < 2 and 0.2 < ours["chosen_fell"] < 0.5
    assert fails["chosen"] < -2 and fails["chosen_fell"] > 0.5 and fails["accuracy"] > 0.9
    assert rows[2]["chosen"] > 0 and rows[2]["chosen_fell"] < 0.5
    assert all(row["rejected"] < min(0, row["chosen"]) for row in rows)
    groups = length["groups"]                                                              # section 9
    assert 0 < groups["chosen longer"]["negative"] - groups["chosen longer"]["negative_per_token"] < 0.1
    assert 0 < groups["rejected longer"]["negative_per_token"] - groups["rejected longer"]["negative"] < 0.1
    assert groups["equally long"]["negative"] == groups["equally long"]["negative_per_token"]
    assert sum(g["pairs"] for g in groups.values()) == start["pairs"]


def test_its_length_and_its_links():
    prose = re.sub(r"<!-- begin.*?<!-- end: \w+ -->", "", PAGE, flags=re.S)
    assert len(prose.split()) <= 1450
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (example.DOCS / link).exists(), link
