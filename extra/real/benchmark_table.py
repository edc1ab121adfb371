"""From the records of benchmarks.py, one a problem, to the figures of extra/results/real_text.json.

Bits per byte of a domain: the bits of all its answers, end tokens included, over their UTF-8 bytes.
"all" is the mean of the three domains. Intervals: 95%, bootstrap over problems within each domain;
differences are paired. What a row has several seeds of is averaged over them first, so an interval
is about other problems, not about other seeds.
"""

from math import comb

import numpy as np

from extra.real.benchmark_data import DOMAINS

DRAWS = 2000  # of the bootstrap


def keys_of(row, record):
    """The keys of a row in a record: its name, with a seed behind it if it has seeds."""
    return [k for k in record["bits"] if k == row or k.rpartition(" ")[0] == row]


def ratio(records, top, bottom, draws):
    """{domain: [mean of all problems, then of each draw]}, and "all". draws: {domain: (D, P)}."""
    out = {}
    for d in DOMAINS:
        mine = [r for r in records if r["domain"] == d]
        a, b = (np.array([f(r) for r in mine]) for f in (top, bottom))  # (P,)
        out[d] = np.concatenate([[a.sum() / b.sum()], draws[d] @ a / (draws[d] @ b)])
    return out | {"all": np.mean([out[d] for d in DOMAINS], 0)}


def interval(values, digits=4):
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return [round(float(v), digits) for v in (values[0], low, high)]


def summary(records, best):
    """All figures. best: {row: its temperature}."""
    for r in records:  # whoever knows a problem's domain needs no router
        r["bits"]["own"], r["right"]["own"] = r["bits"][r["domain"]], r["right"][r["domain"]]
    best = best | {"own": 1.0}
    rng, n = np.random.default_rng(0), {d: sum(r["domain"] == d for r in records) for d in DOMAINS}
    draws = {d: rng.multinomial(n[d], np.full(n[d], 1 / n[d]), DRAWS) for d in DOMAINS}
    per_byte, per_token = (lambda r: r["bytes"]), (lambda r: r["tokens"])

    def tops(keys, row):
        own = str(best.get(row, 1.0))
        yield "bits", lambda r: np.mean([r["bits"][k]["1.0"] for k in keys]), per_byte
        yield "bits at T", lambda r: np.mean([r["bits"][k][own] for k in keys]), per_byte
        yield "right", lambda r: np.mean([r["right"][k] for k in keys]), per_token

    names = dict.fromkeys(
        k.rpartition(" ")[0] if k[-1].isdigit() else k for k in records[0]["bits"]
    )
    found = {
        row: {m: ratio(records, *how, draws) for m, *how in tops(keys_of(row, records[0]), row)}
        for row in names
    }
    rows = {}
    for row, measures in found.items():
        keys = keys_of(row, records[0])
        rows[row] = {"T": best.get(row)}
        for m, values in measures.items():
            sign = 1 if m == "right" else -1  # a lead is FusionRoute's: fewer bits, more right
            head = "gap" if row.startswith("gap") else "fusionroute"
            lead = {d: sign * (found[head][m][d] - v) for d, v in values.items()}
            each = [
                {m: ratio(records, *how, draws) for m, *how in tops([k], row)}[m]["all"][0]
                for k in keys
            ]
            rows[row][m] = {d: interval(v) for d, v in values.items()}
            rows[row][f"lead, {m}"] = {d: interval(v) for d, v in lead.items()}
            rows[row][f"seeds, {m}"] = [round(float(v), 4) for v in each]
    sizes = {d: [r for r in records if r["domain"] == d] for d in DOMAINS} | {"all": records}
    return {
        "rows": rows,
        "facts": {d: facts(some) for d, some in sizes.items()},
        "sizes": {
            d: {"problems": len(some)} | {k: sum(r[k] for r in some) for k in ("tokens", "bytes")}
            for d, some in sizes.items()
        },
    }


def facts(records):
    """The shares of tokens, {name: share, or a list with one for each seed}; Delta's summaries."""
    out = {}
    for name in records[0]["facts"]:
        values = [np.array(r["facts"][name]) for r in records]
        name, seed = name.rpartition(" ")[::2] if name[-1].isdigit() else (name, None)
        if name.startswith("loss"):
            found = delta(values)
        elif name == "pick":
            every = np.concatenate(values)
            found = [round(float((every == i).mean()), 4) for i in range(len(DOMAINS))]
        else:
            found = round(float(np.concatenate(values).mean()), 4)
        if seed is None:
            out[name] = found
        else:
            out.setdefault(name, []).append(found)
    return out


def delta(answers):
    """Of the losses 1 - p of some answers, an array (tokens,) for each: Delta is the largest.

    As in extra/paper/delta.py, at prefixes of right answers only.
    """
    every = np.concatenate(answers)
    found = {
        "Delta": every.max(),
        "mean": every.mean(),
        "above_half": (every > 0.5).mean(),
        "answers_above_half": np.mean([(x > 0.5).any() for x in answers]),
    }
    return {k: round(float(v), 4) for k, v in found.items()}


def exact(k, n):
    """Clopper and Pearson's 95% interval of a share, of which k of n were seen.

    Its ends are the shares at which so many, or so few, still have a chance of 2.5%.
    """

    def at_most(k, p):
        return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    def solve(wanted, k):  # at_most falls while p rises
        low, high = 0.0, 1.0
        for _ in range(50):
            p = (low + high) / 2
            low, high = (p, high) if at_most(k, p) > wanted else (low, p)
        return round(low, 4)

    return [solve(0.975, k - 1) if k else 0.0, solve(0.025, k) if k < n else 1.0]
