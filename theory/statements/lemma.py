"""Lemma 4.1, performance difference: what a policy loses, as a sum over the tokens that it writes.

  V* - V^pi = sum_t E_{s ~ pi }[ V*(s) - E_{a ~ pi} Q*(s, a) ]            Lemma 4.1
            = sum_t E_{s ~ pi*}[ E_{a ~ pi*} Q^pi(s, a) - V^pi(s) ]       its dual, for Eq. (6)

The lemma walks pi's own prefixes and judges each token as if everything after it were perfect. The
dual walks the perfect prefixes and judges each token as if pi wrote the rest. Proof of both: write
V* - V^pi at s as (what the first token loses) + E (V* - V^pi at the next state), and repeat.
Both are one lemma of Kakade and Langford (2002), for pi and pi* and for pi* and pi.

Counter-test: perfect prefixes judged as if everything after were perfect. It looks just as good and
is wrong, because it never sees where pi's own mistakes lead.
"""

import numpy as np

from .mdp import evaluate, greedy, loss, occupancy, optimal, random_mdp, random_policy
from .statement import statement


def lemma_sum(mdp, pi):
    """sum_t E_{s ~ pi}[ V*(s) - E_{a ~ pi} Q*(s, a) ]   (Lemma 4.1)."""
    V, Q = optimal(mdp)
    d = occupancy(mdp, pi)
    return sum((d[t] * (V[t] - (pi[t] * Q[t]).sum(1))).sum() for t in range(len(Q)))


def dual_sum(mdp, pi):
    """sum_t E_{s ~ pi*}[ E_{a ~ pi*} Q^pi(s, a) - V^pi(s) ]   (the dual of Lemma 4.1)."""
    star = greedy(optimal(mdp)[1])
    V, Q = evaluate(mdp, pi)
    d = occupancy(mdp, star)
    return sum((d[t] * ((star[t] * Q[t]).sum(1) - V[t])).sum() for t in range(len(Q)))


def mixed_sum(mdp, pi):
    """sum_t E_{s ~ pi*}[ V*(s) - E_{a ~ pi} Q*(s, a) ]: looks like the lemma, and is wrong."""
    V, Q = optimal(mdp)
    d = occupancy(mdp, greedy(Q))
    return sum((d[t] * (V[t] - (pi[t] * Q[t]).sum(1))).sum() for t in range(len(Q)))


def errors(form):
    """form - (V* - V^pi) in 100 random worlds: (100,). In half of them a state is two tokens."""
    out = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        mdp = random_mdp(rng, A=3, T=5, window=2 if seed % 2 else None)
        pi = random_policy(rng, mdp)
        out.append(form(mdp, pi) - loss(mdp, pi))
    return np.array(out)


def lemma():
    """Lemma 4.1 in 100 random worlds, each with a random policy."""
    mixed = errors(mixed_sum)  # (100,)
    return statement(
        "paper",
        "Lemma 4.1",
        "V* - V^pi = sum of V* - E Q* over the prefixes of pi",
        measured=("error", abs(errors(lemma_sum)).max(), "==", 0),
        without=("over the prefixes of pi*, mean", abs(mixed).mean()),
        worlds_that_look_worse=int((mixed > 0).sum()),
    )


def dual():
    """The dual of Lemma 4.1 in the same worlds."""
    return statement(
        "known",
        "the dual",
        "V* - V^pi = sum of E Q^pi - V^pi over the prefixes of pi*",
        measured=("error", abs(errors(dual_sum)).max(), "==", 0),
        without=("with V* - E Q* instead, smallest", abs(errors(mixed_sum)).min()),
    )
