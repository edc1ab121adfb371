"""docs/dpo.md: its figures are those of docs/dpo.json, and its sentences hold for them."""

import json
import math

import pytest
import torch

from docs.tools import dpo_example as example
from docs.tools.pages import fill, keys
from fusionroute import cdpo_loss
from toy_experts import script

PAGE = (example.DOCS / "dpo.md").read_text()
D = json.loads((example.DOCS / "dpo.json").read_text())
SIX = [(name, i) for name in ("theta", "ref", "expert") for i in (0, 1)]  # cdpo_loss's arguments


def test_the_page_shows_the_file_s_figures():
    places = example.places(D)
    assert fill(PAGE, places.__getitem__) == PAGE, "run: python -m docs.tools.dpo_example"
    assert set(keys(PAGE)) == set(places)  # and no figure is made for nothing


def test_the_shipped_weights_give_the_pair_s_six_numbers():
    """They are the run's in half precision: a few thousandths of each log-probability."""
    router_sft, experts, _ = script.load_router(script.WEIGHTS, "router_sft", "cpu", "")
    router = script.load_router(script.WEIGHTS, "router", "cpu", "")[0]
    pair, stored = json.loads((script.WEIGHTS / "pair.json").read_text()), D["pair"]
    assert {k: stored[k] for k in pair} == pair
    ours = example.one_pair(pair, router_sft, router, experts, D["beta"])
    for when in ("before", "after"):
        assert ours[when].keys() == stored[when].keys()
        for name, value in stored[when].items():
            assert ours[when][name] == pytest.approx(value, abs=0.05), (when, name)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_arithmetic_of_the_pair_by_hand(when):
    t, beta = D["pair"][when], D["beta"]
    margin = beta * ((t["theta"][0] - t["ref"][0]) - (t["theta"][1] - t["ref"][1]))
    bias = beta * (t["expert"][0] - t["expert"][1])
    assert t["margin"] == pytest.approx(margin, abs=1e-4)
    assert t["bias"] == pytest.approx(bias, abs=1e-4)
    assert t["loss"] == pytest.approx(math.log(1 + math.exp(-margin - bias)), abs=1e-4)
    six = [torch.tensor([t[name][i]], dtype=torch.float64) for name, i in SIX]
    six[0].requires_grad_()
    loss, _ = cdpo_loss(*six, beta)
    assert t["loss"] == pytest.approx(loss.item(), abs=1e-4)
    loss.backward()  # section 5: the gradient for log pi_theta(y_w) is -weight * beta
    assert float(six[0].grad) == pytest.approx(-t["weight"] * beta, abs=1e-4)


def test_what_the_sentences_say():
    before, after = D["pair"]["before"], D["pair"]["after"]  # section 6
    assert before["theta"] == before["ref"] and before["margin"] == 0
    assert before["bias"] > 0 and before["weight"] < 0.5
    fused = [[t["theta"][i] + t["expert"][i] for i in (0, 1)] for t in (before, after)]
    assert fused[0][0] < fused[0][1] and fused[1][0] > fused[1][1]
    assert after["theta"][0] > after["ref"][0] and after["theta"][1] < after["ref"][1]

    start, first = D["start"], D["first"]  # section 7
    assert first["loss"] > math.log(2) + 0.1 and abs(first["margin"]) < 0.01
    assert first["loss"] > math.log(1 + math.exp(-first["bias"]))  # negative biases weigh most
    assert start["negative"] > 0.5 and start["bias"] < 0

    run, _, more, fails = D["changes"]  # section 8
    assert [row["batches"] for row in (more, fails)] == ["pairs and SFT", "pairs only"]
    assert more["epochs"] == fails["epochs"]
    assert 0 < run["chosen"] < 2
    assert fails["chosen"] < -2 and fails["chosen_fell"] > 0.5 and fails["accuracy"] > 0.9
    assert more["chosen"] > 0
    log = (script.WEIGHTS / "router.log.jsonl").read_text().splitlines()
    chosen = [json.loads(line).get("reward_chosen") for line in log]
    assert min(x for x in chosen if x is not None) < 0
    for steps in (chosen[:50], chosen[50:100], chosen[-50:]):
        assert sum(x for x in steps if x is not None) > 0

    groups = D["length"]  # section 9
    assert all(g["negative"] > 0.5 for g in groups.values())
    longer, shorter = groups["chosen longer"], groups["rejected longer"]
    assert 0 < longer["negative"] - longer["negative_per_token"] < 0.1
    assert 0 < shorter["negative_per_token"] - shorter["negative"] < 0.1
    assert sum(g["pairs"] for g in groups.values()) == start["pairs"]
