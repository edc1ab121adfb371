"""One row of the table: what is claimed, what was measured, and whether the claim survives without its assumption.

`holds` is always computed from the measured number, never given. The counter-test puts the number measured WITHOUT an
assumption into the same comparison; it does its work when the comparison then fails.
"""

import json
import os
from pathlib import Path

import numpy as np

TOLERANCE = 1e-9  # for "==" : everything here is exact up to rounding


def compare(measured, relation, expected):
    """True when `measured relation expected`; "==" allows TOLERANCE, the inequalities as much rounding as that."""
    if relation == "==":
        return bool(abs(measured - expected) <= TOLERANCE)
    if relation == "<=":
        return bool(measured <= expected + (TOLERANCE if expected >= 1e-6 or expected == 0 else 0))
    if relation == ">=":
        return bool(measured >= expected - TOLERANCE)
    raise ValueError(f"relation {relation!r} is none of ==, <=, >=")


def plain(x):
    """numpy numbers and arrays as what JSON knows."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if isinstance(x, np.ndarray):
        return plain(x.tolist())
    if isinstance(x, np.generic):
        return x.item()
    return x


def row(item, whose, statement, checked, paper, measured, relation, expected, counter, exchanged=False, **numbers):
    """A row as a dict.

    whose: "paper" for a statement that the paper makes, "ours" for the rest. paper: the paper's value or bound, in
    words. counter: (what is dropped, the number then measured), or with a third entry when that also moves the expected
    value. exchanged: the counter-test drops no assumption, but exchanges a part of the statement for something that
    looks as good. numbers: whatever else the text or a figure shows.
    """
    if whose not in ("paper", "ours"):
        raise ValueError(f"whose is 'paper' or 'ours', not {whose!r}")
    dropped, without, *moved = counter
    target = moved[0] if moved else expected
    return plain(
        {
            "item": item,
            "whose": whose,
            "statement": statement,
            "checked": checked,
            "paper": paper,
            "relation": relation,
            "expected": float(expected),
            "measured": float(measured),
            "holds": compare(measured, relation, expected),
            "counter_test": {
                "kind": "exchanged" if exchanged else "dropped",
                "dropped": dropped,
                "relation": relation,
                "expected": float(target),
                "measured": float(without),
                "conclusion_fails": not compare(without, relation, target),
            },
            "numbers": numbers,
        }
    )


def band(samples):
    """Mean, standard deviation, 10th and 90th percentile over axis 0 (the seeds)."""
    x = np.asarray(samples, float)  # (seeds, ...)
    return {
        "seeds": len(x),
        "mean": x.mean(0),
        "sd": x.std(0, ddof=1),
        "p10": np.percentile(x, 10, axis=0),
        "p90": np.percentile(x, 90, axis=0),
    }


def t_statistic(samples):
    """|mean| in standard errors: below the 95% point of Student's t, 0 lies within the mean's 95% interval."""
    x = np.asarray(samples, float)  # (seeds,)
    return float(abs(x.mean()) / (x.std(ddof=1) / np.sqrt(len(x))))


def write_whole(path, data):
    """Write text or bytes beside `path`, then rename: a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(data if isinstance(data, bytes) else data.encode())
    os.replace(beside, path)


def to_json(rows):
    """The text of extra/results/theory.json: one statement a line."""
    return "[\n" + ",\n".join(json.dumps(r, allow_nan=False) for r in rows) + "\n]\n"


def number(x, digits=4):
    """A number for people: `digits` significant ones; what is only rounding is "~0"."""
    if x is None:
        return "unbounded"
    if isinstance(x, bool):
        return "yes" if x else "no"
    if x == int(x) and abs(x) < 1e6:
        return str(int(x))
    if abs(x) < 1e-12:
        return "~0"
    return f"{x:.1e}" if abs(x) < 1e-4 or abs(x) >= 1e6 else f"{x:.{digits}g}"


def spread(b, *where):
    """mean ± sd of a band(), at an index if it has several."""
    mean, sd = b["mean"], b["sd"]
    for k in where:
        mean, sd = mean[k], sd[k]
    return f"{number(mean, 3)} ± {number(sd, 2)}"
