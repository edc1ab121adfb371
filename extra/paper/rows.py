"""Computes the rows of the table of variations: trains, decodes, judges, and keeps what is done."""

import time
from dataclasses import replace
from pathlib import Path

from extra.paper import checkpoints, evaluate, measures, methods
from extra.paper.train import load_router, train
from extra.paper.variations import VARIATIONS
from toy_experts import script


def best_of(s, recipes):
    """The one of several recipes of phase 2 that does best on validation prompts."""
    problems = {b: i[:50] for b, i in evaluate.draw(s, "validation").items() if b != "general"}

    def score(recipe):
        router, experts, _ = load_router(s, recipe)
        return evaluate.accuracy(s, methods.answering(router, experts), problems)["average"]

    return max(recipes, key=score)


def prints(s, recipe):
    """What stands for a recipe's weights and its experts'."""
    router, experts, _ = load_router(s, recipe)
    return [script.fingerprint(model) for model in (router, *experts)]


def measured(s, row, kept):
    """The columns of a row for one seed, after training what is missing; kept as soon as known."""
    folder, gap, size = row.where
    s = replace(s, out=str(Path(s.out) / folder))
    recipes = row.recipe if isinstance(row.recipe, tuple) else (row.recipe,)
    begun = time.process_time()  # not the clock: a pause is not this row's
    checkpoints.ensure(s, gap, size)
    for recipe in recipes:
        train(s, recipe)

    def compute():
        recipe = best_of(s, recipes) if len(recipes) > 1 else recipes[0]
        router, experts, _ = load_router(s, recipe)
        columns = (row.measure or measures.accuracy)(s, row, router, experts)
        columns |= {"beta": recipe.beta} if len(recipes) > 1 else {}
        return columns | {"seconds": round(time.process_time() - begun, 1)}

    key = [str(row.label), row.line, row.how, [prints(s, recipe) for recipe in recipes]]
    return kept(key, compute)


def one_seed(name, s):
    """The rows of a table for one seed, [{"label", "line", **columns}], kept in OUT/seedN."""
    header = {"prompts": s.prompts, "general": s.general}
    kept = checkpoints.keep(checkpoints.path(s, name).with_suffix(".json"), header)
    out = []
    for row in VARIATIONS[name]():
        columns = measured(s, row, kept)
        out.append({"label": str(row.label), "line": row.line} | columns)
        shown = {c: x for c, x in columns.items() if isinstance(x, float) and c != "seconds"}
        text = "  ".join(f"{c} {x:.3f}" for c, x in shown.items())
        print(f"seed {s.seed}, {row.label}, {row.line}: {text}", flush=True)
    return out


def merged(results):
    """The rows of several seeds as one list: each column becomes a list, one figure a seed."""
    rows = []
    for same in zip(*results):
        row = {"label": same[0]["label"], "line": same[0]["line"]}
        rows.append(row | {c: [r[c] for r in same] for c in same[0] if c not in (*row, "seconds")})
    return rows


def files(name, runs, results):
    """file -> its content, from the results of several seeds; and what these were made with."""
    seconds = {s.seed: round(sum(r["seconds"] for r in rows)) for s, rows in zip(runs, results)}
    meta = checkpoints.made_with(runs) | {"run time in seconds": seconds}
    return {name: {"rows": merged(results)}}, meta
