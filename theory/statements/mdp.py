"""The token-level MDP of section 4, solved exactly.

A state at time t is what has been written so far: the whole prefix (a tree), or only its last few tokens (a window, so
that long horizons stay small). An action is the next token. Time runs over t = 0 .. T-1 here; the paper counts tokens
from 1 to T.

Shapes used in every file:  A tokens in the vocabulary, S_t states at time t, n experts.
  r[t]       (S_t, A)            reward of writing token a in state s, in [0, 1]
  P[t]       (S_t, A)            index of the state that follows, or
             (S_t, A, S_t+1)     its distribution, when transitions are stochastic (only beyond.py needs that)
  pi[t]      (S_t, A)            a policy: rows sum to 1
  experts[t] (n, S_t, A)         all the experts
"""

from typing import NamedTuple

import numpy as np


class MDP(NamedTuple):
    """Rewards and transitions, one array per time step; T = len(r). The start is state 0 of layer 0."""

    r: list
    P: list


def token_transitions(A, T, window=None):
    """Writing a token appends it: P[t] (S_t, A), for prefixes (window None) or for the last `window` tokens of them.

    A state is the number whose base-A digits are its tokens, the oldest first. The last step leads to one end state.
    """
    k = T if window is None else window
    P = []
    for t in range(T):
        S = A ** min(t, k)
        after = A ** min(t + 1, k) if t + 1 < T else 1
        P.append((np.arange(S)[:, None] * A + np.arange(A)[None, :]) % after)  # (S_t, A)
    return P


def random_mdp(rng, A, T, window=None, stochastic=False):
    """Rewards uniform in [0, 1].

    stochastic: the next state has a random, Dirichlet(1), distribution instead of being the appended one.
    """
    P = token_transitions(A, T, window)
    r = [rng.random(p.shape) for p in P]  # (S_t, A) each
    if stochastic:
        sizes = [p.shape[0] for p in P] + [1]
        P = [rng.dirichlet(np.ones(sizes[t + 1]), size=P[t].shape) for t in range(T)]  # (S_t, A, S_t+1) each
    return MDP(r, P)


def lookahead(P_t, V_next):
    """E[V(next state) | s, a], shape (S_t, A), for either kind of transition (leading axes of V_next stay, if it is sure)."""
    return V_next[..., P_t] if P_t.ndim == 2 else P_t @ V_next


def push(P_t, d_sa, S_next):
    """Where probability mass d_sa (S_t, A) on state-action pairs goes: (S_t+1,)."""
    if P_t.ndim == 2:
        return np.bincount(P_t.ravel(), weights=d_sa.ravel(), minlength=S_next)  # (S_t+1,)
    return np.einsum("sa,saz->z", d_sa, P_t)  # (S_t+1,)


def sweep(mdp, choose):
    """One backward pass of dynamic programming: V_t(s) = choose(t, Q_t)(s), with Q_t = r_t + E V_t+1.

    Returns V, a list of T + 1 arrays (S_t,), and Q, a list of T arrays (S_t, A). Everything exact in these files (V*,
    V^pi, the best router, the best bounded logits) is this pass with another `choose`.
    """
    T = len(mdp.r)
    V, Q = [None] * T + [np.zeros(1)], [None] * T
    for t in reversed(range(T)):
        Q[t] = mdp.r[t] + lookahead(mdp.P[t], V[t + 1])  # (S_t, A)
        V[t] = choose(t, Q[t])  # (S_t,)
    return V, Q


def optimal(mdp):
    """V* and Q*."""
    return sweep(mdp, lambda t, Q: Q.max(1))


def evaluate(mdp, pi):
    """V^pi and Q^pi."""
    return sweep(mdp, lambda t, Q: (pi[t] * Q).sum(1))


def J(mdp, pi):
    """Expected return of pi from the start: a float, in units of reward summed over the T tokens."""
    return float(evaluate(mdp, pi)[0][0][0])


def J_star(mdp):
    """The best return of any policy."""
    return float(optimal(mdp)[0][0][0])


def occupancy(mdp, pi):
    """d[t] (S_t,): the probability that pi is in state s at time t. Each d[t] sums to 1."""
    d = [np.eye(mdp.r[0].shape[0])[0]]  # (S_0,) all mass on the start
    for t in range(len(mdp.r) - 1):
        d.append(push(mdp.P[t], d[t][:, None] * pi[t], mdp.r[t + 1].shape[0]))  # (S_t+1,)
    return d


def greedy(scores):
    """The policy that writes the arg max of each row of scores[t] (S_t, A); ties go to the lowest token."""
    return [np.eye(q.shape[1])[q.argmax(1)] for q in scores]  # (S_t, A) each


def softmax(x):
    """Rows of x, exponentiated and normalised; -inf is allowed, and means probability 0."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def random_policy(rng, mdp, concentration=1.0):
    """Rows drawn from a symmetric Dirichlet."""
    return [rng.dirichlet(np.full(q.shape[1], concentration), size=q.shape[0]) for q in mdp.r]  # (S_t, A) each
