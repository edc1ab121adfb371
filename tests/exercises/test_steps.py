"""The checkers: right functions pass, also unusual ones; each usual mistake is called by name."""

import doctest
import importlib
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from exercises import checks, slips, solutions
from exercises.slips import cdpo, loop, routed, routing, sequence, sft
from fusionroute import fuse

FUNCTIONS = {
    name: checker for _, functions in checks.STEPS.values() for name, checker in functions.items()
}


def cases(table):
    """(name, number) of each entry of a table name -> list."""
    return [(name, i) for name, entries in table.items() for i in range(len(entries))]


# --- right functions -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_our_function_passes(name):
    FUNCTIONS[name](getattr(solutions, name))


def one_by_one(w, logp, mask):
    rows = range(len(w))
    picks = w.argmax(-1)
    return torch.stack([sum(logp[b, t, picks[b, t]] for t in mask[b].nonzero()) for b in rows])[
        :, 0
    ]


# The first ones come from slips.py with no part replaced: so each slip is wrong by that part alone.
RIGHT = {
    "sft_loss": [sft()],
    "fused_greedy": [loop()],
    "best_routing": [routing()],
    "sequence_logp": [sequence()],
    "routed_logp": [
        routed(),
        one_by_one,
        routed(lambda w, logp: (F.one_hot(w.argmax(-1), 3) * logp).sum(-1)),
    ],
    "cdpo_loss": [
        cdpo(),
        lambda tw, tl, rw, rl, ew, el, beta: F.softplus(
            -beta * ((tw - rw) - (tl - rl) + (ew - el).detach())
        ).mean(),
    ],
    "fuse": [
        lambda r, e: r + e,
        lambda r, e: (r + e).log_softmax(-1),
        lambda r, e: (r.softmax(-1) * e.softmax(-1)).log(),
    ],
    "informative": [
        lambda c: (c[..., 1:] != c[..., :-1]).any(-1),
        lambda c: c.amax(-1) != c.amin(-1),
        lambda c: c.double().std(-1, correction=0) > 0,
    ],
    "log_pi_agg": [
        lambda w, logp: (w.softmax(-1)[..., None, :] @ logp[..., None])[..., 0, 0],
        lambda w, logp: torch.einsum("...n,...n->...", w.exp() / w.exp().sum(-1, True), logp),
    ],
}


@pytest.mark.parametrize("name, i", cases(RIGHT))
def test_another_right_function_passes(name, i):
    FUNCTIONS[name](RIGHT[name][i])


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "fused_greedy"])
def test_the_worked_example_holds_for_our_function(name):
    """The examples (>>>) in the exercise's docstring. (That of fused_greedy is a table.)"""
    file = next(file for file, functions in checks.STEPS.values() if name in functions)
    written = getattr(importlib.import_module(f"exercises.{file}"), name)
    names = {"torch": torch, "np": np, name: getattr(solutions, name)}
    test = doctest.DocTestParser().get_doctest(written.__doc__, names, name, None, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_our_best_routing_is_the_best_of_all_128():
    rewards, experts = checks.world(66, A=2, T=3, n=2)
    values = [
        checks.routing_value(rewards, experts, np.split(np.array(picks), [1, 3]))
        for picks in itertools.product(range(2), repeat=7)
    ]
    assert solutions.best_routing(rewards, experts)[0] == pytest.approx(max(values))


# --- wrong functions -----------------------------------------------------------------------------


def caught(name, function):
    with pytest.raises(checks.Wrong) as wrong:
        FUNCTIONS[name](function)
    return str(wrong.value)


@pytest.mark.parametrize("name, i", cases(slips.SLIPS))
def test_a_slip_is_called_by_its_name(name, i):
    message, slip = slips.SLIPS[name][i]
    assert caught(name, slip).removeprefix("probably: ") == message


def straight_through(w, logp):
    """The pick's value with the gradient of a mixture."""
    soft = w.softmax(-1)
    return ((F.one_hot(w.argmax(-1), 3) - soft.detach() + soft) * logp).sum(-1)


def greedy(change):
    """Our loop, and what it returns changed afterwards. change: tokens, picks, end, prompt."""

    def f(router, experts, prompt, end, max_new):
        tokens, picks = solutions.fused_greedy(router, experts, prompt, end, max_new)
        return change(tokens, picks, end, prompt)

    return f


def greedy_until(limit):
    return lambda router, experts, prompt, end, n: solutions.fused_greedy(
        router, experts, prompt, end, limit(n)
    )


def never_appends(router, experts, prompt, end, max_new):
    cache = router.lm.new_cache(1)
    while True:
        router(torch.tensor([prompt[int(cache.length) :]], dtype=torch.long), cache)


def shared_cache(router, experts, prompt, end, max_new):
    cache = router.lm.new_cache(1)
    for model in (router, *experts):
        model(torch.tensor([prompt]), cache)


def best(change):
    """Our best routing, and its value and picks changed afterwards."""
    return lambda rewards, experts: change(*solutions.best_routing(rewards, experts))


def changes_rewards(rewards, experts):
    rewards[0] += 1
    return solutions.best_routing(rewards, experts)


# What is noticed in another way than by a known slip's result: (function, part of the message).
OTHERS = {
    "fuse": [
        (lambda r, e: r.log_softmax(1) + e.log_softmax(1), "not for (V,)"),
        (lambda r, e: (r + e).argmax(-1), "no argmax"),
        (lambda r, e: r.add_(e), "changed in place"),
        (lambda r, e: None, "returns None"),
        (lambda r, e: 1.0, "must be a tensor, not float"),
        (lambda r, e: (r + e).abs() * float("inf"), "nan"),
        (lambda r, e: r.log() + e, "take no log of them"),
    ],
    "informative": [
        (lambda c: c != c[..., :1], "does any expert differ"),
        (lambda c: (c != c[:1]).any(0), "the last one, goes"),
        (lambda c: (c != c[..., :1]).any(-1).int(), "must be bool"),
        (lambda c: (c[..., 0] != c[..., 1]) | (c[..., 1] != c[..., 2]), "but not for one"),
    ],
    "log_pi_agg": [
        (lambda w, logp: (w.softmax(-1) * logp).sum(-1, keepdim=True), "the shape must be (3, 4)"),
        (lambda w, logp: 3 * slips.log_pi_agg(w, logp), "right is"),
    ],
    "sft_loss": [
        (sft(join=lambda lm, expert, lam: lm + lam**2 * expert), "with lambda = 0.25"),
        (sft(lm=lambda cost, mask, S: (cost * mask).sum(1) / mask.sum()), "for the whole batch"),
        (
            lambda logits, w, targets, mask, *others: sft()(
                logits, w, targets.masked_fill_(~mask, 0), mask, *others
            ),
            "changed in place",
        ),
    ],
    "sequence_logp": [(sequence(end=lambda logp, mask: (logp * mask).sum()), "keep the batch")],
    "routed_logp": [(routed(straight_through), "the pick is outside the stop-gradient")],
    "cdpo_loss": [
        (cdpo(join=lambda margin, bias: margin + bias), "the experts get a gradient"),
        (cdpo(end=lambda z: -F.logsigmoid(z)), "Return the mean"),
        (cdpo(end=lambda z: -F.logsigmoid(z.clamp(-100, 100)).mean()), "cut off"),
    ],
    "text_probability": [
        (lambda *args: 0.25, "right is"),
        (lambda *args: None, "must be a float, not NoneType"),
    ],
    "fused_greedy": [
        (loop(router_reads="all"), "the router reads the whole text again"),
        (loop(expert_reads="all"), "reads the whole text again"),
        (loop(expert_reads="into a fresh cache"), "gets a new cache"),
        (loop(router_reads="without a cache"), "the router reads without a cache"),
        (loop(everyone=True), "only the picked one may run"),
        (loop(fused=lambda r, e: torch.cat([0 * r - 99, fuse(r, e)])), "before the argmax"),
        (never_appends, "is the new token added to the text"),
        (shared_cache, "share a cache"),
        (greedy(lambda tokens, picks, end, prompt: (tokens + [end], picks)), "the end token is in"),
        (greedy(lambda tokens, picks, end, prompt: (tokens, picks[:-1])), "the pick for the end"),
        (greedy(lambda tokens, picks, end, prompt: (prompt + tokens, picks)), "the prompt is in"),
        (greedy(lambda tokens, picks, end, prompt: tokens), "return two lists"),
        (greedy(lambda tokens, picks, end, prompt: (tokens, prompt.clear())[:1]), "two lists"),
        (greedy(lambda tokens, picks, end, prompt: (tokens, picks[::-1])), "the picks must be"),
        (lambda r, e, prompt, *rest: loop()(r, e, prompt, *rest, *prompt.append(0) or ()), "copy"),
        (greedy_until(lambda n: 10**9), "the loop does not stop"),
        (greedy_until(lambda n: n + 1), "and max_new is 10"),
        (greedy_until(lambda n: n - 1), "the last token is missing"),
    ],
    "best_routing": [
        (changes_rewards, "changed in place"),
        (routing(picks_of=lambda values, r, pi: (pi * r).sum(-1).argmax(0)), "your picks reach"),
        (best(lambda value, picks: (value, picks[::-1])), "in reverse order"),
        (best(lambda value, picks: (value, [p[0] for p in picks])), "must have the shapes"),
        (best(lambda value, picks: value), "return two things"),
        (best(lambda value, picks: (picks[0], picks)), "must be one number"),
        (best(lambda value, picks: (value, picks[1:])), "a list of T = 3 arrays"),
        (best(lambda value, picks: (value, [p + 2 for p in picks])), "0 to n - 1"),
        (
            routing(child=lambda V, A: V.reshape(-1, 2) if A == 2 else np.zeros((1, A))),
            "with A = 3, T = 2",
        ),
    ],
}


@pytest.mark.parametrize("name, i", cases(OTHERS))
def test_what_is_noticed_in_another_way(name, i):
    function, message = OTHERS[name][i]
    assert message in caught(name, function)


def test_at_least_five_messages_a_step():
    for file, functions in checks.STEPS.values():
        messages = {m for n in functions for m, _ in slips.SLIPS[n]}
        messages |= {m for n in functions for _, m in OTHERS[n]}
        assert len(messages) >= 5, file
