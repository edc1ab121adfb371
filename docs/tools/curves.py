"""Draws docs/curves.svg, the curves of the trainings of toy_experts/weights (needs matplotlib).

python -m docs.tools.curves
"""

import io
import json
from pathlib import Path

from toy_experts import script

try:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
except ImportError:
    plt = None

WINDOW = 25  # steps over which a curve is averaged: single batches scatter


def line(axis, records, key, label):
    """One curve: the mean of the last WINDOW records at each step."""
    values = [r[key] for r in records]
    means = [
        sum(values[max(0, i - WINDOW + 1) : i + 1]) / min(i + 1, WINDOW) for i in range(len(values))
    ]
    axis.plot([r["step"] + 1 for r in records], means, label=label)


def draw():
    """The picture as SVG text."""
    sft, mixed = (
        [json.loads(x) for x in (script.WEIGHTS / f"{name}.log.jsonl").read_text().splitlines()]
        for name in ("router_sft", "router")
    )
    pairs = [r for r in mixed if r["kind"] == "pair"]
    plt.rcParams.update(
        {
            "svg.hashsalt": "fusionroute",
            "font.size": 9,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    figure, axes = plt.subplots(1, 4, figsize=(12, 2.8), layout="constrained")
    line(axes[0], sft, "loss_lm", "L_LM")
    line(axes[0], sft, "loss_expert", "L_expert")
    axes[0].set(title="phase 1: the two terms of Eq. (2)", xlabel="step")
    for name in [key for key in sft[0] if key.startswith("route_")]:
        line(axes[1], sft, name, name.removeprefix("route_"))
    axes[1].set(title="phase 1: who is picked in S", xlabel="step", ylim=(0, 1))
    for key, label in (
        ("reward_chosen", "chosen"),
        ("reward_rejected", "rejected"),
        ("bias", "bias (experts)"),
    ):
        line(axes[2], pairs, key, label)
    axes[2].set(title="phase 2: rewards and bias of Eq. (3)", xlabel="step")
    line(axes[3], pairs, "accuracy", "margin > 0")
    line(axes[3], pairs, "fused_accuracy", "margin + bias > 0")
    axes[3].set(title="phase 2: share of pairs above 0", xlabel="step", ylim=(0, 1))
    for axis in axes:
        axis.legend()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def main(argv=None):
    script.Parser(description=__doc__).parse_args(argv)
    if plt is None:
        raise script.UserError("the curves need matplotlib: pip install matplotlib")
    script.write(Path(__file__).parents[1] / "curves.svg", draw())
    print("saved docs/curves.svg")


if __name__ == "__main__":
    script.run(main)
