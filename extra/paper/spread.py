"""Twenty more seeds of the headline rows, and what explains that the seeds differ so much.

The ten seeds of table1.json lie closer together than other people's seeds. So the rows that the
README shows are measured on twenty more; report.py joins both files.

What may explain FusionRoute's average was written down before these seeds were there:
1. math expert: its share of right answers to the covered prompts of its own benchmarks;
2. router alone: the average of the router's language model, after both phases;
3. held-out skills: how hard they are. A sub-skill is as hard as the Fine-tuned Model of the other
   seeds often misses it, whose data has every sub-skill; the mean over the ten that are held out.
"""

import numpy as np

from extra.paper import checkpoints, evaluate, table
from toy_experts import tasks
from toy_experts.script import EXPERTS

# All have 4 passes, or none.
ROWS = ("fusionroute", "sft_only", "routing_only", "router", "fine_tuned", "co_llm_self")
ROWS += ("fused_sft", *(f"{e}_expert" for e in EXPERTS))


def one_seed(s):
    skills = {b: [i.skill for i in items] for b, items in evaluate.draw(s).items()}
    return table.one_seed(s, ROWS) | {"held out": evaluate.held_out(s), "skills": skills}


def hardness(results):
    """Of each seed's held-out sub-skills: how often the other seeds' Fine-tuned Models miss them."""
    missed = []  # one dict a seed: (benchmark, sub-skill) -> share of wrong answers
    for r in results:
        wrong = {}
        for b in tasks.BENCHMARKS:
            for skill, right in zip(r["skills"][b], r["right"]["fine_tuned"][b]):
                wrong.setdefault((b, skill), []).append(right == "0")
        missed.append({key: np.mean(values) for key, values in wrong.items()})
    out = []
    for r in results:
        held = [(b, skill) for b, skills in r["held out"].items() for skill in skills]
        others = [m for m, other in zip(missed, results) if other is not r]
        out.append(float(np.mean([np.mean([m[key] for m in others if key in m]) for key in held])))
    return out


def explained(y, *predictors):
    """How much of y, one number a seed, a linear function of the predictors explains.

    R2: of the variance. adjusted: corrected for the number of predictors. left out: each seed is
    predicted from the other seeds; compared with predicting it by their mean. slopes: what y gains
    for one more of each predictor.
    """
    y, n, k = np.array(y), len(y), len(predictors)
    X = np.column_stack([np.ones(n), *predictors])  # (n, 1 + k)
    weights = np.linalg.lstsq(X, y, rcond=None)[0]  # (1 + k,)
    residual = y - X @ weights  # (n,)
    # Without seed i the fit misses it by residual_i / (1 - H_ii), and the mean by n / (n - 1).
    H = X @ np.linalg.pinv(X)  # (n, n)
    left_out = residual / (1 - np.diag(H))  # (n,)
    total = ((y - y.mean()) ** 2).sum()
    r2 = 1 - (residual**2).sum() / total
    return {
        "R2": [float(r2)],
        "adjusted": [float(1 - (1 - r2) * (n - 1) / (n - 1 - k))],
        "left out": [float(1 - (left_out**2).sum() / (total * (n / (n - 1)) ** 2))],
        "slopes": weights[1:].tolist(),
    }


def files(runs, results):
    """{"spread": its content}, and what it was made with."""
    rows = table.columns(results, [m for m in table.METHODS if m in results[0]["right"]])
    own = {
        f"{e}_expert": [table.share(r, f"{e}_expert", True, tasks.DOMAINS[e]) for r in results]
        for e in EXPERTS
    }
    predictors = {
        "math expert": own["math_expert"],
        "router alone": rows["router"]["average"],
        "held-out skills": hardness(results),
    }
    y = rows["fusionroute"]["average"]
    fits = {name: explained(y, x) for name, x in predictors.items()}
    content = {
        "rows": rows,
        "own covered": own,
        "held out": {s.seed: r["held out"] for s, r in zip(runs, results)},
        "predictors": predictors,
        "explained": fits | {"all three": explained(y, *predictors.values())},
    }
    seconds = {s.seed: r["seconds"] for s, r in zip(runs, results)}
    more = {"general prompts": runs[0].general, "run time in seconds": seconds}
    return {"spread": content}, checkpoints.made_with(runs) | more
