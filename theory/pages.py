"""The numbers and tables of the two pages of theory/, from the two JSON files.

`<!--=KEY-->...<!--/-->` is one number. KEY leads through theory.json (no_expert/measured), or, after
toy/, through toy_mdp.json (toy/length). `<!-- begin: NAME -->...<!-- end: NAME -->` is a table.
"""

import re

CLAIM = {"==": "must be", "<=": "at most", ">=": "at least"}


def fill(text, values):
    """LOCAL until docs.tools.pages is there."""

    def block(match):
        return f"<!-- begin: {match[1]} -->\n{values(match[1])}\n<!-- end: {match[1]} -->"

    text = re.sub(r"<!-- begin: ([\w ]+) -->.*?<!-- end: \1 -->", block, text, flags=re.DOTALL)
    inline = r"<!--=([^>]*?)-->.*?<!--/-->"
    return re.sub(inline, lambda m: f"<!--={m[1]}-->{values(m[1])}<!--/-->", text, flags=re.DOTALL)


def table(head, lines):
    """LOCAL until docs.tools.pages is there."""
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in cells)


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
    lines = []
    for c, choosing, losses in zip(toy["coverages"], toy["choosing"], toy["with_experts"]):
        pairs = [f"{tokens(x)} / {tokens(y)}" for x, y in zip(losses, toy["no_expert"])]
        lines.append([f"{c:.0%}", tokens(choosing), *pairs])
    return table(["covered", "choosing", *[f"logits {s}: experts / none" for s in sizes]], lines)


def statements_table(rows):
    """What is said, what was measured, what happens without the assumption."""
    lines = []
    for r in rows.values():
        claim = f"{CLAIM[r['must'][0]]} {number(r['must'][1])}"
        measured = f"{r['measure']} {number(r['measured'])} ({claim})"
        without = f"{r['without']}: {number(r['then'])}"
        lines.append([r["name"], r["whose"], r["says"], measured, without])
    return table(["", "whose", "statement", "measured (claimed)", "without the assumption"], lines)


def spreads(index, shown, columns):
    """A line for each entry of `index` that is shown: the entry, then mean ± deviation by column."""
    places = [(k, x) for k, x in enumerate(index) if x in shown]
    return [[x, *[f"{c['mean'][k]:.3g} ± {c['sd'][k]:.1g}" for c in columns]] for k, x in places]


def sft_table(rows):
    """KL to pi* against the number of answers."""
    n = rows["counted_twice"]["numbers"]
    names = {
        "routing": "routing",
        "alone": "own SFT, then fused",
        "through": "through the fusion",
        "no_expert": "router without expert",
    }
    columns = [n["kl"][way] for way in names]
    return table(
        ["answers", *names.values()], spreads(n["sizes"], (1, 4, 64, 1024, 16384), columns)
    )


def cdpo_table(rows):
    """KL to pi* and what greedy decoding loses, against the number of steps."""
    n = rows["overshoot"]["numbers"]
    columns = [n[what][beta] for beta in ("0.1", "1.0") for what in ("kl", "greedy")]
    head = ["steps", "β = 0.1: KL", "greedy loss", "β = 1: KL", "greedy loss"]
    return table(head, spreads(n["marks"], (0, 20, 70, 200, 2000), columns))


def values(rows, toy):
    """The function that `fill` asks for tables and numbers. KeyError for what is not there."""
    tables = {
        "toy": lambda: toy_table(toy),
        "statements": lambda: statements_table(rows),
        "sft": lambda: sft_table(rows),
        "cdpo": lambda: cdpo_table(rows),
    }

    def value(key):
        if key in tables:
            return tables[key]()
        found = {**rows, "toy": toy}
        try:
            for step in key.split("/"):
                found = found[int(step)] if isinstance(found, list) else found[step]
            return number(found)
        except (KeyError, IndexError, ValueError, TypeError) as problem:
            raise KeyError(f"{key} is in neither JSON file of theory/") from problem

    return value
