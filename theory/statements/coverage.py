"""Eq. (5): if some expert is nearly right at EVERY prefix, choosing it loses at most T Delta.

Assumption 4.2   V*(s) - max_i E_{a ~ pi_i} Q*(s, a) <= Delta   at every prefix s
Eq. (5)          V* - V^pi <= T Delta   if pi takes, at each token, the expert of the largest
                                        E_{a ~ pi_i} Q*(s, a)
(The paper prints arg max in the assumption, which is the number of an expert. The max is meant.)

Proof: put pi into Lemma 4.1. Each of its T terms is at most Delta.

Counter-test: the assumption only at the prefixes that the best policy writes. The router leaves
them at its first mistake.
"""

import numpy as np

from .mdp import MDP, best, greedy, loss, occupancy, optimal, random_mdp, sweep
from .statement import spread, statement

COVERS = np.linspace(1, 0, 11)  # share of the prefixes at which some expert favours the best token
WORLDS = range(40)


def make_experts(rng, Q, n, cover, leak):
    """n experts for a world with optimal values Q[t] (S_t, A). A list of T arrays (n, S_t, A).

    At each prefix an expert gives 1 - leak to a favourite token and shares the leak among the
    others. At a covered prefix (probability `cover`) one expert favours the best token.
    All other favourites are wrong. One seed draws the same numbers for every `cover`.
    """
    out = []
    for q in Q:
        S, A = q.shape
        right = q.argmax(1)  # (S,)
        wrong = (right + rng.integers(1, A, size=(n, S))) % A  # (n, S) never the right token
        covered, who = rng.random(S) < cover, rng.integers(0, n, size=S)  # (S,), (S,)
        favourite = np.where(covered & (np.arange(n)[:, None] == who), right, wrong)  # (n, S)
        out.append(np.where(np.eye(A)[favourite] > 0, 1 - leak, leak / (A - 1)))  # (n, S, A)
    return out


def world(seed, cover, A=4, T=6, leak=0.02):
    """A random tree and two experts for it: (mdp, experts)."""
    mdp = random_mdp(np.random.default_rng(seed), A, T)
    experts = make_experts(np.random.default_rng([seed, 1]), optimal(mdp)[1], 2, cover, leak)
    return mdp, experts


def expert_values(experts_t, Q_t):
    """E_{a ~ pi_i} Q(s, a) of every expert: (n, S_t)."""
    return np.einsum("nsa,sa->ns", experts_t, Q_t)


def follow(experts, choice):
    """The policy that copies expert choice[t] (S_t,) in each state."""
    return [e[c, np.arange(e.shape[1])] for e, c in zip(experts, choice)]  # (S_t, A) each


def coverage_loss(mdp, experts):
    """V*(s) - max_i E_{a ~ pi_i} Q*(s, a), a list of (S_t,). Its maximum is Delta."""
    V, Q = optimal(mdp)
    return [v - expert_values(e, q).max(0) for e, v, q in zip(experts, V, Q)]


def rule_of_eq5(mdp, experts):
    """The policy of Eq. (5): in each state the expert with the largest E_{a ~ pi_i} Q*(s, a)."""
    Q = optimal(mdp)[1]
    return follow(experts, [expert_values(e, q).argmax(0) for e, q in zip(experts, Q)])


def best_routing(mdp, experts):
    """What the best choice of experts earns: a float.

    Better than the rule of Eq. (5), which believes that everything after this token is perfect.
    """
    V = sweep(mdp, lambda t, Q: expert_values(experts[t], Q).max(0))[0]
    return V[0][0]


def off_path_example(T, Delta):
    """A world that is covered by Delta wherever the best policy goes, and nowhere else.

    Tokens a, b, c. The best policy writes a, which pays 1. The one expert writes b first, which
    pays 1 - Delta, and then c, which pays 0. So it loses Delta + T - 1.
    States: 0 = all a so far, 1 = not.
    """
    r = [np.array([[1.0, 1.0 - Delta, 0.0], [1.0, 1.0, 0.0]])] * T
    P = [np.array([[0, 1, 1], [1, 1, 1]])] * (T - 1) + [np.zeros((2, 3), int)]
    expert = np.eye(3)[np.array([[1, 2]])]  # (1, 2, 3)
    return MDP(r, P), [expert] * T


def eq_5():
    """Eq. (5) in 40 random trees with 11 coverages each; the counter-test is built by hand."""
    rule, bound, most = np.zeros((3, len(WORLDS), len(COVERS)))
    for i, seed in enumerate(WORLDS):
        for k, cover in enumerate(COVERS):
            mdp, experts = world(seed, cover)
            rule[i, k] = loss(mdp, rule_of_eq5(mdp, experts))
            bound[i, k] = len(mdp.r) * max(x.max() for x in coverage_loss(mdp, experts))
            most[i, k] = best(mdp)

    T, Delta = 8, 0.1
    mdp, experts = off_path_example(T, Delta)
    where = occupancy(mdp, greedy(optimal(mdp)[1]))  # the prefixes that the best policy writes
    there = max((x * (d > 0)).max() for x, d in zip(coverage_loss(mdp, experts), where))
    return statement(
        "paper",
        "Eq. (5)",
        "some expert within Delta at every prefix: loss <= T Delta",
        measured=("loss / bound", (rule / bound).max(), "<=", 1),
        without=(
            "within Delta only at the prefixes of pi*",
            loss(mdp, rule_of_eq5(mdp, experts)) / (T * there),
        ),
        loss_of_the_rule=spread(rule),
        bound_over_the_most_one_can_lose=spread(bound / most),
    )
