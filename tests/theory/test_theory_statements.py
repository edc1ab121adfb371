"""theory/statements: every function against hand-worked cases, enumeration, or another method."""

import itertools

import numpy as np
import pytest

from theory.statements import (
    cdpo,
    collab,
    coverage,
    fusion_bound,
    hidden_path,
    lemma,
    logits,
    mdp,
    sft,
)
from theory.statements.statement import compare, spread, statement


def walk(m, pi):
    """What pi earns, by walking every answer: no dynamic programming."""
    total = 0.0
    for answer in itertools.product(range(m.r[0].shape[1]), repeat=len(m.r)):
        s, probability, earned = 0, 1.0, 0.0
        for t, a in enumerate(answer):
            probability, earned = probability * pi[t][s, a], earned + m.r[t][s, a]
            s = m.P[t][s, a]
        total += probability * earned
    return total


def routers(m, experts):
    """Every deterministic choice of one expert at each prefix, as a policy."""
    sizes = [len(r) for r in m.r]
    for table in itertools.product(range(len(experts[0])), repeat=sum(sizes)):
        yield coverage.follow(experts, np.split(np.array(table), np.cumsum(sizes)[:-1]))


# --- the table ------------------------------------------------------------------------------------


def test_every_statement_holds_and_fails_without_its_assumption(rows):
    assert [key for key, r in rows.items() if not r["holds"]] == []
    assert [key for key, r in rows.items() if not r["fails"]] == []
    assert {r["whose"] for r in rows.values()} == {"paper", "known", "ours"}


def test_a_comparison_forgives_rounding_and_nothing_else():
    assert compare(1.0, "==", 1.0 + 1e-13) and not compare(1.0, "==", 1.0 + 1e-9)
    assert compare(0.1 + 1e-13, "<=", 0.1) and not compare(0.11, "<=", 0.1)
    assert compare(0.5, ">=", 0.5) and not compare(0.4, ">=", 0.5)


def test_a_statement_judges_itself():
    row = statement("ours", "", "", ("error", 2.0, "<=", 1), ("nothing", 0.5), extra=np.ones(2))
    assert (row["holds"], row["fails"], row["numbers"]) == (False, False, {"extra": [1, 1]})
    assert spread([1, 2, 3])["mean"] == 2 and spread([1, 2, 3])["sd"] == 1


# --- the world and Lemma 4.1 ----------------------------------------------------------------------


def test_dynamic_programming_finds_the_best_of_all_policies():
    m = mdp.random_mdp(np.random.default_rng(0), A=2, T=3)  # 7 prefixes, 2^7 policies
    one_a_token = [np.repeat(np.eye(2)[:, None], len(r), axis=1) for r in m.r]  # (2, S_t, 2) each
    assert mdp.best(m) == pytest.approx(max(walk(m, pi) for pi in routers(m, one_a_token)))


@pytest.mark.parametrize("window", [None, 1, 2])
def test_values_and_occupancies_agree_with_walking_every_answer(window):
    rng = np.random.default_rng(1)
    m = mdp.random_mdp(rng, A=3, T=4, window=window)
    pi = mdp.random_policy(rng, m)
    d = mdp.occupancy(m, pi)
    assert [x.sum() for x in d] == pytest.approx([1] * 4)
    paid = sum((w[:, None] * p * r).sum() for w, p, r in zip(d, pi, m.r))
    assert mdp.best(m) - mdp.loss(m, pi) == pytest.approx(walk(m, pi))
    assert paid == pytest.approx(walk(m, pi))


def test_a_window_keeps_the_last_tokens():
    # After 0, 1 the state is "01" = 1. Writing 1 gives "11" = 3, writing 0 gives "10" = 2.
    P = mdp.token_transitions(2, 4, window=2)
    assert P[2][1].tolist() == [2, 3]
    assert [p.shape for p in P] == [(1, 2), (2, 2), (4, 2), (4, 2)] and P[3].max() == 0
    assert mdp.token_transitions(2, 4)[2][3].tolist() == [6, 7]  # "11" to "110" and "111"


def test_eq1_by_hand():
    # (.6, .4) times (.9, .1) is (.54, .04), which sums to .58.
    fused = mdp.fuse(np.log([0.6, 0.4]), np.log([0.9, 0.1]))
    assert fused == pytest.approx([0.54 / 0.58, 0.04 / 0.58])


def test_lemma_by_hand():
    # V* = 1 + 1. pi writes b (3/4), then b again (0), and loses 5/4. After a it would write a.
    # Lemma: (2 - 7/4) + (1 - 0) = 5/4. Dual: (2 - 3/4) + (1 - 1) = 5/4. Mixed: (2 - 7/4) + 0 = 1/4.
    r = [np.array([[1.0, 0.75]]), np.array([[1.0, 0.0], [1.0, 0.0]])]
    m = mdp.MDP(r, mdp.token_transitions(2, 2))
    pi = [np.array([[0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])]
    assert mdp.loss(m, pi) == lemma.lemma_sum(m, pi) == lemma.dual_sum(m, pi) == 1.25
    assert lemma.mixed_sum(m, pi) == 0.25


# --- Eq. (5) --------------------------------------------------------------------------------------


def test_eq5_is_tight_and_needs_every_prefix_by_hand():
    # Token a pays 1, b pays .9, the expert writes b: two tokens lose .2 = T Delta.
    P = mdp.token_transitions(2, 2, window=1)
    m = mdp.MDP([np.tile([1.0, 0.9], (len(p), 1)) for p in P], P)
    always_b = [np.tile([0.0, 1.0], (1, len(p), 1)) for p in P]
    assert mdp.loss(m, coverage.rule_of_eq5(m, always_b)) == pytest.approx(0.2)
    assert max(x.max() for x in coverage.coverage_loss(m, always_b)) == pytest.approx(0.1)
    # Off the path: the expert writes b (.9), then c (0), of 2. On the path it is within .1.
    m, experts = coverage.off_path_example(2, 0.1)
    assert mdp.loss(m, coverage.rule_of_eq5(m, experts)) == pytest.approx(1.1)
    assert [x[0] for x in coverage.coverage_loss(m, experts)] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_eq5s_rule_is_what_it_meets_and_the_best_routing_is_the_best(seed):
    m, experts = coverage.world(seed + 500, 0.5, A=2, T=3, leak=0.1)  # 128 routers
    pi = coverage.rule_of_eq5(m, experts)
    met = zip(mdp.occupancy(m, pi), coverage.coverage_loss(m, experts))
    assert mdp.loss(m, pi) == pytest.approx(sum((d * x).sum() for d, x in met))  # Lemma 4.1
    best = max(walk(m, router) for router in routers(m, experts))
    assert coverage.best_routing(m, experts) == pytest.approx(best)
    assert best >= walk(m, pi) - 1e-12


@pytest.mark.parametrize("cover", [0.0, 0.5, 1.0])
def test_experts_cover_what_they_should(cover):
    m, experts = coverage.world(3, cover)
    Q = mdp.optimal(m)[1]
    hits = np.concatenate([(e.argmax(2) == q.argmax(1)).sum(0) for e, q in zip(experts, Q)])
    assert hits.max() <= 1  # at most one expert knows
    assert hits.mean() == pytest.approx(cover, abs=4 * (0.25 / len(hits)) ** 0.5)
    assert all(np.allclose(e.sum(2), 1) and np.allclose(e.max(2), 0.98) for e in experts)


# --- the hidden path ------------------------------------------------------------------------------


def path_return(path, p, T):
    """What a path of experts earns, rule by rule as the paper states them."""
    total = 0.0
    for t in range(1, T + 1):
        on_p = tuple(path[: T // 2]) == tuple(p)
        if t == 1:
            total += 1 - hidden_path.EPS
        elif t <= T // 2 or on_p:
            total += 1
        elif t == T // 2 + 1:
            total += 1 - hidden_path.DELTA
    return total


@pytest.mark.parametrize("n,T", [(1, 4), (2, 2), (2, 6), (3, 4)])
def test_the_world_pays_what_the_rules_say(n, T):
    for p in itertools.product(range(n), repeat=T // 2):
        m = hidden_path.build(n, T, p)
        slow = [path_return(y, p, T) for y in itertools.product(range(n), repeat=T)]
        assert hidden_path.returns_of_all_paths(m, n) == pytest.approx(slow)
        assert mdp.best(m) == pytest.approx(T)
        assert {round(x, 9) for x in slow} <= {T - 0.05, round(T / 2 + 0.85, 9)}  # as printed


def test_the_smallest_game_by_hand():
    # n = 2, T = 2. The right path loses eps = .05, the wrong one eps + Delta = .15; a fair coin
    # loses .1. Formula: (1 - 1/2)(1 - 1 + .1) + .05 = .1.
    lost = hidden_path.game(2, 2)  # paths 00, 01, 10, 11 against secrets 0, 1
    assert lost == pytest.approx(np.array([[0.05, 0.15]] * 2 + [[0.15, 0.05]] * 2))
    assert hidden_path.value(lost) == pytest.approx((0.1, 0.1))
    assert hidden_path.formula(2, 2) == pytest.approx(0.1)
    assert hidden_path.value(np.array([[0, 1], [1, 1]])) == (1, 0.5)  # the bounds need not agree


def test_logits_need_something_to_add_to():
    for B in (0.0, 3.0, 30.0):
        assert hidden_path.loss_with_logits(2, 8, 0.0, B) == pytest.approx(
            hidden_path.formula(2, 8)
        )
    # A leak x leaves the trap with x at each token. Inside, tokens 1 and 5 lose eps and Delta, 6 to
    # 8 lose 1, and half of the half-answers are right with 1/16.
    for leak, B in ((0.1, 0.0), (0.01, 2.0)):
        stay = 1 - leak / (leak + (1 - leak) * np.exp(-2 * B))
        wrong = 0.1 * stay**5 + stay**6 + stay**7 + stay**8
        by_hand = 0.05 * stay + (1 - 1 / 16) * wrong
        assert hidden_path.loss_with_logits(2, 8, leak, B) == pytest.approx(by_hand)


# --- logits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("B", [0.0, 0.7, 3.0])
def test_the_best_bounded_logits_against_all_corners_and_random_ones(B):
    rng = np.random.default_rng(4)
    experts, Q = rng.dirichlet(np.ones(4), size=(2, 5)), rng.random((5, 4))  # (2, 5, 4), (5, 4)
    best = logits.bounded_values(experts, Q, B)  # (2, 5)
    corners = np.array(list(itertools.product((-B, B), repeat=4)))  # (16, 4)
    tried = [(mdp.fuse(corner, np.log(experts)) * Q).sum(2) for corner in corners]
    assert best == pytest.approx(np.max(tried, axis=0))
    inside = rng.uniform(-B, B, size=(300, 4))
    tried = [(mdp.fuse(added, np.log(experts)) * Q).sum(2) for added in inside]
    assert (np.array(tried) <= best + 1e-12).all()


def test_recovery_and_bounds_by_hand():
    # pi* = (.1, .9), pi_i = (.8, .2): the logits log(pi* / pi_i) give pi* back.
    star, expert = np.array([0.1, 0.9]), np.array([0.8, 0.2])
    assert mdp.fuse(np.log(star / expert), np.log(expert)) == pytest.approx(star)
    # From .01 to .99 the odds grow by 99^2 = e^(2B), so B = log 99.
    assert logits.needed_bound(0.01, 0.01) == pytest.approx(np.log(99))
    # One token of two, Q = (1, 0), uniform: the better one gets e^B / (e^B + e^-B).
    value = logits.bounded_values(np.array([[[0.5, 0.5]]]), np.array([[1.0, 0.0]]), 1.5)
    assert value == pytest.approx(1 / (1 + np.exp(-3.0)))


# --- Eq. (6) --------------------------------------------------------------------------------------


def test_eq6_is_tight_by_hand():
    # Two tokens. a pays .1 and then 1; b ends all payment. V* = 1.1. pi' writes a with .9: the last
    # token earns .9, the first .9 (.1 + .9) = .9. Loss .2 = T Qmax Delta = 2 * 1 * .1.
    r = [np.array([[0.1, 0.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])]
    m = mdp.MDP(r, [np.array([[0, 1], [1, 1]]), np.zeros((2, 2), int)])
    pi, star = [np.array([[0.9, 0.1], [0.0, 1.0]])] * 2, [np.eye(2)] * 2
    assert mdp.loss(m, pi) == pytest.approx(0.2)
    assert fusion_bound.bound_of_eq6(m, pi, star, mdp.occupancy(m, star)) == pytest.approx(0.2)
    assert fusion_bound.tv(np.array([0.5, 0.5, 0]), np.array([0.2, 0.3, 0.5])) == 0.5  # half of L1


# --- Collab ---------------------------------------------------------------------------------------


def test_collab_by_hand():
    # H = 3, right experts 0, 1, 1. Own values 1 and 2, Q* = 3: mismatch 1 = H/3. The rule starts
    # with expert 1, earns 0 + 1 + 1 and loses 1.
    def found(schedule):
        return collab.mismatch_and_regret(*collab.agreement_world(schedule, 2))

    assert found([0, 1, 1]) == (1, 1) and found([1, 1, 1]) == (0, 0)
    # H/3 is not the worst: halves have H/2.
    assert max(found(schedule)[0] for schedule in itertools.product(range(2), repeat=6)) == 3


def test_a_mismatch_need_not_be_a_loss_by_hand():
    # H = 4, right experts 0, 1, 0, 1. A wrong token leads to state 1, where nothing pays. The own
    # values at the start are 1 and 0. The right expert always has the larger one: no loss.
    r = [np.array([np.eye(2)[t % 2], [0, 0]]) for t in range(4)]
    m = mdp.MDP(r, [np.where(x > 0, 0, 1) for x in r[:3]] + [np.zeros((2, 2), int)])
    experts = [np.repeat(np.eye(2)[:, None], 2, axis=1)] * 4  # (2, 2, 2) each
    assert collab.mismatch_and_regret(m, experts) == (3, 0)


# --- phase 1 --------------------------------------------------------------------------------------


def test_counts_by_hand():
    # Answers (1, 0) and (1, 1): token 1 twice at the start, then each token once after it.
    m = mdp.random_mdp(np.random.default_rng(0), A=2, T=2)
    c = sft.counts(m, np.array([[0, 1], [0, 1]]), np.array([[1, 0], [1, 1]]))
    assert c[0].tolist() == [[0, 2]] and c[1].tolist() == [[0, 0], [1, 1]]


def test_samples_follow_the_policy():
    # 40000 answers: a frequency is off by .0125 = 5 deviations with probability below 1e-5.
    m, _, star = sft.setting(0)
    states, tokens = sft.sample(np.random.default_rng(1), m, star, 40000)
    assert np.bincount(tokens[:, 0], minlength=4) / 40000 == pytest.approx(star[0][0], abs=0.0125)
    d = mdp.occupancy(m, star)[5]
    assert np.bincount(states[:, 5], minlength=4) / 40000 == pytest.approx(d, abs=0.0125)


def test_fit_is_what_gradient_descent_finds():
    # -sum c log p + KL(prior || p), p = softmax(log prior + added), by descent on `added`.
    c, prior, added = np.array([3.0, 1.0, 0.0]), np.array([0.1, 0.2, 0.7]), np.zeros(3)
    for _ in range(4000):
        p = mdp.fuse(added, np.log(prior))
        added = added - 0.05 * ((c.sum() + 1) * p - c - prior)
    assert p == pytest.approx([3.1 / 5, 1.2 / 5, 0.7 / 5], abs=1e-9)
    assert sft.fit([c[None]], [prior[None]])[0][0] == pytest.approx(p)


def test_fit_routing_minimises_l_expert_over_a_grid_of_weights():
    rng = np.random.default_rng(2)
    experts = rng.dirichlet(np.ones(3), size=(2, 40))  # (2, 40, 3)
    c = rng.integers(0, 5, size=(40, 3)).astype(float)
    chosen = sft.fit_routing([c], [experts])[0]  # (40,)
    losses = -np.einsum("sa,nsa->ns", c, np.log(experts))  # (2, 40) of each expert alone
    w = np.linspace(0, 1, 21)[:, None]  # the weight of expert 1
    best = ((1 - w) * losses[0] + w * losses[1]).argmin(0) / 20  # (40,)
    informative = experts[0].argmax(1) != experts[1].argmax(1)  # (40,)
    assert informative.any() and not informative.all()
    assert (best == chosen)[informative].all() and (chosen[~informative] == 0).all()


def test_without_data_every_training_leaves_the_bare_expert():
    m, experts, _ = sft.setting(0)
    ways = sft.all_ways([np.zeros_like(r) for r in m.r], experts)
    for t, picked in enumerate(ways["routing"]):
        assert ways["alone"][t] == pytest.approx(picked)
        assert ways["through"][t] == pytest.approx(picked)
        assert ways["no_expert"][t] == pytest.approx(np.full(picked.shape, 1 / 4))


def test_kl_of_whole_answers_by_enumeration():
    rng = np.random.default_rng(5)
    m = mdp.random_mdp(rng, A=2, T=3)
    star, pi = mdp.random_policy(rng, m), mdp.random_policy(rng, m)
    total = 0.0
    for answer in itertools.product(range(2), repeat=3):
        places = [(t, int("0" + "".join(map(str, answer[:t])), 2), a) for t, a in enumerate(answer)]
        p = np.prod([star[t][s, a] for t, s, a in places])
        total += p * np.log(p / np.prod([pi[t][s, a] for t, s, a in places]))
    assert sft.kl(star, pi, mdp.occupancy(m, star)) == pytest.approx(total)


# --- phase 2 --------------------------------------------------------------------------------------


def by_newton(ref, star, expert, q, beta, steps=60):
    """The fused policy at the minimum of Eq. (3) by damped Newton steps, without the formula."""
    theta, A = np.log(ref), ref.shape[-1]
    pairs = cdpo.population(star, q)
    for _ in range(steps):
        m = cdpo.margins(theta, ref, expert, beta)
        w = pairs / (1 + np.exp(m)) / (1 + np.exp(-m))
        w = w + np.swapaxes(w, -1, -2)  # (..., A, A)
        H = beta**2 * (w.sum(-1)[..., None] * np.eye(A) - w) + 1e-3  # a constant changes nothing
        step = np.linalg.solve(H, cdpo.gradient(theta, ref, expert, pairs, beta)[..., None])[..., 0]
        theta = theta - step / np.maximum(1, abs(step).max(-1, keepdims=True) * beta / 2)
    return mdp.fuse(theta, np.log(expert))


def test_cdpo_loss_by_hand():
    # y_w = 0, y_l = 1, pi_theta = pi_ref, beta = .5. A strong expert, (.8, .2): bias .5 log 4, loss
    # log(1 + 1/2), pull .5 / 3. A weak one, (.2, .8): loss log(1 + 2), pull .5 * 2 / 3.
    pairs, half = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([0.5, 0.5])
    for expert, value, pull in (((0.8, 0.2), 1.5, 1 / 6), ((0.2, 0.8), 3.0, 1 / 3)):
        rest = (np.log(half), half, np.array(expert), pairs, 0.5)
        assert cdpo.cdpo_loss(*rest) == pytest.approx(np.log(value))
        assert cdpo.gradient(*rest) == pytest.approx([-pull, pull])


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_cdpo_minimum_found_without_the_formula(beta):
    star, expert, ref = cdpo.setting(9, prompts=8)[1:]
    q = np.random.default_rng(0).dirichlet(np.full(6, 5.0), size=8)  # (8, 6) of rejected answers
    found = by_newton(ref, star, expert, q, beta)
    assert found == pytest.approx(cdpo.minimum(ref, star, q, beta), abs=1e-8)
    # The expert cancels: without one, this is where plain DPO ends.
    assert found == pytest.approx(by_newton(ref, star, np.full_like(ref, 1 / 6), q, beta), abs=1e-8)
    # It counts as q, if it writes the rejected answers.
    assert abs(found - by_newton(ref, star, expert, expert, beta)).max() > 0.1


def test_pairs_whose_minimum_is_the_target():
    # y_l ~ pi_ref and beta = 1: pi_ref (pi* / pi_ref) = pi*, with any expert.
    star, expert, ref = cdpo.setting(9, prompts=8)[1:]
    assert by_newton(ref, star, expert, ref, 1.0) == pytest.approx(star, abs=1e-8)


def test_the_minimum_can_be_wrong_and_can_undo_the_expert():
    # pi* = (.6, .4), pi_i = (.9, .1): the odds of token 1 are (4 / (2/3))^10 = 6^10.
    half, star, expert = np.array([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1]])
    p = by_newton(half, star, expert, expert, 0.1)
    assert p[1] / p[0] == pytest.approx(6**10, rel=1e-6)
    # Rejected answers as good as the chosen ones: the minimum is pi_ref. Here the expert is pi*.
    assert by_newton(half, star, star, star, 1.0) == pytest.approx(half)
