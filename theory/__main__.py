"""python -m theory: the toy MDP's table, then one line for each statement. Changes no file.

With --write it also writes the two JSON files, the picture, and the numbers of both pages.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

from docs.tools.pages import fill

from . import pages, simplex, toy_mdp
from .statements import compute

ROOT = Path(__file__).resolve().parent.parent
JSON = ("extra/results/theory.json", "extra/results/toy_mdp.json")
PAGES = ("theory/README.md", "theory/statements/README.md")
PICTURE = "theory/figures/simplex.png"
CLAIM = {"==": "must be", "<=": "at most", ">=": "at least"}


def toy():
    """The numbers of toy_mdp.py: mean losses in tokens. A bound of None is any size."""
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


def line(row):
    """A statement as one line for a console, in ASCII."""
    sign, limit = CLAIM[row["must"][0]], row["must"][1]
    measured = f"{row['measure']} {pages.number(row['measured'])} ({sign} {pages.number(limit)})"
    holds = "holds" if row["holds"] else "FAILS"
    fails = "fails" if row["fails"] else "STILL HOLDS"
    without = f"{row['without']}: {pages.number(row['then'])}, {fails}"
    return f"{row['whose']:<6}{row['name']:<12} {row['says']:<63}{measured:<34}{holds}  {without}"


def write(root, name, data):
    """Write text or bytes to root/name, whole or not at all."""
    path = Path(root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    part.write_bytes(data if isinstance(data, bytes) else data.encode())
    os.replace(part, path)
    print(f"written: {name}")


def write_all(root, rows, numbers):
    """The JSON files, the pages that are there, and the picture if matplotlib is."""
    lines = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items()]
    write(root, JSON[0], "{\n" + ",\n".join(lines) + "\n}\n")
    write(root, JSON[1], json.dumps(numbers, indent=1) + "\n")
    for name in PAGES:
        text = (Path(root) / name).read_text(encoding="utf-8")
        write(root, name, fill(text, pages.values(rows, numbers)))
    if importlib.util.find_spec("matplotlib"):
        write(root, PICTURE, simplex.draw())
    else:
        print(f"not written: {PICTURE}, it needs matplotlib", file=sys.stderr)


class OneLineParser(argparse.ArgumentParser):
    """A wrong flag gets one line on stderr and exit status 2."""

    def error(self, message):
        self.exit(2, f"error: {message}; see python -m theory --help\n")


def main(argv=None, root=ROOT):
    """Returns the exit status: 1 when a statement fails or holds without its assumption, else 0."""
    parser = OneLineParser(prog="python -m theory", description=__doc__)
    parser.add_argument("--write", action="store_true", help="also write JSON, picture, pages")
    options = parser.parse_args(argv)

    toy_mdp.main()
    head = f"whose statement    {'what it says':<63}{'measured, and the claim':<34}"
    print(f"\n{head}       without the assumption")
    rows = compute()
    for row in rows.values():
        print(line(row))
    good = sum(row["holds"] and row["fails"] for row in rows.values())
    print(f"\n{good} of {len(rows)} statements hold, and fail without their assumption")
    if options.write:
        write_all(root, rows, toy())
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
