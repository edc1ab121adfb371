"""Phase 1: what SFT of the router converges to, and what SFT through the fusion would converge to.

The target is pi*(a|s) = softmax(Q*(s, a) / 0.1). N answers of pi* are the training data. The router
is a table: A logits and one choice of expert for each state. Every fit below is the exact minimum.

  routing   L_expert of section 3.2.1. It is linear in the weights, so it picks one expert a state:
            the one with the largest sum of log pi_i(y).
  alone     L_LM of Eq. (2), the router's own next-token loss, then fused by Eq. (1). The router
            converges to pi*, so what is decoded converges to pi_i pi* / Z. The expert counts twice.
  through   (ours) the next-token loss of the fused policy of Eq. (1). It converges to pi*.

In each state `alone` has one pseudo-answer from the uniform distribution, and `through` one from
the picked expert. So both start at the bare expert, and a state without data stays there.

Counter-test: each statement with the other's training.
"""

import functools

import numpy as np

from .coverage import follow, make_experts
from .mdp import fuse, occupancy, optimal, random_mdp, softmax
from .statement import spread, statement

TAU = 0.1
SIZES = [1, 2, 4, 8, 16, 64, 256, 1024, 4096, 16384]


def setting(seed):
    """(mdp, experts, pi*): 4 tokens, answers of 8 tokens, a state is the last token."""
    mdp = random_mdp(np.random.default_rng(seed), A=4, T=8, window=1)
    Q = optimal(mdp)[1]
    experts = make_experts(np.random.default_rng([seed, 1]), Q, n=2, cover=0.5, leak=0.02)
    return mdp, experts, [softmax(q / TAU) for q in Q]


def sample(rng, mdp, pi, N):
    """N answers of pi: states (N, T) and tokens (N, T)."""
    state, states, tokens = np.zeros(N, int), [], []
    for p, P in zip(pi, mdp.P):
        u = rng.random(N)[:, None]  # (N, 1)
        token = (u > p.cumsum(1)[:, :-1][state]).sum(1)  # (N,) where u falls in the cumulative sum
        states.append(state)
        tokens.append(token)
        state = P[state, token]  # (N,)
    return np.array(states).T, np.array(tokens).T


def counts(mdp, states, tokens):
    """How often each token followed each state: (S_t, A) for each t."""
    out = []
    for t, r in enumerate(mdp.r):
        cell = states[:, t] * r.shape[1] + tokens[:, t]  # (N,)
        out.append(np.bincount(cell, minlength=r.size).reshape(r.shape).astype(float))
    return out


def fit_routing(c, experts):
    """The minimum of L_expert for counts c: the number of one expert for each state, (S_t,) each.

    States where all experts favour one token are not informative and have expert 0.
    """
    out = []
    for c_t, e in zip(c, experts):
        favourite = e.argmax(2)  # (n, S)
        informative = (favourite != favourite[0]).any(0)  # (S,)
        fit = np.einsum("sa,nsa->ns", c_t, np.log(np.maximum(e, 1e-300)))  # (n, S)
        out.append(np.where(informative, fit.argmax(0), 0))  # (S,)
    return out


def fit(c, prior):
    """The p that minimises -sum_a c_a log p_a + KL(prior || p): (S_t, A) each."""
    return [(c_t + q) / (c_t.sum(1, keepdims=True) + 1) for c_t, q in zip(c, prior)]


def all_ways(c, experts):
    """The policies that counts c lead to. no_expert is the router of `alone`, not fused."""
    picked = follow(experts, fit_routing(c, experts))  # (S_t, A) each
    router = fit(c, [np.full(p.shape, 1 / p.shape[1]) for p in picked])
    return {
        "routing": picked,
        "alone": [fuse(np.log(q), np.log(p)) for q, p in zip(router, picked)],
        "through": fit(c, picked),
        "no_expert": router,
    }


def kl(star, pi, d):
    """KL(star || pi) of whole answers, in nats. d: how often star visits each state."""
    return sum((w * (s * np.log(s / p)).sum(1)).sum() for w, s, p in zip(d, star, pi))


def twice(experts, star):
    """pi_i pi* / Z, with the expert that routing picks when the data are endless."""
    picked = follow(experts, fit_routing(star, experts))
    return [fuse(np.log(s), np.log(p)) for s, p in zip(star, picked)]


@functools.cache
def learn():
    """What every training has reached, {way: (20, sizes)} twice: KL(pi* || it), KL(limit || it).

    limit is pi_i pi* / Z, where `alone` should end. Third: KL(pi* || limit), (20,).
    """
    ways = ("routing", "alone", "through", "no_expert")
    to_star, to_limit = [{way: np.zeros((20, len(SIZES))) for way in ways} for _ in range(2)]
    between = np.zeros(20)
    for seed in range(20):
        mdp, experts, star = setting(seed)
        limit = twice(experts, star)
        d, d_limit = occupancy(mdp, star), occupancy(mdp, limit)
        states, tokens = sample(np.random.default_rng([seed, 2]), mdp, star, max(SIZES))
        for k, N in enumerate(SIZES):
            for way, pi in all_ways(counts(mdp, states[:N], tokens[:N]), experts).items():
                to_star[way][seed, k] = kl(star, pi, d)
                to_limit[way][seed, k] = kl(limit, pi, d_limit)
        between[seed] = kl(star, limit, d)
    return to_star, to_limit, between


def shrinks(away):
    """What 16 times the data leave of a mean KL (20, sizes), at most, at 1024 and 16384 answers.

    A KL of order 1/sqrt(N) leaves 1/4, one of order 1/N leaves 1/16, no convergence leaves 1.
    """
    at = away.mean(0)[[SIZES.index(N) for N in (64, 1024, 16384)]]  # (3,)
    return max(at[1:] / at[:-1])


def counted_twice():
    """Where the router's own SFT, fused afterwards, ends: in 20 random worlds."""
    to_star, to_limit, between = learn()
    return statement(
        "ours",
        "phase 1",
        "SFT of the router, then fused, ends at pi_i pi* / Z",
        measured=("KL left", shrinks(to_limit["alone"]), "<=", 0.5),
        without=("SFT through the fusion", shrinks(to_limit["through"])),
        limit=between.mean(),
        sizes=SIZES,
        kl={way: spread(x) for way, x in to_star.items()},
    )


def through_the_fusion():
    """Where SFT of what is decoded would end: in the same worlds."""
    to_star = learn()[0]
    return statement(
        "ours",
        "through",
        "SFT through the fusion ends at pi*",
        measured=("KL left", shrinks(to_star["through"]), "<=", 0.5),
        without=("the router's own SFT", shrinks(to_star["alone"])),
    )
