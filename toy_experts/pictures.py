"""Draws the README's picture of a routed answer: docs/answer.svg, with the shipped weights.

    python -m toy_experts.pictures

The prompt is the first test prompt of its seed, not one that was looked for.
"""

from pathlib import Path
from random import Random

import decode
from toy_experts import run, show, tasks
from toy_experts.train import load_router

PROMPT = tasks.dataset("toy-gsm8k", "test", 1, Random("README"))[0].prompt
DOCS = Path(__file__).parent.parent / "docs"


def answer():
    """The prompt's answer as the rows of show.records, and its steps."""
    router, experts, _ = load_router(run.WEIGHTS, "router", "cpu", "run bash run.sh")
    ids = decode.encode(PROMPT, router.lm.config.max_len)
    steps = list(decode.decode(router, experts, ids))
    inside = show.in_S(experts, ids, [step.token for step in steps])
    return list(show.records(steps, inside, "fusionroute")), steps


def main():
    rows, _ = answer()
    run.write(DOCS / "answer.svg", show.svg(PROMPT, rows))
    print("saved docs/answer.svg")


if __name__ == "__main__":
    run.run(main)
