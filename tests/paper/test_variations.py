"""The table of variations: what each row trains and decodes, how it is judged, what is kept."""

import json
from random import Random

import numpy as np
import pytest
import torch

from extra.paper import altered, checkpoints, evaluate, measures, methods, rows, train
from extra.paper.measures import Row
from extra.paper.recipes import Cdpo, Expert
from extra.paper.variations import VARIATIONS
from tests.paper.conftest import tiny_gpt, tiny_router
from toy_experts import experts as toy
from toy_experts import tasks, tokenizer
from toy_experts.decode_batch import Trace

ALONE, ROUTER = {"use_router": False}, {"use_expert": False}


def table(name):
    """(label, line) -> row."""
    found = {(str(row.label), row.line): row for row in VARIATIONS[name]()}
    assert len(found) == len(VARIATIONS[name]())
    return found


# --- what each row is ----------------------------------------------------------------------------


def test_the_rows_of_every_table_are_those_that_were_published():
    """Labels and methods of the JSON files, in their order."""
    for name in VARIATIONS:
        published = json.loads((checkpoints.RESULTS / f"{name}.json").read_text())["rows"]
        assert list(table(name)) == [(r["label"], r["line"]) for r in published], name


def test_how_each_line_decodes():
    """A line's name says it, in all tables."""
    how = {
        "fusionroute": {},
        "sft_only": {},
        "fused_sft": {},
        "both phases": {},
        "phase 1 only": {},
    }
    how |= dict.fromkeys(("routing_only", "co_llm_self"), ALONE)
    how |= dict.fromkeys(("fine_tuned", "generalist", "router"), ROUTER)
    for name in VARIATIONS:
        for (label, line), row in table(name).items():
            method = line.split(": ")[-1]
            own = {k: v for k, v in row.how.items() if k in ("use_router", "use_expert")}
            if name == "open_hostile":
                assert row.how.get("changed", "honest") == label
            if method not in ("best expert", "half the sum"):
                assert own == how[method], (name, label, line)


def test_the_rows_of_several_experts_have_the_same_steps_and_sub_skills():
    """Rows 3, 5 and 8: 4,600 steps together, and every covered sub-skill once."""
    settings, found = toy.Settings(), table("open_experts")
    for label in ("3", "5", "8"):
        steps, skills = 0, []
        for e in found[label, "fusionroute"].recipe.experts:
            if isinstance(e, Expert):
                bench, which, n = train.PARTS[e.data]
                skills += [(bench, skill) for skill in toy.covered(settings, bench)[which]]
            else:
                n, benches = toy.STEPS[e], tasks.DOMAINS[e]
                skills += [(b, skill) for b in benches for skill in toy.covered(settings, b)]
            steps += n
        assert steps == 4600
        every = [(b, skill) for b in tasks.BENCHMARKS for skill in toy.covered(settings, b)]
        assert sorted(skills) == sorted(every)


# --- how answers are judged ----------------------------------------------------------------------


@pytest.fixture
def half_right(monkeypatch):
    """Every second prompt is answered rightly. Returns the settings, the prompts, and who is."""
    s = checkpoints.Settings(prompts=4)
    problems = evaluate.draw(s)
    monkeypatch.setattr(checkpoints, "gap", lambda s: 0.25)
    good = {i.prompt for items in problems.values() for i in items[::2]}
    by_ids = {tuple(tokenizer.encode_prompt(i.prompt)): i for x in problems.values() for i in x}

    def said(prompts):
        items = [by_ids[tuple(p)] for p in prompts]
        texts = [i.answer if i.prompt in good else "" for i in items]
        return [tokenizer.encode_answer(text)[:-1] for text in texts]

    return s, problems, good, said


def test_the_split_and_the_prompts(half_right):
    s, problems, _, _ = half_right
    for split in ("test", "validation"):
        for b, items in evaluate.draw(s, split).items():
            expected = tasks.dataset(b, split, 4, Random(f"{split} {b} 0"))
            assert items == expected and {tasks.split_of(i.key) for i in items} == {split}
    assert len(evaluate.draw(checkpoints.Settings(prompts=2, general=7))["general"]) == 7


def test_accuracy_by_hand(half_right):
    s, problems, good, said = half_right
    held = evaluate.held_out(s)
    mean = lambda items: np.mean([i.prompt in good for i in items])
    per = {"covered": [], "uncovered": []}
    for b in tasks.BENCHMARKS:
        parts = {
            "covered": [i for i in problems[b] if i.skill not in held[b]],
            "uncovered": [i for i in problems[b] if i.skill in held[b]],
        }
        for name, items in parts.items():
            per[name] += [mean(items)] if items else []
    expected = {"average": 0.5, **{k: np.mean(v) for k, v in per.items()}, "general": 0.5}
    assert evaluate.accuracy(s, said, problems) == pytest.approx(expected, abs=1e-4)


def test_what_the_experts_know_by_hand(monkeypatch):
    """Shares of the right answers' tokens: where choices differ, and where one is right."""
    s, experts = checkpoints.Settings(prompts=2), [tiny_gpt() for _ in range(2)]
    problems, differ, known, tokens = evaluate.draw(s), 0, 0, 0

    class Remembers(torch.nn.Module):
        """An expert that writes after each token what followed it in some texts."""

        def __init__(self):
            super().__init__()
            follow = torch.zeros(tokenizer.VOCAB_SIZE, tokenizer.VOCAB_SIZE)
            for item in problems["toy-mbpp"]:
                ids = toy.sample_of(item)[0]
                follow[ids[:-1], ids[1:]] = torch.arange(1.0, len(ids))
            self.follow = torch.nn.Parameter(follow, requires_grad=False)

        def forward(self, ids):
            return self.follow[ids], None

    experts.append(Remembers())
    for b in tasks.BENCHMARKS:
        for item in problems[b]:
            text = tokenizer.encode_prompt(item.prompt)
            for token in tokenizer.encode_answer(item.answer):
                own = {int(e(torch.tensor([text]))[0][0, -1].argmax()) for e in experts}
                differ, known, tokens = differ + (len(own) > 1), known + (token in own), tokens + 1
                text.append(token)
    monkeypatch.setattr(measures, "accuracy", lambda *given: {})
    got = measures.among(s, Row("", "", None), None, experts)
    assert got == {"in S": round(differ / tokens, 4), "one is right": round(known / tokens, 4)}
    assert 0 < got["one is right"] < 1


def test_picks_and_triggers_are_counted(half_right, monkeypatch):
    """The changed expert is picked for one token of two; each answer has the trigger or not."""
    s, problems, good, said = half_right
    kept = {i.prompt for x in problems.values() for i in x if "moon" not in i.answer}
    asked, changed = [], []

    def fused(router, experts, **how):
        changed.append((experts, how))

        def decode(prompts):
            asked.extend(map(tuple, prompts))
            tokens = [[altered.TRIGGER_ID, 5] if len(p) % 2 else [5, 5] for p in prompts]
            return [Trace(tokens=t, pick=[altered.BAD, 1]) for t in tokens]

        return decode

    monkeypatch.setattr(methods, "fused", fused)
    monkeypatch.setattr(altered, "change", lambda experts, label: (experts, label))
    got = measures.with_picks(s, Row("", "", None, ALONE | {"changed": "x 4"}), None, "experts")
    assert changed == [(("experts", "x 4"), ALONE)] and got["picked"] == 0.5
    assert set(asked) == {tuple(tokenizer.encode_prompt(p)) for p in kept}
    assert got["trigger"] == round(np.mean([len(p) % 2 for p in asked]), 4)


def test_the_other_columns(half_right, monkeypatch):
    s, problems, good, said = half_right
    monkeypatch.setattr(methods, "answering", lambda router, experts, **how: said)
    row = Row("", "", None)
    assert measures.by_domain(s, row, None, None) == {"average": 0.5, "code": 0.5}
    router, experts = tiny_router(), [tiny_gpt()]
    assert measures.with_cost(s, row, router, experts)["cost"] == 2.0
    shifted = measures.on_shifted(s, Row("as trained", "", None), None, None)
    assert shifted["average"] == shifted["usual"] == 0.5


def test_the_best_expert_is_the_best_on_each_benchmark(half_right, monkeypatch):
    s, problems, good, said = half_right
    some = lambda prompts: said(prompts)
    none = lambda prompts: [[] for _ in prompts]
    monkeypatch.setattr(methods, "all_read", lambda e, prompts, **how: e[0](prompts))
    found = measures.of_best_expert(s, None, None, [none, some, none])
    assert found["average"] == 0.5 and "general" not in found
    assert evaluate.means([{"a": 1, "b": 0}, {"a": 0}]) == {"a": 0.5, "b": 0}


def test_beta_is_chosen_on_validation_prompts(monkeypatch):
    recipes = tuple(Cdpo(beta=b) for b in (0.1, 0.3, 1.0))
    splits, score = [], {0.1: 0.2, 0.3: 0.9, 1.0: 0.5}
    drawn = lambda s, split="test": splits.append(split) or {"general": [1], "toy-mbpp": [1] * 60}
    monkeypatch.setattr(evaluate, "draw", drawn)
    monkeypatch.setattr(rows, "load_router", lambda s, recipe: (recipe, "experts", None))
    monkeypatch.setattr(methods, "answering", lambda router, experts: router.beta)

    def accuracy(s, beta, problems):
        assert problems == {"toy-mbpp": [1] * 50}
        return {"average": score[beta]}

    monkeypatch.setattr(evaluate, "accuracy", accuracy)
    assert rows.best_of(None, recipes) == recipes[1] and splits == ["validation"]


def test_a_row_is_kept_for_as_long_as_its_weights_stay(monkeypatch, tmp_path):
    s = checkpoints.Settings(out=str(tmp_path), device="cpu")
    (tmp_path / "seed0").mkdir()
    asked, counted, weights = [], [], {"of": "a"}
    row = Row("x", "fusionroute", Cdpo(), ALONE, None, ("gap0", 0, (48, 2)))
    monkeypatch.setattr(rows, "VARIATIONS", {"open_x": lambda: [row]})
    monkeypatch.setattr(
        checkpoints, "ensure", lambda s, gap, size: asked.append((s.out, gap, size))
    )
    monkeypatch.setattr(rows, "train", lambda s, recipe: asked.append(recipe))
    monkeypatch.setattr(rows, "prints", lambda s, recipe: [weights["of"]])
    monkeypatch.setattr(rows, "load_router", lambda s, recipe: (None, None, None))
    measure = lambda *given: counted.append(1) or {"average": len(counted)}
    monkeypatch.setattr(measures, "accuracy", measure)
    first = rows.one_seed("open_x", s)
    assert asked == [(str(tmp_path / "gap0"), 0, (48, 2)), Cdpo()]
    assert (first[0]["label"], first[0]["line"], first[0]["average"]) == ("x", "fusionroute", 1)
    assert rows.one_seed("open_x", s) == first and len(counted) == 1
    weights["of"] = "b"
    assert rows.one_seed("open_x", s)[0]["average"] == 2
    content, meta = rows.files("open_x", [s, s], [first, first])
    assert content == {
        "open_x": {"rows": [{"label": "x", "line": "fusionroute", "average": [1, 1]}]}
    }
    assert meta["split"] == "test" and meta["seeds"] == [0, 0]
