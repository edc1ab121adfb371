"""theory/statements: every statement is a test, and each has a counter-test in which it must fail. Sections 1 to 3 are
in test_theory_statements_mdp.py, the command and the pages in test_theory_pages.py."""

import itertools
import numpy as np
import pytest

from theory.statements import beyond, cdpo, collab, coverage, expressivity, fusion_bound, hidden_path, learning, mdp
from theory.statements import report


def test_every_statement_holds_and_every_counter_test_bites(rows):
    assert [r["item"] for r in rows if not r["holds"]] == []
    assert [r["item"] for r in rows if not r["counter_test"]["conclusion_fails"]] == []
    assert {r["item"][0] for r in rows} == set("12345678")
    assert {r["whose"] for r in rows} == {"paper", "ours"}


def test_compare_is_not_generous():
    assert report.compare(1.0, "==", 1.0 + 1e-10) and not report.compare(1.0, "==", 1.0 + 1e-8)
    assert not report.compare(1e-10, "<=", 1e-12)  # TOLERANCE must not swallow a tight limit
    assert report.compare(0.5, ">=", 0.5) and not report.compare(0.4, ">=", 0.5)
    with pytest.raises(ValueError):
        report.compare(1, "<", 2)


def test_a_row_says_whose_it_is_and_which_kind_its_counter_test_is():
    args = dict(statement="", checked="", paper="", measured=1, relation="<=", expected=1, counter=("x", 2))
    assert report.row("9a", "ours", **args)["counter_test"]["kind"] == "dropped"
    assert report.row("9a", "paper", **args, exchanged=True)["counter_test"]["kind"] == "exchanged"
    with pytest.raises(ValueError, match="nobody"):
        report.row("9a", "nobody", **args)


def test_t_statistic_by_hand():
    # 1, 2, 3: mean 2, standard deviation 1, standard error 1 / sqrt(3): t = 2 sqrt(3).
    assert report.t_statistic([1, 2, 3]) == pytest.approx(2 * 3**0.5)


# --- 4. expressivity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_choosing_and_mixing_have_one_value(seed):
    m, experts, _, _ = expressivity.instance(seed + 900, 0.5, T=3, A=2, leak=0.1)
    best = coverage.best_routing(m, experts)[0][0]
    assert best == pytest.approx(expressivity.best_router_by_enumeration(m, experts), abs=1e-12)
    ascent = expressivity.best_mixture_by_ascent(m, experts)[0][0]
    assert ascent <= best + 1e-12 and best - ascent < 0.01


def test_a_mixture_changes_the_argmax_but_not_the_cap_by_hand():
    # (.6, .4, 0) and (0, .4, .6): half of each is (.3, .4, .3). Its arg max, token 1, is nobody's favourite; .4 is
    # still at most max_i.
    e = expressivity.crossing_example()
    mix = e.mean(0)
    assert mix.tolist() == pytest.approx([0.3, 0.4, 0.3])
    assert mix.argmax() == 1 and [x.argmax() for x in e] == [0, 2]
    assert (mix <= e.max(0) + 1e-12).all()
    # Logits break the cap: + 2 on token 1 of expert 0 gives .4 e^2 / (.6 + .4 e^2) = .831
    assert expressivity.fuse(np.array([0, 2.0, 0]), np.log(np.maximum(e[0], 1e-300)))[1] == pytest.approx(
        0.8312, abs=1e-4
    )


@pytest.mark.parametrize("B", [0.0, 0.7, 3.0])
def test_best_bounded_logits_against_all_corners_and_random_ones(B):
    rng = np.random.default_rng(4)
    experts, Q = rng.dirichlet(np.ones(4), size=(2, 5)), rng.random((5, 4))  # (2, 5, 4), (5, 4)
    best = expressivity.bounded_values(experts, Q, B)  # (2, 5)
    corners = np.array(list(itertools.product((-B, B), repeat=4)))  # (16, 4)
    tried = np.stack([(expressivity.fuse(l, np.log(experts)) * Q).sum(2) for l in corners])  # (16, 2, 5)
    assert best == pytest.approx(tried.max(0), abs=1e-12)
    inside = rng.uniform(-B, B, size=(500, 4))
    assert (np.stack([(expressivity.fuse(l, np.log(experts)) * Q).sum(2) for l in inside]) <= best + 1e-12).all()


def test_bounded_logits_run_from_routing_to_the_optimum():
    m, experts, V, _ = expressivity.instance(11, 0.3)
    values = [expressivity.best_bounded(m, experts, B)[0][0] for B in (0, 1, 2, 4, 8, 400)]
    assert values[0] == pytest.approx(coverage.best_routing(m, experts)[0][0], abs=1e-12)
    assert (np.diff(values) >= -1e-12).all() and values[-1] == pytest.approx(V[0][0], abs=1e-9)
    strict = [np.where(e > 0.5, 1.0, 0.0) for e in experts]  # the same favourites, no leak: now no logit helps
    assert expressivity.best_bounded(m, strict, 400)[0][0] == pytest.approx(
        coverage.best_routing(m, strict)[0][0], abs=1e-12
    )


def test_needed_bound_by_hand():
    # .01 to .99: odds 1/99 to 99, a factor 99^2 = e^(2B), B = log 99 = 4.595.
    assert expressivity.needed_bound(0.01, 0.01) == pytest.approx(np.log(99))
    assert expressivity.boosted(0.01, np.log(99)) == pytest.approx(0.99)


def test_recovery_is_exact_with_support_and_impossible_without():
    assert expressivity.recovery_gap(77) < 1e-12
    assert expressivity.recovery_gap(77, leak=0.0) > 0.5
    # By hand, the logits that do it: pi* = (.1, .9), pi_i = (.8, .2), l = log(pi* / pi_i) gives (.1, .9) back.
    star, expert = np.array([0.1, 0.9]), np.array([0.8, 0.2])
    assert expressivity.fuse(np.log(star / expert), np.log(expert)) == pytest.approx(star)


def test_no_expert_by_hand():
    # One token, two of them, Q = (1, 0), uniform: logits up to B give e^B / (e^B + e^-B) to the better one.
    m = mdp.MDP([np.array([[1.0, 0.0]])], mdp.token_transitions(2, 1))
    value = expressivity.best_bounded(m, expressivity.uniform_expert(m), 1.5)[0][0]
    assert value == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_experts_are_worth_having_from_a_coverage_on_by_hand():
    # losses with experts 1, 3, 5 at 100%, 50%, 0%: a loss of 2 without any is met half way between 100% and 50%.
    covers, losses = [1.0, 0.5, 0.0], [1.0, 3.0, 5.0]
    assert [expressivity.worth(covers, losses, x) for x in (2.0, 3.0, 6.0, 0.5)] == [0.75, 0.5, 0.0, 1.0]


def test_size_of_4g_bounds_the_loss_and_half_of_it_does_not():
    B = expressivity.needed_bound(0.02 / 3, 0.01)
    enough, half = np.array([expressivity.gaps(s, 0.0, [B, B / 2])[1:] for s in range(100, 105)]).T
    assert enough.max() <= 0.01 * 6 * 7 / 2 < half.max()


def test_a_router_of_the_wrong_sign_is_worse_than_none():
    m, experts, V, Q = expressivity.instance(5, 0.8)
    harm = V[0][0] - mdp.J(m, expressivity.wrong_sign(m, experts, Q, 2.0))
    assert (
        harm
        > V[0][0] - mdp.J(m, coverage.rule_of_eq5(experts, Q))
        > V[0][0] - coverage.best_routing(m, experts)[0][0] - 1e-12
    )


# --- 5. Eq. (6) -----------------------------------------------------------------------------------------------------


def test_total_variation_is_half_of_l1():
    # (.5, .5, 0) against (.2, .3, .5): L1 = .3 + .2 + .5 = 1, TV = .5 = the mass that must move.
    assert fusion_bound.tv(np.array([0.5, 0.5, 0]), np.array([0.2, 0.3, 0.5])) == pytest.approx(0.5)


def test_eq6_tight_by_hand():
    # T = 2, Delta = .1: a pays .1, then 1. V* = 1.1. pi' writes a with .9: last token .9; first .9 (.1 + .9) = .9. Gap
    # .2 = 2 * 1 * .1.
    m, pi, star = fusion_bound.tight_example(2, 0.1)
    assert mdp.J_star(m) == pytest.approx(1.1) and mdp.J(m, pi) == pytest.approx(0.9)
    assert fusion_bound.largest_q(m, pi) == pytest.approx(1.0)
    assert fusion_bound.average_tv(m, pi, star, mdp.occupancy(m, star)) == pytest.approx(0.1)


def test_eq6_tight_example_needs_the_end_of_all_payment_by_hand():
    # T = 2, Delta = .1, payment goes on: pi' earns .9 * .1 + .9 = .99 of 1.1, Qmax = .1 + .9 = 1: gap .11, bound .2.
    m, pi, star = fusion_bound.tight_example(2, 0.1, ends=False)
    assert mdp.J_star(m) - mdp.J(m, pi) == pytest.approx(0.11)
    assert fusion_bound.largest_q(m, pi) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(8))
def test_eq6_bound_holds(seed):
    rng = np.random.default_rng(seed + 300)
    m = mdp.random_mdp(rng, A=3, T=4)
    gap, bound = fusion_bound.bound_ratio(m, fusion_bound.fused_candidates(rng, m, 2, 6.0))
    assert 0 <= gap <= bound


def test_eq6_needs_the_prefixes_of_pi_star():
    # pi' errs at one prefix of pi*, of 16 with that length: TV averaged over all of them is 1/16 of what pi* sees, and
    # the gap is all.
    m, pi, star = fusion_bound.rare_prefix_example(6, 4)
    assert mdp.J_star(m) == 1 and mdp.J(m, pi) == 0
    uniform = [np.full(len(r), 1 / len(r)) for r in m.r]
    assert 6 * fusion_bound.average_tv(m, pi, star, uniform) == pytest.approx(1 / 16)
    assert 6 * fusion_bound.average_tv(m, pi, star, mdp.occupancy(m, star)) == pytest.approx(1)


# --- 6. Collab ------------------------------------------------------------------------------------------------------


def test_collab_thirds_by_hand():
    # H = 3, right experts 0, 1, 1. Own values at the start: 1 and 2; Q* = 3; mismatch 1 = H/3. The rule starts with
    # expert 1 (2 > 1), earns 0 + 1 + 1: regret 1. Judged by the best continuation, expert 0 is worth 3 and is picked:
    # regret 0.
    assert collab.mismatch_and_regret([0, 1, 1], 2) == (1, 1)
    assert collab.mismatch_and_regret([0, 1, 1], 2, values=collab.best_continuation_values) == (0, 0)


def test_collab_large_mismatch_zero_regret_by_hand():
    # H = 4, experts 0, 1, 0, 1, and a wrong token ends all. Own value of the right expert: 1 (it errs at the next
    # token); of the wrong: 0. So the right one is always picked: regret 0, mismatch 4 - 1 = 3.
    assert collab.mismatch_and_regret([0, 1, 0, 1], 2, ends=True) == (3, 0)


@pytest.mark.parametrize("n,H", [(2, 6), (3, 3), (3, 6)])
def test_collab_worst_schedule(n, H):
    worst = max(collab.mismatch_and_regret(s, n)[0] for s in itertools.product(range(n), repeat=H))
    assert worst == pytest.approx((1 - 1 / n) * H)
    with pytest.raises(ValueError, match="multiple of 3"):
        collab.thirds(4)


# --- 7. learning ----------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    # Two responses over 2 tokens, T = 2: (1, 0) and (1, 1). At the start token 1 twice; in state 1 each token once.
    m = mdp.random_mdp(np.random.default_rng(0), A=2, T=2)
    c = learning.counts(np.array([[0, 1], [0, 1]]), np.array([[1, 0], [1, 1]]), m)
    assert c[0].tolist() == [[0, 2]] and c[1].tolist() == [[0, 0], [1, 1]]


def test_samples_follow_the_policy():
    # 40000 draws; a frequency is off by more than 5 standard deviations (.0125) with probability below 1e-5 for all 8
    # together.
    m, _, star, d = learning.setting(0)
    states, tokens = learning.sample(np.random.default_rng(1), m, star, 40000)
    freq = np.bincount(tokens[:, 0], minlength=4) / 40000
    assert freq == pytest.approx(star[0][0], abs=0.0125)
    assert np.bincount(states[:, 5], minlength=4) / 40000 == pytest.approx(d[5], abs=0.0125)


def test_fit_is_what_gradient_descent_on_the_logits_finds():
    # Through the fusion: minimise -sum c log p + KL(pi_i || p), p = softmax(log pi_i + l), by descent on l from 0.
    c, expert = np.array([3.0, 1.0, 0.0]), np.array([0.1, 0.2, 0.7])
    l = np.zeros(3)
    for _ in range(4000):
        p = expressivity.fuse(l, np.log(expert))
        l -= 0.05 * ((c.sum() + 1) * p - c - expert)
    by_hand = (c + expert) / 5  # (3.1, 1.2, .7) / 5
    assert p == pytest.approx(by_hand, abs=1e-9)
    assert learning.fit([c[None]], [expert[None]])[0][0] == pytest.approx(by_hand)


def test_fit_routing_is_the_minimum_of_L_expert_over_a_grid_of_weights():
    rng = np.random.default_rng(2)
    experts = [rng.dirichlet(np.ones(3), size=(2, 40))]  # (2, 40, 3)
    c = [rng.integers(0, 5, size=(40, 3)).astype(float)]
    chosen = learning.fit_routing(c, experts)[0]  # (40,)
    w = np.linspace(0, 1, 21)  # the weight of expert 1
    losses = -np.einsum("sa,nsa->ns", c[0], np.log(experts[0]))  # (2, 40) of each expert alone
    grid = (1 - w)[:, None] * losses[0] + w[:, None] * losses[1]  # (21, 40) L_expert is linear in w
    informative = experts[0][0].argmax(1) != experts[0][1].argmax(1)  # (40,)
    assert informative.any() and not informative.all()
    assert (w[grid.argmin(0)] == chosen)[informative].all() and (chosen[~informative] == 0).all()


def test_separate_training_counts_the_expert_twice_by_hand():
    # pi* = (.6, .4), pi_i = (.9, .1): a perfect router times the expert is (.54, .04) / .58 = (.931, .069), not (.6,
    # .4).
    star, expert = np.array([0.6, 0.4]), np.array([0.9, 0.1])
    assert expressivity.fuse(np.log(star), np.log(expert)) == pytest.approx([0.54 / 0.58, 0.04 / 0.58])
    needed = np.log(star / expert)  # what the fusion needs instead
    assert expressivity.fuse(needed, np.log(expert)) == pytest.approx(star)


def test_learning_curves_end_where_they_should():
    m, experts, star, d = learning.setting(50)
    plateau, twice, _ = learning.limits(50)
    c = learning.counts(*learning.sample(np.random.default_rng(0), m, star, 20000), m)
    ends = {way: learning.kl(star, pi, d) for way, pi in learning.three_ways(c, experts).items()}
    assert ends["routing"] >= plateau - 1e-12 and ends["routing"] == pytest.approx(plateau, rel=0.01)
    assert ends["alone"] == pytest.approx(twice, rel=0.05) and twice > 1
    assert ends["through"] < 0.02


def test_no_expert_mass_no_convergence():
    assert learning.missed_mass(50, 20000, 0.02) < 0.02 < 0.1 < learning.missed_mass(50, 20000, 0.0)


def test_cdpo_gradient_against_finite_differences():
    rng = np.random.default_rng(0)
    star, expert, ref = rng.dirichlet(np.ones(5), size=3)
    theta, pairs = rng.normal(size=5), cdpo.population(star, expert)
    logs = (np.log(ref), np.log(expert), pairs, 0.7)
    numeric = [(cdpo.loss(theta + h, *logs) - cdpo.loss(theta - h, *logs)) / 2e-6 for h in 1e-6 * np.eye(5)]
    assert cdpo.gradient(theta, *logs) == pytest.approx(numeric, abs=1e-8)


def test_cdpo_loss_by_hand():
    # One pair (w, l) = (0, 1), pi_theta = pi_ref, pi_i = (.8, .2), beta = .5: bias .5 log 4 = log 2, loss log(1 + 1/2)
    # = .405; a weak expert, (.2, .8), gives log(1 + 2) = 1.099. The gradient is beta * sigmoid(-m): .5 / 3 against .5 *
    # 2 / 3.
    pairs, zero = np.array([[0.0, 1.0], [0.0, 0.0]]), np.zeros(2)
    for expert, value, pull in (((0.8, 0.2), 1.5, 1 / 6), ((0.2, 0.8), 3.0, 1 / 3)):
        assert cdpo.loss(zero, zero, np.log(expert), pairs, 0.5) == pytest.approx(np.log(value))
        assert cdpo.gradient(zero, zero, np.log(expert), pairs, 0.5) == pytest.approx([-pull, pull])


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_cdpo_optimum_found_without_the_formula(beta):
    _, star, expert, ref = cdpo.setting(9, prompts=8)
    assert cdpo.by_newton(ref, star, expert, beta) == pytest.approx(cdpo.optimum(ref, star, expert, beta), abs=1e-8)
    plain = cdpo.optimum(ref, star, expert, beta, bias=False)
    moved = abs(plain - cdpo.optimum(ref, star, expert, beta)).max()
    assert moved > {0.3: 0.001, 1.0: 0.1}[beta]  # what the bias term does; less, the smaller beta


def test_cdpo_overshoots_by_hand():
    # pi* = (.6, .4), pi_i = (.9, .1): pi* / pi_i = (2/3, 4), odds 6 for token 1; to the 10th power 6^10 = 60466176,
    # though pi* prefers token 0.
    p = cdpo.optimum(np.array([0.5, 0.5]), np.array([0.6, 0.4]), np.array([0.9, 0.1]), 0.1)
    assert p[1] / p[0] == pytest.approx(6**10)


def test_cdpo_u_curve_and_no_u_without_an_error_to_correct():
    Q, star, expert, ref = cdpo.setting(21)
    kl = cdpo.descend(Q, star, expert, ref, cdpo.population(star, expert), 0.1, [0, 35, 70, 2000])[:, 0]
    assert kl[2] < kl[1] < kl[0] < kl[3]
    kl = cdpo.descend(Q, star, star, ref, cdpo.population(star, star), 0.1, [0, 35, 70, 2000])[:, 0]
    assert (np.diff(kl) <= 1e-12).all()


def test_sequences_fused_token_by_token_are_not_the_product():
    assert cdpo.sequence_example(independent=True) < 1e-9 < 1e-3 < cdpo.sequence_example(independent=False)


def test_descend_takes_several_settings_at_once():
    one, other = cdpo.setting(1, prompts=4), cdpo.setting(2, prompts=4)
    pairs = [cdpo.population(x[1], x[2]) for x in (one, other)]
    together = cdpo.descend(*map(np.stack, zip(one, other)), np.stack(pairs), 0.1, [0, 5, 20])
    apart = [cdpo.descend(*x, p, 0.1, [0, 5, 20]) for x, p in zip((one, other), pairs)]
    assert together == pytest.approx(np.array(apart), abs=1e-12)


def test_right_but_flat_experts_are_flat_and_right():
    _, experts, star, _ = learning.setting(3, flat=0.25)
    for e, s in zip(experts, star):
        assert (e.argmax(2) == s.argmax(1)).all() and (e.max(2) < s.max(1)).all()
    assert all(np.allclose(e, s) for e, s in zip(learning.setting(3, flat=1.0)[1], star))


# --- 8. beyond the paper --------------------------------------------------------------------------------------------


def test_slip_by_hand():
    # sigma = .2, 2 tokens: the token meant is written with .9, the other with .1; so is the reward averaged.
    m = mdp.MDP([np.array([[1.0, 0.0]]), np.zeros((2, 2))], mdp.token_transitions(2, 2))
    s = beyond.slip(m, 0.2)
    assert s.r[0] == pytest.approx(np.array([[0.9, 0.1]]))
    assert s.P[0][0] == pytest.approx(np.array([[0.9, 0.1], [0.1, 0.9]]))
    longer = beyond.slip(hidden_path.build(2, 4, (0, 1)), 0.2)
    assert all(P.sum(2) == pytest.approx(np.ones(P.shape[:2])) for P in longer.P)


def test_coverage_on_average_over_the_routed_policy_is_exact_and_over_pi_star_is_not():
    m, experts, V, Q = beyond.noisy(123)
    pi = coverage.rule_of_eq5(experts, Q)
    gap = V[0][0] - mdp.J(m, pi)
    assert gap == pytest.approx(coverage.on_policy_loss(m, experts, V, Q, pi), abs=1e-12)
    gap, average, C = beyond.price_of_leaving(2, 0.1, 0.0)
    assert (gap, average) == pytest.approx((1.1, 0.2)) and C == np.inf  # the example worked by hand under Eq. (5)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_average_coverage_costs_at_most_C(sigma):
    gap, average, C = beyond.price_of_leaving(6, 0.1, sigma)
    assert gap <= C * average + 1e-12
    if sigma < 1:
        assert gap > average  # without the factor the statement fails


def test_noise_gives_the_secret_away():
    seen, rule, best = beyond.hidden_path_with_slips(2, 4, 0.0)
    assert seen == 0 and rule - best > 1  # the rule cannot know p
    seen, rule, best = beyond.hidden_path_with_slips(2, 4, 0.05)
    assert seen > 1e-4 and rule == pytest.approx(best, abs=1e-12)
