"""The numbers and tables of the two pages of theory/, from the two JSON files.

The key of a number leads through theory.json (eq_5/measured), or, after toy/, through toy_mdp.json
(toy/length). The tables are toy, sft and cdpo.
"""

from docs.tools.pages import table


def number(x):
    """Three significant digits; "~0" for what is only rounding."""
    if x == int(x):
        return str(int(x))
    return f"{x:.3g}" if abs(x) > 1e-12 else "~0"


def tokens(x):
    """A loss of the toy MDP: three decimals."""
    return "0" if x < 1e-12 else f"{x:.3f}" if x >= 0.0005 else "< 0.001"


def toy_table(toy):
    """Choosing, then added logits of each size, with experts and without."""
    sizes = ["any size" if B is None else f"≤ {number(B)}" for B in toy["bounds"]]
    rows = [["covered", "choosing", *[f"logits {size}: experts / none" for size in sizes]]]
    for c, choosing, losses in zip(toy["coverages"], toy["choosing"], toy["with_experts"]):
        pairs = [f"{tokens(x)} / {tokens(y)}" for x, y in zip(losses, toy["no_expert"])]
        rows.append([f"{c:.0%}", tokens(choosing), *pairs])
    return rows


def spreads(head, index, shown, columns):
    """A row for each entry of `index` that is shown, with each column's mean ± deviation."""
    rows = [head]
    for k, x in enumerate(index):
        if x in shown:
            rows.append([str(x), *[f"{c['mean'][k]:.3g} ± {c['sd'][k]:.1g}" for c in columns]])
    return rows


def sft_table(n):
    """KL to pi* against the number of answers."""
    head = ["answers", "routing", "own SFT, then fused", "through the fusion", "router, no expert"]
    columns = [n["kl"][way] for way in ("routing", "alone", "through", "no_expert")]
    return spreads(head, n["sizes"], (1, 4, 64, 1024, 16384), columns)


def cdpo_table(n):
    """KL to pi* and what greedy decoding loses, against the number of steps."""
    head = ["steps", "KL, beta = 0.1", "greedy loss", "KL, beta = 1", "greedy loss"]
    columns = [n[what][beta] for beta in ("0.1", "1.0") for what in ("kl", "greedy")]
    return spreads(head, n["marks"], (0, 20, 70, 200, 2000), columns)


def values(statements, toy):
    """The function that `fill` asks for tables and numbers. KeyError for what is not there."""
    tables = {
        "toy": toy_table(toy),
        "sft": sft_table(statements["counted_twice"]["numbers"]),
        "cdpo": cdpo_table(statements["overshoot"]["numbers"]),
    }

    def value(key):
        if key in tables:
            return "\n".join(table(tables[key]))
        found = statements | {"toy": toy}
        try:
            for step in key.split("/"):
                found = found[int(step)] if isinstance(found, list) else found[step]
            return number(found)
        except (KeyError, IndexError, ValueError, TypeError) as problem:
            raise KeyError(f"{key} is in neither JSON file of theory/") from problem

    return value
