"""The picture of README.md: where choosing, mixing and adding logits lead, with three tokens.

Needs matplotlib. White, with a margin, so that it can be read on a dark page too. The colours are
those of Okabe and Ito, which colour-blind readers can tell apart.
"""

import io
import itertools

import numpy as np

from .statements.mdp import softmax

BLACK, ORANGE, GREEN, BLUE, RED = "#000000", "#E69F00", "#009E73", "#0072B2", "#D55E00"
EXPERTS = np.array([[0.62, 0.30, 0.08], [0.25, 0.67, 0.08], [0.46, 0.22, 0.32]])
TARGET = np.array([0.12, 0.16, 0.72])
EDGES = [[1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, 1, 1], [-1, -1, 1], [1, -1, 1], [1, -1, -1]]


def corner(p):
    """Probabilities (..., 3) as points of an equilateral triangle (..., 2)."""
    return np.asarray(p) @ np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])


def curve(logits):
    """Where expert 3 goes when `logits` (N, 3) are added: x and y, (2, N)."""
    return corner(softmax(np.log(EXPERTS[2]) + logits)).T


def draw():
    """The picture as the bytes of a PNG file."""
    import matplotlib.pyplot as plt  # here, because all the rest does without it

    style = {"font.size": 10, "axes.titlesize": 11, "legend.frameon": False, "legend.fontsize": 9}
    with plt.rc_context(style):
        fig, ax = plt.subplots(figsize=(8.6, 4.9))
        ax.plot(*corner(EXPERTS).T, "o", color=RED, markersize=8)
        ax.lines[-1].set_label("choosing reaches these points")
        ax.fill(*corner(EXPERTS).T, facecolor=ORANGE, alpha=0.45, edgecolor=ORANGE)
        ax.patches[-1].set_label("mixing reaches this triangle")
        for B, line in ((0.5, ":"), (1.0, "--"), (2.0, "-")):
            sides = [np.linspace(a, b, 60) for a, b in itertools.pairwise(np.array(EDGES))]
            label = f"adding logits |l| ≤ {B:g} to expert 3 reaches this"
            ax.plot(*curve(B * np.concatenate(sides)), line, color=BLUE, linewidth=1.6, label=label)
        needed = np.log(TARGET / EXPERTS[2])  # (3,)
        path = curve(np.linspace(0, 1, 30)[:, None] * needed)
        label = "growing logits, from expert 3 to the target"
        ax.plot(*path, color=GREEN, linewidth=2, label=label)
        ax.fill(*corner(np.eye(3)).T, facecolor="none", edgecolor=BLACK, linewidth=1.2)
        ax.plot(*corner(TARGET), "*", color=GREEN, markersize=16)

        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        words = {"ha": "center", "va": "center", "fontsize": 9, "bbox": box | {"alpha": 0.85}}
        for k, shift in enumerate(((-0.02, 0.05), (0.095, 0.0), (-0.1, 0.015))):
            ax.text(*(corner(EXPERTS[k]) + shift), f"expert {k + 1}", color="#8a3c00", **words)
        ax.text(*(corner(TARGET) + (-0.12, 0.0)), "target π*", color="#00684c", **words)
        for k, shift in enumerate(((0.05, -0.035), (-0.05, -0.035), (0, 0.03))):
            ax.text(*(corner(np.eye(3)[k]) + shift), f"only token {'abc'[k]}", ha="center")
        ax.set(xlim=(-0.03, 1.62), ylim=(-0.06, 0.92), aspect="equal")
        ax.axis("off")
        ax.legend(loc="upper right", bbox_to_anchor=(1.0, 0.98))
        ax.set_title("Choosing, mixing and adding logits, with three tokens a, b, c", loc="left")
        fig.tight_layout()
        data = io.BytesIO()
        fig.savefig(data, format="png", dpi=100, metadata={"Software": None})
        plt.close(fig)
    return data.getvalue()
