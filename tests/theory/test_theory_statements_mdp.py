"""theory/, sections 1 to 3: the MDP and Lemma 4.1, coverage, the hidden path. The rest is in test_theory_statements.py."""

import itertools

import numpy as np
import pytest

from theory.statements import coverage, expressivity, hidden_path, hidden_path_beyond, lemma, mdp


# --- 1. the MDP and Lemma 4.1 ------------------------------------------------------------------------------------------------------------


def test_dp_finds_the_best_of_all_policies():
    # 2 tokens, 3 steps: 1 + 2 + 4 = 7 prefixes, 2^7 deterministic policies. DP must equal the best of them.
    m = mdp.random_mdp(np.random.default_rng(0), A=2, T=3)
    every = [
        [np.eye(2)[list(c)] for c in (bits[:1], bits[1:3], bits[3:])] for bits in itertools.product((0, 1), repeat=7)
    ]
    assert mdp.J_star(m) == pytest.approx(max(mdp.J(m, pi) for pi in every), abs=1e-12)


@pytest.mark.parametrize("window,stochastic", [(None, False), (1, False), (2, True)])
def test_occupancies_sum_to_one_and_price_the_return(window, stochastic):
    rng = np.random.default_rng(1)
    m = mdp.random_mdp(rng, A=3, T=4, window=window, stochastic=stochastic)
    pi = mdp.random_policy(rng, m)
    d = mdp.occupancy(m, pi)
    assert [x.sum() for x in d] == pytest.approx([1] * 4, abs=1e-12)
    assert sum((w[:, None] * p * r).sum() for w, p, r in zip(d, pi, m.r)) == pytest.approx(mdp.J(m, pi), abs=1e-12)


def test_occupancy_starts_in_state_0_even_when_the_first_layer_has_more():
    m, experts = coverage.off_path_example(3, 0.1)
    assert mdp.occupancy(m, [e[0] for e in experts])[0].tolist() == [1, 0]


def test_window_keeps_the_last_tokens():
    # A = 2, window 2: after 0 then 1 the state is "01" = 1; writing 1 gives "11" = 3, writing 0 gives "10" = 2.
    P = mdp.token_transitions(2, 4, window=2)
    assert P[2][1].tolist() == [2, 3]
    assert [p.shape for p in P] == [(1, 2), (2, 2), (4, 2), (4, 2)] and P[3].max() == 0


def test_lemma_two_step_example_by_hand():
    # V* = 1 + 1 = 2; pi writes b (3/4), then b again (0): it loses 2 - 3/4 = 5/4.
    # states of pi, Q*: (2 - 7/4) + (1 - 0) = 5/4.  states of pi*, Q^pi: (2 - 3/4) + (1 - 1) = 5/4.
    # states of pi*, Q*: (2 - 7/4) + (1 - 1) = 1/4: wrong.
    m, pi = lemma.two_step_example()
    assert mdp.J_star(m) - mdp.J(m, pi) == 1.25
    assert lemma.states_pi_values_star(m, pi) == 1.25
    assert lemma.states_star_values_pi(m, pi) == 1.25
    assert lemma.states_star_values_star(m, pi) == 0.25


@pytest.mark.parametrize("stochastic", [False, True])
def test_lemma_both_exact_forms_and_the_wrong_one(stochastic):
    e = lemma.errors(range(1000, 1030), stochastic)
    assert e[:, :2].max() < 1e-12
    assert e[:, 2].min() > 1e-6  # the mixed pairing fails on every instance


# --- 2. Assumption 4.2 and Eq. (5) -------------------------------------------------------------------------------------------------------


def test_eq5_tight_by_hand():
    # Two tokens of 1 - 0.1 each instead of 1 each: the loss is 0.2 = T * Delta.
    m, experts = coverage.tight_example(2, 0.1)
    V, Q = mdp.optimal(m)
    assert max(x.max() for x in coverage.coverage_loss(experts, V, Q)) == pytest.approx(0.1)
    assert mdp.J_star(m) - mdp.J(m, coverage.rule_of_eq5(experts, Q)) == pytest.approx(0.2)
    m, experts = coverage.tight_example(2, 0.1, right_at=[1])  # now only the first token loses
    assert mdp.J_star(m) - mdp.J(m, coverage.rule_of_eq5(experts, mdp.optimal(m)[1])) == pytest.approx(0.1)


def test_eq5_needs_every_prefix_by_hand():
    # T = 2, Delta = 0.1. pi* writes aa: 2. The expert writes b (0.9), then c (0): it loses 1.1. On pi*'s own prefixes
    # ("" and "a") it loses 0.1 each, so a bound from those alone would be 0.2.
    m, experts = coverage.off_path_example(2, 0.1)
    V, Q = mdp.optimal(m)
    loss = coverage.coverage_loss(experts, V, Q)
    assert [x[0] for x in loss] == pytest.approx([0.1, 0.1])
    assert mdp.J_star(m) - mdp.J(m, coverage.rule_of_eq5(experts, Q)) == pytest.approx(1.1)
    assert max(x.max() for x in loss) == 1.0  # off the path the assumption is violated


@pytest.mark.parametrize("seed", range(5))
def test_eq5_bound_and_where_the_loss_comes_from(seed):
    m, experts, V, Q = expressivity.instance(seed + 500, cover=0.5)
    pi = coverage.rule_of_eq5(experts, Q)
    gap = mdp.J_star(m) - mdp.J(m, pi)
    losses = coverage.coverage_loss(experts, V, Q)
    assert min(x.min() for x in losses) >= -1e-12  # Delta >= 0
    assert gap <= 6 * max(x.max() for x in losses) + 1e-12
    assert gap == pytest.approx(coverage.on_policy_loss(m, experts, V, Q, pi), abs=1e-12)  # Lemma 4.1
    assert coverage.best_routing(m, experts)[0][0] >= mdp.J(m, pi) - 1e-12


def test_experts_cover_what_they_should():
    for cover in (0.0, 1.0):
        m, experts, _, Q = expressivity.instance(3, cover)
        hits = [(e.argmax(2) == q.argmax(1)).any(0) for e, q in zip(experts, Q)]
        assert all(h.all() if cover else not h.any() for h in hits)
        assert all(np.allclose(e.sum(2), 1) for e in experts)


# --- 3. the hidden path ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n,T", [(1, 4), (2, 2), (2, 6), (3, 4), (4, 4)])
def test_hidden_path_returns_agree_with_the_rules_read_one_by_one(n, T):
    for p in list(itertools.product(range(n), repeat=T // 2))[:: max(1, n // 2)]:
        m = hidden_path.build(n, T, p)
        slow = [hidden_path.path_return(y, p, T) for y in itertools.product(range(n), repeat=T)]
        assert hidden_path.returns_of_all_paths(m, n) == pytest.approx(slow, abs=1e-12)
        assert mdp.J_star(m) == pytest.approx(T, abs=1e-12)


def test_hidden_path_smallest_case_by_hand():
    # n = 2, T = 2, eps = .05, Delta = .1, p = (0,). Path 0x: .95 + 1 = 1.95. Path 1x: .95 + .9 = 1.85. Outside: 1 + 1 =
    # 2. A fair coin loses .05 + .1 / 2 = .1; formula: (1 - 1/2)(1 - 1 + .1) + .05 = .1. The paper's T/2 - 2 is -1 here:
    # says nothing.
    m = hidden_path.build(2, 2, (0,))
    assert hidden_path.returns_of_all_paths(m, 2).tolist() == pytest.approx([1.95, 1.95, 1.85, 1.85])
    assert hidden_path.formula(2, 2) == pytest.approx(0.1)


@pytest.mark.parametrize("T", [0, 1, 3, 5])
def test_hidden_path_refuses_odd_lengths(T):
    with pytest.raises(ValueError, match="even"):
        hidden_path.build(2, T, (0,))


@pytest.mark.parametrize("n,T", [(2, 2), (3, 2), (5, 2), (2, 4)])
def test_every_deterministic_router_is_one_of_the_paths(n, T):
    # All n^(1 + n + ...) routers, e.g. 2^15 for (2, 4): they write exactly the n^T paths, so a matrix over paths misses
    # none.
    written = hidden_path.all_routers(n, T)
    assert len(written) == n ** sum(n**t for t in range(T))
    assert len(np.unique(written, axis=0)) == n**T


def test_every_deterministic_router_writes_the_path_its_table_says():
    # A router's table lists its choices by prefix, shorter first, then in order: "", 0, 1, 00, 01, 10, 11, ... Look
    # each prefix up.
    prefixes = [y for t in range(4) for y in itertools.product((0, 1), repeat=t)]
    written = hidden_path.all_routers(2, 4)
    for k in range(0, 2**15, 331):
        table, y = [int(b) for b in f"{k:015b}"], ()
        for _ in range(4):
            y += (table[prefixes.index(y)],)
        assert tuple(written[k]) == y


@pytest.mark.parametrize("n", [2, 3])
def test_every_deterministic_router_earns_what_its_path_earns(n):
    # T = 2: a router is (choice at the start, choice after each expert's token), n^(1 + n) of them, in the order of
    # all_routers. Each is run as a policy in the MDP, by DP.
    p = (1,)
    m = hidden_path.build(n, 2, p)
    experts = hidden_path.experts_of(m, n)
    tables = itertools.product(range(n), repeat=1 + n)
    earned = [mdp.J(m, coverage.follow(experts, [np.array(c[:1]), np.array(c[1:] + (0,))])) for c in tables]
    assert earned == pytest.approx([hidden_path.path_return(y, p, 2) for y in hidden_path.all_routers(n, 2)], abs=1e-12)


@pytest.mark.parametrize("n,T", [(1, 6), (2, 2), (2, 4), (2, 6), (2, 8), (3, 4), (5, 2)])
def test_minimax_certificate_equals_the_formula(n, T):
    gap = hidden_path.game_matrix(n, T, eps=0.03, Delta=0.2)
    assert hidden_path.minimax(gap) == pytest.approx([hidden_path.formula(n, T, eps=0.03, Delta=0.2)] * 2, abs=1e-12)


def test_minimax_by_an_independent_solver():
    # Multiplicative weights on the 16 x 4 game of (2, 4): the averages of the two players bracket the value and close
    # in on it.
    gap = hidden_path.game_matrix(2, 4)  # (16, 4)
    router, p, rows_played, p_played = np.zeros(16), np.zeros(4), np.zeros(16), np.zeros(4)
    p[0] = 3.0  # an unfair start, so that the answer is found and not assumed
    for _ in range(4000):
        x, y = mdp.softmax(-0.02 * router), mdp.softmax(0.02 * p)
        rows_played, p_played = rows_played + x / 4000, p_played + y / 4000
        router, p = router + gap @ y, p + x @ gap
    low, high = (gap @ p_played).min(), (rows_played @ gap).max()
    assert low - 1e-9 <= hidden_path.formula(2, 4) <= high + 1e-9 and high - low < 0.06


def test_observations_reveal_nothing_before_half_and_everything_after():
    assert hidden_path.observations(2, 4) == pytest.approx([0, 0, 0.1, 1], abs=1e-12)  # 0.1 = Delta, one token late
    assert hidden_path.observations(3, 4)[:2].max() == 0


def test_good_prefixes_are_covered_only_when_delta_is_positive():
    assert hidden_path.good_prefix_losses(2, 6, (1, 0, 1)) == pytest.approx((0.1, 1.0))
    # With Delta = 0 the prefix just after the wrong turn is still "good", and every expert loses 1 there: the property
    # fails.
    assert hidden_path.good_prefix_losses(2, 6, (1, 0, 1), Delta=0.0)[0] == pytest.approx(1.0)


def test_n_1_contradicts_the_bound_as_printed():
    # n = 1, T = 8: the only path is p. It loses eps = .05, less than T/2 - 2 = 2.
    assert hidden_path.minimax(hidden_path.game_matrix(1, 8)) == pytest.approx((0.05, 0.05))


@pytest.mark.parametrize("leak", [0.0, 0.03, 0.3])
def test_leak_closed_form_against_dp(leak):
    m = hidden_path.build(3, 6, (2, 0, 1))
    gap = 6 - mdp.J(m, hidden_path_beyond.uniform_router(m, 3, leak))
    assert gap == pytest.approx(hidden_path.formula(3, 6, leave=leak), abs=1e-12)


def test_leak_between_experts_rescues_nobody():
    m = hidden_path.build(2, 8, (0, 1, 1, 0))
    assert 8 - mdp.J(m, hidden_path_beyond.uniform_router(m, 2, 0.3, "inside")) == pytest.approx(
        hidden_path.formula(2, 8)
    )


def test_leaky_minimax_certificate():
    # With leaks the routers are the 16 sequences of picks; evaluate each by DP against each p, then the same
    # certificate as before.
    secrets = list(itertools.product(range(2), repeat=2))
    gap = np.zeros((16, 4))
    for j, p in enumerate(secrets):
        m = hidden_path.build(2, 4, p)
        experts = hidden_path.experts_of(m, 2, 0.1)
        for i, picks in enumerate(itertools.product(range(2), repeat=4)):
            gap[i, j] = 4 - mdp.J(m, [e[k] for e, k in zip(experts, picks)])
    assert hidden_path.minimax(gap) == pytest.approx([hidden_path.formula(2, 4, leave=0.1)] * 2, abs=1e-12)


def test_retries_by_hand_and_by_enumeration():
    # 4 paths. Guessing 0, 1, 2 finds p in 3 cases of 4; guessing 0, 0, 1 in 2 of 4.
    assert hidden_path_beyond.success_after(4, (0, 1, 2)) == 0.75
    assert hidden_path_beyond.success_after(4, (0, 0, 1)) == 0.5
    assert [hidden_path_beyond.best_success_by_enumeration(4, K) for K in (1, 2, 4)] == [0.25, 0.5, 1.0]


def test_logits_need_something_to_add_to():
    m = hidden_path.build(2, 8, (0, 0, 0, 0))
    for B in (0.0, 3.0, 30.0):
        assert hidden_path_beyond.gap_with_logits(m, 0.0, B) == pytest.approx(hidden_path.formula(2, 8), abs=1e-12)
    # leak .01, B = 5: the outside token gets .01 / (.01 + .99 e^-10) = .9955
    assert hidden_path_beyond.gap_with_logits(m, 0.01, 5.0) == pytest.approx(
        hidden_path.formula(2, 8, leave=0.99552573), abs=1e-6
    )
    assert hidden_path_beyond.gap_with_logits(m, 0.01, 5.0) < 0.001
