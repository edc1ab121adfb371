"""What can be reached by choosing an expert, by mixing experts, by adding logits (Eq. (1)).

Choosing and mixing are worth the same. In a state, a mixture w earns sum_i w_i E_{pi_i} Q. That is
linear in w, so its maximum is at a corner: one expert.

Added logits multiply probabilities: pi'(a) = pi_i(a) e^l(a) / Z. With l = log pi* - log pi_i this
IS pi*, if pi_i(a) > 0 wherever pi*(a) > 0 (the paper's recovery). With |l| <= B they reach less. To
lift a token from probability p to 1 - d takes B = 1/2 log((1 - p)(1 - d) / (p d)), because odds
grow by e^(2B).

Ours: when two experts are worth more than none, which is a uniform distribution in their place.

Counter-tests: experts exclude tokens; all prefixes are covered.
"""

import numpy as np

from .coverage import WORLDS, world
from .mdp import best, sweep
from .statement import statement


def needed_bound(p, d):
    """The B that lifts a token from probability p to 1 - d."""
    return 0.5 * np.log((1 - p) * (1 - d) / (p * d))


def bounded_values(experts_t, Q_t, B):
    """The largest E_{a ~ pi_i e^l / Z} Q(s, a) over all |l| <= B, for every expert: (n, S_t).

    It is a ratio of two functions that are linear in each e^l, so a maximum is at a corner: each
    logit is +B or -B. +B helps a token whose Q is above the value. So the k best tokens have +B,
    for some k: try all.
    """
    order = np.argsort(-Q_t, axis=-1)  # (S, A) best first
    q = np.take_along_axis(Q_t, order, -1)  # (S, A)
    p = np.take_along_axis(experts_t, order[None], -1)  # (n, S, A)
    raised, earned = p.cumsum(-1), (p * q).cumsum(-1)  # (n, S, A) by the k best tokens
    low = np.exp(-2 * B)  # the weight of the other tokens, if the raised ones have 1
    mass = low + (1 - low) * raised  # (n, S, A), because all tokens together have mass 1
    return ((low * earned[..., -1:] + (1 - low) * earned) / mass).max(-1)  # (n, S)


def bounded_loss(mdp, experts, B):
    """V* minus the value of the best expert with the best logits |l| <= B. B = 0: choosing."""
    V = sweep(mdp, lambda t, Q: bounded_values(experts[t], Q, B).max(0))[0]
    return best(mdp) - V[0][0]


def recovery():
    """The paper's recovery, for each expert of 20 half-covered worlds, with logits up to 50."""

    def lost(leak):
        losses = []
        for seed in range(20):
            mdp, experts = world(seed, 0.5, leak=leak)
            alone = [[e[i : i + 1] for e in experts] for i in range(2)]
            losses += [bounded_loss(mdp, e, B=50.0) for e in alone]
        return losses

    return statement(
        "paper",
        "recovery",
        "large logits on any one expert reach V*, if pi_i > 0",
        measured=("loss", max(lost(0.02)), "==", 0),
        without=("experts exclude tokens, smallest", min(lost(0.0))),
    )


def no_expert():
    """Two experts against none, with the same bound on the logits, in 40 random worlds."""

    def lost(cover):
        return np.array([bounded_loss(*world(seed, cover), B=3.0) for seed in WORLDS])  # (40,)

    def lost_without():
        losses = []
        for seed in WORLDS:
            mdp, experts = world(seed, 1.0)
            uniform = [np.full_like(e[:1], 1 / e.shape[2]) for e in experts]  # (1, S_t, A) each
            losses.append(bounded_loss(mdp, uniform, B=3.0))
        return np.array(losses)  # (40,)

    half, full, none = lost(0.5), lost(1.0), lost_without()
    return statement(
        "ours",
        "no expert?",
        "half covered, logits up to 3: two experts lose more than none",
        measured=("more", min(half - none), ">=", 0),
        without=("all prefixes covered, mean", (full - none).mean()),
        needed_from_uniform=[[A, needed_bound(1 / A, 0.01)] for A in (4, 1000, 100000)],
    )
