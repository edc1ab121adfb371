"""Everything measured in theory/README.md and theory/statements/README.md comes from the JSON files, through this file.

Two kinds of places are filled in: blocks, between `<!-- begin: NAME -->` and `<!-- end: NAME -->`, and single numbers
in a sentence, `<!--=ITEM/key/key-->...<!--/-->`, where the keys lead through one row of extra/results/theory.json, or,
after `toy/`, through extra/results/toy_mdp.json. tests/theory fails when the two differ.
"""

import re

from .report import number, spread


def table(head, lines):
    """A markdown table from a list of headers and a list of rows of strings."""
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in cells)


def statements_table(rows):
    """The rows of one item: what is claimed, what was measured, what happens without an assumption."""
    lines = []
    for r in rows:
        c = r["counter_test"]
        ours = f"{number(r['measured'])} (must be {r['relation']} {number(r['expected'])})"
        moved = "" if c["expected"] == r["expected"] else f" (must be {c['relation']} {number(c['expected'])})"
        without = f"*{c['kind']}:* {c['dropped']}: {number(c['measured'])}{moved}"
        cells = [r["item"], r["statement"], r["whose"], r["checked"], r["paper"], ours, number(r["holds"]), without]
        lines.append(cells)
    counter = "counter-test: then measured, and the statement fails"
    return table(["", "statement", "whose", "what is checked", "in the paper", "measured", "holds", counter], lines)


def tokens(x):
    """A mean loss of the toy MDP for people: three decimals, and what is smaller as such."""
    return "0" if x < 1e-12 else f"{x:.3f}" if x >= 0.0005 else "< 0.001"


def toy_table(toy):
    """The table of toy_mdp.py: choosing, then added logits for each bound, with experts and without."""
    names = ["any size" if B is None else f"≤ {number(B)}" for B in toy["bounds"]]
    lines = [
        [f"{100 * c:.0f}%", tokens(alone), *[f"{tokens(x)} / {tokens(y)}" for x, y in zip(both, toy["no_expert"])]]
        for c, alone, both in zip(toy["coverages"], toy["choosing"], toy["with_experts"])
    ]
    return table(["covered", "choosing", *[f"logits {x}: experts / none" for x in names]], lines)


def blocks(rows, toy):
    """Every generated block, by name: {name: markdown}."""
    by = {r["item"]: r["numbers"] for r in rows}
    out = {f"item {k}": statements_table([r for r in rows if r["item"][0] == k]) for k in "12345678"}
    held = sum(r["holds"] for r in rows)
    failed = sum(r["counter_test"]["conclusion_fails"] for r in rows)
    dropped = [r["item"] for r in rows if r["counter_test"]["kind"] == "dropped"]
    exchanged = [r["item"] for r in rows if r["counter_test"]["kind"] == "exchanged"]
    out["summary"] = (
        f"{len(rows)} statements checked, {held} hold, and {failed} of {len(rows)} fail, as they should, in their "
        f"counter-test: {len(dropped)} drop an assumption, {len(exchanged)} ({', '.join(exchanged)}) exchange a part of "
        "the statement for something that looks as good."
    )
    papers, our = ([r["item"] for r in rows if r["whose"] == who] for who in ("paper", "ours"))
    out["whose"] = f"The paper's, {len(papers)} of {len(rows)}: {', '.join(papers)}. The other {len(our)} are ours."
    out["toy"] = toy_table(toy)

    n = by["2c"]
    out["eq5"] = table(
        ["covered prefixes", "gap of Eq. (5)'s rule", "gap of the best routing", "bound T * Delta", "gap / bound"],
        [
            [
                f"{100 * c:.0f}%",
                spread(n["gap_rule"], k),
                spread(n["gap_best"], k),
                spread(n["bound"], k),
                spread(n["ratio"], k),
            ]
            for k, c in enumerate(n["covers"])
        ],
    )
    n = by["3e"]
    out["hidden"] = table(
        ["n", "T", "expert paths x secrets", "minimax gap, brute force", "formula", "paper's T/2 - 2"],
        [
            [
                k,
                T,
                f"{k**T} x {k ** (T // 2)}",
                number(up) if abs(up - low) < 1e-9 else f"{number(low)} to {number(up)}",
                number(n["grid"][k - 1][T // 2 - 1]),
                number(T / 2 - 2),
            ]
            for k, T, up, low in n["brute_force"]
        ],
    )
    n = by["3g"]
    out["leak"] = table(
        ["leak per token", *map(number, n["leaks"])],
        [
            ["minimax gap, T = 8 (DP)", *map(number, n["gap_T8"])],
            ["minimax gap, T = 64 (closed form)", *map(number, n["gap_T64"])],
        ],
    )
    out["retries"] = table(
        ["episodes K", "minimax gap of episode K (n = 2, T = 20, 1024 paths)"],
        [[k, number(g)] for k, g in by["3h"]["gap_T20"]],
    )
    n = by["3i"]
    out["finite logits"] = table(
        ["logits up to B =", *map(number, n["bounds"])],
        [["gap, experts leak 0.01 (n = 2, T = 16)", *map(number, n["gap_T16_leak_001"])]],
    )
    n, nobody = by["4d"], by["4h"]["no_expert"]
    out["coverage"] = table(
        ["covered prefixes", "best routing", *[f"logits up to {b}" for b in n["bounded"]]],
        [
            [f"{100 * c:.0f}%", spread(n["routing"], k), *[spread(b, k) for b in n["bounded"].values()]]
            for k, c in enumerate(n["covers"])
        ]
        + [["no expert, at any coverage", *[spread(nobody, k) for k in range(6)]]],
    )
    n = by["4e"]
    out["horizon"] = table(
        ["T", "best routing", "logits up to 2", "logits up to 4", "best routing, reward only at the end"],
        [
            [T, *[spread(n[w], k) for w in ("routing", "bounded_2", "bounded_4", "sparse")]]
            for k, T in enumerate(n["horizons"])
        ],
    )
    n = by["4f"]
    out["bounded"] = table(
        ["B", "both experts and logits", "expert 1 and logits", "no expert and logits"],
        [
            [number(b), *[spread(n[way], k) for way in ("fused", "alone", "no_expert")]]
            for k, b in enumerate(n["bounds"])
        ],
    )
    n = by["4h"]
    out["worth"] = table(
        ["B", *map(number, n["bounds"])],
        [["experts lose less than none from this coverage on", *[f"{100 * c:.0f}%" for c in n["worth_from"]]]],
    )
    out["needed"] = table(
        ["expert's probability of the right token", "B that makes it 0.99"],
        [[number(p), number(b)] for p, b in by["4g"]["table"]],
    )
    n = by["6a"]
    out["collab"] = table(
        ["H", "mismatch", "regret", "regret when judged by E Q*"],
        [[H, *map(number, x)] for H, *x in zip(n["horizons"], n["mismatch"], n["regret"], n["repaired_regret"])],
    )
    n = by["7d"]
    ways = {
        "routing": "routing",
        "alone": "own SFT, then fused",
        "through": "through the fusion",
        "no_expert": "router alone, no expert",
    }
    out["learning"] = table(
        ["responses N", *[f"{v}: KL" for v in ways.values()], *[f"{v}: greedy gap" for v in ways.values()]],
        [
            [N, *[spread(n["kl"][w], k) for w in ways], *[spread(n["greedy"][w], k) for w in ways]]
            for k, N in enumerate(n["sizes"])
        ],
    )
    n = by["7f"]
    out["cdpo"] = table(
        ["steps", *[f"{w}: KL" for w in n["kl"]], *[f"{w}: regret" for w in n["regret"]]],
        [
            [m, *[spread(b, k) for b in n["kl"].values()], *[spread(b, k) for b in n["regret"].values()]]
            for k, m in enumerate(n["marks"])
            if m in (0, 20, 50, 70, 100, 200, 500, 2000)
        ],
    )
    n = by["8d"]
    out["slips"] = table(
        ["slip probability", "gap", "sum of average losses over pi*", "C", "gap / sum"],
        [
            [number(s), number(g), number(a), number(C), number(g / a)]
            for s, g, a, C in zip(n["sigmas"], n["gap"], n["average"], n["C"])
        ],
    )
    n = by["8f"]
    out["noisy path"] = table(
        [
            "slip probability",
            "difference in Q* seen before T/2",
            "worst gap, Eq. (5)'s rule",
            "worst gap, best routing",
            "worst gap, Eq. (5)'s rule with Q* to one decimal",
        ],
        [[number(x) for x in line] for line in zip(n["slips"], n["seen"], n["rule"], n["best"], n["rule_rounded"])],
    )
    return out


def lookup(rows, toy, path):
    """The number at ITEM/key/key, keys and list positions, in the row of that item; at toy/key/key in `toy`."""
    item, *keys = path.strip().split("/")
    value = toy if item == "toy" else next(r for r in rows if r["item"] == item)
    for k in keys:
        value = value[int(k)] if isinstance(value, list) else value[k]
    return value


def fill(text, rows, toy, name):
    """The text of page `name` with every block and number as the JSON has it. ValueError for one that is not there."""
    made = blocks(rows, toy)

    def block(match):
        if match[1] not in made:
            raise ValueError(f"{name} asks for a block {match[1]!r}, which is not made")
        return f"<!-- begin: {match[1]} -->\n{made[match[1]]}\n<!-- end: {match[1]} -->"

    def inline(match):
        try:
            return f"<!--={match[1]}-->{number(lookup(rows, toy, match[1]))}<!--/-->"
        except (StopIteration, KeyError, IndexError, ValueError, TypeError) as problem:
            raise ValueError(f"{name} asks for a number {match[1]!r}, which is not there") from problem

    text = re.sub(r"<!-- begin: ([\w ]+) -->.*?<!-- end: \1 -->", block, text, flags=re.S)
    return re.sub(r"<!--=([^>]*?)-->.*?<!--/-->", inline, text, flags=re.S)
