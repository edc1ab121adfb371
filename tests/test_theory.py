"""theory/: every statement is a test, and each has a counter-test that drops an assumption and sees the conclusion
fail."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from theory import __main__ as command
from theory import beyond, cdpo, collab, coverage, expressivity, fusion_bound, hidden_path, hidden_path_beyond, learning
from theory import lemma, mdp, readme, report

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def rows():
    """All statements, computed once."""
    return command.compute()


@pytest.fixture(scope="module")
def stored():
    """All statements as results/theory.json has them."""
    return json.loads((ROOT / "results" / "theory.json").read_text())


# --- the table, the JSON, the README, the command -------------------------------------------------------------------


def test_every_statement_holds_and_every_counter_test_bites(rows):
    assert [r["item"] for r in rows if not r["holds"]] == []
    assert [r["item"] for r in rows if not r["counter_test"]["conclusion_fails"]] == []
    assert {r["item"][0] for r in rows} == set("12345678")


def same(a, b, where=""):
    """Equal, numbers within 1e-9 (relative when large)."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            same(a[k], b[k], f"{where}/{k}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{where}/{k}")
    elif isinstance(a, float) or isinstance(b, float):
        assert a == pytest.approx(b, abs=1e-9, rel=1e-9), where
    else:
        assert a == b, where


def test_json_is_what_the_code_computes(rows, stored):
    same(json.loads(report.to_json(rows)), stored)


def test_json_has_the_promised_keys(stored):
    for r in stored:
        assert {"statement", "expected", "measured", "holds", "counter_test"} <= r.keys()


def test_readme_numbers_are_those_of_the_json(stored):
    text = (ROOT / "theory" / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- begin:") >= 10  # the check below must have something to check
    assert readme.fill(text, stored) == text
    assert not re.search(r"^\s*<!--=", text, re.M)  # a comment at the start of a line would end the paragraph


def test_readme_filling_notices_a_change_and_a_wrong_name(stored):
    text = "x <!--=1c/measured-->9<!--/--> y"
    assert readme.fill(text, stored) == "x <!--=1c/measured-->1.25<!--/--> y"  # the two-step example
    with pytest.raises(ValueError, match="not there"):
        readme.fill("<!--=1c/numbers/nothing-->9<!--/-->", stored)
    with pytest.raises(ValueError, match="not made"):
        readme.fill("<!-- begin: nothing -->\n<!-- end: nothing -->", stored)


def test_readme_mentions_every_figure_and_every_figure_exists():
    text = (ROOT / "theory" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"figures/(\w+\.png)", text))
    there = {p.name for p in (ROOT / "theory" / "figures").glob("*.png")}
    assert named == there and len(there) >= 6
    assert max(p.stat().st_size for p in (ROOT / "theory" / "figures").glob("*.png")) < 200_000


@pytest.mark.parametrize("arguments", [["--wrong"], ["--no-figures", "extra"]])
def test_wrong_usage_is_one_line_and_status_2(arguments):
    done = subprocess.run([sys.executable, "-m", "theory", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and arguments[-1] in done.stderr
    assert done.stdout == ""


def test_readme_without_json_is_one_line_and_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--readme"], root=tmp_path)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_matplotlib_table_and_json_are_still_made(tmp_path, capsys, monkeypatch, rows):
    monkeypatch.setattr(command, "compute", lambda: rows)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what Python puts there to forbid an import
    monkeypatch.delitem(sys.modules, "theory.figures", raising=False)
    monkeypatch.delattr("theory.figures", raising=False)
    assert command.main([], root=tmp_path) == 0
    out = capsys.readouterr().out
    assert "figures skipped" in out and "pip install matplotlib" in out and "Lemma 4.1" in out
    assert len(json.loads((tmp_path / "results" / "theory.json").read_text())) == len(rows)


def test_figures_are_drawn_whole(tmp_path, stored):
    pytest.importorskip("matplotlib")
    from theory import figures

    paths = figures.draw_all(stored, tmp_path)
    assert {p.name for p in paths} == {p.name for p in (ROOT / "theory" / "figures").glob("*.png")}
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in paths)
    assert list(tmp_path.glob("*.tmp")) == []


def test_status_1_when_a_statement_fails(tmp_path, monkeypatch, rows):
    broken = [dict(rows[0], holds=False)] + rows[1:]
    monkeypatch.setattr(command, "compute", lambda: broken)
    assert command.main(["--no-figures"], root=tmp_path) == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    report.write_whole(target, "old")
    with monkeypatch.context() as m:
        m.setattr(report.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError):
            report.write_whole(target, "new and longer")
    assert target.read_text() == "old"


def test_compare_is_not_generous():
    assert report.compare(1.0, "==", 1.0 + 1e-10) and not report.compare(1.0, "==", 1.0 + 1e-8)
    assert not report.compare(1e-10, "<=", 1e-12)  # TOLERANCE must not swallow a tight limit
    assert report.compare(0.5, ">=", 0.5) and not report.compare(0.4, ">=", 0.5)
    with pytest.raises(ValueError):
        report.compare(1, "<", 2)


# --- 1. the MDP and Lemma 4.1 ---------------------------------------------------------------------------------------


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


# --- 2. Assumption 4.2 and Eq. (5) ----------------------------------------------------------------------------------


def test_eq5_tight_by_hand():
    # Two tokens of 1 - 0.1 each instead of 1 each: the loss is 0.2 = T * Delta.
    m, experts = coverage.tight_example(2, 0.1)
    V, Q = mdp.optimal(m)
    assert max(x.max() for x in coverage.coverage_loss(experts, V, Q)) == pytest.approx(0.1)
    assert mdp.J_star(m) - mdp.J(m, coverage.rule_of_eq5(experts, Q)) == pytest.approx(0.2)


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


# --- 3. the hidden path ---------------------------------------------------------------------------------------------


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
    assert expressivity.recovery_error(77) < 1e-12
    assert expressivity.recovery_error(77, leak=0.0) > 0.5


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
    by_token, at_once = cdpo.sequence_example()
    assert at_once < 1e-12 < 1e-3 < by_token


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


# --- what the README says in words ----------------------------------------------------------------------------------


def test_the_words_of_the_readme_agree_with_the_numbers(stored):
    n = {r["item"]: r["numbers"] for r in stored}
    assert n["2c"]["bound"]["mean"][1] > 6 > n["2c"]["gap_rule"]["mean"][1]  # "larger than T": it says nothing
    assert (
        n["4e"]["sparse"]["mean"][-1] < n["4e"]["sparse"]["mean"][0]
    )  # with one reward at the end the gap does not grow
    kl = {way: np.array(b["mean"]) for way, b in n["7d"]["kl"].items()}
    assert (kl["no_expert"] < np.minimum(kl["through"], kl["alone"])).all()  # "has the lowest KL of all"
    good = n["7d"]["good_experts_greedy"]  # "not distinguishable": within one standard error
    assert abs(good["through"]["mean"] - good["no_expert"]["mean"]) < good["through"]["sd"] / 20**0.5
    u = {k: b["mean"] for k, b in n["7f"]["kl"].items()}
    assert n["7f"]["marks"][9] == 100
    assert 50 <= n["7f"]["marks"][int(np.argmin(u["exact, beta 0.1"]))] <= 100
    assert min(u["exact, beta 0.1"]) < min(u["16 pairs a prompt"]) < min(u["4 pairs a prompt"])  # "shallower"
    assert n["8f"]["seen"][1] > 0 == n["8f"]["seen"][0]  # a slip of 0.01 is enough to see p
