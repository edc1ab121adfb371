"""decode.py's sampling, conversations, and what it shows; that its tokens are those of the definition is in test_own.py."""

import io
import json
import math
import sys

import pytest
import torch

from extra.gpt import GPT, Router
from extra.real import decode
from extra.real.decode import decode_batch
from extra.real.pretrained_tokenizer import Tokenizer
from fusionroute import fuse
from tests.real.conftest import LLAMA, main, make_models, mistake


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """decode's flags for a router that was trained a little."""
    torch.manual_seed(0)
    flags = make_models(tmp_path_factory.mktemp("models"))
    main("train_sft", *flags.sft, "--name", "router")
    return flags.decode


def answers(capsys):
    return [r for r in map(json.loads, capsys.readouterr().out.splitlines()) if "answer" in r]


def test_samples_come_from_the_fused_distribution():
    """Frequencies of the first token of 3000 draws, against Eq. (1), cut to the 3 likeliest or to a share of 0.7; chance of a false alarm
    below 1e-6 a token."""
    router, experts = Router(GPT(LLAMA), 2), [GPT(LLAMA), GPT(LLAMA)]
    prompt, n = [3, 7, 1], 3000
    with torch.no_grad():
        p = (fuse(router(torch.tensor([prompt]))[0], experts[0](torch.tensor([prompt]))[0])[0, -1] / 2).softmax(-1)   # (V,)
    for how in ({}, {"top_k": 3}, {"top_p": 0.7}):
        q, order = p.clone(), p.argsort(descending=True)
        if "top_k" in how:
            q[order[3:]] = 0
        if "top_p" in how:
            q[order[1:][p[order].cumsum(0)[:-1] >= 0.7]] = 0
        q /= q.sum()
        traces = decode_batch(router, experts, [prompt] * n, [28], 1, temperature=2.0, seed=1, **how)
        counts = torch.tensor([t.tokens[0] for t in traces]).bincount(minlength=29)
        assert not counts[q == 0].any()
        for token in range(29):
            assert abs(counts[token] - n * q[token]) < 5 * math.sqrt(n * q[token] * (1 - q[token])) + 1e-6 + (q[token] > 0)


def test_a_seed_gives_the_same_answer_and_another_another(flags, capsys):
    ask = ["decode", "what is the cat?", *flags, "--json", "--temperature", "1"]
    for how in ([], ["--top_k", "20", "--top_p", "0.9"]):
        for seed in "1", "1", "2":
            main(*ask, *how, "--seed", seed)
        a, b, c = (r["answer"] for r in answers(capsys))
        assert a == b != c
    main(*ask, "--top_k", "1")
    main("decode", "what is the cat?", *flags, "--json")
    a, b = (r["answer"] for r in answers(capsys))
    assert a == b  # the likeliest token only


@pytest.mark.parametrize("args, says", [
    ("--top_p 0 --temperature 1", "--top_p is 0.0, and must be above 0"), ("--top_k 5", "they need --temperature above 0"),
    ("--top_k -1 --temperature 1", "--top_k is -1"), ("--temperature nan", "--temperature is nan"), ("--seed -1", "--seed is -1"),
    ("--max_new 0", "--max_new is 0"), ("--max_new 60", "and at most 4 fit before an answer of --max_new 60")])
def test_mistakes(args, says, flags):
    assert says in mistake("decode", "what?", *flags, *args.split())


def stdin(monkeypatch, content, terminal=False):
    """The standard input with these bytes, of a file or (for input()) of a terminal."""
    file = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    if terminal:
        file.isatty = lambda: True
        said = iter(content.decode().splitlines())

        def ask(prompt):
            try:
                return next(said)
            except StopIteration:
                raise EOFError from None
        monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(sys, "stdin", file)


def test_a_conversation_remembers_and_a_file_does_not(flags, monkeypatch, capsys):
    asked = []
    real = decode.block_decode

    def watch(router, experts, ids, *args):
        asked.append(ids)
        return real(router, experts, ids, *args)
    monkeypatch.setattr(decode, "block_decode", watch)
    two = b"the\ncat\n"
    args = ["decode", *flags, "--max_new", "5"]
    stdin(monkeypatch, two)
    main(*args)
    alone = list(asked)
    asked.clear()
    capsys.readouterr()
    stdin(monkeypatch, two + b"/new\ncat\n\nthe\n", terminal=True)
    main(*args, "--json")
    first = answers(capsys)[0]["answer"]
    assert [asked[0], asked[2]] == alone and len(asked) == 3   # an empty line ends it
    t = Tokenizer(flags[1])
    turns = [{"role": "user", "content": "the"}, {"role": "assistant", "content": first}, {"role": "user", "content": "cat"}]
    assert asked[1] == t.encode_prompt(turns) and len(asked[1]) > len(asked[0])
    main(*args, "the", "--system", "what")
    assert asked[-1] == t.encode_prompt([{"role": "system", "content": "what"}, {"role": "user", "content": "the"}])
    capsys.readouterr()
    stdin(monkeypatch, b"x\n" * 9, terminal=True)
    main(*args)
    assert "error: the conversation has" in (err := capsys.readouterr().err) and "; /new begins another" in err


def test_one_bad_prompt_does_not_end_the_others(flags, monkeypatch, capsys):
    """Too long, a million times the same letter, no UTF-8, out of memory: each is one line, and the status is 2."""
    real = decode.block_decode

    def forget(router, experts, ids, *args):
        if len(ids) == len(cat) + 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(router, experts, ids, *args)
    monkeypatch.setattr(decode, "block_decode", forget)
    cat = Tokenizer(flags[1]).encode_prompt("cat")
    stdin(monkeypatch, b"\xef\xbb\xbfcat\r\n\n" + b"x" * 70 + b"\n" + b"a" * 1_000_000 + b"\ncat.\n\xff\xfe\ncat\n")
    with pytest.raises(SystemExit) as caught:
        main("decode", *flags, "--json")
    out, err = capsys.readouterr()
    said = [r for r in map(json.loads, out.splitlines()) if "answer" in r]
    assert caught.value.code == 2 and [r["prompt"] for r in said] == ["cat", "\ufffd\ufffd", "cat"]
    assert said[0]["answer"] == said[2]["answer"]
    assert [line[:40] for line in err.splitlines() if line.startswith("error: ")] == [
        "error: the prompt has 75 tokens, and at ", "error: the prompt has 1,000,000 characte", "error: DefaultCPUAllocator: can't alloca"]


def test_what_is_shown_is_true_and_does_nothing_to_a_terminal(capsys):
    """A token by itself keeps its space, a part of a character is said to be one, a control character is not obeyed."""
    names = {0: " the", 1: "part of a character, token 1", 2: "</s>", 3: "\x1b[2J", 4: " x"}
    of = type("", (), {"names": ["math", "code"], "ends": [2], "max_new": 9, "tokenizer": type("", (), {"alone": staticmethod(names.get)}),
                       "pieces": lambda self, ids: ["é" if i == 1 else names[i] for i in ids]})()
    trace = decode.Trace(tokens=[0, 1, 3, 2], pick=[0, 0, 1, 1], weights=[[0.5, 0.5]] * 4, expert_choice=[4, 2, 3, 0])
    decode.show(trace, "fusionroute", False, of)
    out = capsys.readouterr().out
    assert out == ("math | « the»«é»\ncode | \\x1b[2J\n(4 tokens with the end: math 2, code 2; changed by the router: "
                   "' x' -> ' the', '</s>' -> 'part of a character, token 1', ' the' -> '</s>')\n")
    decode.show(decode.Trace(tokens=[0] * 20, pick=[0] * 20, weights=[[1, 0]] * 20, expert_choice=[4] * 20), "fusionroute", True, of)
    out = capsys.readouterr().out
    assert "(20 tokens: " in out and "; changed by the router: " + "' x' -> ' the', " * 12 + "8 more)" in out and "(stopped after 9" in out
