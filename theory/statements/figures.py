"""The pictures of theory/README.md (simplex) and theory/statements/README.md (all), as ../figures/NAME.png.

They are drawn from the rows of extra/results/theory.json alone (the simplex, an illustration, from a few numbers here),
on white with a margin, so that they can be read on a dark page too. Colours are Okabe and Ito's, which colour-blind
readers can tell apart; lines differ in style or marker as well. Needs matplotlib.
"""

import io

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)

from .mdp import softmax  # noqa: E402
from .report import write_whole  # noqa: E402

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.axisbelow": True,
}


def numbers(rows, item):
    """The `numbers` of one row."""
    return next(r["numbers"] for r in rows if r["item"] == item)


def banded(ax, x, b, colour, label, style="-", marker="o"):
    """A mean with its 10th to 90th percentile."""
    ax.plot(x, b["mean"], style, color=colour, label=label, marker=marker, markersize=4, linewidth=1.8)
    ax.fill_between(x, b["p10"], b["p90"], color=colour, alpha=0.15, linewidth=0)


def corner(p):
    """Probabilities (..., 3) to points of an equilateral triangle (..., 2)."""
    return np.asarray(p) @ np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])


def simplex(rows):
    """Experts, what mixing them reaches, what bounded logits on one of them reach, and a pi* that only logits reach."""
    experts = np.array([[0.62, 0.30, 0.08], [0.25, 0.67, 0.08], [0.46, 0.22, 0.32]])
    star = np.array([0.12, 0.16, 0.72])
    fig, ax = plt.subplots(figsize=(8.6, 4.9))
    paper = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    ax.fill(*corner(np.eye(3)).T, facecolor="none", edgecolor=BLACK, linewidth=1.2)
    around = np.array([[1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, 1, 1], [-1, -1, 1], [1, -1, 1], [1, -1, -1]])
    for B, style in ((0.5, ":"), (1.0, "--"), (2.0, "-")):
        edges = [np.linspace(a, b, 60) for a, b in zip(around, around[1:])]
        logits = np.concatenate(edges) * B  # (360, 3) the boundary of |l| <= B
        xy = corner(softmax(np.log(experts[2]) + logits))
        ax.plot(*xy.T, style, color=BLUE, linewidth=1.6, label=f"adding logits |l| ≤ {B:g} to expert 3 reaches this")
    ax.fill(*corner(experts).T, facecolor=ORANGE, alpha=0.45, edgecolor=ORANGE, label="mixing reaches this triangle")
    steps = np.linspace(0, 1, 30)[:, None] * (np.log(star) - np.log(experts[2]))  # (30, 3)
    ax.plot(
        *corner(softmax(np.log(experts[2]) + steps)).T,
        color=GREEN,
        linewidth=2,
        label="growing logits, from expert 3 to the target",
    )
    ax.plot(*corner(experts).T, "o", color=RED, markersize=8, label="choosing reaches these points", linestyle="none")
    for k, (dx, dy) in enumerate(((-0.02, 0.05), (0.095, 0.0), (-0.1, 0.015))):
        ax.text(
            *(corner(experts[k]) + (dx, dy)),
            f"expert {k + 1}",
            ha="center",
            va="center",
            color="#8a3c00",
            bbox=paper,
            fontsize=9,
        )
    ax.plot(*corner(star), "*", color=GREEN, markersize=16)
    ax.text(*(corner(star) + (-0.045, 0.0)), "target π*", ha="right", va="center", color="#00684c", fontsize=11, bbox=paper)
    for k, (dx, dy) in enumerate(((0.05, -0.035), (-0.05, -0.035), (0, 0.03))):
        ax.text(*(corner(np.eye(3)[k]) + (dx, dy)), f"only token {'abc'[k]}", ha="center", va="center")
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_xlim(-0.03, 1.62)
    ax.set_ylim(-0.06, 0.92)
    handles, labels = ax.get_legend_handles_labels()
    order = [labels.index(x) for x in sorted(labels, key=lambda x: ("choosing", "mixing", "adding", "growing").index(x.split()[0]))]
    ax.legend([handles[k] for k in order], [labels[k] for k in order], loc="upper right", bbox_to_anchor=(1.0, 0.98))
    ax.set_title(
        "Where one can get by choosing, mixing and adding logits, with three tokens a, b, c",
        loc="left",
    )
    return fig


def gap_coverage(rows):
    """Routing and bounded logits as coverage falls, and how much of Eq. (5)'s bound is used."""
    n, e = numbers(rows, "4d"), numbers(rows, "2c")
    x = 100 * np.array(n["covers"])
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.9), width_ratios=(1.45, 1))
    banded(left, x, n["routing"], RED, "best expert-only routing")
    for b, colour, marker in (("2.0", SKY, "s"), ("4.0", BLUE, "^"), ("6.0", GREEN, "D")):
        banded(left, x, n["bounded"][b], colour, f"routing + logits up to {float(b):g}", marker=marker)
    left.set(
        xlabel="prefixes where some expert favours the best token (%)", ylabel="V* − value (reward over T = 6 tokens)"
    )
    left.set_title("Routing loses as coverage falls;\nlarge enough logits do not", loc="left")
    left.invert_xaxis()
    left.legend(loc="upper left")
    banded(right, x, e["ratio"], BLACK, "gap of Eq. (5)'s rule / bound")
    right.axhline(1, color=ORANGE, linestyle="--")
    right.text(98, 0.955, "the bound, T·Δ", color="#8a5f00", va="top")
    right.set(xlabel="covered prefixes (%)", ylabel="gap / (T·Δ)", ylim=(0, 1.05))
    right.set_title("Eq. (5) sees only\nthe worst prefix", loc="left")
    right.invert_xaxis()
    return fig


def gap_horizon(rows):
    """Gap against the length of the response."""
    n = numbers(rows, "4e")
    fig, ax = plt.subplots(figsize=(8, 4.1))
    T = n["horizons"]
    banded(ax, T, n["routing"], RED, "best routing")
    banded(ax, T, n["bounded_2"], SKY, "routing + logits up to 2", marker="s")
    banded(ax, T, n["bounded_4"], BLUE, "routing + logits up to 4", marker="^")
    banded(ax, T, n["sparse"], PINK, "best routing, reward only for the last token", "--", "v")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(T, [str(t) for t in T])
    ax.set(xlabel="horizon T (tokens)", ylabel="V* − value (reward, log scale)")
    ax.set_title(
        "Twice the tokens, twice the routing gap, when every token is paid (half the prefixes covered)", loc="left"
    )
    ax.legend(loc="upper left")
    ax.set_ylim(0.005, 60)
    return fig


def hidden_path(rows):
    """The exact minimax gap over (n, T), the sizes checked by brute force, and what a leak does."""
    n, leak = numbers(rows, "3e"), numbers(rows, "3g")
    grid, Ts, ns = np.array(n["grid"]), n["grid_T"], n["grid_n"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.9), width_ratios=(1.7, 1))
    image = left.imshow(grid, origin="lower", aspect="auto", cmap="cividis", extent=(Ts[0] - 1, Ts[-1] + 1, 0.5, 8.5))
    for k, T, *_ in n["brute_force"]:
        left.plot(T, k, "o", markerfacecolor="white", markeredgecolor=BLACK, markersize=6)
    left.grid(False)
    left.set(xlabel="horizon T (tokens)", ylabel="experts n", xticks=range(4, 33, 4), yticks=ns)
    left.set_title(
        "With two experts or more, some secret path\ncosts any router about T/2  (○ brute force)", loc="left"
    )
    left.text(31.5, 1, "n = 1: nothing is hidden", color="white", ha="right", va="center")
    fig.colorbar(image, ax=left, label="minimax gap (reward)")
    for key, T, colour, marker in (("gap_T8", 8, BLUE, "o"), ("gap_T64", 64, RED, "s")):
        right.plot(leak["leaks"], leak[key], color=colour, marker=marker, label=f"T = {T}")
    right.set(xlabel="leak to outside, per token", ylabel="minimax gap (reward)", yscale="log")
    right.set_title("Leaking experts\nfall into safety", loc="left")
    right.legend()
    return fig


def bounded_logits(rows):
    """How large the logits must be, with a choice of experts, with one and with none; and when experts are worth it."""
    n, m = numbers(rows, "4f"), numbers(rows, "4h")
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4.2), width_ratios=(1.55, 1))
    B = n["bounds"]
    banded(left, B, n["alone"], BLUE, "expert 1 alone + logits", marker="s")
    banded(left, B, n["fused"], GREEN, "choice of experts + logits", marker="o")
    banded(left, B, n["no_expert"], BLACK, "no expert + logits", "--", "v")
    left.axhline(n["routing"]["mean"], color=RED, linestyle="--", label="best routing, no logits")
    left.set(xlabel="bound B on every logit, |l| ≤ B (nats)", ylabel="V* − value (reward over T = 6 tokens)", ylim=(0, 3.1))
    left.set_title("Half of the prefixes covered: from B = 1 on,\nlogits lose less without experts", loc="left")
    left.legend(loc="upper right")
    from_here = 100 * np.array(m["worth_from"])
    right.plot(m["bounds"], from_here, color=BLACK, marker="o", markersize=4, linewidth=1.8)
    right.fill_between(m["bounds"], from_here, 100, color=GREEN, alpha=0.25, linewidth=0)
    right.text(0.15, 87, "experts are\nworth having", color="#00543d", fontsize=8.5)
    right.text(2.6, 30, "better without\nexperts")
    right.set(xlabel="bound B (nats)", ylabel="covered prefixes (%)", ylim=(0, 102), xlim=(0, 6))
    right.set_title("The larger the logits,\nthe fuller coverage must be", loc="left")
    return fig


def learning_curves(rows):
    """KL to pi* and greedy loss against the number of training responses."""
    n = numbers(rows, "7d")
    fig, axes = plt.subplots(1, 2, figsize=(8.4, 4.0))
    ways = (
        ("routing", RED, "o", "routing (which expert)"),
        ("alone", ORANGE, "s", "router's own SFT, then fused"),
        ("through", GREEN, "^", "SFT through the fusion"),
        ("no_expert", BLACK, "v", "router alone, no expert"),
    )
    for ax, key in zip(axes, ("kl", "greedy")):
        for way, colour, marker, label in ways:
            banded(ax, n["sizes"], n[key][way], colour, label, "--" if way == "no_expert" else "-", marker)
        ax.set(xscale="log", xlabel="training responses of π*")
    axes[0].set(yscale="log", ylabel="KL(π* ‖ policy), nats per response")
    axes[0].set_title("Fusing what was trained apart\ndoes not converge to π*", loc="left")
    axes[0].legend(loc="lower left", fontsize=8)
    axes[1].set(ylabel="V* − value of greedy decoding (reward)")
    axes[1].set_title("A confident expert vetoes a router\nthat was trained without it", loc="left")
    return fig


def cdpo_steps(rows):
    """CDPO's U-curve."""
    n = numbers(rows, "7f")
    fig, axes = plt.subplots(1, 2, figsize=(8.4, 4.0))
    lines = (
        ("exact, beta 0.1", BLUE, "o", "-", "β = 0.1, exact expectation"),
        ("exact, beta 1.0", GREEN, "^", "-", "β = 1, exact expectation"),
        ("16 pairs a prompt", ORANGE, "s", "--", "β = 0.1, 16 pairs a prompt"),
        ("4 pairs a prompt", RED, "v", "--", "β = 0.1, 4 pairs a prompt"),
    )
    for ax, key in zip(axes, ("kl", "regret")):
        for name, colour, marker, style, label in lines:
            banded(ax, n["marks"], n[key][name], colour, label, style, marker)
        ax.set_xscale("symlog", linthresh=10)
        ax.set_xticks([0, 10, 100, 1000], ["0", "10", "100", "1000"])
        ax.set(xlabel="CDPO steps (0 = after phase 1)")
    axes[0].set(yscale="log", ylabel="KL(π* ‖ fused), nats per token")
    axes[0].set_title("CDPO passes near π*,\nthen overshoots", loc="left")
    axes[0].legend(loc="upper left", fontsize=8)
    axes[0].set_ylim(0.04, 90)
    axes[1].set(ylabel="loss of greedy decoding (reward per token)")
    axes[1].set_title("The token it writes is right\nfor a while", loc="left")
    return fig


FIGURES = (simplex, gap_coverage, gap_horizon, hidden_path, bounded_logits, learning_curves, cdpo_steps)


def draw_all(rows, folder):
    """Draw every figure as folder/NAME.png, 100 dots an inch, whole files only. Returns the paths."""
    paths = []
    with plt.rc_context(STYLE):
        for draw in FIGURES:
            fig, data = draw(rows), io.BytesIO()
            fig.tight_layout()
            # no version in the file: same bytes, same picture
            fig.savefig(data, format="png", dpi=100, facecolor="white", pad_inches=0.15, metadata={"Software": None})
            plt.close(fig)
            paths.append(folder / f"{draw.__name__}.png")
            write_whole(paths[-1], data.getvalue())
    return paths
