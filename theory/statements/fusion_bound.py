"""Eq. (6): a fused policy that is close to pi* where pi* goes loses little.

  Delta = (1/T) sum_t E_{s ~ pi*}[ TV(pi'(. | s), pi*(. | s)) ]     TV = half the L1 distance
  V* - V^pi' <= T Qmax Delta                                        Qmax = the largest Q^pi'

Proof: by the dual of Lemma 4.1,
  V* - V^pi' = sum_t E_{s ~ pi*}[ sum_a (pi* - pi')(a|s) Q^pi'(s, a) ].
Each term is at most Qmax TV. (Lemma 4.1 as printed walks the prefixes of pi', where Delta says
nothing.) The proof never asks where pi' comes from: routing that is as close loses as little.

Counter-test: Delta averaged over all prefixes alike, instead of those that pi* writes.
"""

import numpy as np

from .coverage import make_experts
from .mdp import (
    MDP,
    evaluate,
    fuse,
    greedy,
    loss,
    occupancy,
    optimal,
    random_mdp,
    token_transitions,
)
from .statement import spread, statement


def tv(p, q):
    """Total variation, half the L1 distance, over the last axis."""
    return 0.5 * abs(p - q).sum(-1)


def bound_of_eq6(mdp, pi, star, where):
    """T Qmax Delta, with Delta averaged over where[t] (S_t,), a distribution over states."""
    Qmax = max(q.max() for q in evaluate(mdp, pi)[1])
    return Qmax * sum((w * tv(p, s)).sum() for w, p, s in zip(where, pi, star))


def closest_fused(rng, mdp, noise=4.0):
    """Eq. (1) with two imperfect experts; in each state the fused policy that is closest to pi*.

    The logits lead from expert i to softmax(Q* / 0.05), plus `noise` times a normal number.
    """
    Q = optimal(mdp)[1]
    pi = []
    for e, q, s in zip(make_experts(rng, Q, n=2, cover=0.5, leak=0.02), Q, greedy(Q)):
        added = q / 0.05 - np.log(e) + noise * rng.normal(size=e.shape)  # (2, S_t, A)
        fused = fuse(added, np.log(e))  # (2, S_t, A)
        i = tv(fused, s[None]).argmin(0)  # (S_t,)
        pi.append(fused[i, np.arange(len(i))])  # (S_t, A)
    return pi


def rare_prefix_example(T=6, A=4):
    """pi' is pi* except at the prefix 00, one of A^2 of that length. Only the answer 00..0 pays."""
    P = token_transitions(A, T)
    r = [np.zeros(p.shape) for p in P]
    r[-1][0, 0] = 1.0
    star = greedy(optimal(MDP(r, P))[1])
    pi = [s.copy() for s in star]
    pi[2][0] = np.eye(A)[1]
    return MDP(r, P), pi, star


def eq_6():
    """Eq. (6) in 100 random worlds; the counter-test is built by hand."""
    ratios = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        mdp = random_mdp(rng, A=3, T=5, window=2 if seed % 2 else None)
        pi, star = closest_fused(rng, mdp), greedy(optimal(mdp)[1])
        bound = bound_of_eq6(mdp, pi, star, occupancy(mdp, star))
        ratios.append(loss(mdp, pi) / bound)

    mdp, pi, star = rare_prefix_example()
    all_alike = [np.full(len(r), 1 / len(r)) for r in mdp.r]  # (S_t,) each
    return statement(
        "paper",
        "Eq. (6)",
        "within Delta of pi* where pi* goes: loss <= T Qmax Delta",
        measured=("loss / bound", max(ratios), "<=", 1),
        without=(
            "Delta averaged over all prefixes alike",
            loss(mdp, pi) / bound_of_eq6(mdp, pi, star, all_alike),
        ),
        ratio=spread(ratios),
    )
