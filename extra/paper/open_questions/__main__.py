"""Puts what the pages of this folder found into docs/open-questions.md: table, run time and, for those of answers.py, the answer, from
extra/results/open_NAME.json.

    python -m extra.paper.open_questions
"""

import argparse
import json
from pathlib import Path

from extra.common import RESULTS, fill
from extra.paper.open_questions.answers import answer
from extra.paper.open_questions.frame import as_table
from toy_experts import run

THIS = "python -m extra.paper.open_questions"
PAGE = Path(__file__).parents[3] / "docs" / "open-questions.md"
PAGE_TEXT = {  # page: what its picture shows, for those who do not see it
    "experts": "Accuracy for each number and kind of experts.",
    "weights": "Accuracy for each lambda, beta and share of S.",
    "decoding": "Accuracy for each way of decoding: FusionRoute, half the sum, the picked expert alone, the router alone.",
    "shift": "Accuracy for each kind of shift: FusionRoute, the picked expert alone, the router alone, the best expert.",
    "newcomer": "Accuracy after each kind of update.",
    "hostile": "Accuracy beside each changed expert.",
    "objectives": "Accuracy after each objective of phase 2.",
    "data": "Accuracy for each change of the data.",
    "router_size": "Accuracy for each size of the router.",
    "mixed": "Accuracy for each set of experts.",
}


def block(name):
    """The table of one question with the command that makes it, and its picture. Where nothing was measured it says so."""
    path, line = RESULTS / f"open_{name}.json", f"{THIS}.{name} --seeds 2 3"
    if not path.exists():
        return f"Not measured yet: `{line}` does it."
    try:
        r = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise run.UserError(f"{path} cannot be read ({e}): run {line}") from e
    meta, seeds = r["meta"], " ".join(map(str, r["meta"]["seeds"]))
    minutes = sum(meta["run time in seconds"].values()) / 60
    text = (f"`{THIS}.{name} --seeds {seeds}`: {minutes:.0f} minutes of one core, after the run's own training. Per cent right on "
            f"{meta['prompts per benchmark']} test prompts a benchmark, mean over seeds {seeds.replace(' ', ', ')} (each in brackets).")
    return "\n\n".join([*filter(None, [answer(name, r["rows"])]), text, as_table(r["rows"]), f"![{PAGE_TEXT[name]}](../extra/results/open_{name}.svg)"])


def run_time():
    """How long all measured pages took together."""
    found = [json.loads(path.read_text())["meta"]["run time in seconds"] for name in PAGE_TEXT if (path := RESULTS / f"open_{name}.json").exists()]
    minutes = sum(sum(seconds.values()) for seconds in found) / 60
    return (f"All {len(found)} pages took {minutes:.0f} minutes of one core together, after the ordinary training of each seed, which they share. The seeds "
            "run side by side: start a page's command with `--seed 2` and with `--seed 3` in two terminals with `OMP_NUM_THREADS=1`, then with "
            "`--seeds 2 3`, which finds both.")


def page():
    return fill(PAGE.read_text(), {name: block(name) for name in PAGE_TEXT} | {"time": run_time()}, THIS)


def main(argv=None):
    run.Parser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    run.write(PAGE, page())
    print(f"saved {PAGE.relative_to(PAGE.parents[1])}")


if __name__ == "__main__":
    run.run(main)
