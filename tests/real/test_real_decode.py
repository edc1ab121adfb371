"""decode.py as a command: one prompt, lines of a file, a conversation, --json."""

import io
import json
import sys

import pytest
import torch

from extra.real import FusionRoute, data, decode
from tests.real.conftest import by_definition, main, refused


@pytest.fixture
def ask(trained):
    """Run decode on the trained router."""
    return lambda *args: main(
        "decode", "--router", trained / "seed0/router", "--device", "cpu", "--max_new", 12, *args
    )


def test_json_is_all_that_is_on_stdout(ask, trained, capsys):
    """Notes go to stderr. The tokens are the definition's, and so are the picks."""
    ask("what is 3?", "--json")
    out, err = capsys.readouterr()
    *rows, last = [json.loads(line) for line in out.splitlines()]
    model = FusionRoute.from_pretrained(trained / "seed0/router")
    prompt = data.Encoder(model.tokenizer).prompt([{"role": "user", "content": "what is 3?"}])
    model.generation_config.eos_token_id = 2
    ids, picks = by_definition(model, torch.tensor([prompt]), 12)
    rows += [last["end"]] if last["end"] else []
    assert [r["id"] for r in rows] == ids[0, len(prompt) :].tolist()
    assert [r["expert"] for r in rows] == [("math", "code")[i] for i in picks]
    assert last["answer"] == "".join(r["token"] for r in rows) and last["prompt"] == "what is 3?"
    weights = rows[0]["weights"]
    assert set(weights) == {"math", "code"} and abs(sum(weights.values()) - 1) < 1e-3
    for r in rows:
        assert r["changed"] == (r["expert_choice"] != model.tokenizer.decode([r["id"]]))


def test_methods(ask, trained, capsys):
    answers = {}
    for method in ("fusionroute", "routing_only", "router", "math", "code"):
        ask("the", "--json", "--method", method)
        *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        experts, changed = {r["expert"] for r in rows}, any(r["changed"] for r in rows)
        answers[method] = last["answer"], experts, changed
    assert answers["math"][1:] == ({"math"}, False) and answers["router"][1:] == ({"router"}, False)
    assert not answers["routing_only"][2] and len({a for a, _, _ in answers.values()}) >= 3


def test_a_file_and_a_conversation(ask, capsys, monkeypatch):
    def file(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    file(rb"is $a \neq b$?")
    ask("--json")  # LaTeX stays as it is
    assert r'"prompt": "is $a \\neq b$?"' in capsys.readouterr().out
    file("the cat\n\nnaïve \udcff?\n".encode("utf8", "surrogateescape"))
    ask()
    out = capsys.readouterr().out
    assert out.count("prompt> ") == 2 and out.count("(12 tokens; experts disagree at") == 2

    asked, real = [], decode.respond
    monkeypatch.setattr(
        decode, "respond", lambda m, messages, s: asked.append(messages) or real(m, messages, s)
    )
    lines = iter(["a", "b", "/new", "c", ""])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    ask("--system", "be brief")
    roles = [[m["role"] for m in x] for x in asked]
    begun = ["system", "user"]
    assert roles == [begun, [*begun, "assistant", "user"], begun]
    assert asked[1][2]["content"] and asked[2][1]["content"] == "c"


def test_colours_and_brackets():
    row = {"expert": "law", "in_S": True, "changed": True, "token": "\x1b[31m"}
    plain = {"expert": "math", "in_S": False, "changed": False, "token": "cat"}
    out = decode.show.coloured([plain, row | {"token": "x"}], {"math": 34, "law": 32})
    assert out == "cat\033[32;4mx\033[0m"
    assert decode.CONTROL.sub(lambda c: repr(c[0])[1:-1], row["token"]) == "\\x1b[31m"


def test_sampling_is_repeatable(ask, capsys):
    outs = []
    for seed in (1, 1, 2):
        ask("the", "--json", "--temperature", 1, "--top_p", 0.9, "--top_k", 50, "--seed", seed)
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] != outs[2]


@pytest.mark.parametrize("args, says", [
    ([" "], "the prompt is empty"), (["x", "--method", "law"], "--method is 'law', and must be"),
    (["x", "--top_p", "0"], "--top_p is 0.0"), (["x" * 400], "at most: the prompt's"),
    (["x", "--experts", "math=/nowhere/x"], "if math has moved: --experts math=DIR"),
    (["a", "b"], "put the prompt in quotes"),
    (["x", "--max_new", "0"], "--max_new is 0"), (["x", "--max_new", "256"], "--max_new 256"),
])  # fmt: skip
def test_what_is_refused(ask, args, says):
    assert says in refused(ask, *args)


def test_a_folder_that_is_no_router(world):
    message = refused(main, "decode", "x", "--router", world / "start")
    assert "has no W.safetensors: it is no trained router" in message
