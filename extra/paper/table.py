"""The paper's tables: every method on the five benchmarks and the general prompts.

What `one_seed` finds is kept in OUT/seedN/table1.json, method by method. From several seeds `files`
makes the JSON files: accuracies, win rates, routing, and what a token costs. Test
prompts are split from all others by content, and no setting was chosen on them.
"""

import os
import platform
import time
from collections import Counter
from random import Random

import numpy as np
import torch
from tqdm import tqdm

from extra.paper import checkpoints, evaluate, methods
from extra.paper.evaluate import BENCHES
from extra.paper.methods import HEADLINE, MAX_NEW, METHODS
from extra.paper.recipes import TRAINING, Sft, changed, needed
from extra.paper.train import load_router, train
from toy_experts import judge, script, tasks, tokenizer
from toy_experts.evaluate import tokens_in_S
from toy_experts.script import EXPERTS

TIMED = 25  # prompts on which the cost of a token is measured
RIVAL = "fine_tuned_long"  # of the win rates; every seed has it

# --- one seed ------------------------------------------------------------------------------------


def load_all(s, names):
    """Train and load what these methods decode with: name -> model; "experts" is a list."""
    m = {name: checkpoints.load(s, name)[0] for name in ["base", *EXPERTS]}
    m["experts"] = [m[e] for e in EXPERTS]
    for name in dict.fromkeys(c for method in names for c in METHODS[method].checkpoints):
        train(s, TRAINING[name])
        if name == "reward":
            m[name] = checkpoints.load(s, name, router=True)[0]
        else:
            m[name] = load_router(s, TRAINING[name])[0]
    return m


def judged(decoder, problems):
    """A method's answers: right or wrong as a string of 0 and 1 a benchmark, general grades."""
    begun = time.time()
    said = {b: evaluate.texts(decoder, items) for b, items in problems.items()}
    right = {b: "".join(str(int(judge.check(*x))) for x in zip(problems[b], said[b])) for b in said}
    grades = [round(judge.grade(*x), 4) for x in zip(problems["general"], said["general"])]
    return {"right": right, "grades": grades, "seconds": time.time() - begun}


def routing(experts, items, traces):
    """The share of each expert in the answers' tokens in S.

    On prompts across domains also of the words, and of the rest (digits, signs).
    """
    S = tokens_in_S(experts, items, traces)
    picks = [pick for t in traces for pick in t.pick]
    word = [tokenizer.encoding.decode([x]).strip().isalpha() for t in traces for x in t.tokens]
    cross = [i.skill.startswith("math-") for i, t in zip(items, traces) for _ in t.tokens]

    def share(where):
        inside = [pick for pick, there in zip(picks, where) if there]
        n = max(1, len(inside))
        return {name: round(inside.count(i) / n, 4) for i, name in enumerate(EXPERTS)}

    out = {"S": share(S)}
    if any(cross):
        out["cross words"] = share([s and c and w for s, c, w in zip(S, cross, word)])
        out["cross rest"] = share([s and c and not w for s, c, w in zip(S, cross, word)])
    return out


def neighbours(items, training):
    """The share of items whose prompt differs in at most one token from a training prompt."""

    def holes(item):
        ids = tokenizer.encode_prompt(item.prompt)
        return {(k, *ids[:k], *ids[k + 1 :]) for k in range(len(ids))}

    known = set().union(*map(holes, training))
    return float(np.mean([bool(holes(item) & known) for item in items]))


def with_oracle(rows):
    """The rows, and a bound: an oracle that takes the expert that does best on each prompt."""
    alone = [rows[f"{e}_expert"] for e in EXPERTS]
    columns = {b: zip(*(row["right"][b] for row in alone)) for b in BENCHES}
    right = {b: "".join(map(max, column)) for b, column in columns.items()}
    grades = [max(column) for column in zip(*(row["grades"] for row in alone))]
    return rows | {"oracle_expert": {"right": right, "grades": grades, "seconds": 0}}


def seconds_of(s, names):
    """What the checkpoints that these methods need took to train."""
    recipes = [TRAINING[c] for method in names for c in METHODS[method].checkpoints]
    trained = {"base", *EXPERTS, *(name for recipe in recipes for name in needed(recipe))}
    return sum(script.load(checkpoints.path(s, x), ("seconds",), "")["seconds"] for x in trained)


def one_seed(s, names=tuple(METHODS)):
    """Everything about one seed, after training what is missing."""
    checkpoints.ensure(s)
    m, problems, held = load_all(s, names), evaluate.draw(s), evaluate.held_out(s)
    prints = {name: script.fingerprint(model) for name, model in m.items() if name != "experts"}
    shared = [prints[name] for name in ["base", *EXPERTS]]
    header = {"prompts": s.prompts, "general": s.general}
    kept = checkpoints.keep(checkpoints.path(s, "table1").with_suffix(".json"), header)
    rows = {}
    for method in tqdm(names, desc=f"evaluating seed {s.seed}", mininterval=1.0):
        row = METHODS[method]
        if row.decoder:
            key = [method, shared + [prints[name] for name in row.checkpoints], row.settings]
            rows[method] = kept(key, lambda: judged(row.decoder(m), problems))
    rows = with_oracle(rows)
    traces = methods.fused(m["router"], m["experts"])
    routes = lambda items: routing(m["experts"], items, evaluate.in_batches(traces, items))
    key = ["routing in S", shared, prints["router"]]
    training = tasks.mixed("train", Sft.samples, Random(f"sft {s.seed}"))
    seconds = seconds_of(s, names) + sum(row["seconds"] for row in rows.values())
    return {
        "right": {method: row["right"] for method, row in rows.items()},
        "grades": {method: row["grades"] for method, row in rows.items()},
        "routing": kept(key, lambda: {b: routes(items) for b, items in problems.items()}),
        "covered": {b: [i.skill not in held[b] for i in problems[b]] for b in tasks.BENCHMARKS},
        "neighbours": {b: round(neighbours(problems[b], training), 4) for b in BENCHES},
        "gap": checkpoints.gap(s),
        "seconds": round(seconds),
    }


# --- several seeds -------------------------------------------------------------------------------


def accuracy(r, method, b):
    return r["right"][method][b].count("1") / len(r["right"][method][b])


def average(r, method):
    """Mean accuracy over the benchmarks."""
    return float(np.mean([accuracy(r, method, b) for b in tasks.BENCHMARKS]))


def share(r, method, covered, benches=tasks.BENCHMARKS):
    """Mean accuracy over the prompts whose sub-skill some expert was trained on, or none was."""
    per = []
    for b in benches:
        pairs = zip(r["right"][method][b], r["covered"][b])
        values = [x == "1" for x, is_covered in pairs if is_covered == covered]
        per += [np.mean(values)] if values else []
    return float(np.mean(per))


def win_rates(results, method):
    """Per seed the share of general prompts on which it is graded above RIVAL; ties are half."""
    there = [r["grades"] for r in results if method in r["grades"]]
    signs = [[(x > y) - (x < y) for x, y in zip(g[method], g[RIVAL])] for g in there]
    return [round(float(1 + np.mean(s)) / 2, 4) for s in signs]


def cost(s):
    """How many times as long as one expert's a generated token takes (the end token counts). One
    prompt at a time, all methods in turn on each prompt."""
    m = load_all(s, METHODS)
    items = tasks.mixed("test", TIMED, Random(f"test cost {s.seed}"), tasks.BENCHMARKS)
    ways = {name: row.decoder(m) for name, row in METHODS.items() if row.decoder}
    tokens, seconds = Counter(), Counter()
    for item in tqdm(items, desc="cost", mininterval=1.0):
        for method, decoder in ways.items():
            begun = time.perf_counter()
            n = len(decoder([tokenizer.encode_prompt(item.prompt)])[0])
            seconds[method] += time.perf_counter() - begun
            tokens[method] += n + (n < MAX_NEW)  # the end token, if it came
    each = {method: seconds[method] / tokens[method] for method in ways}
    one = np.median([each[f"{e}_expert"] for e in EXPERTS])
    return {method: round(x / one, 3) for method, x in each.items()}


def meta(runs, results):
    """What the figures were made with."""
    seeds = [s.seed for s in runs]
    untrained = {name: row.settings for name, row in METHODS.items() if row.settings}
    return checkpoints.made_with(runs) | {
        "seeds of the other rows": seeds[: runs[0].rest or len(seeds)],
        "general prompts": runs[0].general or runs[0].prompts,
        "gap": results[0]["gap"],
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "share with a neighbour in the SFT data": {
            b: [r["neighbours"][b] for r in results] for b in BENCHES
        },
        "run time in seconds": {s.seed: r["seconds"] for s, r in zip(runs, results)},
        "settings": {name: changed(recipe) for name, recipe in TRAINING.items()} | untrained,
    }


def columns(results, names):
    """{method: {column: its numbers, one a seed that has the method}}"""
    of_column = {b: lambda r, m, b=b: accuracy(r, m, b) for b in BENCHES} | {
        "average": average,
        "covered": lambda r, m: share(r, m, True),
        "uncovered": lambda r, m: share(r, m, False),
    }
    row = lambda m, of: [round(of(r, m), 4) for r in results if m in r["right"]]
    return {m: {c: row(m, of) for c, of in of_column.items()} for m in names}


def files(runs, results):
    """file -> its content, from the results of several seeds; and what these were made with."""
    routes = {}
    for b, parts in results[0]["routing"].items():
        there = [r["routing"][b] for r in results]
        routes[b] = {p: {e: [r[p][e] for r in there] for e in EXPERTS} for p in parts}
    return {
        "table1": columns(results, METHODS),
        "routing": routes,
        "cost": cost(runs[0]),
        "winrate": {m: win_rates(results, m) for m in METHODS if m != RIVAL},
    }, meta(runs, results)


def several_seeds(runs):
    """The results of these runs. Their --rest first have every row, the others HEADLINE."""
    rest = runs[0].rest or len(runs)
    if rest > len(runs) or rest == 1 < len(runs):
        most = f"from 2 to the number of seeds, {len(runs)}"
        raise script.UserError(f"--rest is {rest}, and must be {most}, or 0 for all")
    return [one_seed(s, METHODS if k < rest else HEADLINE) for k, s in enumerate(runs)]
