"""The whole table on a tiny world, the statistics against brute force, and everything generated against the files it comes from."""

import json
from copy import deepcopy
from random import Random

import numpy as np
import pytest
import torch

import ablate
import baselines
import common
import evaluate
import quickstart
import report
import train_cdpo
import train_sft
import tune
from tests.conftest import ROOT, TINY, mistake, script
from toy_experts import tasks
from toy_experts.world import sft_data

FLAGS = {train_sft: TINY["train_sft"], train_cdpo: TINY["train_cdpo"], baselines: "--prompts 36 --tries 1 --epochs 1 --batch 8"}
METHODS = {"math_expert", "code_expert", "instruct_expert", "sequence_selection", "collab", "fine_tuned", "task_arithmetic", "dare",
           "routing_only", "sft_only", "fusionroute", "uniform_average", "co_llm", "oracle_expert", "fused_sft", "fused_full"}


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory):
    """--out of two tiny seeds with every checkpoint, the results folder of `evaluate.py --seeds 0 1`, and the patched trainings."""
    out, results = tmp_path_factory.mktemp("all"), tmp_path_factory.mktemp("results")
    training = {name: (module, f"{flags} {FLAGS[module]}") for name, (module, flags) in evaluate.TRAINING.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "TRAINING", training)
        patch.setattr(evaluate.decode, "MAX_NEW", 16)  # the tiny models never come to an end
        for seed in "01":
            script("toy_experts.train", "--seed", seed, "--out", out, *TINY["toy_experts.train"].split())
        argv = ["--seeds", "0", "1", "--out", str(out), "--device", "cpu", "--prompts", "4", "--general", "13", "--timed", "3", "--results", str(results)]
        evaluate.main(argv)
        yield out, results, argv


def test_the_whole_table(tiny_world):
    out, results, _ = tiny_world
    r = {name: json.loads((results / f"{name}.json").read_text()) for name in ("table1", "winrate", "cost", "differences", "routing")}
    table = r["table1"]["llama"]
    assert METHODS < set(table) == set(evaluate.METHODS) and r["table1"]["meta"]["llama"]["seeds"] == [0, 1]
    for row in table.values():
        assert set(row) == {*tasks.BENCHMARKS, "average"} and all(len(v) == 2 for v in row.values())
        assert row["average"] == pytest.approx(np.mean([row[b] for b in tasks.BENCHMARKS], 0), abs=1e-4)
    for method, w in r["winrate"]["llama"].items():
        assert [a + b + c for a, b, c in zip(w["wins"], w["ties"], w["losses"])] == [13, 13]
    assert set(r["winrate"]["llama"]) == set(evaluate.METHODS) - {"fine_tuned"} | {"sft_only against fusionroute"}
    cost = r["cost"]["llama"]
    assert set(cost) == set(evaluate.METHODS) - {"oracle_expert"} and all(c["seconds_per_token"] > 0 for c in cost.values())
    # What a token costs, in passes: one model one, the fused pair two (an expert rests when it is not picked), all experts n.
    assert all(cost[m]["passes_per_token"] == 1 for m in ("math_expert", "fine_tuned", "task_arithmetic", "dare"))
    assert cost["fusionroute"]["router"] == 1 and cost["fusionroute"]["expert"] == 1 and cost["routing_only"]["passes_per_token"] == 2
    assert cost["uniform_average"]["expert"] == 3 and cost["collab"]["expert"] >= 3
    for seed in (0, 1):
        right = json.loads((out / f"seed{seed}" / "table1.json").read_text())["result"]["right"]
        for b in tasks.BENCHMARKS:
            alone = [right[f"{e}_expert"][b] for e in ("math", "code", "instruct")]
            assert right["oracle_expert"][b] == "".join("1" if "1" in column else "0" for column in zip(*alone))


def test_a_second_call_computes_nothing_and_another_checkpoint_does(tiny_world, capsys):
    out, _, argv = tiny_world
    one = ["--seed", "0", *argv[3:]]
    evaluate.main(one)
    assert "evaluating" not in capsys.readouterr().err
    path = out / "seed0" / "reward.pt"
    content = torch.load(path, weights_only=True)
    changed = deepcopy(content)
    changed["model"]["W.weight"] += 1
    common.save(path, changed)
    evaluate.main(one)
    assert "evaluating" in capsys.readouterr().err
    common.save(path, content)


def test_tuning_and_an_ablation_on_the_tiny_world(tiny_world, tmp_path, monkeypatch, capsys):
    out, _, _ = tiny_world
    monkeypatch.setattr(tune, "TRAINED", {"router": ("fusionroute", tune.grid(lr=[1e-4])), "fused_sft": ("fused_sft", tune.grid(loss=["fused"]))})
    monkeypatch.setattr(tune, "REWARD", tune.grid(rejected=["experts"], prefixes=[1]))
    monkeypatch.setattr(tune, "LOOKAHEAD", tune.grid(lookahead=[2]))
    monkeypatch.setattr(tune, "MERGED", {"dare": tune.grid(drop=[0.5], scale=[0.3])})
    argv = ["--seed", "0", "--out", str(out), "--device", "cpu", "--prompts", "3"]
    tune.main(argv)
    first = capsys.readouterr().out
    assert first.count("}: 0.0") == 5 and not (out / "seed0" / "tune.pt").exists()
    tune.main(argv)
    again = capsys.readouterr()
    assert "phase" not in again.err and "tune.pt" not in again.out and all(line in first for line in again.out.splitlines() if line.endswith(": 0.000"))

    monkeypatch.setattr(ablate, "RESULTS", tmp_path)
    cells = [ablate.Cell(name, {"routing_only": (name, ablate.ONLY_EXPERT)}, [(name, train_sft, f"--loss {name} {TINY['train_sft']}")],
                         size=(24, 1)) for name in ("best", "co_llm_self")]
    monkeypatch.setattr(ablate, "ABLATIONS", {"routing": lambda: cells})
    monkeypatch.setattr(ablate.toy, "main", lambda argv: None)  # the tiny experts are there
    ablate.main(["routing", "--seeds", "0", "1", "--out", str(out), "--device", "cpu", "--prompts", "3"])
    content = json.loads((tmp_path / "ablation_routing.json").read_text())
    assert [r["label"] for r in content["rows"]] == ["best", "co_llm_self"] and content["meta"]["seeds"] == [0, 1]
    assert min(content["meta"]["run time in seconds"].values()) > 0
    assert all(len(r["methods"]["routing_only"]["average"]) == 2 for r in content["rows"])


def test_the_ablations_are_what_they_say():
    """Every cell trains what its methods read, and no two cells are the same training."""
    for name, cells in ablate.ABLATIONS.items():
        seen = set()
        for cell in cells():
            checkpoints = [t[0] for t in cell.trained]
            assert {checkpoint for checkpoint, _ in cell.methods.values()} <= set(checkpoints)
            seen.add((cell.world, cell.gap, cell.size, *((c, flags) for c, _, flags in cell.trained)))
        assert len(seen) == len(cells()) >= 3
    assert [c.gap for c in ablate.coverage()] == [0, 0.1, 0.25, 0.5]
    default = (ablate.toy.Settings.d_model, ablate.toy.Settings.n_layer)
    for cell in [*ablate.coverage(), *ablate.scale()]:  # the default world's folder holds the default world only
        assert (cell.world == "") == (cell.gap == 0.25 and cell.size == default)


# --- statistics -----------------------------------------------------------------------------------------------------------------------------


def test_interval_against_brute_force():
    """The multinomial short cut gives what drawing seeds and prompts one by one gives."""
    rng = Random(0)
    outcomes = [[[rng.choice([-1, 0, 0, 1, 1]) for _ in range(30)] for _ in range(4)] for _ in range(2)]  # 2 benchmarks, 4 seeds
    got, draws, coin = evaluate.interval(outcomes), [], Random(1)
    for _ in range(4000):
        seeds = [coin.randrange(4) for _ in range(4)]
        draws.append(np.mean([[np.mean(coin.choices(bench[s], k=30)) for s in seeds] for bench in outcomes]))
    assert got["mean"] == pytest.approx(np.mean([[np.mean(x) for x in bench] for bench in outcomes]), abs=1e-4)
    assert (got["low"], got["high"]) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.015)


def test_interval_in_its_limits():
    assert evaluate.interval([[[1] * 9, [1] * 9]])["low"] == 1 and evaluate.interval([[[0] * 9, [0] * 9]])["p"] == 1
    same = evaluate.interval([[[1, -1] * 50] * 4])
    assert same["low"] < 0 < same["high"] and same["p"] > 0.5
    seeds_differ = evaluate.interval([[[1] * 100, [-1] * 100, [1] * 100, [-1] * 100]])  # prompts agree, seeds do not
    assert seeds_differ["high"] - seeds_differ["low"] > 1.4
    assert evaluate.interval([[[1] * 95 + [-1] * 5] * 5])["p"] == 0


def run_of(right, grades):
    return {"right": {m: dict.fromkeys(tasks.BENCHMARKS, x) for m, x in right.items()}, "grades": grades}


def test_difference_and_wins_by_hand():
    results = [run_of({"a": "1110", "b": "1000"}, {"a": [7, 6.5, 1, 1], "b": [7, 6, 2, 0]})] * 2
    d = evaluate.difference(results, "a", "b")
    assert d["mean"] == 0.5 and d["seeds"] == [0.5, 0.5] and d["low"] < 0.5 < d["high"]
    assert evaluate.difference(results, "b", "a")["mean"] == -0.5
    w = evaluate.wins(results, "a", "b")
    assert (w["wins"], w["ties"], w["losses"]) == ([2, 2], [1, 1], [1, 1]) and w["rate"]["mean"] == 0.625


# --- splits ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_no_prompt_of_the_tables_was_trained_or_tuned_on(seed):
    """The very sets that the scripts draw, by content: SFT, preference, validation (tuning) and test share no problem."""
    def drawn(split, sizes):
        return {i.key for b, n in sizes.items() for i in tasks.dataset(b, split, n, Random(f"{split} {b} {seed}"))}

    s, t = evaluate.Settings(), tune.Settings()
    test = drawn("test", {b: s.general if b == "general" else s.prompts for b in evaluate.BENCHES})
    validation = drawn("validation", dict.fromkeys(tasks.BENCHMARKS, t.prompts))
    sft = {i.key for i in sft_data(train_sft.Settings(seed=seed, samples=7200))}
    preference = {i.key for i in tasks.mixed("preference", train_cdpo.Settings().prompts, Random(f"preference {seed}"))}
    sets = [test, validation, sft, preference]
    assert s.prompts >= 300 and s.general >= 500 and all(len(x) > 200 for x in sets)
    assert sum(map(len, sets)) == len(set().union(*sets))


# --- what is published ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def published():
    return report.load()


def test_readme_and_claims_say_what_results_say(published):
    readme = (ROOT / "README.md").read_text()
    assert report.fill(readme, report.blocks(published), "python report.py") == readme
    assert (ROOT / "CLAIMS.md").read_text() == report.claims_page(published)
    assert (ROOT / "results" / "README.md").read_text() == report.ablations_page(published)
    changed = deepcopy(published)
    changed["table1"]["llama"]["collab"]["average"][0] += 0.05  # and would notice a change
    assert report.fill(readme, report.blocks(changed), "python report.py") != readme
    assert report.claims_page(changed) != report.claims_page(published)
    changed["ablation_data"]["rows"][0]["methods"]["fine_tuned"]["average"][0] += 0.05
    assert report.ablations_page(changed) != report.ablations_page(published)


def test_every_trained_row_of_the_tables_is_explained():
    lines = baselines.__doc__.splitlines()
    for code in ("fusionroute", "sft_only", "routing_only", "fused_sft", "fused_full", "co_llm", "co_llm_self", "fine_tuned", "oracle_expert",
                 "uniform_average", "sequence_selection", "collab"):
        (line,) = [line for line in lines if line.strip().startswith(f"{report.NAMES[code].strip('*')}  ")]
        assert f" {code} " in line
        if code in ("fused_sft", "co_llm", "co_llm_self"):
            flags = line.partition("train_sft.py ")[2].partition("  ")[0]
            assert flags and evaluate.TRAINING[code][1].startswith(flags)  # the tests' tiny runs have more of them


def test_a_rank_needs_more_than_half_and_a_tie_has_no_direction(published):
    first = lambda r, family: next(c for c in report.claims(r, family) if "highest" in c.claim)
    assert [first(published, family).verdict for family in common.FAMILIES] == ["reproduced", "not shown"]
    rate = published["winrate"]["gemma"]["fusionroute"]["rate"]
    rate.update(mean=0.51)
    assert first(published, "gemma").verdict == "reproduced"
    rate.update(mean=0.2)
    assert first(published, "gemma").verdict == "reversed"
    tie = lambda: next(c for c in report.claims(published, "gemma") if "are level" in c.claim)
    assert report.PAPER["gemma"]["fusionroute"][4] == report.PAPER["gemma"]["instruct_expert"][4] and tie().verdict == "not shown"
    published["differences"]["gemma"]["fusionroute - instruct_expert, toy-ifeval"]["low"] = -0.01
    assert tie().verdict == "reproduced" and not tie().why


def test_the_settings_in_use_are_the_winners_of_the_tuning(published):
    for what, r in published["tuning"]["llama"].items():
        scores = [np.mean(t["accuracy"]) for t in r["tried"]]
        assert len(scores) >= 3 and r["won"] == r["tried"][int(np.argmax(scores))]["settings"]
        module, flags = evaluate.TRAINING[what if what in evaluate.TRAINING else "reward"]
        used = vars(common.settings(module.Settings, "", flags.split()))
        used |= {"task_arithmetic": evaluate.TASK_ARITHMETIC, "dare": evaluate.DARE, "collab": evaluate.LOOKAHEAD}.get(what, {})
        if what == "sequence_selection":  # it shares Collab's reward model, which must cost it nothing to speak of
            (score,) = [x for x, t in zip(scores, r["tried"]) if all(used[k] == v for k, v in t["settings"].items())]
            assert score >= max(scores) - 0.01
        else:
            assert all(used[k] == v for k, v in r["won"].items()), (what, r["won"])
    meta = published["tuning"]["meta"]["llama"]
    assert meta["split"] == "validation"


def test_the_acceptance_of_the_tables(published):
    """FusionRoute above every baseline with the whole interval above zero (the oracle and the variants that the paper does not have aside), on five seeds."""
    assert all(len(published["table1"]["meta"][family]["seeds"]) >= 5 for family in common.FAMILIES)
    for m in evaluate.METHODS:
        if m not in ("fusionroute", "oracle_expert", "fused_sft", "fused_full", "co_llm_self"):
            assert all(published["differences"][family][f"fusionroute - {m}"]["low"] > 0 for family in common.FAMILIES), m
    rates = {m: w["rate"]["mean"] for m, w in published["winrate"]["llama"].items()}
    assert rates["fusionroute"] > 0.5 and rates["sft_only"] < rates["fusionroute"] and rates["sft_only against fusionroute"] < 0.5
    meta = published["table1"]["meta"]["llama"]
    seconds = [t["total"] for t in meta["run time in seconds"].values()]
    assert max(seconds) <= 15 * 60 * (2 if meta["threads"] == 1 else 1)  # on two cores, runs of one thread go two at a time


def test_a_family_s_results_leave_the_other_s_alone(tmp_path):
    path = tmp_path / "table1.json"
    common.write_family(path, "llama", [1], {"seeds": [0]})
    common.write_family(path, "gemma", [2], {"seeds": [1]})
    common.write_family(path, "llama", [3], {"seeds": [2]})
    assert json.loads(path.read_text()) == {"llama": [3], "gemma": [2], "meta": {"llama": {"seeds": [2]}, "gemma": {"seeds": [1]}}}
    path.write_text("{")
    with pytest.raises(common.UserError, match="damaged"):
        common.write_family(path, "gemma", [2], {})
    assert path.read_text() == "{"


def test_verdicts():
    assert [report.verdict({"low": a, "high": b}) for a, b in ((0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1))] == ["reproduced", "not shown", "reversed"]


def test_mistakes(world):
    assert "two or more" in mistake("evaluate", "--out", world, "--seeds", "1", "1")
    assert "two or more" in mistake("tune", "--out", world, "--seeds", "1")
    assert "--prompts" in mistake("evaluate", "--out", world, "--prompts", "0")
    assert "--split" in mistake("evaluate", "--out", world, "--split", "train")
    assert "coverage" in mistake("ablate", "everything")
    assert "only some" in mistake("quickstart", "--out", world, "--prompts", "30000")
    assert quickstart.tasks is tasks
