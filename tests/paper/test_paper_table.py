"""Every figure of the tables from invented answers: who was right where is known, so each number in the files can be computed by hand.

Rows that are new are tested too: what is expected of a row follows from its name in evaluate.ROWS alone.
"""

import functools
import json
from collections import Counter
from dataclasses import replace
from random import Random
from statistics import mean, stdev

import numpy as np
import pytest
import torch

from extra import models
from extra.paper import ablate, baselines, evaluate, quickstart, tune
from extra.paper import train as paper_train
from extra.paper.train import TRAINING, Union
from fusionroute import Router
from toy_experts import run, tasks, tokenizer
from toy_experts.batch import METHODS as TOY_METHODS
from toy_experts.batch import Trace

EXPERTS = ("math", "code", "instruct")
SEEDS, REST, PROMPTS, GENERAL = (3, 4, 5), 2, 10, 9
dataset = functools.cache(lambda bench, split, n, seed: tasks.dataset(bench, split, n, Random(f"{split} {bench} {seed}")))


def drawn(seed, split="test", prompts=PROMPTS, general=GENERAL):
    return {b: dataset(b, split, general if b == "general" else prompts, seed) for b in evaluate.BENCHES}


def says(method, seed, item, version=""):
    """A method's invented answer: right, right with more words, or wrong. Each method has a rate of its own."""
    return spoken(method, f"{method} {seed} {item.prompt} {version}", item.answer)


@functools.cache
def spoken(method, key, answer):
    rng = Random(key)
    return answer if rng.random() < Random(f"rate of {method}").uniform(0.1, 0.9) else rng.choice([answer + " indeed", "green", "The answer is 7."])


def check(item, text):
    """In the place of tasks.check and tasks.grade, which have tests of their own and take longer."""
    return text == item.answer


def grade(item, text):
    return 4 * check(item, text) + len(text) % 3 / 3


@functools.cache
def tokens(text):
    return tokenizer.encode_answer(text)[:-1]


def random_in(state):
    rng = Random()
    rng.setstate(state)
    return rng


@pytest.fixture
def invented(monkeypatch, tmp_path):
    """evaluate.py with invented models and answers. `log` counts what was decoded; `prints` are the weights' fingerprints, to be changed."""
    log, prints, asked, of_run = Counter(), {}, [], tasks.dataset
    drawn_before = functools.cache(lambda bench, split, n, state: of_run(bench, split, n, random_in(state)))
    monkeypatch.setattr(tasks, "dataset", lambda bench, split, n, rng: drawn_before(bench, split, n, rng.getstate()))
    monkeypatch.setattr(tasks, "check", check)
    monkeypatch.setattr(tasks, "grade", grade)

    def load_all(s, methods):
        names = ["base", *EXPERTS, *dict.fromkeys(n for method in methods for n in evaluate.ROWS[method])]
        folder = models.folder(s)
        folder.mkdir(parents=True, exist_ok=True)
        return {n: (n, s.seed) for n in names} | {"experts": [(e, s.seed) for e in EXPERTS]}

    def decoders(m, methods):
        seed = m["base"][1]
        known = {tuple(tokenizer.encode_prompt(i.prompt)): i for split in ("test", "validation") for items in drawn(seed, split).values() for i in items}

        def decoder(method):
            def decode(prompts):
                log[method, seed] += len(prompts)
                version = "".join(prints.get(n, "") for n in evaluate.ROWS[method])
                return [tokens(says(method, seed, known[tuple(p)], version)) for p in prompts]
            return decode
        return {method: decoder(method) for method in methods if method != "oracle_expert"}

    def traces(router, experts, **how):
        asked.append((router, tuple(experts), how))
        return lambda prompts: [Trace(tokens=p) for p in prompts]

    def routing(experts, items, answers):
        assert [t.tokens for t in answers] == [tokenizer.encode_prompt(i.prompt) for i in items]
        share = {e: (len(items[0].prompt) + k) / 1000 for k, (e, _) in enumerate(experts)}
        return {"all": share, "S": {e: x / 2 for e, x in share.items()}, "S_share": len(items[-1].prompt) / 1000}

    monkeypatch.setattr(evaluate, "load_all", load_all)
    monkeypatch.setattr(evaluate, "decoders", decoders)
    monkeypatch.setattr(evaluate, "traces", traces)
    monkeypatch.setattr(evaluate, "routing", routing)
    monkeypatch.setattr(evaluate, "fingerprints", lambda names, ms: {n: f"{n} {prints.get(n, '')}" for n, (m, _) in zip(names, ms) if n == m})
    monkeypatch.setattr(evaluate, "train_missing", lambda s, methods: None)
    monkeypatch.setattr(tasks, "mixed", lambda split, n, rng: [split, n])
    monkeypatch.setattr(evaluate, "neighbours", lambda items, training: len(items[0].prompt) / 1000 if training == ["train", 2400] else 0)
    monkeypatch.setattr(evaluate, "space", lambda b, split: f"{b} {split}")
    monkeypatch.setattr(evaluate, "cost", lambda s: {"of seed": s.seed})
    monkeypatch.setattr(run, "load", lambda path, keys, hint: {"recipe": {"gap": 0.25}, "seconds": 10})
    return log, prints, asked, tmp_path


def right(method, seed, item, version=""):
    if method == "oracle_expert":
        return any(right(f"{e}_expert", seed, item) for e in EXPERTS)
    return check(item, says(method, seed, item, version))


def graded(method, seed, item):
    if method == "oracle_expert":
        return max(graded(f"{e}_expert", seed, item) for e in EXPERTS)
    return grade(item, says(method, seed, item))


T_975 = {1: 12.7062, 2: 4.3027}  # Student's t, from a table


def check_interval(d, values, zero=0.0):
    """Mean and interval over these numbers, one a seed."""
    values = [float(v) for v in values]
    assert d["seeds"] == pytest.approx(values, abs=2e-4) and d["mean"] == pytest.approx(mean(values), abs=2e-4)
    half = T_975[len(values) - 1] * stdev(values) / len(values) ** 0.5
    assert (d["low"], d["high"]) == pytest.approx((mean(values) - half, mean(values) + half), abs=1e-3)
    assert (d["p"] < 0.05) == (abs(mean(values) - zero) > half)


def test_every_figure_in_the_files_by_hand(invented, capsys):
    """Accuracies, covered and uncovered, the oracle, differences on the same prompts, wins, ties and losses, routing, on the seeds that each row has."""
    log, _, asked, folder = invented
    evaluate.main(["--seeds", *map(str, SEEDS), "--rest", str(REST), "--out", str(folder / "out"), "--prompts", str(PROMPTS), "--general", str(GENERAL),
                   "--results", str(folder / "results"), "--device", "cpu"])
    printed = capsys.readouterr().out
    r = {name: json.loads((folder / "results" / f"{name}.json").read_text())["llama"] for name in ("table1", "winrate", "cost", "differences", "routing")}
    items = {seed: drawn(seed) for seed in SEEDS}
    assert {tasks.split_of(i.key) for per in items.values() for of in per.values() for i in of} == {"test"}
    held = {seed: {x for b in tasks.BENCHMARKS for x in tasks.held_out(b, 0.25, seed)} for seed in SEEDS}
    seeds_of = {m: SEEDS if m in evaluate.HEADLINE else SEEDS[:REST] for m in evaluate.METHODS}
    assert set(r["table1"]) == set(evaluate.METHODS) and set(evaluate.HEADLINE) < set(evaluate.METHODS)

    accuracy = {(m, b, seed): np.mean([right(m, seed, i) for i in items[seed][b]]) for m in evaluate.METHODS for seed in seeds_of[m] for b in evaluate.BENCHES}
    average = {(m, seed): np.mean([accuracy[m, b, seed] for b in tasks.BENCHMARKS]) for m in evaluate.METHODS for seed in seeds_of[m]}
    for m, row in r["table1"].items():
        for b in evaluate.BENCHES:
            assert row[b] == pytest.approx([accuracy[m, b, seed] for seed in seeds_of[m]], abs=1e-4), (m, b)
        assert row["average"] == pytest.approx([average[m, seed] for seed in seeds_of[m]], abs=1e-4)
        for name, inside in (("covered", False), ("uncovered", True)):
            by_bench = [[[right(m, seed, i) for i in items[seed][b] if (i.skill in held[seed]) == inside] for b in tasks.BENCHMARKS] for seed in seeds_of[m]]
            assert row[name] == pytest.approx([np.mean([np.mean(x) for x in of if x]) for of in by_bench], abs=1e-4), (m, name)
        (line,) = [x for x in printed.splitlines() if x.startswith(f"| {m} ")]
        cells = [float(x) for x in line.split("|")[2:-1]]
        assert cells[5] == pytest.approx(100 * np.mean(row["average"]), abs=0.51) and cells[6] == pytest.approx(100 * np.mean(row["general"]), abs=0.51)
        assert cells[7] == len(seeds_of[m])

    both = lambda a, b: [seed for seed in SEEDS if seed in seeds_of[a] and seed in seeds_of[b]]
    for name, d in r["differences"].items():
        pair, _, bench = name.partition(", ")
        a, b = pair.split(" - ")
        values = [accuracy[a, bench, seed] - accuracy[b, bench, seed] if bench else average[a, seed] - average[b, seed] for seed in both(a, b)]
        check_interval(d, values)
    assert {f"fusionroute - {m}" for m in evaluate.METHODS if m != "fusionroute"} < set(r["differences"])
    assert {f"{a} - {b}" for a, b in evaluate.PAIRS} < set(r["differences"])

    against = {m: (m, "fine_tuned_long") for m in evaluate.METHODS if m != "fine_tuned_long"} | {"sft_only against fusionroute": ("sft_only", "fusionroute")}
    assert set(r["winrate"]) == set(against)
    for name, w in r["winrate"].items():
        a, b = against[name]
        grades = [[(graded(a, seed, i), graded(b, seed, i)) for i in items[seed]["general"]] for seed in both(a, b)]
        near = 1e-4  # grades are kept with four digits
        assert w["wins"] == [sum(x > y + near for x, y in of) for of in grades] and w["losses"] == [sum(x < y - near for x, y in of) for of in grades], name
        assert w["ties"] == [GENERAL - x - y for x, y in zip(w["wins"], w["losses"])]
        check_interval(w["rate"], [(x + y / 2) / GENERAL for x, y in zip(w["wins"], w["ties"])], 0.5)
    assert any(sum(w["ties"]) for w in r["winrate"].values())

    for b, parts in r["routing"].items():  # of fusionroute's router, with the answers to these prompts
        for k, e in enumerate(EXPERTS):
            first = [len(items[seed][b][0].prompt) + k for seed in SEEDS]
            assert parts["all"][e] == pytest.approx([x / 1000 for x in first]) and parts["S"][e] == pytest.approx([x / 2000 for x in first])
        assert parts["S_share"] == pytest.approx([len(items[seed][b][-1].prompt) / 1000 for seed in SEEDS])
    assert asked == [(("router", seed), tuple((e, seed) for e in EXPERTS), {}) for seed in SEEDS]
    assert r["cost"] == {"of seed": SEEDS[0]}
    meta = json.loads((folder / "results" / "table1.json").read_text())["meta"]["llama"]
    assert meta["seeds"] == list(SEEDS) and meta["seeds of the other rows"] == list(SEEDS[:REST]) and meta["split"] == "test"
    assert meta["problems found in 20,000 draws"] == {b: f"{b} test" for b in evaluate.BENCHES}
    assert meta["share with a neighbour in the SFT data"] == {b: [len(items[seed][b][0].prompt) / 1000 for seed in SEEDS] for b in evaluate.BENCHES}
    assert meta["distinct problems"] == {b: [len({i.key for i in items[seed][b]}) for seed in SEEDS] for b in evaluate.BENCHES}


def test_what_is_kept_follows_weights_and_settings(invented):
    """A checkpoint with other weights makes the rows anew that decode with it; the base, an expert or a setting that is not trained makes all."""
    log, prints, _, folder = invented
    s = evaluate.Settings(seed=3, out=str(folder), device="cpu", prompts=2, general=2)

    def again(s=s):
        log.clear()
        r = evaluate.evaluate(s, evaluate.METHODS)
        for m in set(evaluate.METHODS) - {"oracle_expert"}:  # and what is kept is of the weights that are there now
            version = "".join(prints.get(n, "") for n in evaluate.ROWS[m])
            items = drawn(3, s.split, s.prompts, s.general)
            assert r["right"][m] == {b: "".join(str(int(right(m, 3, i, version))) for i in items[b]) for b in evaluate.BENCHES}, m
        return {m for m, _ in log}

    every = set(evaluate.METHODS) - {"oracle_expert"}
    assert again() == every and again() == set()
    for name in dict.fromkeys(n for names in evaluate.ROWS.values() for n in names):
        prints[name] = "new"
        assert again() == {m for m, names in evaluate.ROWS.items() if name in names}, name
    for name in ("base", *EXPERTS):
        prints[name] = "new"
        assert again() == every, name
    for name, value in (("TASK_ARITHMETIC", {"scale": 0.1}), ("DARE", {"scale": 0.5, "drop": 0.2}), ("LOOKAHEAD", {"lookahead": 9}), ("JUDGE", {"mean": True})):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate, name, value)
            assert again() == every, name
    again()
    for change in ({"prompts": 3}, {"general": 3}, {"split": "validation"}):
        other = evaluate.Settings(**vars(s) | change)
        assert again(other) == every and again(other) == set(), change


@pytest.fixture(scope="module")
def tiny_models():
    """base, experts and every checkpoint, untrained, with three experts of different sizes in no respect; a reward model; co_llm_self chooses among four."""
    torch.manual_seed(1)
    m = {n: models.new_gpt("llama", (24, 1)).eval().requires_grad_(False) for n in ("base", *EXPERTS)}
    for name, spec in TRAINING.items():
        if not isinstance(spec, Union):
            n = 1 if isinstance(spec, baselines.Reward) else 4 if getattr(spec, "loss", "") == "co_llm_self" else 3
            m[name] = Router(models.new_gpt("llama", (24, 1)), n).eval().requires_grad_(False)
            torch.nn.init.normal_(m[name].W.weight)
    return m | {"experts": [m[e] for e in EXPERTS]}


def test_each_row_reads_the_checkpoints_that_it_names(tiny_models, monkeypatch):
    """ROWS, by which answers are kept and models trained, against what the decoder takes in fact."""
    monkeypatch.setattr(evaluate, "MAX_NEW", 2)
    monkeypatch.setattr(evaluate, "LOOKAHEAD", {"lookahead": 1})

    class Watched(dict):
        def __getitem__(self, name):
            taken.add(name)
            return super().__getitem__(name)

    taken = set()
    for method, decoder in evaluate.decoders(Watched(tiny_models), evaluate.METHODS).items():
        taken.clear()
        decoder([tokenizer.encode_prompt("Write green.")])
        assert taken - {"base", "experts", *EXPERTS} == set(evaluate.ROWS[method]), method
    for method, names in evaluate.ROWS.items():  # and what it names is trained, with what that starts from
        assert set(evaluate.trained_for([method])) == {x for n in names for x in paper_train.needed(n)}


def test_what_a_token_costs(tiny_models, monkeypatch):
    """Passes per token by kind of model: one model one; the fused pair two; all experts three, with the router four; merged models are neither."""
    monkeypatch.setattr(evaluate, "MAX_NEW", 3)
    monkeypatch.setattr(evaluate, "LOOKAHEAD", {"lookahead": 2})
    monkeypatch.setattr(evaluate, "load_all", lambda s, methods: tiny_models)
    clock = iter(range(10**6))
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: float(next(clock)))  # every answer takes one second
    splits, mixed = [], tasks.mixed
    monkeypatch.setattr(tasks, "mixed", lambda split, *rest: splits.append(split) or mixed(split, *rest))
    cost = evaluate.cost(evaluate.Settings(seed=3, device="cpu", timed=2))
    assert set(cost) == set(evaluate.METHODS) - {"oracle_expert"} and splits == ["test"]
    kinds = lambda method: {k: v for k, v in cost[method].items() if k in ("router", "expert", "reward", "merged")}
    for method, names in evaluate.ROWS.items():
        if method in ("oracle_expert", "sequence_selection", "collab", "selection_lm", "collab_lm"):
            continue
        expected = {"router": 1.0, "expert": 1.0} if names else {"expert": 1.0}
        if "task" in method or "dare" in method:
            expected = {"merged": 1.0}
        elif method == "two_fine_tuned":
            expected = {"router": 2.0}
        elif method in ("router", "generalist", "double") or method.startswith("fine_tuned"):
            expected = {"router": 1.0}
        elif method in ("uniform_average", "router_mean", "router_random"):
            expected["expert"] = 3.0
        got = kinds(method)
        if method == "co_llm_self":  # it may pick the router, which has read that token already
            assert got["router"] + got.get("expert", 0) <= 2.0 and got["router"] >= 1
            continue
        assert got == expected, method
    assert cost["sequence_selection"]["expert"] >= 2 and cost["sequence_selection"]["reward"] > 0 and "router" not in cost["sequence_selection"]
    assert cost["collab"]["expert"] > 3 and cost["collab"]["reward"] > 1 and "reward" not in cost["collab_lm"] and cost["collab_lm"]["router"] > 1
    for c in cost.values():
        assert c["passes_per_token"] == pytest.approx(sum(v for k, v in c.items() if k in ("router", "expert", "reward", "merged")), abs=1e-3)
        assert c["seconds_per_token"] == pytest.approx(1 / 3) and c["over_one_expert"] == pytest.approx(1)




# --- tuning, ablations, quickstart ----------------------------------------------------------------------------------------------------------


HOW = {"fine_tuned": {"use_expert": False}, "co_llm": {"use_router": False}, "co_llm_self": {"use_router": False}}  # the others: Eq. (1)


class Named(str):
    """A model that is known by its name only."""
    lm = "itself"


@pytest.fixture
def tuned(invented, monkeypatch):
    """tune.py with invented models: a score follows from the settings that were trained, merged or handed to a decoder, and from how it decodes."""
    log, _, _, folder = invented
    trained = []

    def decoder(*key):
        def decode(prompts):
            log[str(key)] += 1
            return [tokens(says(str(key), 0, items[tuple(p)])) for p in prompts]
        return decode

    items = {tuple(tokenizer.encode_prompt(i.prompt)): i for seed in (3, 4) for of in drawn(seed, "validation", 6).values() for i in of}

    def paper(kind):
        return lambda experts, judge, prompts, end, max_new, **how: decoder(kind, experts, judge, how)(prompts)

    def train(s, name, spec=None):
        trained.append((s.seed, name, spec))
        if name == "tune":
            (models.folder(s) / "tune.pt").write_text(repr(spec))

    def load_model(path, *given, **named):
        return Named(path.read_text() if path.name == "tune.pt" else path.stem), {}

    monkeypatch.setattr(tune, "RESULTS", folder)
    monkeypatch.setattr(paper_train, "train", train)
    monkeypatch.setattr(models, "ensure", lambda s: None)
    monkeypatch.setattr(models, "load_model", load_model)
    monkeypatch.setattr(models, "load_experts", lambda s, hint: ["the experts"])
    monkeypatch.setattr(evaluate, "traces", lambda router, experts, **how: lambda prompts: [
        Trace(tokens=t) for t in decoder("fused", router, tuple(experts), how)(prompts)])
    monkeypatch.setattr(baselines, "sequence_selection", paper("sequence_selection"))
    monkeypatch.setattr(baselines, "collab", paper("collab"))
    monkeypatch.setattr(baselines, "merge", lambda base, experts, **how: (base, tuple(experts), how))
    monkeypatch.setattr(tune, "generate", lambda merged, prompts, max_new, end: decoder("merged", merged)(prompts))
    for seed in (3, 4):
        (folder / "out" / f"seed{seed}").mkdir(parents=True)
    return log, trained, folder


def tuning_key(what, tried):
    """Who must answer for one setting of the grid: its own recipe (the other settings as in TRAINING), decoded as its row decodes."""
    if what in tune.TRAINED:
        method = tune.TRAINED[what][0]
        among = ("the experts", "itself") if method == "co_llm_self" else ("the experts",)
        return "fused", repr(replace(TRAINING[what], **tried)), among, HOW.get(method, {})
    if what in tune.MERGED:
        return "merged", ("base", ("the experts",), tried)
    judge = repr(replace(TRAINING["reward"], **{k: v for k, v in tried.items() if k != "lookahead"}))
    return what, ["the experts"], judge, {k: v for k, v in tried.items() if k == "lookahead"}


def test_every_score_of_the_tuning_is_of_its_own_setting_on_validation_prompts(tuned, capsys):
    """Each score by hand from the answers of the one model that has these settings; the winner has the best mean over the seeds."""
    log, trained, folder = tuned
    argv = ["--seeds", "3", "4", "--out", str(folder / "out"), "--device", "cpu", "--prompts", "6"]
    tune.main(argv)
    r = json.loads((folder / "tuning.json").read_text())
    assert r["meta"]["llama"]["seeds"] == [3, 4] and set(r["llama"]) == {*tune.WHAT, "collab"}
    items = {seed: drawn(seed, "validation", 6) for seed in (3, 4)}
    for what, of in r["llama"].items():
        means = []
        for t in of["tried"]:
            key = str(tuning_key(what, t["settings"]))
            by_hand = [mean(mean(check(i, says(key, 0, i)) for i in items[seed][b]) for b in tasks.BENCHMARKS) for seed in (3, 4)]
            assert t["accuracy"] == pytest.approx(by_hand, abs=1e-4), (what, t)
            means.append(mean(t["accuracy"]))
        assert means[[t["settings"] for t in of["tried"]].index(of["won"])] == max(means) > min(means)
    for what, (_, candidates) in tune.TRAINED.items():  # and what it starts from was there before
        assert [t["settings"] for t in r["llama"][what]["tried"]] == candidates
        for start in paper_train.needed(what)[:-1]:
            at = trained.index((3, start, None))
            assert any(name == "tune" and type(spec) is type(TRAINING[what]) for _, name, spec in trained[at:])
    assert not list(folder.glob("out/*/tune.pt"))

    # A second call computes nothing; a part leaves the rest as it is; a start with another recipe makes anew what follows from it.
    log.clear()
    tune.main(argv)
    assert not log and json.loads((folder / "tuning.json").read_text()) == r
    path = folder / "tuning.json"
    path.write_text(json.dumps(r | {"llama": r["llama"] | {"dare": "kept"}}))
    tune.main([*argv, "--only", "router"])
    assert json.loads(path.read_text())["llama"] == r["llama"] | {"dare": "kept"} and not log
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRAINING, "router_sft", replace(TRAINING["router_sft"], epochs=5))
        tune.main([*argv, "--only", "router", "fine_tuned_sft"])
    assert sum(log.values()) == 2 * 5 * len(tune.TRAINED["router"][1]) and all("Cdpo(" in key for key in log)


@pytest.mark.parametrize("name", ablate.ABLATIONS)
def test_every_row_of_an_ablation_is_of_its_own_checkpoint(name, monkeypatch, tmp_path):
    """In each cell only this row's checkpoint, of this cell's run, decoded as the row says, is right as often as it is; all it needs is trained
    before, with the recipe, gap and size of the cell; and what was measured under other recipes is not taken."""
    s = ablate.Settings(seed=3, out=str(tmp_path), device="cpu", prompts=5)
    items = {b: dataset(b, "test", 5, 3) for b in evaluate.BENCHES}
    by_prompt = {tuple(tokenizer.encode_prompt(i.prompt)): i for of in items.values() for i in of}
    asked, trained = [], []
    monkeypatch.setattr(tasks, "check", check)
    monkeypatch.setattr(tasks, "grade", grade)
    monkeypatch.setattr(tasks, "dataset", lambda b, split, n, rng: items[b] if (split, n, rng.random()) == ("test", 5, Random(f"test {b} 3").random()) else [])
    monkeypatch.setattr(models, "ensure", lambda here, gap, size: asked.append((here.out, here.seed, gap, size)))
    monkeypatch.setattr(ablate, "train", lambda here, name, spec: trained.append((here.out, name, spec)))
    monkeypatch.setattr(run, "load", lambda path, *given: {"seconds": 1})
    monkeypatch.setattr(models, "load_router", lambda here, checkpoint: ((here.out, checkpoint), [torch.nn.Linear(1, 1)], None))
    monkeypatch.setattr(evaluate, "traces", lambda router, experts, **how: lambda prompts: [
        Trace(tokens=tokens(by_prompt[tuple(p)].answer if (router, how) == target else "green")) for p in prompts])
    for cell in ablate.ABLATIONS[name]():
        out = str(tmp_path / cell.place)
        for method, (checkpoint, how) in cell.methods.items():
            trained.clear()
            target, order = ((out, checkpoint), how), list(cell.methods)
            rows = ablate.measure(s, cell)["methods"]
            twins = [m for m in order if cell.methods[m] == cell.methods[method]]
            assert {m: row["average"] for m, row in rows.items()} == {m: float(m in twins) for m in order}, (cell.label, method)
            assert rows[method]["general"] == 1 and twins == [method]
            assert trained == [(out, n, spec) for n, spec in cell.trained] and asked[-1] == (out, 3, cell.gap, cell.size)
    counted = []
    monkeypatch.setattr(ablate, "measure", lambda s, cell: counted.append(cell.label) or {})
    cells = ablate.ABLATIONS[name]()
    for changed in (cells, cells, [replace(cells[0], gap=0.7), *cells[1:]], [*cells[:-1], replace(cells[-1], methods={})],
                    [replace(cells[0], trained=[(n, replace(spec, **{} if isinstance(spec, Union) else {"lr": 0.5})) for n, spec in cells[0].trained]), *cells[1:]]):
        monkeypatch.setitem(ablate.ABLATIONS, name, lambda changed=changed: changed)
        ablate.result(s, name)
    assert len(counted) == 4 * len(cells)


def test_the_quickstart_takes_a_table_of_these_weights_and_settings_only(monkeypatch, tmp_path, capsys):
    """The kept table of other weights of either router, of other settings or of half a file is made anew; the spread is of the runs that fit."""
    made, prints = [], {"router": "r", "router_sft": "s"}

    def table(s, seed=None, **other):
        number = sum(map(ord, prints["router"] + prints["router_sft"])) / 1000
        return {"meta": {"settings": run.recipe(s) | ({} if seed is None else {"seed": seed}), "made_from": dict(prints)} | other,
                "accuracy": {m: {"average": number + k, "general": -1} for k, m in enumerate(TOY_METHODS)}}

    monkeypatch.setattr(quickstart, "load_router", lambda folder, name, *given: (name, [], {}))
    monkeypatch.setattr(run, "fingerprint", lambda name: prints[name])
    monkeypatch.setattr(quickstart, "example", lambda router, experts: f"shown by {router}")
    monkeypatch.setattr(quickstart.evaluate, "evaluate", lambda s, folder: made.append(folder.name) or table(s))
    monkeypatch.setattr(quickstart.evaluate, "report", lambda r: "the table")
    s = quickstart.Settings(seed=1, out=str(tmp_path), device="cpu", prompts=2)
    for seed in (1, 2, 3, 4):
        (tmp_path / f"seed{seed}").mkdir()
    (tmp_path / "seed2" / "evaluate.json").write_text(json.dumps(table(s, seed=2)))
    (tmp_path / "seed3" / "evaluate.json").write_text(json.dumps(table(s, seed=2)))                  # of another seed than its folder's
    (tmp_path / "seed4" / "evaluate.json").write_text(json.dumps(table(replace(s, split="validation"), seed=4)))

    def published():
        quickstart.main(["--seed", "1", "--out", str(tmp_path), "--device", "cpu", "--prompts", "2", "--results", str(tmp_path / "results")])
        return json.loads((tmp_path / "results" / "quickstart.json").read_text())

    first = published()
    assert made == ["seed1"] and first["accuracy"] == table(s)["accuracy"] and first["example"] == "shown by router"
    assert {seed: row["router"] for seed, row in first["seeds"].items()} == {seed: table(s)["accuracy"]["router"]["average"] for seed in ("1", "2")}
    assert published() == first and made == ["seed1"]
    for name in ("router", "router_sft"):
        prints[name] = "new"
        assert published()["accuracy"] == table(s)["accuracy"]
    assert len(made) == 3
    path = tmp_path / "seed1" / "evaluate.json"
    for broken in (table(replace(s, prompts=3)), table(s) | {"accuracy": {"router": {}}}, {}):
        path.write_text(json.dumps(broken))
        assert published()["accuracy"] == table(s)["accuracy"]
    path.write_text("{")
    published()
    assert made == ["seed1"] * 7
