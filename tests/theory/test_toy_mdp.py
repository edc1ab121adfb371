"""theory/toy_mdp.py: one page of numpy, its numbers by hand and by other code."""

import ast
from pathlib import Path

import numpy as np
import pytest

from theory import toy_mdp
from theory.statements import logits, mdp
from theory.toy_mdp import LEAK, A, T, loss, mean_loss, tree

PAGE = Path(toy_mdp.__file__)


@pytest.mark.parametrize("coverage,B", [(0.5, 0.0), (0.5, 0.7), (0.9, 2.0), (0.0, 4.0)])
def test_losses_agree_with_the_code_of_the_statements(coverage, B):
    """That code sorts tokens instead of comparing them, and is tested by enumeration."""
    for seed in range(1, 5):
        rewards, experts = tree(seed, coverage, leak=0.3, length=4)
        world = mdp.MDP(rewards, mdp.token_transitions(A, 4))
        assert loss(rewards, experts, B) == pytest.approx(logits.bounded_loss(world, experts, B))


def test_losses_by_hand():
    assert mean_loss(1.0, 0) == pytest.approx(T * LEAK)  # covered: right with 0.98
    assert mean_loss(0.0, 0) == pytest.approx(T * (1 - LEAK / 2))  # else: right with 0.02 / 2
    for B in (1.0, 2.0):  # +B on the right token and -B on the others
        low = np.exp(-2 * B)
        assert mean_loss(0.3, B, nobody=True) == pytest.approx(T * 2 * low / (1 + 2 * low))
        assert mean_loss(0.0, B) == pytest.approx(T * (1 - 0.01 / (0.01 + 0.99 * low)))
        assert mean_loss(1.0, B) == pytest.approx(T * (1 - 0.98 / (0.98 + 0.02 * low)))


def test_unbounded_logits_reach_the_optimum_unless_experts_exclude_tokens():
    assert loss(*tree(3, 0.0), np.inf) < 1e-12 and loss(*tree(3, 0.5), np.inf) < 1e-12
    excluding = tree(3, 0.5, leak=0.0)
    assert loss(*excluding, 100.0) == pytest.approx(loss(*excluding, 0)) and loss(*excluding, 0) > 1


@pytest.mark.parametrize("coverage", toy_mdp.COVERAGES)
def test_each_expert_knows_half_of_the_covered_prefixes(coverage):
    knows = []  # (2, A^t) of each world and token
    for seed in toy_mdp.SEEDS:
        for r, e in zip(*tree(seed, coverage)):
            knows.append(e.argmax(2) == r.argmax(1))
            assert e.sum(2) == pytest.approx(np.ones(e.shape[:2]))
    knows = np.concatenate(knows, axis=1)  # (2, 7280); 4 standard deviations are 0.024 at most
    assert knows.mean(1) == pytest.approx([coverage / 2] * 2, abs=0.024)
    assert knows.sum(0).max() <= 1


def test_one_page_of_one_hundred_columns_and_numpy_only():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 72 and max(map(len, text.splitlines())) <= 100
    imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(n) for n in imports] == ["import numpy as np"]
