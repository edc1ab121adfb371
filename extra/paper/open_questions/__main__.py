"""Puts what the pages of this folder found into docs/open-questions.md: a table and the run time for each, from extra/results/open_NAME.json.

    python -m extra.paper.open_questions
"""

import argparse
import json
from pathlib import Path

from extra.common import RESULTS, fill
from extra.paper.open_questions.frame import as_table
from toy_experts import run

THIS = "python -m extra.paper.open_questions"
PAGE = Path(__file__).parents[3] / "docs" / "open-questions.md"
NAMES = ["decoding", "shift", "newcomer", "hostile", "objectives", "data"]


def block(name):
    """The table of one question with the command that makes it."""
    path = RESULTS / f"open_{name}.json"
    try:
        r = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise run.UserError(f"{path} cannot be read ({e}): run python -m extra.paper.open_questions.{name} --seeds 2 3") from e
    meta, seeds = r["meta"], " ".join(map(str, r["meta"]["seeds"]))
    minutes = sum(meta["run time in seconds"].values()) / 60
    return "\n".join([f"`{THIS}.{name} --seeds {seeds}`: {minutes:.0f} minutes of one core for both seeds, after the run's own training. Per cent right on "
                      f"{meta['prompts per benchmark']} test prompts a benchmark, mean over seeds {seeds.replace(' ', ', ')} (each in brackets).", "", as_table(r["rows"])])


def page():
    return fill(PAGE.read_text(), {name: block(name) for name in NAMES}, THIS)


def main(argv=None):
    run.Parser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    run.write(PAGE, page())
    print(f"saved {PAGE.relative_to(PAGE.parents[1])}")


if __name__ == "__main__":
    run.run(main)
