"""Theorem 4.3 / B.1: without coverage at every prefix, no algorithm that chooses experts is safe.

The construction, as printed. T tokens, T even. Expert i of n always writes token i. One more token,
n, stands for everything that no expert says. A secret path p is a sequence of T/2 experts. Every
reward is 1, except for an expert's token on a prefix that only experts have written:
  token 1                                                1 - eps
  token T/2 + 1, if the first T/2 tokens are not p       1 - Delta
  later tokens,  if the first T/2 tokens are not p       0
So V* = T: write token n at once. A path of experts through p earns T - eps, and every other path of
experts earns T/2 + 1 - Delta - eps.

Theorem: an algorithm that chooses experts, and sees Q* along the prefix that it has written, loses
at least T/2 - 2 for some p. Why: property 3 below. Until T/2 tokens are written it sees the same
for every p, so the worst p makes it hit p with probability at most n^(-T/2). After that, looking
does not help: every expert's token pays the same. The exact value of this game is

  (1 - n^(-T/2)) (T/2 - 1 + Delta) + eps                 (ours; brute force agrees)

Counter-tests: no path is right (property 1), prefixes that no good answer starts with (property 2),
one token later (property 3), a single expert, n = 1 (the theorem).
"""

import itertools

import numpy as np

from .coverage import best_routing, coverage_loss
from .mdp import MDP, earned, fuse, optimal, token_transitions
from .statement import statement

EPS, DELTA = 0.05, 0.1  # the small losses of the construction


def digits(S, A, length):
    """The tokens of states 0 .. S-1 after `length` tokens, the oldest first: (S, length)."""
    return np.arange(S)[:, None] // A ** np.arange(length)[::-1] % A


def build(n, T, p):
    """The world of the secret path p, a tuple of T/2 experts. p None: no path is the right one."""
    A, half = n + 1, T // 2
    P = token_transitions(A, T)
    pays = [1 - EPS] + [1.0] * (half - 1) + [1 - DELTA] + [0.0] * (half - 1)  # unless on p
    r = []
    for t, P_t in enumerate(P):  # t tokens are written, this is token t + 1
        y = digits(len(P_t), A, t)  # (S_t, t)
        by_experts = (y < n).all(1)  # (S_t,)
        on_p = np.zeros(len(P_t), bool)  # (S_t,)
        if p is not None and t >= half:
            on_p = (y[:, :half] == np.array(p)).all(1)  # (S_t,)
        r_t = np.ones((len(P_t), A))  # (S_t, A)
        r_t[by_experts & ~on_p, :n] = pays[t]
        r.append(r_t)
    return MDP(r, P)


def experts_of(mdp, n, leak=0.0):
    """Expert i writes token i, and token n with probability `leak`. A list of (n, S_t, n + 1)."""
    rows = (1 - leak) * np.eye(n, n + 1) + leak * np.eye(n + 1)[n]  # (n, n + 1)
    return [np.repeat(rows[:, None], len(r), axis=1) for r in mdp.r]


def returns_of_all_paths(mdp, n):
    """What each of the n^T paths of experts earns, by walking the world's rewards: (n^T,)."""
    state, total = np.zeros(1, int), np.zeros(1)
    for r, P in zip(mdp.r, mdp.P):
        total = (total[:, None] + r[state, :n]).ravel()  # (n^(t+1),)
        state = P[state, :n].ravel()  # (n^(t+1),)
    return total


def game(n, T):
    """What every path of experts loses against every secret: (n^T, n^(T/2)).

    Experts are deterministic here, so a router is known by the path that it writes.
    """
    secrets = itertools.product(range(n), repeat=T // 2)
    return np.array([T - returns_of_all_paths(build(n, T, p), n) for p in secrets]).T


def value(lost):
    """Bounds (above, below) of the value of the game lost[path, p]. Where they agree, it is exact.

    Above: what a router that draws its path uniformly loses against the worst p. Below: what the
    best path loses on average over all p.
    """
    return lost.mean(0).max(), lost.mean(1).min()


def formula(n, T):
    """The exact value of the game: (1 - n^(-T/2)) (T/2 - 1 + Delta) + eps."""
    return (1 - float(n) ** (-T / 2)) * (T / 2 - 1 + DELTA) + EPS


def good_and_all(n, T, p):
    """The largest coverage loss at good prefixes, and at all prefixes.

    Good, which the paper does not define: an answer that loses at most eps can start with it.
    """
    mdp = build(n, T, p)
    V, uncovered = optimal(mdp)[0], coverage_loss(mdp, experts_of(mdp, n))
    so_far, good = np.zeros(1), []  # reward so far
    for t, r in enumerate(mdp.r):
        good.append(uncovered[t][so_far + V[t] >= T - EPS - 1e-12].max())
        so_far = (so_far[:, None] + r).ravel()  # (S_t+1,) in a tree, children come in order
    return max(good), max(x.max() for x in uncovered)


def seen(n, T):
    """How much Q* differs between secrets, at most, at experts' prefixes of each length: (T,)."""
    tables = []
    for p in itertools.product(range(n), repeat=T // 2):
        Q = optimal(build(n, T, p))[1]
        tables.append([q[(digits(len(q), n + 1, t) < n).all(1)] for t, q in enumerate(Q)])
    return np.array([np.ptp(np.stack(q), axis=0).max() for q in zip(*tables)])


def loss_with_logits(n, T, leak, B):
    """The loss when +B is added to token n, -B to the others, and the expert is drawn uniformly."""
    mdp = build(n, T, (0,) * (T // 2))
    push = np.where(np.arange(n + 1) == n, B, -B)  # (A,)
    with np.errstate(divide="ignore"):  # log 0 = -inf is the point
        logs = [np.log(e) for e in experts_of(mdp, n, leak)]  # (n, S_t, A) each
    return T - earned(mdp, [fuse(push, x).mean(0) for x in logs])


def property_1():
    """Property 1 (n = 2, T = 6): choosing experts can express a good answer."""
    n, T, p = 2, 6, (0, 1, 1)
    losses = [T - best_routing(m, experts_of(m, n)) for m in (build(n, T, p), build(n, T, None))]
    return statement(
        "paper",
        "property 1",
        "hidden path: a router that knows the path loses only eps",
        measured=("loss", losses[0], "==", EPS),
        without=("no path is the right one", losses[1]),
    )


def property_2():
    """Property 2 (n = 2, T = 6): at good prefixes some expert is good."""
    good, everywhere = good_and_all(2, 6, (0, 1, 1))
    return statement(
        "paper",
        "property 2",
        "at good prefixes some expert loses at most max(eps, Delta)",
        measured=("loss", good, "<=", max(EPS, DELTA)),
        without=("at all prefixes", everywhere),
    )


def property_3():
    """Property 3 (n = 2, T = 6, all secrets): the secret does not show in time."""
    difference = seen(2, 6)  # (6,)
    return statement(
        "paper",
        "property 3",
        "until T/2 tokens are written, Q* does not show the path",
        measured=("difference", difference[:3].max(), "==", 0),
        without=("one token later", difference[3]),
    )


def theorem_4_3():
    """Theorem 4.3: the exact value at 19 sizes, from all paths against all secrets.

    The bound is compared where it is above 0, at T = 6 and more.
    """
    sizes = [(n, T) for n in range(2, 9) for T in (2, 4)]
    sizes += [(2, 6), (2, 8), (2, 10), (3, 6), (4, 6)]
    above, below = np.array([value(game(n, T)) for n, T in sizes]).T  # (19,) each
    exact = np.array([formula(n, T) for n, T in sizes])  # (19,)
    printed = np.array([T / 2 - 2 for _, T in sizes])  # (19,) as in the paper
    return statement(
        "paper",
        "Theorem 4.3",
        "some hidden path costs any router at least T/2 - 2 (n >= 2)",
        measured=("loss - bound", min((below - printed)[printed > 0]), ">=", 0),
        without=("one expert, n = 1, T = 8", value(game(1, 8))[0] - (8 / 2 - 2)),
        error_of_the_formula=max(abs(above - exact).max(), abs(below - exact).max()),
        exact_T8=formula(2, 8),
    )


def silent_experts():
    """Logits do not help here (n = 2, T = 8): the experts exclude tokens."""
    return statement(
        "ours",
        "add logits?",
        "deterministic experts: added logits do not help on that path",
        measured=("loss", loss_with_logits(2, 8, leak=0.0, B=5.0), "==", formula(2, 8)),
        without=("experts leak 0.01", loss_with_logits(2, 8, leak=0.01, B=5.0)),
    )
