"""theory/toy_mdp.py: one page of numpy, its numbers by hand and by enumeration."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from theory import toy_mdp
from theory.toy_mdp import LEAK, A, T, loss, mean_loss, tree

PAGE = Path(toy_mdp.__file__)
SEED = 3


def return_of(rewards, policy):
    """What a policy {(t, prefix): (A,) probabilities} earns, by walking every answer."""
    total = 0.0
    for answer in itertools.product(range(A), repeat=len(rewards)):
        s, probability, earned = 0, 1.0, 0.0
        for t, a in enumerate(answer):
            probability, earned = probability * policy[t, s][a], earned + rewards[t][s, a]
            s = A * s + a
        total += probability * earned
    return total


def best_of_all(rewards, options):
    """The best return of all combinations of options[t, s], lists of (A,) probabilities."""
    places = list(options)
    return max(
        return_of(rewards, dict(zip(places, pick))) for pick in itertools.product(*options.values())
    )


@pytest.mark.parametrize("seed,coverage", [(SEED, 0.5), (4, 0.5), (5, 0.9), (6, 0.0)])
def test_choosing_is_the_best_of_all_deterministic_routings(seed, coverage):
    rewards, experts = tree(seed, coverage, leak=0.3, length=3)  # 13 prefixes, 2 experts
    options = {
        (t, s): [e[i, s] for i in range(2)] for t, e in enumerate(experts) for s in range(A**t)
    }
    last = {
        k: max(v, key=lambda p: p @ rewards[2][k[1]]) for k, v in options.items() if k[0] == 2
    }  # nothing follows
    options |= {k: [p] for k, p in last.items()}  # 2^4 routings of the first 4 prefixes are left
    assert loss(rewards, experts, 0) == pytest.approx(3 - best_of_all(rewards, options), abs=1e-12)


@pytest.mark.parametrize("seed,B", [(SEED, 0.7), (4, 2.0)])
def test_logits_are_the_best_of_all_corners(seed, B):
    # Each prefix: 2 experts x 2^3 corners of |l| <= B. The last level is best on its own.
    rewards, experts = tree(seed, 0.5, leak=0.3, length=2)
    corners = [np.exp(B * np.array(c)) for c in itertools.product((-1, 1), repeat=A)]
    options = {}
    for t, e in enumerate(experts):
        for s in range(A**t):
            every = [e[i, s] * c / (e[i, s] * c).sum() for i in range(2) for c in corners]
            options[t, s] = every if t == 0 else [max(every, key=lambda p: p @ rewards[1][s])]
    assert loss(rewards, experts, B) == pytest.approx(2 - best_of_all(rewards, options), abs=1e-12)


def test_losses_by_hand():
    assert mean_loss(1.0, 0) == pytest.approx(
        T * LEAK
    )  # full coverage: each token is right with 0.98
    assert mean_loss(0.0, 0) == pytest.approx(T * (1 - LEAK / 2))  # none: with 0.02 / 2
    for B in (1.0, 2.0):  # +B on the right token and -B on the others
        low = np.exp(-2 * B)
        assert mean_loss(0.3, B, nobody=True) == pytest.approx(T * 2 * low / (1 + 2 * low))
        assert mean_loss(0.0, B) == pytest.approx(T * (1 - 0.01 / (0.01 + 0.99 * low)))
        assert mean_loss(1.0, B) == pytest.approx(T * (1 - 0.98 / (0.98 + 0.02 * low)))


def test_unbounded_logits_reach_the_optimum_unless_experts_exclude_tokens():
    assert loss(*tree(SEED, 0.0), np.inf) < 1e-12 and loss(*tree(SEED, 0.5), np.inf) < 1e-12
    assert (
        loss(*tree(SEED, 0.5, leak=0.0), 100.0)
        == pytest.approx(loss(*tree(SEED, 0.5, leak=0.0), 0))
        != 0
    )


@pytest.mark.parametrize("B", [0, 1.0, 3.0])
def test_losses_fall_as_coverage_rises(B):
    for seed in (1, 2, SEED):  # covered prefixes stay covered, so this holds in each tree
        losses = [loss(*tree(seed, c / 20), B) for c in range(21)]
        assert (np.diff(losses) <= 1e-12).all() and losses[0] > losses[10] > losses[20]


def test_coverage_is_the_share_of_prefixes_whose_right_token_an_expert_favours():
    for coverage in toy_mdp.COVERAGES:
        hits = []
        for seed in toy_mdp.SEEDS:
            for r, e in zip(*tree(seed, coverage)):
                hits += list((e.argmax(2) == r.argmax(1)).any(0))
                assert e.sum(2) == pytest.approx(np.ones(e.shape[:2]))
        # 20 x 364 prefixes: 4 standard deviations are 0.024 at most
        assert np.mean(hits) == pytest.approx(coverage, abs=0.024)


def test_one_page_of_one_hundred_columns_and_numpy_only():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 72 and max(map(len, text.splitlines())) <= 100
    imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(n) for n in imports] == ["import numpy as np"]


def test_it_prints_its_table():
    done = subprocess.run([sys.executable, PAGE], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + len(toy_mdp.COVERAGES)
    for line, c in zip(lines[2:], toy_mdp.COVERAGES):
        assert line.split()[:2] == [f"{c:.0%}", f"{mean_loss(c, 0):.4f}"]
