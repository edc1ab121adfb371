"""Every figure of the tables from invented answers: who was right where is known, so each number in
the files can be computed by hand."""

import functools
import json
from collections import Counter
from random import Random

import numpy as np
import pytest

from extra.paper import __main__ as command
from extra.paper import checkpoints, evaluate, methods, spread, table
from extra.paper.evaluate import BENCHES
from extra.paper.methods import HEADLINE, METHODS
from extra.paper.recipes import TRAINING, Sft, needed
from toy_experts import judge, script, tasks, tokenizer
from toy_experts.decode_batch import Trace

EXPERTS = script.EXPERTS
SEEDS, REST, PROMPTS, GENERAL = (3, 4, 5), 2, 10, 9


@functools.cache
def drawn(seed, prompts=PROMPTS, general=GENERAL):
    n = {b: general if b == "general" else prompts for b in BENCHES}
    return {b: tasks.dataset(b, "test", n[b], Random(f"test {b} {seed}")) for b in BENCHES}


@functools.cache
def says(method, seed, prompt, answer, version=""):
    """A method's invented answer: right, right with more words, or wrong, at a rate of its own."""
    rng = Random(f"{method} {seed} {prompt} {version}")
    right = rng.random() < Random(f"rate of {method}").uniform(0.1, 0.9)
    return answer if right else rng.choice([answer + " indeed", "green", "The answer is 7."])


def check(item, text):
    return text == item.answer


def grade(item, text):
    return 4 * check(item, text) + len(text) % 3 / 3


class Model(str):
    """A model that is known by its name only."""


@pytest.fixture
def invented(monkeypatch, tmp_path):
    """table.py with invented models and answers. log counts what was decoded; prints are changes of
    the weights."""
    log, prints, now = Counter(), {}, {}
    monkeypatch.setattr(judge, "check", check)
    monkeypatch.setattr(judge, "grade", grade)
    monkeypatch.setattr(evaluate, "draw", lambda s: drawn(s.seed, s.prompts, s.general))

    def load_all(s, names):
        checkpoints.path(s, "x").parent.mkdir(parents=True, exist_ok=True)
        of = [c for method in names for c in METHODS[method].checkpoints]
        m = {name: Model(name) for name in ["base", *EXPERTS, *of]}
        items = [item for per in evaluate.draw(s).values() for item in per]
        known = {tuple(tokenizer.encode_prompt(i.prompt)): i for i in items}
        now.update(seed=s.seed, known=known)
        return m | {"experts": [m[e] for e in EXPERTS]}

    def decoder_of(method):
        def decode(prompts):
            log[method, now["seed"]] += len(prompts)
            version = "".join(prints.get(c, "") for c in METHODS[method].checkpoints)
            items = [now["known"][tuple(p)] for p in prompts]
            said = [says(method, now["seed"], i.prompt, i.answer, version) for i in items]
            return [tokenizer.encode_answer(text)[:-1] for text in said]

        return lambda m: decode

    for method, row in METHODS.items():
        if row.decoder:
            monkeypatch.setitem(METHODS, method, row._replace(decoder=decoder_of(method)))
    monkeypatch.setattr(table, "load_all", load_all)
    monkeypatch.setattr(checkpoints, "ensure", lambda s: None)
    monkeypatch.setattr(checkpoints, "gap", lambda s: 0.25)
    monkeypatch.setattr(script, "fingerprint", lambda model: f"{model} {prints.get(model, '')}")
    monkeypatch.setattr(script, "load", lambda *given: {"seconds": 10})
    monkeypatch.setattr(methods, "fused", lambda router, experts: lambda prompts: prompts)

    def routing(experts, items, answers):
        assert answers == [tokenizer.encode_prompt(i.prompt) for i in items]
        return {"S": {e: (len(items[0].prompt) + k) / 1000 for k, e in enumerate(experts)}}

    monkeypatch.setattr(table, "routing", routing)
    monkeypatch.setattr(tasks, "mixed", lambda split, n, rng: [split, n, rng.random()])

    def neighbours(items, training):
        of_seed = ["train", Sft.samples, Random(f"sft {now['seed']}").random()]
        return len(items[0].prompt) / 1000 if training == of_seed else 0

    monkeypatch.setattr(table, "neighbours", neighbours)
    monkeypatch.setattr(table, "cost", lambda s: {"of seed": s.seed})
    return log, prints, tmp_path


def right(method, seed, item, version=""):
    if method == "oracle_expert":
        return any(right(f"{e}_expert", seed, item) for e in EXPERTS)
    return check(item, says(method, seed, item.prompt, item.answer, version))


def graded(method, seed, item):
    if method == "oracle_expert":
        return max(graded(f"{e}_expert", seed, item) for e in EXPERTS)
    return grade(item, says(method, seed, item.prompt, item.answer))


def test_every_figure_in_the_files_by_hand(invented):
    """Accuracies, covered and uncovered, the oracle, win rates, routing: each on the seeds that its
    row has."""
    *_, folder = invented
    flags = ["--device", "cpu", "--out", str(folder / "out"), "--results", str(folder)]
    flags += ["--rest", str(REST), "--prompts", str(PROMPTS), "--general", str(GENERAL)]
    command.main(["table1", *flags, "--seeds", *map(str, SEEDS)])
    names = ("table1", "winrate", "cost", "routing")
    files = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    r = {name: content["llama"] for name, content in files.items()}
    items = {seed: drawn(seed) for seed in SEEDS}
    benches = tasks.BENCHMARKS
    held = {seed: {x for b in benches for x in tasks.held_out(b, 0.25, seed)} for seed in SEEDS}
    seeds_of = {m: SEEDS if m in HEADLINE else SEEDS[:REST] for m in METHODS}
    assert set(r["table1"]) == set(METHODS) and 10 < len(HEADLINE) < len(METHODS)

    @functools.cache
    def accuracy(m, b, seed):
        return np.mean([right(m, seed, i) for i in items[seed][b]])

    average = lambda m, seed: np.mean([accuracy(m, b, seed) for b in benches])
    for m, row in r["table1"].items():
        seeds = seeds_of[m]
        for b in BENCHES:
            assert row[b] == pytest.approx([accuracy(m, b, x) for x in seeds], abs=1e-4), (m, b)
        assert row["average"] == pytest.approx([average(m, x) for x in seeds], abs=1e-4)
        for name, missing in (("covered", False), ("uncovered", True)):
            expected = []
            for seed in seeds:
                per = [
                    [
                        right(m, seed, i)
                        for i in items[seed][b]
                        if (i.skill in held[seed]) == missing
                    ]
                    for b in benches
                ]
                expected.append(np.mean([np.mean(x) for x in per if x]))
            assert row[name] == pytest.approx(expected, abs=1e-4), (m, name)

    assert set(r["winrate"]) == set(METHODS) - {"fine_tuned_long"}
    ties = 0
    for m, rates in r["winrate"].items():
        expected = []
        for seed in seeds_of[m]:
            grades = [
                [graded(x, seed, i) for i in items[seed]["general"]] for x in (m, table.RIVAL)
            ]
            pair = list(zip(*grades))
            equal = sum(abs(x - y) < 1e-4 for x, y in pair)
            won, ties = sum(x > y + 1e-4 for x, y in pair), ties + equal
            expected.append((won + equal / 2) / GENERAL)
        assert rates == pytest.approx(expected, abs=1e-4), m
    assert ties

    for b, parts in r["routing"].items():  # of fusionroute's router, on these prompts
        for k, e in enumerate(EXPERTS):
            expected = [(len(items[x][b][0].prompt) + k) / 1000 for x in SEEDS]
            assert parts["S"][e] == pytest.approx(expected)
    assert r["cost"] == {"of seed": SEEDS[0]}
    meta = files["table1"]["meta"]["llama"]
    assert (meta["seeds"], meta["seeds of the other rows"]) == (list(SEEDS), list(SEEDS[:REST]))
    assert (meta["prompts per benchmark"], meta["general prompts"]) == (PROMPTS, GENERAL)
    near = {b: [len(items[x][b][0].prompt) / 1000 for x in SEEDS] for b in BENCHES}
    assert meta["share with a neighbour in the SFT data"] == near
    needs = [needed(TRAINING[c]) for row in METHODS.values() for c in row.checkpoints]
    seconds = 10 * len({"base", *EXPERTS, *sum(needs, [])})  # 10 for each checkpoint
    assert 0 <= meta["run time in seconds"]["3"] - seconds < 10  # the answers are there at once
    assert meta["settings"]["router_sft_long"] == {"epochs": 16}
    assert meta["settings"]["fine_tuned"]["sampler"] == "router_sft"


def test_every_figure_of_the_spread_by_hand(invented, monkeypatch):
    """Further seeds: the same columns as table 1's, and the predictors."""
    *_, folder = invented
    further = (30, 31, 32)
    flags = ["--device", "cpu", "--out", str(folder / "out"), "--results", str(folder)]
    flags += ["--prompts", "40", "--general", "5", "--seeds"]
    command.main(["spread", *flags, *map(str, further)])
    r = json.loads((folder / "spread.json").read_text())
    known = json.loads((checkpoints.RESULTS / "table1.json").read_text())
    first, known = known["meta"]["llama"]["seeds"], known["llama"]
    assert set(r["rows"]) == {*spread.ROWS, "oracle_expert"}
    assert r["meta"]["seeds"] == list(further) and r["meta"]["general prompts"] == 5
    seeds = [*first, *further]
    items = {seed: drawn(seed, 40, 5) for seed in seeds}
    held = {seed: {b: tasks.held_out(b, 0.25, seed) for b in tasks.BENCHMARKS} for seed in seeds}
    rate = lambda m, seed, there: np.mean([right(m, seed, i) for i in there])
    covered = lambda x, b: [i for i in items[x][b] if i.skill not in held[x][b]]
    for m in spread.ROWS:
        general = [rate(m, seed, items[seed]["general"]) for seed in further]
        average = [np.mean([rate(m, x, items[x][b]) for b in tasks.BENCHMARKS]) for x in further]
        assert r["rows"][m]["general"] == pytest.approx(general, abs=1e-4)
        assert r["rows"][m]["average"] == pytest.approx(average, abs=1e-4)

    expert, hard = [], []
    for k, seed in enumerate(seeds):
        per = []
        for b in ("toy-gsm8k", "toy-math500"):
            c = len(covered(seed, b)) / 40
            if seed in first:  # all right answers to uncovered prompts are of its two benchmarks
                uncovered = 5 / 2 * known["math_expert"]["uncovered"][k]
                per.append((known["math_expert"][b][k] - uncovered * (1 - c)) / c)
            else:
                per.append(rate("math_expert", seed, covered(seed, b)))
        expert.append(np.mean(per))
        wrong = []  # the Fine-tuned Models of the other further seeds miss so much
        for b, skill in ((b, skill) for b, skills in held[seed].items() for skill in skills):
            there = [[i for i in items[x][b] if i.skill == skill] for x in further if x != seed]
            among = [x for x in further if x != seed]
            rates = [rate("fine_tuned", x, y) for x, y in zip(among, there) if y]
            wrong.append(1 - np.mean(rates))
        hard.append(np.mean(wrong))
    alone = known["router"]["average"] + r["rows"]["router"]["average"]
    expected = {"math expert": expert, "router alone": alone, "held-out skills": hard}
    for name, values in expected.items():
        assert r["predictors"][name] == pytest.approx(values, abs=2e-4), name
    y, x = known["fusionroute"]["average"] + r["rows"]["fusionroute"]["average"], r["predictors"]
    assert r["explained"]["all three"] == spread.explained(y, *x.values())
    assert r["explained"]["math expert"] == spread.explained(y, x["math expert"])
    k = np.argmin(y)
    y, x = np.delete(y, k), {name: np.delete(values, k) for name, values in x.items()}
    fits = r["explained without the lowest seed"]
    assert fits["all three"] == spread.explained(y, *x.values())
    assert fits["router alone"] == spread.explained(y, x["router alone"])
    with pytest.raises(script.UserError, match="--seeds: 11 is in table1.json already"):
        command.main(["spread", *flags, "11", "12"])


def test_what_a_regression_explains():
    """Against fits by the normal equations, anew without each seed, and exact cases."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 9))
    y = x - 2 * z + 2 * rng.normal(size=9)

    def fit(rows):
        X = np.stack([np.ones(9), x, z], 1)
        return X @ np.linalg.solve(X[rows].T @ X[rows], X[rows].T @ y[rows])

    every, r = np.arange(9), spread.explained(list(y), list(x), list(z))
    r2 = 1 - np.var(y - fit(every)) / np.var(y)
    assert r["R2"] == pytest.approx([r2], abs=1e-4) and 0.1 < r2 < 0.95
    missed = [y[i] - fit(every[every != i])[i] for i in range(9)]
    by_mean = [y[i] - y[every != i].mean() for i in range(9)]
    left_out = 1 - np.dot(missed, missed) / np.dot(by_mean, by_mean)
    assert r["left out"] == pytest.approx([left_out], abs=1e-4)
    exact = spread.explained(list(3 - 2 * x), list(x))
    assert exact["R2"] == exact["left out"] == pytest.approx([1])


def test_what_is_kept_follows_weights_and_settings(invented, monkeypatch):
    """A checkpoint with other weights makes those rows anew that decode with it; the base or an
    expert makes all; a setting of what is not trained makes its row."""
    log, prints, folder = invented
    s = checkpoints.Settings(seed=3, out=str(folder), device="cpu", prompts=2, general=2)

    def again():
        log.clear()
        r = table.one_seed(s)
        for m in set(METHODS) - {"oracle_expert"}:  # what is kept is of the weights that are there
            version = "".join(prints.get(c, "") for c in METHODS[m].checkpoints)
            row = {
                b: "".join(str(int(right(m, 3, i, version))) for i in per)
                for b, per in drawn(3, 2, 2).items()
            }
            assert r["right"][m] == row, m
        return {m for m, _ in log}

    every = set(METHODS) - {"oracle_expert"}
    assert again() == every and again() == set()
    for name in ("router", "reward", "fine_tuned_long", "generalist"):
        prints[name] = "new"
        assert again() == {m for m, row in METHODS.items() if name in row.checkpoints}, name
    prints["math"] = "new"
    assert again() == every
    monkeypatch.setitem(METHODS, "dare", METHODS["dare"]._replace(settings={"scale": 9}))
    assert again() == {"dare"}


# --- cost, routing, neighbours -------------------------------------------------------------------


def test_what_a_token_costs(monkeypatch):
    """Seconds for each token, the end included, over those of the second slowest expert."""
    alone = lambda answer: methods.Method((), lambda m: lambda prompts: [answer])
    ways = {f"{e}_expert": alone([1, 2, 3]) for e in EXPERTS} | {"short": alone([1])}
    monkeypatch.setattr(table, "METHODS", ways)
    monkeypatch.setattr(table, "MAX_NEW", 3)
    monkeypatch.setattr(table, "TIMED", 2)
    monkeypatch.setattr(table, "load_all", lambda s, names: None)
    clock = (float(k * k) for k in range(99))  # answer i, of 8 in all, takes 4 i + 1 seconds
    monkeypatch.setattr(table.time, "perf_counter", lambda: next(clock))
    cost = table.cost(checkpoints.Settings(seed=3, device="cpu"))
    each = [(1 + 17) / 6, (5 + 21) / 6, (9 + 25) / 6, (13 + 29) / 4]  # "short" writes its end
    assert list(cost) == list(ways)
    assert list(cost.values()) == pytest.approx([x / each[1] for x in each], abs=1e-3)


def test_routing_shares_by_hand(monkeypatch):
    """Of four answers' tokens in S, and of the words and the rest of prompts across domains."""
    rng, prompts = Random(0), tasks.dataset("general", "train", 40, Random(1))
    cross = [i for i in prompts if i.skill.startswith("math-")][:2]
    items, traces, rows = [*tasks.mixed("train", 2, rng), *cross], [], []
    for item in items:
        ids = tokenizer.encode_answer(item.answer)
        traces.append(Trace(tokens=ids, pick=rng.choices(range(3), k=len(ids))))
        for token, pick in zip(ids, traces[-1].pick):
            word = tokenizer.encoding.decode([token]).strip().isalpha()
            rows.append((EXPERTS[pick], rng.random() < 0.5, item in cross, word))
    monkeypatch.setattr(table, "tokens_in_S", lambda *given: [inside for _, inside, *_ in rows])

    def share(want):
        there = [e for e, inside, *row in rows if inside and want(*row)]
        return {e: round(there.count(e) / len(there), 4) for e in EXPERTS}

    assert table.routing("experts", items, traces) == {
        "S": share(lambda cross, word: True),
        "cross words": share(lambda cross, word: cross and word),
        "cross rest": share(lambda cross, word: cross and not word),
    }


def test_neighbours_by_hand():
    item = lambda prompt: tasks.Item("", "", "", prompt, "", "", None)
    training = [item("What is 38 mod 5?"), item("Write green and lamp.")]
    near = ("What is 39 mod 5?", "What is 38 mod 5?", "Write green and river.")
    far = ("What is 49 mod 5?", "Write green lamp.")  # a token less is not a token exchanged
    items = list(map(item, near + far))
    assert [table.neighbours([i], training) for i in items] == [1, 1, 1, 0, 0]
    assert table.neighbours(items, training) == 3 / 5
