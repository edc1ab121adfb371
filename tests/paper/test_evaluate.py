"""The statistics against brute force, the splits, and everything that is published against the files it comes from."""

import dataclasses
import importlib
import json
from copy import deepcopy
from dataclasses import replace
from random import Random

import numpy as np
import pytest

import train_cdpo
from extra.common import FAMILIES, write_family
from extra.paper import ablate, baselines, claims, evaluate, published as paper, report, tune
from extra.paper.train import TRAINING, Cdpo, Sft
from toy_experts import run, tasks


def test_the_ablations_are_what_they_say():
    """Every cell trains what its methods read, and no two cells are the same training."""
    for name, cells in ablate.ABLATIONS.items():
        seen = set()
        for cell in cells():
            checkpoints = dict(cell.trained)
            assert {checkpoint for checkpoint, _ in cell.methods.values()} <= set(checkpoints)
            seen.add((cell.place, cell.gap, cell.size, *cell.trained))
            for method, (checkpoint, how) in cell.methods.items():  # what a row decodes, and with what
                spec = checkpoints[checkpoint]
                assert how == {"routing_only": {"use_router": False}, "fine_tuned": {"use_expert": False}, "generalist": {"use_expert": False},
                               "co_llm_self": {"use_router": False}}.get(method, {})
                one_phase = method in ("sft_only", "generalist", "co_llm_self", "fused_sft") or checkpoint in ("router_sft", "fine_tuned_sft_32")
                assert isinstance(spec, Sft if name == "routing" or one_phase else Cdpo)
                if isinstance(spec, Cdpo):
                    assert (spec.loss, checkpoints[spec.phase1].loss) == ("plain", "plain") or method != "fine_tuned"
                    assert method != "fine_tuned" or checkpoint != "fine_tuned" or spec.pairs_of == "router_sft"
        assert len(seen) == len(cells()) >= 2
    assert [c.gap for c in ablate.coverage()] == [0, 0.1, 0.25, 0.5]
    for cell in [*ablate.coverage(), *ablate.scale()]:  # the default folder is for the default gap and size only
        assert (cell.place == "") == (cell.gap == 0.25 and cell.size == (96, 3))


# --- statistics -----------------------------------------------------------------------------------------------------------------------------


def test_student_t_against_tables():
    for df, quantile in ((1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (29, 2.0452)):
        assert evaluate.student_t(df)[0] == pytest.approx(quantile, abs=1e-3)
        assert evaluate.student_t(df, quantile)[1] == pytest.approx(0.05, abs=1e-4)
    assert evaluate.student_t(4, 4.6041)[1] == pytest.approx(0.01, abs=1e-4) and evaluate.student_t(4)[1] == 1


def test_interval_by_hand():
    d = evaluate.interval([0.1, 0.12, 0.14])  # sd .02, standard error .02 / sqrt 3, t(2) = 4.3027
    assert (d["mean"], d["low"], d["high"]) == pytest.approx((0.12, 0.12 - 0.0497, 0.12 + 0.0497), abs=1e-4)
    assert d["p"] == pytest.approx(0.0091, abs=1e-4) and d["seeds"] == [0.1, 0.12, 0.14]
    assert evaluate.interval([0.1, -0.1])["p"] == 1 and evaluate.interval([0.0, 0.0])["p"] == 1 and evaluate.interval([0.1, 0.1])["p"] == 0


def test_an_interval_over_seeds_covers_what_it_says():
    """Of 400 draws of five seeds, about 95% of the intervals have the true mean inside."""
    rng = np.random.default_rng(0)
    inside = [d["low"] <= 0.3 <= d["high"] for d in (evaluate.interval(list(x)) for x in rng.normal(0.3, 0.1, (400, 5)))]
    assert 0.92 < np.mean(inside) < 0.98


def test_holm_by_hand():
    assert evaluate.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert evaluate.holm([0.5, 0.001]) == pytest.approx([0.5, 0.002]) and evaluate.holm([0.6, 0.7]) == [1, 1]


def run_of(right, grades):
    return {"right": {m: dict.fromkeys(tasks.BENCHMARKS, x) for m, x in right.items()}, "grades": grades}


def test_difference_and_wins_by_hand():
    results = [run_of({"a": "1110", "b": "1000"}, {"a": [7, 6.5, 1, 1], "b": [7, 6, 2, 0]})] * 2
    d = evaluate.difference(results, "a", "b")
    assert d["mean"] == 0.5 and d["seeds"] == [0.5, 0.5] and d["low"] == 0.5 == d["high"]
    assert evaluate.difference([*results, run_of({"a": "1110", "b": "1110"}, {})], "a", "b")["seeds"] == [0.5, 0.5, 0]
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
    sft = {i.key for i in tasks.mixed("train", 7200, Random(f"sft {seed}"))}
    preference = {i.key for i in tasks.mixed("preference", train_cdpo.Settings().prompts, Random(f"preference {seed}"))}
    sets = [test, validation, sft, preference]
    assert s.prompts >= 300 and s.general >= 500 and all(len(x) > 200 for x in sets)
    assert sum(map(len, sets)) == len(set().union(*sets))


# --- what is published ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def published():
    return paper.load()


def test_every_page_says_what_the_results_say(published):
    pages = report.pages(published)
    assert {str(path.relative_to(paper.ROOT)) for path in pages} == {
        "README.md", "extra/paper/README.md", "extra/paper/CLAIMS.md", "extra/results/README.md"}
    for path, text in pages.items():
        assert path.read_text() == text, f"{path}: run python -m extra.paper.report"
    changed = deepcopy(published)  # and every page would notice a change
    for method in ("code_expert", "collab"):
        changed["table1"]["llama"][method]["average"][0] += 0.05
    changed["ablation_data"]["rows"][0]["methods"]["fine_tuned"]["average"][0] += 0.05
    assert all(path.read_text() != text for path, text in report.pages(changed).items())
    for file, change in (("winrate", ("gemma", "sft_only", "rate", "mean")), ("cost", ("llama", "collab", "over_one_expert")),
                         ("quickstart", ("accuracy", "fusionroute", "toy-gsm8k"))):
        changed, inner = deepcopy(published), change[:-1]
        at = changed[file]
        for key in inner:
            at = at[key]
        at[change[-1]] += 0.123
        assert report.pages(changed)[paper.PAPER_WING / "README.md"] != report.pages(published)[paper.PAPER_WING / "README.md"]


def test_the_short_table_has_the_lesson_s_rows_and_all_that_are_above(published):
    def rows():
        return [line.split("|")[1].strip(" *") for line in report.short_table(published).splitlines()[4:] if line.startswith("|")]

    ours, seeds = published["table1"]["llama"], len(published["table1"]["meta"]["llama"]["seeds"])
    named = lambda m: paper.NAMES[m].strip("*").removesuffix(", tuned budget")
    above = {m for m, row in ours.items() if len(row["average"]) == seeds and np.mean(row["average"]) > np.mean(ours["fusionroute"]["average"])}
    blocks = "\n".join(rows()).split("16 passes over the SFT samples:\n")
    assert [set(block.splitlines()) - {"4 passes over the SFT samples:"} for block in blocks] == [
        {named(m) for m in [*report.SHORT, *above] if (m in report.LONG) == long} for long in (False, True)] and {"co_llm_self", "fused_sft"} <= above
    few = [m for m in report.SHORT if len(ours[m]["average"]) < seeds]
    assert few and all(f"{paper.NAMES[m]}*" in report.short_table(published) for m in few) and "*: 4 seeds; FusionRoute has 88.1 on these." in report.short_table(published)
    assert all(("_long" in m or m == "two_fine_tuned") == (m in report.LONG) for m in report.SHORT)
    tuned = {TRAINING[name].epochs for name in ("router_sft_long", "fine_tuned_sft_long", "fine_tuned_sft_math")}
    assert tuned == {16}  # one block holds them all
    ours["uniform_average"]["average"] = [0.99] * seeds
    ours["collab"]["average"] = [0.99] * (seeds - 1)  # of some seeds only: not a row that must be there
    assert paper.NAMES["uniform_average"] in rows() and "Collab" not in rows()
    for m in few:
        ours[m]["average"] = [0.5] * seeds
    assert "*: " not in report.short_table(published)


def test_each_row_of_the_short_table_is_beside_fusionroute_with_the_same_budget(published):
    """And the sentence below it follows its figures."""
    d = published["differences"]["llama"]
    def said(name, block):
        lines = report.short_table(published).split("16 passes over the SFT samples")[block].splitlines()
        return next(line.split("|")[4].strip() for line in lines if line.startswith("|") and line.split("|")[1].strip(" *") == name)

    for name, block, ours, other in (("Fine-tuned Model", 0, "fusionroute", "fine_tuned"), ("Fine-tuned Model", 1, "fusionroute_long", "fine_tuned_long"),
                                     ("sum of two models", 1, "fusionroute_long", "two_fine_tuned"), ("phase 1 only", 0, "fusionroute", "sft_only"),
                                     ("generalist (a bound)", 0, "fusionroute", "generalist")):
        d[f"{ours} - {other}"].update(mean=0.123, low=0.1, high=0.2)
        assert said(name, block) == "+12.3 [+10.0, +20.0]"
        d[f"{ours} - {other}"].update(mean=0.05)
    worth = report.phase2_worth(published)
    for change in (lambda r: r["table1"]["llama"]["sft_long"]["general"].__setitem__(0, 0.0), lambda r: r["differences"]["llama"]["fusionroute - sft_only"].update(mean=0.9),
                   lambda r: r["differences"]["llama"]["fusionroute_long - sft_long"].update(mean=0.9),
                   lambda r: r["differences"]["llama"]["fusionroute - fusionroute_all"].update(mean=0.9),
                   lambda r: next(x for x in r["ablation_preference"]["rows"] if x["label"] == "bias off")["methods"]["fusionroute"].update(average=[0.1, 0.2])):
        other = deepcopy(published)
        change(other)
        assert report.phase2_worth(other) != worth


def test_the_quickstart_shows_what_the_page_claims(published):
    r = published["quickstart"]
    average = {m: row["average"] for m, row in r["accuracy"].items()}
    assert all(average["fusionroute"] > average[m] for m in [*tasks.DOMAINS, "routing_only", "sft_only"])
    for expert, benches in tasks.DOMAINS.items():
        for b in tasks.BENCHMARKS:
            assert r["covered"][expert][b] >= 0.85 if b in benches else r["covered"][expert][b] < 0.6
    assert r["routing"]["toy-gsm8k"]["S"]["math"] > 0.5 and r["routing"]["toy-mbpp"]["S"]["code"] > 0.5
    assert r["meta"]["seconds"]["total"] < 600 and r["meta"]["settings"]["split"] == "test"


def test_every_trained_row_of_the_tables_is_explained():
    lines = baselines.__doc__.splitlines()
    (head,) = [line for line in lines if line.strip().startswith("row of the tables")]
    for code in ("fusionroute", "sft_only", "routing_only", "router", "fused_sft", "fused_full", "co_llm", "co_llm_self", "fine_tuned", "oracle_expert",
                 "uniform_average", "sequence_selection", "collab", "fusionroute_long", "sft_long", "fine_tuned_long", "fine_tuned_sft_long",
                 "generalist", "double", "two_fine_tuned", "fusionroute_all", "sft_all", "router_mean", "router_math", "router_random", "selection_lm", "collab_lm"):
        (line,) = [line for line in lines if line.strip().startswith((f"{paper.NAMES[code].strip('*')}  ", f"{paper.NAMES[code]}, ..."))]
        start, stop = (head.index(x) for x in ("trained by", "decodes with"))
        trained_by = line[start:stop].strip()
        recipe = {"fused_full": "fused_full", "fusionroute": "router", "sft_only": "router_sft", "sequence_selection": "reward",
                  "collab": "reward", "sft_long": "router_sft_long"}.get(code, code)
        if recipe in TRAINING and code not in ("router", "fine_tuned", "fine_tuned_long", "generalist", "double"):
            last = trained_by.split("then ")[-1]  # the table's text is the recipe itself
            assert eval(last, {"Sft": Sft, "Cdpo": Cdpo, "Reward": baselines.Reward}) == TRAINING[recipe]
    assert (TRAINING["fine_tuned"].phase1, TRAINING["fine_tuned"].pairs_of) == ("fine_tuned_sft", "router_sft")
    assert TRAINING["fine_tuned"].loss == TRAINING["fine_tuned_sft"].loss == "plain" and "both phases with loss=\"plain\"" in baselines.__doc__


def test_a_rank_needs_more_than_half_and_a_tie_has_no_direction(published):
    first = lambda r, family: next(c for c in claims.claims(r, family) if "highest" in c.claim)
    assert [first(published, family).verdict for family in FAMILIES] == ["not shown", "not shown"]
    assert paper.NAMES["two_fine_tuned"] in first(published, "llama").ours  # what is above it is named
    rate = published["winrate"]["gemma"]["fusionroute"]["rate"]
    rate.update(mean=0.51, p=0.0001)
    assert first(published, "gemma").verdict == "reproduced"
    rate.update(p=0.04)  # enough alone, not among so many claims
    assert first(published, "gemma").verdict == "not shown"
    rate.update(mean=0.2)
    assert first(published, "gemma").verdict == "reversed"
    tie = lambda: next(c for c in claims.claims(published, "gemma") if "are level" in c.claim)
    assert paper.PAPER["gemma"]["fusionroute"][4] == paper.PAPER["gemma"]["instruct_expert"][4] and tie().verdict == "not shown"
    published["differences"]["gemma"]["fusionroute - instruct_expert, toy-ifeval"]["low"] = -0.01
    assert tie().verdict == "reproduced" and not tie().why


def test_a_broken_model_decides_nothing(published):
    """The paper's setting of DARE leaves a model that answers nothing right: to be above it says nothing."""
    said = {c.claim: c.verdict for c in claims.claims(published, "llama")}
    broken = [claim for claim in said if paper.NAMES["dare_paper"] in claim]
    assert len(broken) == 2 and all(said[claim] == "says nothing" for claim in broken)
    published["table1"]["llama"]["dare_paper"]["average"] = [0.1] * 5
    assert not [c for c in claims.claims(published, "llama") if c.verdict == "says nothing"]


def test_the_settings_in_use_are_the_winners_of_the_tuning(published):
    for what, r in published["tuning"]["llama"].items():
        scores = [np.mean(t["accuracy"]) for t in r["tried"]]
        assert len(scores) >= 3 and r["won"] == r["tried"][int(np.argmax(scores))]["settings"]
        used = vars(TRAINING[what if what in TRAINING else "reward"]) | {"task_arithmetic": evaluate.TASK_ARITHMETIC, "dare": evaluate.DARE, "collab": evaluate.LOOKAHEAD}.get(what, {})
        if what == "sequence_selection":  # it shares Collab's reward model, which must cost it nothing to speak of
            (score,) = [x for x, t in zip(scores, r["tried"]) if all(used[k] == v for k, v in t["settings"].items())]
            assert score >= max(scores) - 0.01
        else:
            assert all(used[k] == v for k, v in r["won"].items()), (what, r["won"])
    meta = published["tuning"]["meta"]["llama"]
    assert meta["split"] == "validation"


def test_the_stored_intervals_are_those_of_the_seeds(published):
    for family in FAMILIES:
        for name, d in published["differences"][family].items():
            again = evaluate.interval(d["seeds"])  # from rounded figures, so the last digit of p may differ
            assert {k: v for k, v in d.items() if k != "p"} == {k: pytest.approx(v, abs=2e-4) for k, v in again.items() if k != "p"}, name
            assert d["p"] == pytest.approx(again["p"], rel=0.15), name
        for name, w in published["winrate"][family].items():
            half = evaluate.interval([x - 0.5 for x in w["rate"]["seeds"]])
            assert (w["rate"]["low"], w["rate"]["p"]) == (pytest.approx(half["low"] + 0.5, abs=2e-4), pytest.approx(half["p"], rel=0.15)), name


def test_the_acceptance_of_the_tables(published):
    """FusionRoute above every baseline of the paper with the whole interval above zero, on five seeds or more; what is above it is in no claim of the paper."""
    assert all(len(published["table1"]["meta"][family]["seeds"]) >= 5 for family in FAMILIES)
    assert set(published["table1"]["llama"]) <= set(evaluate.METHODS)
    for family in FAMILIES:
        for m in paper.PAPER[family]:
            assert m == "fusionroute" or published["differences"][family][f"fusionroute - {m}"]["low"] > 0, m
    rates = {m: w["rate"]["mean"] for m, w in published["winrate"]["llama"].items()}
    assert rates["sft_only"] < rates["fusionroute"] and rates["sft_only against fusionroute"] < 0.5


def test_a_family_s_results_leave_the_other_s_alone(tmp_path):
    path = tmp_path / "table1.json"
    write_family(path, "llama", [1], {"seeds": [0]})
    write_family(path, "gemma", [2], {"seeds": [1]})
    write_family(path, "llama", [3], {"seeds": [2]})
    assert json.loads(path.read_text()) == {"llama": [3], "gemma": [2], "meta": {"llama": {"seeds": [2]}, "gemma": {"seeds": [1]}}}
    path.write_text("{")
    with pytest.raises(run.UserError, match="damaged"):
        write_family(path, "gemma", [2], {})
    assert path.read_text() == "{"


def test_verdicts():
    """By p, corrected for the number of claims, and the side of the mean; a claim that another rule decides does not count."""
    claim = lambda mean, p, verdict="": claims.Claim("", "", "", verdict, "", "why", {"mean": mean, "p": p})
    found = [claim(0.1, 0.01), claim(-0.1, 0.01), claim(0.1, 0.04), claim(0.1, 0.04, "finding")]
    claims.settle(found)
    assert [c.verdict for c in found] == ["reproduced", "reversed", "reproduced", "finding"] and [c.why for c in found] == ["", "why", "", ""]
    found = [claim(0.1, 0.02)] * 1 + [claim(0.1, 0.5) for _ in range(9)]  # one of ten
    assert [c.verdict for c in claims.settle(found)] == ["not shown"] * 10
    assert found[0].why.startswith("why Alone it would be") and {c.why for c in found[1:]} == {"why"}
    rank = claims.Claim("", "", "", "as first", "", "")  # it takes the verdict of another claim, and is not counted itself
    for p, verdict in ((0.04, "reproduced"), (0.06, "not shown")):
        found = [claims.Claim("first", "", "", "", "", "", {"mean": 0.1, "p": p}), replace(rank)]
        assert [c.verdict for c in claims.settle(found)] == [verdict, verdict]
    few = claims.Claim("", "", "", "", "", claims.REASONS["few"], {"mean": -0.1, "p": 0.001})
    assert claims.settle([few])[0].verdict == "reversed" and not few.why
    of = lambda paper, verdict: claims.Claim("", paper, "", verdict, "")
    assert claims.counts([of("said", "reproduced"), of("(no figure)", "reproduced"), of("", "finding"), of("said", "reversed")]) == (
        "1 reproduced, 1 reversed; of variations of our own 1 reproduced; 1 findings besides")
    assert claims.opposite(evaluate.interval([0.1, 0.3])) == evaluate.interval([-0.1, -0.3])


def test_mistakes(tmp_path, mistake):
    assert "two or more" in mistake("extra.paper.evaluate", "--out", tmp_path, "--seeds", "1", "1")
    assert "two or more" in mistake("extra.paper.tune", "--out", tmp_path, "--seeds", "1")
    assert "--prompts" in mistake("extra.paper.evaluate", "--out", tmp_path, "--prompts", "0")
    assert "--split" in mistake("extra.paper.evaluate", "--out", tmp_path, "--split", "train")
    assert "--split" in mistake("extra.paper.quickstart", "--out", tmp_path, "--split", "train")
    assert "--family" in mistake("extra.paper.evaluate", "--out", tmp_path, "--family", "bert")
    assert "coverage" in mistake("extra.paper.ablate", "everything")
    assert "bash run.sh" in mistake("extra.paper.quickstart", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["baselines", "train", "evaluate", "tune", "ablate", "quickstart"])
def test_help_explains_every_flag(name, capsys):
    module = importlib.import_module(f"extra.paper.{name}")
    with pytest.raises(SystemExit) as caught:
        module.main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and text.count("--seed") and all(f"--{f.name}" in text for f in dataclasses.fields(module.Settings))
