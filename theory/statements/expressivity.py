"""What can be represented: choosing an expert, mixing experts, adding logits to an expert.

Choosing (deterministic or at random) and mixing have the same optimal value. At a state, the value of mixture w is
sum_i w_i E_{pi_i} Q: linear in w, so its maximum over the simplex is at a corner, a single expert; backward induction
carries this to all states. Added logits multiply probabilities: pi'(a) = pi_i(a) e^l(a) / Z. With
l = log pi* - log pi_i this IS pi*, if pi_i(a) > 0 wherever pi*(a) > 0. With |l| <= B they reach less; the best such
policy has l = +B on the k best tokens and -B on the rest, for some k.
"""

import itertools

import numpy as np

from .coverage import best_routing, expert_values, follow, make_experts
from .mdp import MDP, J, optimal, random_mdp, softmax, sweep
from .report import band, row, t_statistic


def fuse(log_router, log_expert):
    """Eq. (1): pi_final = softmax(log pi_router + log pi_expert), over the last axis. -inf means probability 0."""
    return softmax(log_router + log_expert)


def boosted(p, B):
    """What +B on one token and -B on all others make of its probability p: p / (p + (1 - p) e^(-2B))."""
    return p / (p + (1 - p) * np.exp(-2 * B))


def needed_bound(p, delta):
    """The B that lifts p to 1 - delta, the inverse of boosted: (1/2) log((1 - p)(1 - delta) / (p delta))."""
    return 0.5 * np.log((1 - p) * (1 - delta) / (p * delta))


def bounded_values(experts_t, Q_t, B):
    """max over |l| <= B of E_{a ~ pi_i e^l / Z} Q(s, a), for each expert: (n, S_t); (n, K, S_t) for K bounds at once.

    The objective is a ratio of two functions linear in u = e^l, so a maximum is at a corner, u = e^B or e^-B; raising a
    token helps exactly when its Q exceeds the current value, so the raised ones are the k best. Try every k.
    Takes Q_t (S_t, A) and a number B, or Q_t (K, S_t, A) and B (K,).
    """
    e = experts_t if Q_t.ndim == 2 else experts_t[:, None]  # (n, S, A) or (n, 1, S, A)
    order = np.argsort(-Q_t, axis=-1)  # (..., S, A) best first
    q = np.take_along_axis(Q_t, order, -1)  # (..., S, A)
    p = np.take_along_axis(e, order[None], -1)  # (n, ..., S, A)
    up, up_q = p.cumsum(-1), (p * q).cumsum(-1)  # (n, ..., S, A): mass, and value, of the k best
    low = np.exp(-2 * np.asarray(B))[..., None, None]  # weights relative to e^B, so that a large B cannot overflow
    # mass of the best k + low * the rest. p may be 0 there: then that k is no candidate
    mass = up + low * (up[..., -1:] - up)  # (n, ..., S, A)
    total = up_q + low * (up_q[..., -1:] - up_q)  # (n, ..., S, A)
    return np.where(mass > 0, total / np.where(mass > 0, mass, 1), -np.inf).max(-1)


def best_bounded(mdp, experts, B):
    """V, a list of (S_t,), of the best policy that picks an expert and adds logits |l| <= B. B = 0 is routing.

    With B (K,), several bounds at once: (K, S_t) each.
    """
    shape = np.shape(B)

    def choose(t, Q):
        return bounded_values(experts[t], np.broadcast_to(Q, shape + Q.shape[-2:]), B).max(0)

    return sweep(mdp, choose)[0]


def best_mixture_by_ascent(mdp, experts, steps=400, lr=2.0):
    """V of the best per-state mixture found by gradient ascent on its weights (a softmax), backward in time.

    An oracle that knows nothing of corners; it approaches the optimum from below.
    """

    def choose(t, Q):
        gain = expert_values(experts[t], Q)  # (n, S)
        theta = np.zeros_like(gain)  # (n, S)
        for _ in range(steps):
            w = softmax(theta.T).T  # (n, S)
            theta += lr * w * (gain - (w * gain).sum(0))  # d(sum_i w_i gain_i) / d theta_i
        return (softmax(theta.T).T * gain).sum(0)  # (S,)

    return sweep(mdp, choose)[0]


def best_router_by_enumeration(mdp, experts):
    """The best return over EVERY deterministic router, n^(number of states) of them: tiny MDPs only."""
    n, sizes = experts[0].shape[0], [r.shape[0] for r in mdp.r]
    cuts = np.cumsum(sizes)[:-1]
    return max(
        J(mdp, follow(experts, np.split(np.array(table), cuts)))
        for table in itertools.product(range(n), repeat=sum(sizes))
    )


def crossing_example():
    """Two experts over three tokens, (.6, .4, 0) and (0, .4, .6): (2, 3).

    Half of each is (.3, .4, .3): its arg max is a token that is neither expert's favourite. Its probability, .4, is
    still no larger than some expert's: that cap is what mixing cannot break.
    """
    return np.array([[0.6, 0.4, 0.0], [0.0, 0.4, 0.6]])


def instance(seed, cover, T=6, window=None, A=4, n=2, leak=0.02, sparse=False):
    """A random MDP and experts for it: (mdp, experts, V*, Q*). sparse: reward only for the last token."""
    mdp = random_mdp(np.random.default_rng(seed), A, T, window)
    if sparse:
        mdp = MDP([r * (t == T - 1) for t, r in enumerate(mdp.r)], mdp.P)
    V, Q = optimal(mdp)
    return mdp, make_experts(np.random.default_rng([seed, 1]), Q, n, cover, leak), V, Q


def gaps(seed, cover, bounds, **shape):
    """V* minus what is reachable: routing, then logits bounded by each B in `bounds`: (1 + len(bounds),)."""
    mdp, experts, V, _ = instance(seed, cover, **shape)
    routing = best_routing(mdp, experts)[0][0]
    return V[0][0] - np.array([routing, *best_bounded(mdp, experts, np.array(bounds))[0][:, 0]])


def uniform_expert(mdp):
    """One expert that knows nothing, so that only the logits are left: (1, S_t, A) each."""
    return [np.full((1,) + r.shape, 1 / r.shape[1]) for r in mdp.r]


def recovery_gap(seed, leak=0.02, B=50.0):
    """What logits |l| <= B, without a choice of expert, lose against V*: the larger of the two experts' losses."""
    mdp, experts, V, _ = instance(seed, 0.5, leak=leak)
    return max(V[0][0] - best_bounded(mdp, [e[i : i + 1] for e in experts], B)[0][0] for i in range(2))


def statements():
    """Rows of the table for item 4."""
    tiny = [instance(s, 0.5, T=3, A=2, leak=0.1) for s in range(20)]  # 7 states, 2 experts: 128 routers each
    by_dp = np.array([best_routing(m, e)[0][0] for m, e, _, _ in tiny])
    by_hand = np.array([best_router_by_enumeration(m, e) for m, e, _, _ in tiny])
    by_mixing = np.array([best_mixture_by_ascent(m, e)[0][0] for m, e, _, _ in tiny])

    cross, Q = crossing_example(), np.array([0.0, 1.0, 0.0])
    mix = cross.mean(0)

    covers, bounds, seeds = np.linspace(1, 0, 11), [1.0, 2.0, 3.0, 4.0, 6.0], range(40)
    by_cover = np.array([[gaps(s, c, bounds) for c in covers] for s in seeds])  # (40, 11, 6) routing, then each bound

    horizons = [2, 4, 8, 16, 32, 64]
    by_T = np.array([[gaps(s, 0.5, [2.0, 4.0], T=T, window=2) for T in horizons] for s in seeds])  # (40, 6, 3)
    late = np.array([[gaps(s, 0.5, [], T=T, window=2, sparse=True) for T in horizons] for s in seeds])[
        ..., 0
    ]  # (40, 6)
    doubling = by_T[:, -1, 0] - 2 * by_T[:, -2, 0]  # (40,) 0 when twice the tokens cost twice as much
    late_doubling = late[:, -1] - 2 * late[:, -2]  # (40,)

    many = [instance(s, 0.5) for s in seeds]
    grid = [0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0]
    star = np.array([V[0][0] for _, _, V, _ in many])  # (40,)
    routing = star - by_cover[:, 5, 0]  # (40,)
    fused = np.array([best_bounded(m, e, np.array(grid))[0][:, 0] for m, e, _, _ in many])  # (40, 9)
    only_1 = [(m, [x[:1] for x in e]) for m, e, _, _ in many]
    alone = np.array([best_bounded(m, e, np.array(grid))[0][:, 0] for m, e in only_1])  # (40, 9)
    wrong = np.array([star[k] - J(m, wrong_sign(m, e, Q_, 1.0)) for k, (m, e, _, Q_) in enumerate(many)])  # (40,)

    bare = [(m, uniform_expert(m)) for m, *_ in many]
    nobody = np.array([best_bounded(m, e, np.array(grid + [6.0]))[0][:, 0] for m, e in bare])  # (40, 10)
    nobody = star[:, None] - nobody  # (40, 10) the gap with no expert
    same = nobody[:, [0] + [(grid + [6.0]).index(b) for b in bounds]]  # (40, 6): at the bounds of by_cover
    extra = by_cover - same[:, None]  # (40, 11, 6): what two experts lose more than none
    worth_from = [worth(covers, by_cover[:, :, k].mean(0), same[:, k].mean()) for k in range(6)]

    delta, leak, T = 0.01, 0.02 / 3, 6
    B_delta, limit = needed_bound(leak, delta), delta * T * (T + 1) / 2
    lifted = np.array([gaps(s, 0.0, [B_delta, B_delta / 2])[1:] for s in seeds])  # (40, 2)
    return [
        row(
            "4a",
            "ours",
            statement="best deterministic, randomised and mixed routing have one value (linear in the weights)",
            checked="largest difference: all routers enumerated, or mixtures by ascent, against DP (20 tiny trees)",
            paper="the same",
            measured=max(abs(by_dp - by_hand).max(), np.maximum(by_mixing - by_dp, 0).max()),
            relation="<=",
            expected=1e-12,
            counter=(
                "the arg max of a mixture is written, not a sample (crossing example): what mixing then gains",
                Q[mix.argmax()] - max(Q[e.argmax()] for e in cross),
            ),
            ascent_reaches_within=abs(by_mixing - by_dp).max(),
        ),
        row(
            "4c",
            "paper",
            statement="recovery: large logits added to any one expert reach V*, if pi_i > 0",
            checked="largest gap of one expert with logits up to 50, by DP, 20 trees x 2 experts",
            paper="exact",
            measured=max(recovery_gap(s) for s in range(20)),
            relation="<=",
            expected=1e-12,
            counter=("pi_i > 0 (experts now give 0 to most tokens)", min(recovery_gap(s, leak=0.0) for s in range(20))),
        ),
        row(
            "4d",
            "ours",
            statement="separation: with half the prefixes covered, routing loses more than the logits of 4g can lose at all",
            checked="mean gap of the best routing, 40 trees (T = 6, 4 tokens, 2 experts)",
            paper="logits reach V*",
            measured=by_cover[:, 5, 0].mean(),
            relation=">=",
            expected=limit,
            counter=("half of the prefixes uncovered (now every prefix is covered)", by_cover[:, 0, 0].mean()),
            covers=covers,
            bounds=bounds,
            routing=band(by_cover[..., 0]),
            bounded={str(b): band(by_cover[..., 1 + k]) for k, b in enumerate(bounds)},
        ),
        row(
            "4e",
            "ours",
            statement="separation against the horizon: the routing gap grows linearly",
            checked="|t| of gap(T = 64) - 2 gap(T = 32), 40 windowed MDPs, half covered; 95% point of Student's t",
            paper="not treated; linear means 0",
            measured=t_statistic(doubling),
            relation="<=",
            expected=2.023,
            counter=("reward at every token (now only at the last)", t_statistic(late_doubling)),
            ratio=by_T[:, -1, 0].mean() / by_T[:, -2, 0].mean(),
            sparse_ratio=late[:, -1].mean() / late[:, -2].mean(),
            horizons=horizons,
            routing=band(by_T[..., 0]),
            bounded_2=band(by_T[..., 1]),
            bounded_4=band(by_T[..., 2]),
            sparse=band(late),
        ),
        row(
            "4f",
            "ours",
            statement="small logits do not replace the choice: expert 1 with logits up to 1 loses more than routing",
            checked="mean (best routing - best of expert 1 with logits), 40 trees, half covered",
            paper="not treated",
            measured=(routing - alone[:, 3]).mean(),
            relation=">=",
            expected=0,
            counter=("small logits (now up to 4)", (routing - alone[:, 7]).mean()),
            bounds=grid,
            routing=band(star - routing),
            fused=band(star[:, None] - fused),
            alone=band(star[:, None] - alone),
            crossing=float(np.interp(0, (alone - routing[:, None]).mean(0), grid)),
            wrong_sign=band(wrong),
            no_expert=band(nobody[:, :9]),
        ),
        row(
            "4g",
            "ours",
            statement="how large: B = (1/2) log((1 - p)(1 - d) / (p d)), p what the expert gives the right token: loss <= d T(T+1)/2",
            checked=f"largest gap, 40 trees without any covered prefix (p = {leak:.4f}, d = {delta}, B = {B_delta:.2f})",
            paper="not given",
            measured=lifted[:, 0].max(),
            relation="<=",
            expected=limit,
            counter=("half that B", lifted[:, 1].max()),
            bound=B_delta,
            table=[[p, needed_bound(p, 0.01)] for p in (0.1, 0.01, 0.001, 1e-6)],
        ),
        row(
            "4h",
            "ours",
            statement="experts can hurt: with half the prefixes covered, logits up to 3 lose less with NO expert (a uniform one)",
            checked="smallest (gap with two experts - gap with none), same bound, 40 trees",
            paper="not treated",
            measured=extra[:, 5, 3].min(),
            relation=">=",
            expected=0,
            counter=("half of the prefixes uncovered (now every prefix is covered): the mean", extra[:, 0, 3].mean()),
            covers=covers,
            bounds=[0.0] + bounds,
            with_experts={f"{100 * c:.0f}%": band(by_cover[:, k]) for k, c in enumerate(covers)},
            no_expert=band(same),
            worth_from=worth_from,
        ),
        row(
            "4i",
            "ours",
            statement="experts are worth having when logits are small: 90% covered, logits up to 1 lose more without them",
            checked="mean (gap with no expert - gap with two), same bound, 40 trees",
            paper="not treated",
            measured=-extra[:, 1, 1].mean(),
            relation=">=",
            expected=0,
            counter=("small logits (now up to 3)", -extra[:, 1, 3].mean()),
            uniform_needs=[[size, needed_bound(1 / size, 0.01)] for size in (4, 1000, 100000)],
        ),
    ]


def worth(covers, with_experts, without):
    """The coverage from which two experts lose less than none, for one B: covers and with_experts (K,), full first.

    Interpolated between neighbours; 1 when none of `covers` is enough, 0 when all are.
    """
    better = np.asarray(with_experts) <= without  # (K,)
    if better.all() or not better.any():
        return 0.0 if better.all() else 1.0
    k = int(np.argmin(better))  # the first coverage that is too low
    return float(np.interp(without, with_experts[k - 1 : k + 1], covers[k - 1 : k + 1]))


def wrong_sign(mdp, experts, Q, B):
    """Eq. (5)'s expert with logits of the wrong sign: -B on the optimal token, +B on the others."""
    pi = []
    for e, q in zip(experts, Q):
        picked = e[expert_values(e, q).argmax(0), np.arange(len(q))]  # (S, A)
        l = np.where(np.eye(q.shape[1])[q.argmax(1)] > 0, -B, B)  # (S, A)
        pi.append(fuse(l, np.log(picked)))  # (S, A)
    return pi
