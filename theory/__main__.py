"""python -m theory: the toy MDP's table, then every statement checked.

Writes extra/results/ and the pictures.
"""

import argparse
import json
import sys
import textwrap
from pathlib import Path

from . import toy_mdp
from .statements import beyond, cdpo, collab, coverage, expressivity, fusion_bound, hidden_path
from .statements import hidden_path_beyond, learning, lemma, readme
from .statements.report import number, to_json, write_whole

try:
    from .statements import figures
except ModuleNotFoundError as missing:
    if missing.name.split(".")[0] != "matplotlib":
        raise
    figures = None

ROOT = Path(__file__).resolve().parent.parent
FILES = (lemma, coverage, hidden_path, hidden_path_beyond, expressivity, fusion_bound, collab,
         learning, cdpo, beyond)


RESULTS = ("extra/results/toy_mdp.json", "extra/results/theory.json")
PAGES = ("theory/README.md", "theory/statements/README.md")


def toy():
    """The numbers of toy_mdp.py: mean losses in tokens.

    In `bounds`, null means any size (infinity is not JSON).
    """
    covers, bounds = toy_mdp.COVERAGES, toy_mdp.BOUNDS
    return {
        "tokens": toy_mdp.A,
        "length": toy_mdp.T,
        "leak": toy_mdp.LEAK,
        "worlds": len(toy_mdp.SEEDS),
        "coverages": list(covers),
        "bounds": [None if B == float("inf") else B for B in bounds],
        "choosing": [toy_mdp.mean_loss(c, 0) for c in covers],
        "with_experts": [[toy_mdp.mean_loss(c, B) for B in bounds] for c in covers],
        "no_expert": [toy_mdp.mean_loss(0, B, nobody=True) for B in bounds],
    }


def compute():
    """All rows, in reading order. Seeds are fixed: the same numbers every time."""
    return [r for module in FILES for r in module.statements()]


def show(rows, widths=(3, 36, 5, 32, 18, 24, 5, 40)):
    """The table as text: long cells are wrapped."""

    def line(cells):
        wrapped = [textwrap.wrap(str(c), w) or [""] for c, w in zip(cells, widths)]
        deep = max(map(len, wrapped))
        padded = [[c.ljust(w) for c in x + [""] * (deep - len(x))] for x, w in zip(wrapped, widths)]
        return "\n".join("  ".join(x).rstrip() for x in zip(*padded))

    rule = "  ".join("-" * w for w in widths)
    head = ["", "statement", "whose", "what is checked", "in the paper", "measured", "holds",
            "counter-test"]
    out = [line(head), rule]
    for r in rows:
        c = r["counter_test"]
        ours = f"{number(r['measured'])}  (must be {r['relation']} {number(r['expected'])})"
        verdict = "fails, as it should" if c["conclusion_fails"] else "STILL HOLDS"
        without = f"{c['kind']}: {c['dropped']}: {number(c['measured'])}, {verdict}"
        cells = [r["item"], r["statement"], r["whose"], r["checked"], r["paper"], ours,
                 number(r["holds"]), without]
        out += [line(cells), ""]
    return "\n".join(out)


class OneLineParser(argparse.ArgumentParser):
    """A wrong flag gets one line on stderr and exit status 2."""

    def error(self, message):
        self.exit(2, f"error: {message}; see python -m theory --help\n")


def main(argv=None, root=ROOT):
    """Write the tables, the JSON and the pictures under `root`.

    Returns the exit status: 0, or 1 when a statement fails or a counter-test does not bite.
    """
    parser = OneLineParser(prog="python -m theory", description=__doc__)
    parser.add_argument("--no-figures", action="store_true", help="skip the pictures")
    parser.add_argument(
        "--readme", action="store_true",
        help=f"only copy the numbers of the JSON files into {' and '.join(PAGES)}"
    )
    options, root = parser.parse_args(argv), Path(root)

    if options.readme:
        missing = [name for name in RESULTS if not (root / name).exists()]
        if missing:
            parser.error(f"{missing[0]} is missing: run python -m theory first")
        small, rows = (json.loads((root / name).read_text()) for name in RESULTS)
        for name in PAGES:
            text = (root / name).read_text(encoding="utf-8")
            write_whole(root / name, readme.fill(text, rows, small, name))
            print(f"{name} now has the numbers of the JSON files")
        return 0

    small = toy()
    print(f"The toy MDP (theory/toy_mdp.py): mean loss, in tokens of {small['length']}\n\n"
          f"{readme.toy_table(small)}\n")
    rows = compute()
    print(show(rows))
    bad = [r["item"] for r in rows if not r["holds"] or not r["counter_test"]["conclusion_fails"]]
    print(f"{len(rows)} statements, {len(rows) - len(bad)} as expected"
          + (f"; NOT: {', '.join(bad)}" if bad else ""))
    texts = json.dumps(small, indent=1, allow_nan=False) + "\n", to_json(rows)
    for name, text in zip(RESULTS, texts):
        write_whole(root / name, text)
        print(f"written: {name}")
    if not options.no_figures:
        if figures is None:
            print("pictures skipped: matplotlib is missing, `pip install matplotlib` gets them")
        else:
            for path in figures.draw_all(rows, root / "theory" / "figures"):
                print(f"written: theory/figures/{path.name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
