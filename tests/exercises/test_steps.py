"""The checkers: right functions pass, also unusual ones; each usual mistake is called by name."""

import doctest
import importlib
import itertools

import numpy as np
import pytest
import torch

from exercises import checks, slips, solutions
from exercises.slips import made

FUNCTIONS = {
    name: checker for _, functions in checks.STEPS.values() for name, checker in functions.items()
}


def cases(table):
    """(name, number) of each entry of a table name -> list."""
    return [(name, i) for name, entries in table.items() for i in range(len(entries))]


# --- right functions -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_our_function_passes(name):
    """And the one that slips.py changes: so each slip is wrong by its change alone."""
    FUNCTIONS[name](getattr(solutions, name))
    FUNCTIONS[name](made(name))


def one_by_one(w, logp, mask):
    """The picks as plain numbers: (B,)."""
    picks = w.argmax(-1).tolist()
    rows = [[logp[b, t, pick] for t, pick in enumerate(row)] for b, row in enumerate(picks)]
    return (torch.stack([torch.stack(row) for row in rows]) * mask).sum(-1)


RIGHT = {
    "routed_logp": [
        one_by_one,
        made("routed_logp", "each = (F.one_hot(w.argmax(-1), 3) * logp).sum(-1)"),
    ],
    "cdpo_loss": [
        made("cdpo_loss", "F.softplus(-beta * (tw - rw - (tl - rl) + (ew - el).detach())).mean()")
    ],
    "fuse": [
        made("fuse", "r + e"),
        made("fuse", "(r + e).log_softmax(-1)"),
        made("fuse", "(r.softmax(-1) * e.softmax(-1)).log()"),
    ],
    "informative": [
        made("informative", "(c[..., 1:] != c[..., :-1]).any(-1)"),
        made("informative", "c.amax(-1) != c.amin(-1)"),
        made("informative", "c.double().std(-1, correction=0) > 0"),
    ],
    "log_pi_agg": [
        made("log_pi_agg", "(w.softmax(-1)[..., None, :] @ logp[..., None])[..., 0, 0]"),
        made("log_pi_agg", "(w.exp() / w.exp().sum(-1, True) * logp).sum(-1)"),
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


# What is noticed in another way than by a known slip's result: (a change as in slips.py, or a
# function; part of the message).
OTHERS = {
    "fuse": [
        ("r.log_softmax(1) + e.log_softmax(1)", "not for (V,)"),
        ("(r + e).argmax(-1)", "no argmax"),
        ("r.add_(e)", "changed in place"),
        ("None", "returns None"),
        ("1.0", "must be a tensor, not float"),
        ("(r + e).abs() * float('inf')", "nan"),
        ("r.log() + e", "take no log of them"),
    ],
    "informative": [
        ("c != c[..., :1]", "does any expert differ"),
        ("(c != c[:1]).any(0)", "the last one, goes"),
        ("(c != c[..., :1]).any(-1).int()", "must be bool"),
        ("(c[..., 0] != c[..., 1]) | (c[..., 1] != c[..., 2])", "but not for one"),
    ],
    "log_pi_agg": [
        ("(w.softmax(-1) * logp).sum(-1, keepdim=True)", "the shape must be (3, 4)"),
        ("3 * (w.softmax(-1) * logp).sum(-1)", "right is"),
    ],
    "sft_loss": [
        ("lm + lam**2 * expert", "with lambda = 0.25"),
        ("lm = (cost * mask).sum(1) / mask.sum()", "for the whole batch"),
        ("cost = -token_logp(logits, targets.masked_fill_(~mask, 0))", "changed in place"),
    ],
    "sequence_logp": [("(logp * mask).sum()", "keep the batch")],
    "routed_logp": [
        # the pick's value with the gradient of a mixture
        (
            "each = picked(w, logp) + log_pi_agg(w, logp) - log_pi_agg(w, logp).detach()",
            "the pick is outside the stop-gradient",
        )
    ],
    "cdpo_loss": [
        ("z = margin + bias", "the experts get a gradient"),
        ("-F.logsigmoid(z)", "Return the mean"),
        ("-F.logsigmoid(z.clamp(-100, 100)).mean()", "cut off"),
    ],
    "text_probability": [("0.25", "right is"), ("None", "must be a float, not NoneType")],
    "fused_greedy": [
        ("new = text", "the router reads the whole text again"),
        ("missed = text", "reads the whole text again"),
        (
            "expert_logits, _ = experts[pick](torch.tensor([text]), experts[pick].new_cache(1))",
            "gets a new cache",
        ),
        ("router_logits, w = router(torch.tensor([text]))", "the router reads without a cache"),
        (
            "expert_logits, _ = [e(torch.tensor([text[int(c.length) :]]), c)"
            " for e, c in zip(experts, caches)][pick]",
            "only the picked one may run",
        ),
        (
            "token = int(torch.cat([router_logits[0, -1] - 99, fuse(router_logits[0, -1], "
            "expert_logits[0, -1])]).argmax())",
            "before the argmax",
        ),
        (never_appends, "is the new token added to the text"),
        (shared_cache, "share a cache"),
        ("text[len(prompt) :] + [end], picks", "the end token is in"),
        ("text[len(prompt) :], picks[:-1]", "the pick for the end"),
        ("text, picks", "the prompt is in"),
        ("text[len(prompt) :]", "return two lists"),
        ("text[len(prompt) :], picks[::-1]", "the picks must be"),
        ("text[len(prompt) :], prompt.append(0) or picks", "copy"),
        (greedy_until(lambda n: 10**9), "the loop does not stop"),
        (greedy_until(lambda n: n + 1), "and max_new is 10"),
        (greedy_until(lambda n: n - 1), "the last token is missing"),
    ],
    "best_routing": [
        ("Q = np.add(r, V.reshape(-1, A), out=r)", "changed in place"),
        ("V[0], [0 * p for p in picks]", "your picks reach"),
        ("V[0], picks[::-1]", "in reverse order"),
        ("V[0], [p[0] for p in picks]", "must have the shapes"),
        ("V[0]", "return two things"),
        ("picks[0], picks", "must be one number"),
        ("V[0], picks[1:]", "a list of T = 3 arrays"),
        ("V[0], [p + 2 for p in picks]", "0 to n - 1"),
        ("Q = r + (V.reshape(-1, 2) if A == 2 else 0)", "with A = 3, T = 2"),
    ],
}


@pytest.mark.parametrize("name, i", cases(OTHERS))
def test_what_is_noticed_in_another_way(name, i):
    change, message = OTHERS[name][i]
    assert message in caught(name, change if callable(change) else made(name, change))
