"""Phase 2: what CDPO, Eq. (3), converges to.

Many prompts, answers of one token, y_w ~ pi*, y_l ~ q > 0, and pi_ref what phase 1 left:

  h(y) = beta [log pi_theta(y) - log pi_ref(y)] + beta log pi_i(y)     the last term: the bias
  L    = E -log sigmoid(h(y_w) - h(y_l))                               Eq. (3)

L is convex in h, and smallest when h = log(pi* / q) + a constant. So at the minimum (which the
paper does not state) the fused policy is

  pi_theta pi_i / Z  =  pi_ref (pi* / q)^(1/beta) / Z

The expert cancels: it is where DPO of a model without experts ends, on the same pairs and from the
same pi_ref. That is pi* only by accident. With beta = 0.1 the ratio has the exponent 10. By hand,
with pi* = (.6, .4), q = pi_i = (.9, .1) and a uniform pi_ref: the odds of the second token are
(4 / (2/3))^10 = 6^10, although pi* prefers the first.

On the way to this minimum the fused policy passes near pi*.

Counter-tests: the minimum of plain DPO, without the bias; pairs whose minimum is pi*: y_l ~ pi_ref
and beta = 1.
"""

import numpy as np

from .mdp import fuse, softmax
from .statement import spread, statement

TAU = 0.15  # pi* = softmax(Q / TAU)
MARKS = [0, 1, 2, 5, 10, 20, 35, 50, 70, 100, 140, 200, 350, 500, 700, 1000, 1400, 2000]  # steps


def setting(seed, prompts=64, A=6):
    """(Q, pi*, pi_i, pi_ref): (prompts, A) each.

    The expert gives 0.9 to the best token with probability 0.6, and else to a random one. pi_ref is
    pi* with a share of 0.2 of uniform.
    """
    rng = np.random.default_rng(seed)
    Q = rng.random((prompts, A))
    star = softmax(Q / TAU)
    knows, other = rng.random(prompts) < 0.6, rng.integers(0, A, prompts)  # (prompts,) each
    favourite = np.where(knows, Q.argmax(1), other)  # (prompts,)
    expert = np.where(np.eye(A)[favourite] > 0, 0.9, 0.1 / (A - 1))  # (prompts, A)
    return Q, star, expert, 0.8 * star + 0.2 / A


def population(star, q):
    """P(y_w, y_l) for y_w ~ pi* and y_l ~ q: (..., A, A)."""
    return star[..., :, None] * q[..., None, :]


def margins(theta, ref, expert, beta):
    """h(w) - h(l) for each pair of tokens: (..., A, A). theta: logits of pi_theta."""
    h = beta * (theta - np.log(ref)) + beta * np.log(expert)  # (..., A)
    return h[..., :, None] - h[..., None, :]


def cdpo_loss(theta, ref, expert, pairs, beta):
    """Eq. (3), averaged over pairs (..., A, A), the probabilities of (y_w, y_l)."""
    return (pairs * np.logaddexp(0, -margins(theta, ref, expert, beta))).sum((-2, -1))


def gradient(theta, ref, expert, pairs, beta):
    """dL / d theta (..., A). A pair pulls y_w up and y_l down by beta sigmoid(-margin)."""
    pull = pairs / (1 + np.exp(margins(theta, ref, expert, beta)))  # (..., A, A)
    return -beta * np.einsum("...wl->...w", pull - np.swapaxes(pull, -1, -2))


def minimum(ref, star, q, beta):
    """pi_ref (pi* / q)^(1/beta) / Z: the fused policy where CDPO ends, pi_theta where DPO ends."""
    return softmax(np.log(ref) + (np.log(star) - np.log(q)) / beta)


def descend(Q, star, expert, ref, q, beta):
    """Gradient descent on Eq. (3) from pi_ref, step size 0.1 / beta: (..., len(MARKS), 2).

    Takes (..., prompts, A). At the steps MARKS: KL(pi* || fused) in nats, and what the arg max of
    the fused policy loses in Q, both averaged over the prompts.
    """
    theta, pairs, out = np.log(ref), population(star, q), []
    for step in range(max(MARKS) + 1):
        if step in MARKS:
            fused = fuse(theta, np.log(expert))  # (..., prompts, A)
            kl = (star * np.log(star / fused)).sum(-1).mean(-1)  # (...)
            written = np.take_along_axis(Q, fused.argmax(-1)[..., None], -1)[..., 0]
            out.append(np.stack([kl, (Q.max(-1) - written).mean(-1)], -1))  # (..., 2)
        theta = theta - 0.1 / beta * gradient(theta, ref, expert, pairs, beta)
    return np.stack(out, -2)


def cdpo_minimum():
    """The minimum of Eq. (3), on 64 prompts of 6 tokens, beta = 0.1.

    Rejected are answers of the expert, of what phase 1 left, fused, and of the router alone.
    """
    star, expert, ref = setting(0)[1:]
    rejected = expert, fuse(np.log(ref), np.log(expert)), ref

    def slope(fused, q):
        """The largest derivative of Eq. (3) at the pi_theta that is `fused` after the fusion."""
        theta = np.log(fused) - np.log(expert)
        return abs(gradient(theta, ref, expert, population(star, q), 0.1)).max()

    def plain(beta):
        """The fused policy at the minimum of plain DPO, y_l ~ pi_i."""
        return fuse(np.log(minimum(ref, star, expert, beta)), np.log(expert))

    def moved(beta):
        """Mean TV between the minimum with and without the bias, y_l ~ pi_i."""
        return 0.5 * abs(minimum(ref, star, expert, beta) - plain(beta)).sum(1).mean()

    return statement(
        "ours",
        "phase 2",
        "CDPO, y_l ~ q, fused, ends at pi_ref (pi* / q)^(1/beta) / Z",
        measured=("gradient", max(slope(minimum(ref, star, q, 0.1), q) for q in rejected), "==", 0),
        without=("at the minimum of plain DPO, no bias", slope(plain(0.1), expert)),
        moved_by_the_bias=[[beta, moved(beta)] for beta in (0.1, 0.3, 1.0, 3.0)],
    )


def overshoot():
    """The way to that minimum, in 8 settings of 64 prompts, 2000 steps, y_l ~ pi_i."""
    Q, star, expert, ref = map(np.stack, zip(*[setting(seed) for seed in range(8)]))
    runs = {beta: descend(Q, star, expert, ref, expert, beta) for beta in (0.1, 1.0)}  # (8, 18, 2)
    to_star = descend(Q, star, expert, ref, ref, 1.0)  # (8, 18, 2) its minimum is pi*

    def turns(run):
        """Share of the settings whose KL is lowest neither at the first nor at the last step."""
        lowest = run[..., 0].argmin(1)  # (8,)
        return ((0 < lowest) & (lowest < len(MARKS) - 1)).mean()

    return statement(
        "ours",
        "overshoot",
        "on the way there, KL to pi* falls and then rises",
        measured=("share that turns", min(map(turns, runs.values())), "==", 1),
        without=("the minimum is pi*: y_l ~ pi_ref, beta = 1", turns(to_star)),
        marks=MARKS,
        kl={str(beta): spread(run[..., 0]) for beta, run in runs.items()},
        greedy={str(beta): spread(run[..., 1]) for beta, run in runs.items()},
    )
