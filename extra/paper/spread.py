"""More seeds of the headline rows, and what explains that the seeds differ so much.

The ten seeds of table1.json lay closer together than two that a referee ran. So the rows that the
README shows are measured on further seeds. report.py joins both files.

What may explain FusionRoute's average was written down before these seeds were there:
1. math expert: how good it is at what it was trained on, the covered prompts of its benchmarks.
   (Of the first ten seeds only averages are kept: `covered_of` estimates it, within a point.)
2. router alone: the average of the router's language model, after both phases.
3. held-out skills: how hard they are. A sub-skill is as hard as the further seeds' Fine-tuned
   Models often miss it, the seed's own one left out; the mean over the ten that are held out.
"""

import json
from dataclasses import replace

import numpy as np

from extra.paper import checkpoints, evaluate, table
from toy_experts import script, tasks

# All have 4 passes, or none.
ROWS = ("fusionroute", "sft_only", "routing_only", "router", "fine_tuned", "co_llm_self")
ROWS += ("fused_sft", *(f"{e}_expert" for e in script.EXPERTS))


def first_seeds():
    """The seeds of table1.json, and its rows."""
    content = json.loads((checkpoints.RESULTS / "table1.json").read_text())
    return content["meta"]["llama"]["seeds"], content["llama"]


def several_seeds(runs):
    again = {s.seed for s in runs} & set(first_seeds()[0])
    if again:
        raise script.UserError(f"--seeds: {sorted(again)[0]} is in table1.json already")
    return [table.one_seed(s, ROWS) for s in runs]


def missed(r, items):
    """{(benchmark, sub-skill): the share of its prompts that the Fine-tuned Model misses}"""
    wrong = {}
    for b in tasks.BENCHMARKS:
        for item, right in zip(items[b], r["right"]["fine_tuned"][b]):
            wrong.setdefault((b, item.skill), []).append(right == "0")
    return {key: np.mean(values) for key, values in wrong.items()}


def covered_of(accuracy, covered, uncovered_average):
    """The share of right answers to the covered prompts of an expert's own benchmarks.

    accuracy and covered: a number a benchmark, of right answers and of covered prompts.
    uncovered_average: of right answers to uncovered prompts, over all five benchmarks. An expert
    has hardly any in others' benchmarks, so all are counted to its own ones.
    """
    uncovered = uncovered_average * len(tasks.BENCHMARKS) / len(accuracy)
    return np.mean([(a - (1 - c) * uncovered) / c for a, c in zip(accuracy, covered)])


def explained(y, *predictors):
    """How much of y, one number a seed, a linear function of the predictors explains.

    R2: of the variance. left out: each seed is predicted from the other seeds; compared with
    predicting it by their mean.
    """
    y, n = np.array(y), len(y)
    X = np.column_stack([np.ones(n), *predictors])  # (n, 1 + k): k predictors

    fit = lambda rows: np.linalg.lstsq(X[rows], y[rows], rcond=None)[0]  # (1 + k,)
    others = [np.arange(n) != i for i in range(n)]
    left_out = np.array([y[i] - X[i] @ fit(rows) for i, rows in enumerate(others)])  # (n,)
    by_mean = np.array([y[i] - y[rows].mean() for i, rows in enumerate(others)])  # (n,)
    r2 = 1 - ((y - X @ fit(np.arange(n))) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return {
        "R2": rounded([r2]),
        "left out": rounded([1 - (left_out**2).sum() / (by_mean**2).sum()]),
    }


def fits(y, predictors):
    """`explained` by each of the predictors, and by all."""
    one_by_one = {name: explained(y, x) for name, x in predictors.items()}
    return one_by_one | {"all three": explained(y, *predictors.values())}


def rounded(numbers):
    return [round(float(x), 4) for x in numbers]


def files(runs, results):
    """{"spread": its content}, and what it was made with."""
    rows = table.columns(results, [m for m in table.METHODS if m in results[0]["right"]])
    own = rounded(table.share(r, "math_expert", True, tasks.DOMAINS["math"]) for r in results)
    seeds, first = first_seeds()
    every = [replace(runs[0], seed=seed) for seed in seeds] + runs
    problems = [evaluate.draw(s) for s in every]
    misses = [missed(r, items) for r, items in zip(results, problems[len(seeds) :])]
    estimated, hard = [], []
    for k, (s, items) in enumerate(zip(every, problems)):
        held = {b: tasks.held_out(b, results[0]["gap"], s.seed) for b in tasks.BENCHMARKS}
        if s.seed in seeds:
            math = {b: first["math_expert"][b][k] for b in tasks.DOMAINS["math"]}
            covered = [np.mean([i.skill not in held[b] for i in items[b]]) for b in math]
            average = first["math_expert"]["uncovered"][k]
            estimated.append(covered_of(math.values(), covered, average))
        others = [m for i, m in enumerate(misses) if i != k - len(seeds)]
        skills = [(b, skill) for b in held for skill in held[b]]
        hard.append(np.mean([np.mean([m[x] for m in others if x in m]) for x in skills]))
    both = lambda m, column: first[m][column] + rows[m][column]
    predictors = {
        "math expert": rounded(estimated) + own,
        "router alone": both("router", "average"),
        "held-out skills": rounded(hard),
    }
    y = both("fusionroute", "average")
    lowest = y.index(min(y))  # one seed far below the others may explain a lot
    without = lambda x: x[:lowest] + x[lowest + 1 :]
    rest = {name: without(x) for name, x in predictors.items()}
    content = {
        "rows": rows,
        "predictors": predictors,
        "explained": fits(y, predictors),
        "explained without the lowest seed": fits(without(y), rest),
    }
    seconds = {s.seed: r["seconds"] for s, r in zip(runs, results)}
    more = {"general prompts": runs[0].general, "run time in seconds": seconds}
    return {"spread": content}, checkpoints.made_with(runs) | more
