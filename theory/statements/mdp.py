"""The token-level MDP of section 4, solved exactly.

A state at time t is what has been written so far: the whole prefix (the states form a tree), or
only its last few tokens (a window, so that long answers stay small). An action is the next token.
Time runs over t = 0 .. T-1 here; the paper counts tokens from 1 to T.

Shapes used in every file: A tokens in the vocabulary, S_t states at time t, n experts.
  r[t]        (S_t, A)      reward of writing token a in state s, in [0, 1]
  P[t]        (S_t, A)      number of the state that follows
  pi[t]       (S_t, A)      a policy: each row sums to 1
  experts[t]  (n, S_t, A)   all experts
  V[t], Q[t]  (S_t,), (S_t, A)   what is still earned from s; the same after writing a in s
"""

from typing import NamedTuple

import numpy as np


class MDP(NamedTuple):
    """Rewards and transitions, one array per token. The first state is state 0."""

    r: list
    P: list


def token_transitions(A, T, window=None):
    """Writing a token appends it. P[t] (S_t, A), for prefixes or for their last `window` tokens.

    A state is the number whose base-A digits are its tokens, the oldest token first. The last token
    leads to one end state. Two tokens, after prefix "01" (state 1): "010" is 2, "011" is 3.
    """
    P = []
    for t in range(T):
        before = A ** (t if window is None else min(t, window))
        after = A ** (t + 1 if window is None else min(t + 1, window)) if t + 1 < T else 1
        P.append((np.arange(before)[:, None] * A + np.arange(A)) % after)  # (S_t, A)
    return P


def random_mdp(rng, A, T, window=None):
    """Rewards uniform in [0, 1]."""
    P = token_transitions(A, T, window)
    return MDP([rng.random(p.shape) for p in P], P)


def random_policy(rng, mdp):
    """Each row is uniform over all distributions."""
    return [rng.dirichlet(np.ones(r.shape[1]), size=len(r)) for r in mdp.r]  # (S_t, A) each


def sweep(mdp, choose):
    """Dynamic programming, last token first.

    Q_t = r_t + V_t+1 of the next state, and V_t = choose(t, Q_t).
    Returns V, a list of T + 1 arrays (S_t,), and Q, a list of T arrays (S_t, A). V*, V^pi, the best
    router and the best bounded logits are all this function with another `choose`.
    """
    T = len(mdp.r)
    V, Q = [None] * T + [np.zeros(1)], [None] * T
    for t in reversed(range(T)):
        Q[t] = mdp.r[t] + V[t + 1][mdp.P[t]]  # (S_t, A)
        V[t] = choose(t, Q[t])  # (S_t,)
    return V, Q


def optimal(mdp):
    """V* and Q*."""
    return sweep(mdp, lambda t, Q: Q.max(1))


def evaluate(mdp, pi):
    """V^pi and Q^pi."""
    return sweep(mdp, lambda t, Q: (pi[t] * Q).sum(1))


def best(mdp):
    """V* at the start: what the best policy earns in a whole answer."""
    return float(optimal(mdp)[0][0][0])


def earned(mdp, pi):
    """V^pi at the start: what pi earns on average in a whole answer."""
    return float(evaluate(mdp, pi)[0][0][0])


def loss(mdp, pi):
    """V* - V^pi at the start."""
    return best(mdp) - earned(mdp, pi)


def occupancy(mdp, pi):
    """d[t] (S_t,): the probability that pi is in state s at time t."""
    d = [np.eye(len(mdp.r[0]))[0]]  # (S_0,) the first state for sure
    for t in range(len(mdp.r) - 1):
        flow = d[t][:, None] * pi[t]  # (S_t, A)
        d.append(np.bincount(mdp.P[t].ravel(), flow.ravel(), len(mdp.r[t + 1])))  # (S_t+1,)
    return d


def greedy(scores):
    """The policy that writes the arg max of each row of scores[t] (S_t, A)."""
    return [np.eye(q.shape[1])[q.argmax(1)] for q in scores]  # (S_t, A) each


def softmax(x):
    """Rows of x, exponentiated and normalised. -inf is allowed and means probability 0."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def fuse(log_router, log_expert):
    """Eq. (1): pi_final = softmax(log pi_router + log pi_expert), over the last axis."""
    return softmax(log_router + log_expert)
