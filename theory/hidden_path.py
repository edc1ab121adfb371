"""Theorem 4.3 / B.1, the identifiability failure, with its construction built literally.

n deterministic experts: expert i writes token i, always. One more token, n, stands for everything no expert says. T tokens, T even. A
secret path p in {0..n-1}^(T/2). Every reward is 1 except, while all tokens so far are the experts':
  token 1:                      1 - eps
  token T/2 + 1, if the first T/2 tokens are not p:   1 - Delta
  later tokens, if the first T/2 tokens are not p:    0
So V* = T (write token n at once), experts through p earn T - eps, every other expert path T/2 + 1 - Delta - eps.

The algorithm may only choose experts, and sees the optimal Q-values along the prefix it has written. Those are the same for every p until
T/2 tokens are written, and then it is too late. Hence it hits p with probability at most n^(-T/2) against the worst p, and

  minimax gap = (1 - n^(-T/2)) (T/2 - 1 + Delta) + eps        (the paper prints: at least T/2 - 2)
"""

import itertools

import numpy as np

from .expressivity import boosted
from .mdp import MDP, J, evaluate, optimal, token_transitions
from .coverage import best_routing, coverage_loss
from .report import row

EPS, DELTA = 0.05, 0.1  # the construction's small losses, used in every number below


def digits(S, A, length):
    """The tokens of states 0 .. S-1 at depth `length`: (S, length), the oldest first."""
    return np.arange(S)[:, None] // A ** np.arange(length)[::-1] % A  # (S, length)


def build(n, T, p, eps=EPS, Delta=DELTA, after=0.0):
    """The MDP of secret p (a tuple of T/2 expert numbers, or None: no path is right) as a full prefix tree over n + 1 tokens.

    after: the reward of expert tokens later than T/2 + 1 off the secret path; the construction has 0.
    """
    if T < 2 or T % 2:
        raise ValueError(f"T must be even and at least 2, not {T}")
    A, half = n + 1, T // 2
    P = token_transitions(A, T)
    r = []
    for t, P_t in enumerate(P):  # token number t + 1
        y = digits(len(P_t), A, t)  # (S_t, t)
        expert_so_far = (y < n).all(1)  # (S_t,)
        on_p = (y[:, :half] == np.array(p)).all(1) if p is not None and t >= half else np.zeros(len(P_t), bool)  # (S_t,)
        by_experts = 1.0
        if t == 0:
            by_experts = 1 - eps
        if t == half:
            by_experts = 1 - Delta
        if t > half:
            by_experts = after
        reward = np.ones((len(P_t), A))  # (S_t, A)
        late_and_safe = on_p & (t >= half)  # (S_t,)
        reward[expert_so_far & ~late_and_safe, :n] = by_experts
        r.append(reward)
    return MDP(r, P)


def experts_of(mdp, n, leak=0.0, leak_to="outside"):
    """Expert i writes token i with probability 1 - leak; the leak goes to token n ("outside") or to the other experts ("inside")."""
    one = np.eye(n, n + 1)  # (n, n + 1)
    spill = np.eye(n + 1)[[n] * n] if leak_to == "outside" else (1 - np.eye(n, n + 1)) * (np.arange(n + 1) < n) / max(n - 1, 1)
    rows = (1 - leak) * one + leak * spill  # (n, n + 1)
    return [np.repeat(rows[:, None, :], r.shape[0], axis=1) for r in mdp.r]  # (n, S_t, n + 1) each


def path_return(path, p, T, eps=EPS, Delta=DELTA):
    """What the expert path (T expert numbers) earns under secret p, read off the reward rules token by token. The slow reference."""
    total = 0.0
    for t in range(1, T + 1):
        on_p = tuple(path[: T // 2]) == tuple(p)
        if t == 1:
            total += 1 - eps
        elif t <= T // 2 or on_p:
            total += 1
        elif t == T // 2 + 1:
            total += 1 - Delta
    return total


def returns_of_all_paths(mdp, n):
    """The return of each of the n^T expert paths, by walking the MDP's own rewards: (n^T,)."""
    state, total = np.zeros(1, int), np.zeros(1)
    for r, P in zip(mdp.r, mdp.P):
        total = (total[:, None] + r[state, :n]).ravel()  # (n^(t+1),)
        state = P[state, :n].ravel()  # (n^(t+1),)
    return total


def all_routers(n, T):
    """Every deterministic router, as the path it writes: an array (number of routers, T).

    A router maps each expert prefix of length 0 .. T-1 to an expert, so there are n^(1 + n + ... + n^(T-1)) of them. With deterministic
    experts a router matters only through its path; enumerating routers checks just that. Tiny n and T only.
    """
    starts = np.cumsum([0] + [n**t for t in range(T)])  # where the prefixes of each length begin
    tables = np.array(list(itertools.product(range(n), repeat=starts[-1])), dtype=np.int8)  # (routers, prefixes)
    prefix, path = np.zeros(len(tables), int), []
    for t in range(T):
        token = tables[np.arange(len(tables)), starts[t] + prefix]  # (routers,)
        path.append(token)
        prefix = prefix * n + token  # (routers,)
    return np.array(path).T  # (routers, T)


def game_matrix(n, T, eps=EPS, Delta=DELTA):
    """gap[path, p] of every expert path against every secret: (n^T, n^(T/2)), from the literally built MDPs."""
    cols = [T - returns_of_all_paths(build(n, T, p, eps, Delta), n) for p in itertools.product(range(n), repeat=T // 2)]
    return np.array(cols).T


def minimax(gap):
    """The value of the game by a certificate, no solver: (upper, lower), equal when the value is exact.

    upper: what the router that picks every path equally often loses against the worst p. lower: what the best path loses on average when p
    is uniform. The value of any zero-sum game lies between the two.
    """
    return float(gap.mean(0).max()), float(gap.mean(1).min())


def formula(n, T, eps=EPS, Delta=DELTA, leave=0.0, found=None):
    """The exact minimax gap. leave: probability that a token falls outside the experts' tree, where all is well again.

    found: the chance to walk p; n^(-T/2) when nothing is known. leave = 0 gives (1 - n^(-T/2)) (T/2 - 1 + Delta) + eps.
    """
    found = float(n) ** (-T / 2) if found is None else found
    stay = 1 - leave
    later = sum(stay**j for j in range(2, T // 2 + 1))  # still inside at token T/2 + j: loses 1 there
    return eps * stay + (1 - found) * stay ** (T // 2) * (Delta * stay + later)


def uniform_router(mdp, n, leak, leak_to="outside"):
    """The minimax routing: every expert equally often. Returns the policy (rows (S_t, n + 1))."""
    return [e.mean(0) for e in experts_of(mdp, n, leak, leak_to)]


def observations(n, T, eps=EPS, Delta=DELTA):
    """For each length 0 .. T-1 of an experts' prefix, the largest difference between two secrets in Q*(prefix, .): (T,)."""
    tables = []
    for p in itertools.product(range(n), repeat=T // 2):
        Q = optimal(build(n, T, p, eps, Delta))[1]
        tables.append([q[(digits(len(q), n + 1, t) < n).all(1)] for t, q in enumerate(Q)])  # (n^t, n + 1) each
    return np.array([np.ptp(np.stack([tab[t] for tab in tables]), axis=0).max() for t in range(T)])


def good_prefix_losses(n, T, p, eps=EPS, Delta=DELTA):
    """(largest coverage loss on good prefixes, on all prefixes) against V*.

    Good prefix: one that an eps-optimal response can start with, that is, what it has earned plus V* of it still reaches V* - eps.
    """
    mdp = build(n, T, p, eps, Delta)
    V, Q = optimal(mdp)
    loss = coverage_loss(experts_of(mdp, n), V, Q)
    earned, good, everything = np.zeros(1), [], []
    for t, r in enumerate(mdp.r):
        reach = earned + V[t] >= T - eps - 1e-12  # (S_t,)
        good.append(loss[t][reach].max())
        everything.append(loss[t].max())
        if t + 1 < T:
            earned = (earned[:, None] + r).ravel()  # (S_t+1,): in a tree children come in order
    return max(good), max(everything)


def success_after(N, guesses):
    """Probability that the last of len(guesses) episodes walks p, when p is uniform among N paths. Every episode shows whether it
    walked p; from then on the path that worked is repeated, until then `guesses` are tried in turn."""
    hits = 0
    for p in range(N):
        walked = None
        for guess in guesses:
            walked = walked if walked == p else guess
        hits += walked == p
    return hits / N


def best_success_by_enumeration(N, K):
    """The same, maximised over all N^K sequences of guesses."""
    return max(success_after(N, g) for g in itertools.product(range(N), repeat=K))


def success_of_copying(n, T):
    """Share of secrets for which copying one demonstration of the secret path loses only eps."""
    secrets = list(itertools.product(range(n), repeat=T // 2))
    return float(np.mean([T - path_return(p + p, p, T) <= EPS + 1e-12 for p in secrets]))


def statements():
    """Rows of the table for item 3."""
    n, T = 2, 6
    p = (0, 1, 1)
    mdp = build(n, T, p)
    returns = returns_of_all_paths(mdp, n)  # (64,)
    paths = list(itertools.product(range(n), repeat=T))
    by_hand = np.array([T - EPS if y[:3] == p else T / 2 + 1 - DELTA - EPS for y in paths])  # (64,)
    soft = returns_of_all_paths(build(n, T, p, after=1.0), n)
    best = T - best_routing(mdp, experts_of(mdp, n))[0][0]
    nowhere = build(n, T, None)
    no_path = T - best_routing(nowhere, experts_of(nowhere, n))[0][0]
    good, everywhere = good_prefix_losses(n, T, p)
    seen = observations(n, T)  # (6,)

    sizes = [(2, 2), (2, 4), (2, 6), (2, 8), (2, 10), (3, 2), (3, 4), (3, 6), (4, 2), (4, 4), (4, 6), (5, 2), (5, 4)]
    brute = [[k, h, *minimax(game_matrix(k, h))] for k, h in sizes]
    error = max(max(abs(u - formula(k, h)), abs(v - formula(k, h))) for k, h, u, v in brute)
    told = min(game_matrix(2, 4)[:, 0])  # an algorithm that is told p before it starts
    grid = [[formula(k, h) for h in range(2, 33, 2)] for k in range(1, 9)]  # (8, 16): n = 1 .. 8, T = 2 .. 32
    slack = min(formula(k, h) - (h / 2 - 2) for k in range(2, 9) for h in range(2, 33, 2))

    leaks = [0.0, 0.01, 0.05, 0.1, 0.2]
    leaky = [[T_ - J(build(2, T_, (0,) * (T_ // 2)), uniform_router(build(2, T_, (0,) * (T_ // 2)), 2, x)) for x in leaks]
             for T_ in (4, 6, 8)]  # (3, 5)
    leak_error = max(abs(leaky[i][j] - formula(2, T_, leave=x)) for i, T_ in enumerate((4, 6, 8)) for j, x in enumerate(leaks))
    m8 = build(2, 8, (0,) * 4)
    inside = 8 - J(m8, uniform_router(m8, 2, 0.1, "inside"))

    N, K = 4, 3
    B = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    finite = [formula(2, 16, leave=boosted(0.01, b)) for b in B]
    frozen = m8_fused(m8, leak=0.0, B=5.0)
    thawed = m8_fused(m8, leak=0.01, B=5.0)
    return [
        row("3a", "the family: V* = T, T - eps through p, T/2 + 1 - Delta - eps for every other expert path",
            "largest error over 64 expert paths (n = 2, T = 6), V* included", "as printed",
            max(abs(returns - by_hand).max(), abs(optimal(mdp)[0][0][0] - T)), "<=", 1e-12,
            ("reward after a wrong turn is 1 instead of 0", abs(soft - by_hand).max())),
        row("3b", "property 1: some expert-only path loses only eps, so routing CAN express a good answer",
            "gap of the best router that knows p", "eps", best, "==", EPS, ("no path is the right one", no_path)),
        row("3c", "property 2: on good prefixes some expert loses at most max(eps, Delta)",
            "largest coverage loss over all good prefixes", "max(eps, Delta)", good, "<=", max(EPS, DELTA),
            ("all prefixes instead of good ones", everywhere), without_delta=good_prefix_losses(n, T, p, Delta=0.0)[0]),
        row("3d", "property 3: the Q* seen along the prefix is the same for every p until T/2 tokens are written",
            "largest difference between secrets, prefixes shorter than T/2", "0", seen[: T // 2].max(), "==", 0,
            ("one token later, at length T/2", seen[T // 2]), by_length=seen),
        row("3e", "exact minimax gap over randomised routers",
            f"largest error of the formula against brute force over all n^T paths x all p, {len(sizes)} sizes",
            "(1 - n^(-T/2)) (T/2 - 1 + Delta) + eps", error, "<=", 1e-12,
            ("the router is told p beforehand: its distance from the formula (n = 2, T = 4)", abs(told - formula(2, 4))),
            brute_force=brute, eps=EPS, Delta=DELTA, grid_n=list(range(1, 9)), grid_T=list(range(2, 33, 2)), grid=grid),
        row("3f", "Theorem 4.3: the gap is at least T/2 - 2, for n >= 2", "smallest (exact gap - (T/2 - 2)), n = 2..8, T = 2..32",
            ">= 0", slack, ">=", 0, ("n = 1 (T = 8): the only path is the secret one", formula(1, 8) - 2),
            exact_T8=formula(2, 8), exact_T32=formula(2, 32)),
        row("3g", "experts that leak probability outside their tree are rescued by chance",
            "largest error of the closed form against DP (n = 2; T = 4, 6, 8; leak 0 to 0.2)", "not treated", leak_error, "<=", 1e-12,
            ("the leak (0.1, T = 8) goes to the other experts' tokens: distance from the closed form",
             abs(inside - formula(2, 8, leave=0.1))),
            leaks=leaks, gap_T8=leaky[2], inside_leak_T8=inside, gap_T64=[formula(2, 64, leave=x) for x in leaks]),
        row("3h", "retries: after K episodes p has been walked with probability at most K / n^(T/2)",
            f"best over all {N**K} sequences of {K} guesses among {N} paths", "not treated", best_success_by_enumeration(N, K), "==",
            K / N, ("guessing: the router copies one demonstration that follows p", success_of_copying(n, 4)),
            gap_T20=[[K_, formula(2, 20, found=min(1.0, K_ / 2**10))] for K_ in (1, 10, 100, 512, 1024)]),
        row("3i", "strictly deterministic experts: added logits change nothing (log 0 + anything = -inf)",
            "gap with logits up to 5 in favour of the outside token (n = 2, T = 8, leak 0)", "not treated", frozen, "==", formula(2, 8),
            ("the experts leak 0.01 of probability", thawed), bounds=B, gap_T16_leak_001=finite,
            flips_at=0.5 * float(np.log(0.99 / 0.01))),
    ]


def m8_fused(mdp, leak, B):
    """Gap of the uniform router whose picked expert gets logit +B on the outside token and -B elsewhere (a choice that needs no p)."""
    T, A = len(mdp.r), mdp.r[0].shape[1]
    with np.errstate(divide="ignore"):
        logs = [np.log(e) for e in experts_of(mdp, A - 1, leak)]  # (n, S_t, A) each; log 0 = -inf is the point
    push = np.where(np.arange(A) == A - 1, B, -B)  # (A,)
    fused = [np.exp(x + push - np.logaddexp.reduce(x + push, axis=2, keepdims=True)).mean(0) for x in logs]  # (S_t, A) each
    return T - J(mdp, fused)
