"""Appendix C: Collab judges an expert by what it would earn if it wrote everything to the end.

Its rule picks, at each token, the expert of the largest own value V^{pi_i}. The best policy would
let others write the rest, so the largest own value can be far below Q*. The difference at the start
is the mismatch. The paper's example: expert 1 is right for H/3 tokens, and expert 2 for the rest.
The best own value is 2H/3, and Q* = H, so the mismatch is H/3.

A mismatch is an error of judgement. What the rule then loses is its regret: H/3 too in the paper's
example, but a mismatch need not be a loss.

Counter-test: expert 2 is right throughout.
"""

import numpy as np

from .coverage import follow
from .mdp import MDP, best, evaluate, loss
from .statement import statement


def agreement_world(schedule, n):
    """Token t pays 1 if it is expert schedule[t]'s. Expert i always writes token i, of n.

    There is one state. Returns (mdp, experts).
    """
    r = [np.eye(n)[[right]] for right in schedule]  # (1, n) each
    P = [np.zeros((1, n), int)] * len(schedule)
    return MDP(r, P), [np.eye(n)[:, None]] * len(schedule)  # (n, 1, n) each


def own_values(mdp, experts):
    """V^{pi_i} of every expert: (n, S_t) for each token."""
    each = [evaluate(mdp, [e[i] for e in experts])[0] for i in range(len(experts[0]))]
    return [np.stack(v) for v in zip(*each)]


def mismatch_and_regret(mdp, experts):
    """Q* minus the largest own value, both at the start, and what the rule loses."""
    own = own_values(mdp, experts)
    pi = follow(experts, [v.argmax(0) for v in own[:-1]])
    return best(mdp) - own[0][:, 0].max(), loss(mdp, pi)


def thirds(H):
    """The paper's schedule: expert 1 is right for H/3 tokens, then expert 2."""
    return [0] * (H // 3) + [1] * (2 * H // 3)


def collab():
    """The mismatch of appendix C in the paper's example, H = 3 to 48."""
    horizons = [3, 6, 12, 24, 48]
    found = [mismatch_and_regret(*agreement_world(thirds(H), 2)) for H in horizons]
    right_throughout = mismatch_and_regret(*agreement_world([1] * 48, 2))
    return statement(
        "paper",
        "Collab",
        "expert 1 right for H/3 tokens, then 2: own values miss H/3",
        measured=("error", max(abs(m - H / 3) for (m, _), H in zip(found, horizons)), "==", 0),
        without=("expert 2 is right throughout", abs(right_throughout[0] - 48 / 3)),
        horizons=horizons,
        mismatch=[m for m, _ in found],
        regret=[g for _, g in found],
    )
