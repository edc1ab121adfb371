"""Intervals over seeds by Student's t, and Holm's correction for many comparisons.

The seed is the unit: an interval is about another seed, with other data, other held-out sub-skills
and other test prompts. A bootstrap over few seeds is too narrow, and the test prompts of one seed
are not independent: they share a model, and some are the same problem.
"""

import functools

import numpy as np


def exact_interval(seeds):
    """The mean of one number a seed, its 95% interval, and the two-sided p of a mean of zero."""
    n, mean = len(seeds), float(np.mean(seeds))
    error = float(np.std(seeds, ddof=1)) / n**0.5
    margin = student_t(n - 1)[0] * error
    p = student_t(n - 1, abs(mean) / error)[1] if error else float(mean == 0)
    return {"mean": mean, "low": mean - margin, "high": mean + margin, "p": p}


def student_t(df, t=0.0):
    """Student's t, df degrees of freedom: its 97.5% quantile, and the chance outside -t .. t."""
    x, area = half_of_t(df)
    return float(np.interp(0.475, area, x)), float(1 - 2 * np.interp(t, x, area))


@functools.cache
def half_of_t(df):
    """Points x from 0 into the far tail, and the probability between 0 and each of them."""
    x = np.sinh(np.linspace(0, 25, 50_001))  # dense near zero, and far into the tail
    density = (1 + x * x / df) ** (-(df + 1) / 2)
    area = np.concatenate([[0], np.cumsum(np.diff(x) * (density[1:] + density[:-1]) / 2)])
    return x, area / (2 * area[-1])  # a half in all


def holm(p):
    """The p-values of several comparisons, corrected for their number (Holm 1979).

    The smallest times their number, the next times one less, and so on; each at least as large as
    those before it.
    """
    out, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        out[i] = highest
    return out
