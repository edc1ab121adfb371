"""The small table: what a row is, what counts as right, and which number stands in which cell."""

import functools
import json
from random import Random

import pytest
import torch

import decode
from docs.tools import pages
from tests.conftest import ROOT
from toy_experts import evaluate, judge, script, tasks, tokenizer
from toy_experts.decode_batch import Trace
from toy_experts.script import EXPERTS

ROWS = {  # method: which router, and how it is decoded
    "fusionroute": ("router", {}),
    "sft_only": ("router_sft", {}),
    "routing_only": ("router", {"use_router": False}),
    "router": ("router", {"use_expert": False}),
    "math": ("router", {"use_router": False, "only": 0}),
    "code": ("router", {"use_router": False, "only": 1}),
    "instruct": ("router", {"use_router": False, "only": 2}),
}


@pytest.fixture
def routers(world):
    """Fingerprint of a router -> its name."""
    load = lambda name: script.load_model(world / "seed0" / f"{name}.pt", "", router=True)[0]
    return {script.fingerprint(load(name)): name for name in ("router", "router_sft")}


def wrong_form(item):
    """The right content in a form that the prompt does not ask for."""
    form = {
        "code": item.answer + "  # `",
        "code-block": item.answer.removeprefix("```python\n").removesuffix("\n```"),
        "code-done": item.answer.removesuffix("\ndone"),
    }
    text = form.get(item.kind, item.answer + "\n\nok")
    assert judge.right(item, text) and not judge.shaped(item, text)
    return text


# What a model answers to item k of a benchmark. Only the first counts as right.
ANSWERS = [
    lambda item: tokenizer.encode_answer(item.answer),
    lambda item: tokenizer.encode_answer(wrong_form(item)),
    lambda item: tokenizer.encode_answer(item.answer)[:-3],  # it has not come to its end
    lambda item: tokenizer.encode_answer("no idea"),
    lambda item: [],
]


def test_what_counts_in_each_row(world, routers, monkeypatch):
    """Each method answers one item in five rightly, from an item of its own on.

    So each cell can be counted here anew; it would differ with another row's router or options.
    The run says that it has another gap than always, and the seed is another one.
    """
    asked, methods, original = {}, list(ROWS), script.load
    seconds = {name: k for k, name in enumerate(["base", *EXPERTS, "router_sft", "router"], 3)}

    def of_run(path, *rest):
        content = original(path, *rest)
        its = {"recipe": content["recipe"] | {"gap": 0.5}, "seconds": seconds[path.stem]}
        return content | its

    monkeypatch.setattr(script, "load", of_run)
    saved = [script.load_model(world / "seed0" / f"{e}.pt", "")[0] for e in EXPERTS]

    def stub(router, experts, items, **how):
        assert list(map(script.fingerprint, experts)) == list(map(script.fingerprint, saved))
        method = next(m for m in ROWS if ROWS[m] == (routers[script.fingerprint(router)], how))
        asked[items[0].bench] = items
        k = methods.index(method)
        given = [ANSWERS[min(4, (i + k) % 8)](item) for i, item in enumerate(items)]
        return [Trace(tokens=tokens, pick=[0] * 99) for tokens in given]

    routing = lambda experts, items, traces: [t.tokens for t in traces]
    monkeypatch.setattr(evaluate, "answers", stub)
    monkeypatch.setattr(evaluate, "routing", routing)
    s = evaluate.Settings(5, out=str(world), device="cpu", prompts=13, split="validation")
    r = evaluate.evaluate(s, world / "seed0")
    assert list(asked) == [*tasks.BENCHMARKS, "general"] and list(r["methods"]) == methods
    for bench, items in asked.items():
        assert items == tasks.dataset(bench, "validation", 13, Random(f"validation {bench} 5"))
        given = [ANSWERS[min(4, i % 8)](item) for i, item in enumerate(items)]
        assert r["routing"][bench] == given  # FusionRoute's, the first method
    for k, method in enumerate(methods):
        rows, mean = {}, lambda xs: pytest.approx(sum(xs) / len(xs), abs=1e-4) if xs else None
        for bench, items in asked.items():
            held = [i.skill in tasks.held_out(bench, 0.5, 5) for i in items]
            right = [(i + k) % 8 == 0 for i in range(13)]
            covered = [r for r, h in zip(right, held) if not h]
            uncovered = [r for r, h in zip(right, held) if h]
            rows[bench] = {
                "all": mean(right),
                "covered": mean(covered),
                "uncovered": mean(uncovered),
            }
        got = r["methods"][method]
        assert {bench: got[bench] for bench in rows} == rows, method
        for group, value in got["average"].items():
            values = [got[bench][group] for bench in tasks.BENCHMARKS]
            assert value == (None if None in values else mean(values))
    assert got["general"]["uncovered"] is None and r["meta"]["gap"] == 0.5
    assert [routers[r["meta"][name]] for name in ("router", "router_sft")] == [
        "router",
        "router_sft",
    ]
    assert r["meta"]["held_out"] == {b: tasks.held_out(b, 0.5, 5) for b in asked}
    stages = {k: seconds[k] for k in ("base", "router_sft", "router")}
    stages["experts"] = max(seconds[e] for e in EXPERTS)  # they trained side by side
    assert r["meta"]["seconds"].pop("evaluation") < 60 and r["meta"]["seconds"] == stages


@pytest.mark.parametrize("method", decode.METHODS)
def test_each_method_of_decode_is_its_own_model_and_decoder(world, routers, monkeypatch, method):
    got = []

    def stub(router, experts, prompt, **how):
        got.append((routers[script.fingerprint(router)], how))
        saved = [script.load_model(world / "seed0" / f"{e}.pt", "")[0] for e in EXPERTS]
        assert list(map(script.fingerprint, experts)) == list(map(script.fingerprint, saved))
        yield decode.Step(tokenizer.END, 0, [1.0, 0.0, 0.0], tokenizer.END)

    monkeypatch.setattr(decode, "decode", stub)
    flags = ["--out", str(world), "--method", method, "--temperature", "0.7", "--top_p", "0.8"]
    decode.main([*flags, "What is 38 mod 5?"])
    name, how = ROWS[method]
    assert got == [(name, how | {"temperature": 0.7, "top_p": 0.8, "seed": 0})]


def test_routing_shares_by_hand(world):
    """Of all tokens, and of those at which the tiny experts disagree, counted from the text."""
    experts = [script.load_model(world / "seed0" / f"{e}.pt", "")[0] for e in EXPERTS]
    items, rng = tasks.dataset("toy-gsm8k", "test", 5, Random(0)), Random(1)
    traces, picks = [], {"all": [], "S": []}
    for i in items:
        prompt, tokens = tokenizer.encode_prompt(i.prompt), tokenizer.encode_answer(i.answer)
        pick = [rng.randrange(3) for _ in tokens]
        traces.append(Trace(tokens=tokens, pick=pick))
        ids = torch.tensor([prompt + tokens])
        choices = [e(ids)[0][0, len(prompt) - 1 : -1].argmax(-1).tolist() for e in experts]
        picks["all"] += pick
        picks["S"] += [p for p, *c in zip(pick, *choices) if len(set(c)) > 1]
    r = evaluate.routing(experts, items, traces)
    assert 0 < len(picks["S"]) < len(picks["all"])
    assert r["S_share"] == pytest.approx(len(picks["S"]) / len(picks["all"]), abs=1e-4)
    for name, among in picks.items():
        expected = [among.count(k) / len(among) for k in range(3)]
        assert [r[name][e] for e in EXPERTS] == pytest.approx(expected, abs=1e-4)


def test_a_report_by_hand():
    """Every number stands where its name says, and the best method first."""
    benches = tasks.BENCHMARKS + ["general"]
    all_of = lambda x, covered=None, uncovered=None: dict(
        all=x, covered=covered, uncovered=uncovered
    )
    row = lambda start: {b: all_of(start + i / 100, 0.5) for i, b in enumerate(benches)}
    shares = {"all": dict(zip(EXPERTS, (0.5, 0.3, 0.2))), "S": dict(zip(EXPERTS, (0.6, 0.4, 0)))}
    seconds = {"base": 1, "experts": 2, "router_sft": 16, "router": 32}
    text = evaluate.report(
        {
            "meta": {
                "settings": {"seed": 7, "prompts": 9, "split": "test"},
                "gap": 0.25,
                "held_out": {b: ["first", "second"] for b in benches},
                "machine": "an abacus",
                "seconds": seconds | {"evaluation": 64},
            },
            "methods": {
                "router": row(0.1) | {"average": all_of(0.12, 0.93)},
                "fusionroute": row(0.8) | {"average": all_of(0.79, 0.91, 0.71)},
            },
            "routing": {b: shares | {"S_share": 0.17} for b in benches},
        }
    )
    assert text.startswith("Seed 7, 9 test prompts per benchmark")
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    names = ["gsm8k", "math500", "mbpp", "humaneval", "ifeval"]
    assert cells[0] == ["method", *names, "average", "covered", "uncovered", "general"]
    assert cells[2] == ["fusionroute", "80", "81", "82", "83", "84", "79", "91", "71", "85"]
    assert cells[3] == ["router", "10", "11", "12", "13", "14", "12", "93", "-", "15"]
    assert cells[4][1:] == [*EXPERTS, *(f"{e} in S" for e in EXPERTS), "in S"]
    assert [row[0] for row in cells[6:]] == [*names, "general"]
    assert cells[6][1:] == ["50", "30", "20", "60", "40", "0", "17"]
    assert "No expert was trained on 25% of the sub-skills (gsm8k: first, second;" in text
    assert "base 1, experts 2, phase 1 16, pairs and phase 2 32, evaluation 64." in text


def test_the_command(world, tmp_path, monkeypatch, capsys):
    """It prints what it saves: the report of its JSON. Its answers are those of decode.py."""
    few = functools.partial(evaluate.answers, max_new=8)  # the tiny models never stop
    monkeypatch.setattr(evaluate, "answers", few)
    monkeypatch.setattr(script, "run_dir", lambda s: tmp_path)
    for path in (world / "seed0").iterdir():
        (tmp_path / path.name).symlink_to(path)
    evaluate.main(["--device", "cpu", "--prompts", "2"])
    out, path = capsys.readouterr().out, tmp_path / "evaluate.json"
    r = json.loads(path.read_text())
    assert out == f"{evaluate.report(r)}\n\nsaved {path}\n"
    assert r["meta"]["settings"] == {"seed": 0, "split": "test", "prompts": 2}
    usual = f"({evaluate.Settings().prompts} test prompts a benchmark)"
    assert usual in (ROOT / "docs/results.md").read_text("utf-8")


# --- what publishes figures ---------------------------------------------------------------------


def test_pages_by_hand():
    assert pages.table([["method", "a"], ["x", "100"], ["longer one", ""]]) == [
        "| method     |   a |",
        "|------------|----:|",
        "| x          | 100 |",
        "| longer one |     |",
    ]
    assert [pages.percent(x) for x in (None, 0, 0.125, 1)] == ["-", "0", "12", "100"]
    page = (
        "a <!--=x y-->old<!--/-->, <!--=z--><!--/-->\n<!-- begin: t -->\nold\n\n<!-- end: t -->\n"
    )
    assert pages.keys(page) == ["t", "x y", "z"]
    filled = pages.fill(page, {"x y": "1", "z": "2", "t": "|3|\n|4|"}.get)
    new = (
        "a <!--=x y-->1<!--/-->, <!--=z-->2<!--/-->\n<!-- begin: t -->\n|3|\n|4|\n<!-- end: t -->\n"
    )
    assert filled == new and pages.fill(new, {"x y": "1", "z": "2", "t": "|3|\n|4|"}.get) == new
    assert pages.fill(page, {}.get) == page  # places of another program
