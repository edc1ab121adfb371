"""A statement: what is said, what was measured, and what is measured without an assumption.

`holds` is computed from the measured number, never given. The counter-test puts the number that is
measured without the assumption into the same comparison, and the comparison must then fail.
"""

import json

import numpy as np

ROUNDING = 1e-11  # everything here is exact, up to the rounding of some thousand additions


def compare(measured, sign, limit):
    """Whether measured == limit, <= limit or >= limit (sign), up to rounding."""
    return {
        "==": abs(measured - limit) <= ROUNDING,
        "<=": measured <= limit + ROUNDING,
        ">=": measured >= limit - ROUNDING,
    }[sign]


def statement(whose, name, says, measured, without, **numbers):
    """A statement as a dict that JSON can hold.

    whose     "paper"; "known" or "ours" for what the paper does not state
    measured  (what the number is, the number, a sign, a limit): number sign limit is the claim
    without   (the assumption that is dropped, the number that is measured then)
    numbers   whatever else the pages show
    """
    what, number, sign, limit = measured
    dropped, then = without
    row = {
        "whose": whose,
        "name": name,
        "says": says,
        "measure": what,
        "measured": number,
        "must": [sign, limit],
        "holds": compare(number, sign, limit),
        "without": dropped,
        "then": then,
        "fails": not compare(then, sign, limit),
        "numbers": numbers,
    }
    return json.loads(json.dumps(row, default=lambda x: x.tolist()))  # numpy's types as Python's


def spread(samples):
    """Mean and standard deviation over axis 0, the random worlds."""
    x = np.asarray(samples, float)  # (worlds, ...)
    return {"mean": x.mean(0), "sd": x.std(0, ddof=1)}
