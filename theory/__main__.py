"""python -m theory: check every statement, print the table, write results/theory.json and the figures."""

import argparse
import json
import sys
import textwrap
from pathlib import Path

from . import beyond, cdpo, collab, coverage, expressivity, fusion_bound, hidden_path, hidden_path_beyond, learning
from . import lemma, readme
from .report import number, to_json, write_whole

ROOT = Path(__file__).resolve().parent.parent
FILES = (lemma, coverage, hidden_path, hidden_path_beyond, expressivity, fusion_bound, collab, learning, cdpo, beyond)


def compute():
    """All rows, in reading order. Seeds are fixed: the same numbers every time."""
    return [r for module in FILES for r in module.statements()]


def show(rows, widths=(4, 40, 34, 20, 24, 5, 40)):
    """The table as text: long cells are wrapped."""

    def line(cells):
        wrapped = [textwrap.wrap(str(c), w) or [""] for c, w in zip(cells, widths)]
        deep = max(map(len, wrapped))
        padded = [[c.ljust(w) for c in x + [""] * (deep - len(x))] for x, w in zip(wrapped, widths)]
        return "\n".join("  ".join(x).rstrip() for x in zip(*padded))

    rule = "  ".join("-" * w for w in widths)
    out = [line(["", "statement", "what is checked", "paper", "ours", "holds", "without an assumption"]), rule]
    for r in rows:
        c = r["counter_test"]
        ours = f"{number(r['measured'])}  (must be {r['relation']} {number(r['expected'])})"
        verdict = "fails, as it should" if c["conclusion_fails"] else "STILL HOLDS"
        without = f"{c['dropped']}: {number(c['measured'])}, {verdict}"
        out += [line([r["item"], r["statement"], r["checked"], r["paper"], ours, number(r["holds"]), without]), ""]
    return "\n".join(out)


class OneLineParser(argparse.ArgumentParser):
    """A wrong flag gets one line on stderr and exit status 2."""

    def error(self, message):
        self.exit(2, f"python -m theory: {message}; see python -m theory --help\n")


def main(argv=None, root=ROOT):
    """Write the table, the JSON and the figures under `root`.

    Returns the exit status: 0, or 1 when a statement fails or a counter-test does not bite.
    """
    parser = OneLineParser(prog="python -m theory", description=__doc__)
    parser.add_argument("--no-figures", action="store_true", help="skip the figures")
    parser.add_argument(
        "--readme", action="store_true", help="only rewrite the numbers in theory/README.md from results/theory.json"
    )
    options = parser.parse_args(argv)
    results, text = Path(root) / "results" / "theory.json", Path(root) / "theory" / "README.md"

    if options.readme:
        if not results.exists():
            parser.error("results/theory.json is missing: run python -m theory first")
        write_whole(text, readme.fill(text.read_text(encoding="utf-8"), json.loads(results.read_text())))
        print("theory/README.md now has the numbers of results/theory.json")
        return 0

    rows = compute()
    print(show(rows))
    bad = [r["item"] for r in rows if not r["holds"] or not r["counter_test"]["conclusion_fails"]]
    print(f"{len(rows)} statements, {len(rows) - len(bad)} as expected" + (f"; NOT: {', '.join(bad)}" if bad else ""))
    write_whole(results, to_json(rows))
    print("written: results/theory.json")
    if not options.no_figures:
        try:
            from . import figures
        except ModuleNotFoundError as missing:
            if missing.name.split(".")[0] != "matplotlib":
                raise
            print("figures skipped: matplotlib is missing, `pip install matplotlib` gets them")
        else:
            for path in figures.draw_all(rows, Path(root) / "theory" / "figures"):
                print(f"written: theory/figures/{path.name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
