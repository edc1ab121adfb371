"""How an answer is shown: which tokens have an expert, what the router changed, and as JSON."""

import json
import sys

import pytest

import decode
from decode import Step
from toy_experts import show, tokenizer
from toy_experts.script import EXPERTS

A, B = "é".encode()  # one character, two bytes, two tokens


def token(text):
    (t,) = tokenizer.encoding.encode_ordinary(text)
    return t


def step(text, pick=0, wanted=None):
    """A Step: the token that was written, and the one that the picked expert wanted."""
    ids = [
        x if isinstance(x, int) else token(x) for x in (text, text if wanted is None else wanted)
    ]
    return Step(ids[0], pick, [0.8, 0.1, 0.1], ids[1])


def records(monkeypatch, steps, S, method="fusionroute"):
    monkeypatch.setattr(show, "in_S", lambda experts, prompt, tokens: S)
    return show.records("experts", "prompt", steps, method)


def test_only_tokens_in_S_have_an_expert(monkeypatch):
    """Outside S plain; inside coloured, or in brackets; what the router changed in « » or
    underlined."""
    steps = [
        step(" apples", 0),
        step(" eggs", 1),
        step(" cakes", 1),
        step(" books", 2, " coins"),
        step("\n", 0, " pens"),
        step(tokenizer.END),
    ]
    rows = records(monkeypatch, steps, [False, True, True, True, False, False])
    assert show.plain(rows) == " apples[code: eggs cakes][instruct:« books»]«\n»"
    assert show.coloured(rows) == (
        " apples\033[32m eggs\033[0m\033[32m cakes\033[0m\033[33;4m books\033[0m\033[4m↵\n\033[0m"
    )
    assert [r["in_S"] for r in rows] == [False, True, True, True, False, False]
    assert [r["changed"] for r in rows] == [False, False, False, True, True, False]
    assert [r["expert"] for r in rows] == ["math", "code", "code", "instruct", "math", "math"]
    assert rows[3]["expert_choice"] == " coins" and rows[3]["token"] == " books"
    assert rows[0]["weights"] == {"math": 0.8, "code": 0.1, "instruct": 0.1}
    legend = show.legend(rows, False)
    assert legend == (
        "(6 tokens with the end; the experts disagree at 3: code 2, instruct 1; "
        "changed by the router: ' coins' -> ' books', ' pens' -> '\\n')"
    )
    assert "\033[32mcode\033[0m 2" in show.legend(rows, True)
    assert "changed by the router: none" in show.legend(rows[:3], False)


def test_json_has_the_answer_without_its_end(monkeypatch):
    rows = records(monkeypatch, [step(" eggs"), step(A), step(B), step(tokenizer.END)], [True] * 4)
    *tokens, last = show.as_json(rows, "How?", "fusionroute")
    assert tokens == rows[:3] and [t["token"] for t in tokens] == [" eggs", "", "é"]
    assert last == {"answer": " eggsé", "prompt": "How?", "method": "fusionroute", "end": rows[3]}
    *tokens, last = show.as_json(rows[:1], "How?", "fusionroute")  # it has not ended
    assert tokens == rows[:1] and last["answer"] == " eggs" and last["end"] is None


def test_colours_are_for_terminals(monkeypatch):
    rows = records(monkeypatch, [step(" eggs", 1)], [True])
    assert show.answer(rows).startswith("[code: eggs]\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert show.answer(rows).startswith("\033[32m eggs\033[0m\n")
    monkeypatch.setenv("NO_COLOR", "1")
    assert show.answer(rows).startswith("[code: eggs]\n")


def test_the_router_alone_has_no_expert(monkeypatch):
    rows = records(monkeypatch, [step(" apples", 1), step(" eggs", 1)], [True, False], "router")
    assert {r["expert"] for r in rows} == {"router"} and rows[0]["weights"] == {}
    assert show.plain(rows) == "[router: apples] eggs"
    assert show.coloured(rows) == "\033[35m apples\033[0m eggs"


def test_part_of_a_character(monkeypatch):
    """The last byte of a character brings all of it; the first shows nothing.

    Cut short, an answer shows that a part is missing.
    """
    end = tokenizer.END
    assert show.pieces([A, B, token(" eggs")]) == ["", "é", " eggs"]
    assert show.pieces([A]) == ["�"] and show.pieces([A, end]) == ["�", ""]
    rows = records(monkeypatch, [step(A), step(B), step(end, 1)], [True] * 3)
    assert show.plain(rows) == "[math:é]" and show.coloured(rows) == "\033[34mé\033[0m"
    legend = show.legend(records(monkeypatch, [step(end, 0, " eggs")], [True]), False)
    assert legend.endswith("changed by the router: ' eggs' -> '<|end|>')")


@pytest.mark.parametrize("method", decode.METHODS)
def test_json_and_plain_lines_of_every_method(world, method, capsys):
    """One implementation, two forms; and what each method's records may say."""
    command = ["--out", str(world), "--method", method, "What is 38 mod 5?"]
    decode.main([*command, "--json"])
    *tokens, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["prompt"] == command[-1] and last["method"] == method
    assert len(tokens) == decode.MAX_NEW or last["end"]["id"] == tokenizer.END
    for t in tokens:
        assert t["id"] != tokenizer.END and t["changed"] == (t["token"] != t["expert_choice"])
        nobody_picks = method in ("router", *EXPERTS)
        weights = {} if nobody_picks else dict.fromkeys(EXPERTS, pytest.approx(0.5, abs=0.5))
        assert t["weights"] == weights and t["expert"] in (method, *EXPERTS)
    decode.main(command)
    out = capsys.readouterr().out
    assert out.startswith(show.plain(tokens) + "\n")
    count = f"{len(tokens) + 1} tokens with the end;" if last["end"] else "96 tokens; the experts"
    assert f"({count}" in out
    assert ("(stopped: 96 tokens)" in out) == (last["end"] is None)
