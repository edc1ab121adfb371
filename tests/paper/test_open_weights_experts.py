"""The open questions (a), experts, and (b), weights: the mechanism of each on tiny models."""

import functools
from copy import deepcopy
from dataclasses import replace
from random import Random

import pytest
import torch

import train_sft
from extra import models
from extra.paper import train as paper_train
from extra.paper import variants
from extra.paper.open_questions import experts, frame, weights
from fusionroute import Router, informative, log_pi_agg, sft_loss
from model import GPT, GPTConfig
from toy_experts import run, tasks, tokenizer
from toy_experts import train as toy
from toy_experts.batch import decode_batch
from toy_experts.data import scored


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(toy, "new_gpt", lambda: GPT(GPTConfig(vocab_size=tokenizer.VOCAB_SIZE, d_model=24, n_layer=1)))
    monkeypatch.setattr(toy, "STEPS", {"base": 4, "math": 2, "code": 2, "instruct": 2})
    monkeypatch.setattr(experts, "PARTS", {name: (b, which, 2) for name, (b, which, _) in experts.PARTS.items()})


def three():
    torch.manual_seed(0)
    return [toy.new_gpt().eval().requires_grad_(False) for _ in range(3)]


def samples(n=18):
    return [toy.sample(item) for item in tasks.mixed("train", n, Random(0))]


def half_agreed():
    """Scored samples of which half of the positions are in S: untrained experts agree nearly nowhere."""
    sft = scored(samples(), three())
    agreed = torch.rand(sft.choice.shape[:2]) < 0.5
    sft.choice[agreed] = sft.choice[agreed][:, :1].expand(-1, 3)
    return sft


# --- (b) weights ----------------------------------------------------------------------------------------------------------------------------


def test_the_set_S_is_a_part_or_more(tiny):
    """Nested sets of about the right size, S itself and all positions at the ends; the scores stay as they are."""
    sft = half_agreed()
    S = informative(sft.choice)
    assert 0.1 < S.float().mean() < 0.9
    sets = {share: informative(weights.with_share(sft, share, 7).choice) for share in (0, 0.25, 0.5, 1.0, 1.5, 2.0)}
    assert not sets[0].any() and torch.equal(sets[1.0], S) and sets[2.0].all()
    for small, large in zip(list(sets.values())[:-1], list(sets.values())[1:]):
        assert not (small & ~large).any()
    assert [float(sets[share].sum() / S.sum()) for share in (0.25, 0.5)] == pytest.approx([0.25, 0.5], abs=0.06)
    assert float((sets[1.5] & ~S).sum() / (~S).sum()) == pytest.approx(0.5, abs=0.06)
    changed = weights.with_share(sft, 0.5, 7)
    assert all(getattr(changed, name) is getattr(sft, name) for name in ("ids", "mask", "lengths", "logp"))
    assert not torch.equal(weights.with_share(sft, 0.5, 8).choice, changed.choice)


def test_L_expert_is_summed_over_that_set(tiny):
    """Eq. (2) on the changed samples: at the ends it is the lesson's loss, and that on all positions; between them, by hand."""
    sft, rows = half_agreed(), torch.arange(6)
    w = torch.randn(6, sft.ids.size(1) - 1, 3)
    logits = torch.randn(6, sft.ids.size(1) - 1, tokenizer.VOCAB_SIZE)

    def batch(given):
        x, mask, logp, choice = given.batch(rows, "cpu")
        t = x.size(1) - 1
        return logits[:, :t], w[:, :t], x[:, 1:], mask, logp, choice, 0.5

    def loss(share):
        return float(sft_loss(*batch(weights.with_share(sft, share, 7)))[0])

    usual = batch(sft)
    assert loss(1.0) == float(sft_loss(*usual)[0])
    assert loss(2.0) == pytest.approx(float(variants.all_positions(*usual)[0]), rel=1e-6)
    _, weight, targets, mask, logp, _, lam = usual
    inside = informative(weights.with_share(sft, 0.5, 7).choice)[rows][:, :targets.size(1)] & mask
    by_hand = -log_pi_agg(weight, logp)[inside].sum() / mask.sum()
    assert loss(0.5) - loss(0.0) == pytest.approx(float(lam * by_hand), rel=1e-4)


def test_share_of_answer_tokens(tiny):
    sft = half_agreed()
    rows = zip(sft.mask[:, 1:].tolist(), sft.choice.tolist())
    counted = [(bool(m), len(set(c)) > 1) for mask, choice in rows for m, c in zip(mask, choice)]
    assert weights.in_S(sft) == round(sum(m and s for m, s in counted) / sum(m for m, _ in counted), 4)
    assert weights.in_S(weights.with_share(sft, 2.0, 0)) == 1


def test_without_lambda_nothing_trains_W(tiny):
    """lambda = 0: W stays 0 and the first expert is picked; theta_LM becomes what it becomes beside one expert, whichever it is."""
    frozen = three()
    start = toy.new_gpt().requires_grad_(False)

    def trained(those, lam):
        router = Router(deepcopy(start), len(those)).requires_grad_(True)
        train_sft.train(train_sft.Settings(epochs=2, lam=lam), router, scored(samples(), those))
        return router.requires_grad_(False)

    none = trained(frozen, 0.0)
    assert not none.W.weight.any()
    prompts = [tokenizer.encode_prompt("What is 38 mod 5?"), tokenizer.encode_prompt("Write green.")]
    assert {p for t in decode_batch(none, frozen, prompts, 4) for p in t.pick} == {0}
    for one in frozen[:2]:
        assert all(torch.equal(p, none.lm.get_parameter(name)) for name, p in trained([one], 1 / 3).lm.named_parameters())
    assert trained(frozen, 1 / 3).W.weight.any() and not torch.equal(trained(frozen, 1 / 3).lm.embed.weight, none.lm.embed.weight)
    assert experts.one_choice(none).lm is none.lm and experts.one_choice(none).W.out_features == 1


def recorded(monkeypatch, page):
    """The cells of a page with nothing judged: label and line -> (router, experts, how)."""
    monkeypatch.setattr(page.frame, "items", lambda s: {"toy-mbpp": tasks.dataset("toy-mbpp", "test", 3, Random(0))})
    monkeypatch.setattr(page.frame, "fused", lambda router, experts, **how: (router, experts, how))
    monkeypatch.setattr(page.frame, "judged", lambda s, decoder, problems=None: {"decoder": decoder})
    cells = {}
    page.measure(frame.Settings(), lambda label, line, compute: cells.update({(label, line): compute()}))
    return cells


def test_each_weight_is_what_its_row_says(tiny, monkeypatch):
    specs, sets, frozen = {"router_sft": "usual", "router": "both"}, [], three()
    monkeypatch.setattr(weights.paper_train, "train", lambda s, name, spec: specs.update({name: spec}))
    monkeypatch.setattr(weights.models, "load_router", lambda s, name: (specs[name], frozen, {}))
    monkeypatch.setattr(weights.frame, "phase1", lambda s, experts, sft: sets.append(weights.in_S(sft)) or f"share {len(sets)}")
    monkeypatch.setattr(weights.frame, "sft_data", lambda s, those, sft=half_agreed(): sft)
    monkeypatch.setattr(frame.train_sft.Settings, "samples", 18)
    cells = recorded(monkeypatch, weights)
    router = lambda label, line: cells[label, line]["decoder"][0]
    for name, lam in {"0": 0.0, "1/9": 1 / 9, "1": 1.0, "3": 3.0}.items():
        for line in weights.WAYS:
            assert router(f"lambda {name}", f"lambda: {line}") == paper_train.Sft(lam=lam)
    assert router("lambda 1/3", "lambda: fusionroute") == router("S", "S: fusionroute") == "usual"
    for beta in (0.01, 0.03, 0.3, 1.0):
        assert router(f"beta {beta:g}", "beta: fusionroute") == paper_train.Cdpo(beta=beta)
    assert router("beta 0.1", "beta: fusionroute") == "both" and paper_train.Cdpo().beta == 0.1
    assert router("all", "S: fusionroute") == paper_train.Sft(loss="all")
    assert [router(label, "S: routing_only") for label in ("1/4 of S", "1/2 of S", "S + rest/2")] == ["share 1", "share 2", "share 3"]
    usual = frame.sft_data(None, frozen)
    assert sets == [weights.in_S(weights.with_share(usual, share, 0)) for share in (0.25, 0.5, 1.5)]
    assert sets == [cells[label, "S: fusionroute"]["in L_expert"] for label in ("1/4 of S", "1/2 of S", "S + rest/2")] == sorted(sets)
    assert cells["all", "S: fusionroute"]["in L_expert"] == 1 and 0 < sets[0] < sets[2] < 1
    assert all(row["decoder"][2] == ({"use_router": False} if "routing_only" in line else {}) for (_, line), row in cells.items())
    assert {row["decoder"][1] is frozen for row in cells.values()} == {True} and len(cells) == 25


# --- (a) experts ----------------------------------------------------------------------------------------------------------------------------


def test_all_rows_have_the_same_steps_and_sub_skills():
    """Rows 3, 5 and 8: 4,600 steps together, and every covered sub-skill once."""
    settings = toy.Settings()
    for label in ("3", "5", "8"):
        steps, skills = 0, []
        for name in experts.SETS[label]:
            bench, which, n = experts.PARTS.get(name, (None, None, None))
            domain = [(b, skill) for b in tasks.DOMAINS.get(name, []) for skill in toy.covered(settings, b)]
            skills += domain or [(bench, skill) for skill in toy.covered(settings, bench)[which]]
            steps += toy.STEPS[name] if domain else n
        assert steps == 4600 and len(experts.SETS[label]) == int(label)
        assert sorted(skills) == sorted((b, skill) for b in tasks.BENCHMARKS for skill in toy.covered(settings, b))
    assert len(experts.SETS["5 + 3 useless"]) == 8 and set(experts.SETS["5 + 3 useless"]) - set(experts.SETS["5"]) == {"drills", "base"}


def test_documents_are_of_the_expert_s_own_part(tiny, monkeypatch):
    """Only its benchmark and sub-skills, apart from the replay; drills alone for the one that is of no use."""
    monkeypatch.setattr(toy, "REPLAY", 0.0)
    drawn, real = [], tasks.draw
    monkeypatch.setattr(tasks, "draw", lambda bench, split, rng, skills: drawn.append((bench, split, *skills)) or real(bench, split, rng, skills))
    skills = toy.covered(toy.Settings(), "toy-math500")
    for name, own in (("math500", skills), ("math500-1", skills[::2]), ("math500-2", skills[1::2])):
        drawn.clear()
        assert len(experts.documents(toy.Settings(), name)) == 2 * toy.BATCH
        assert set(drawn) == {("toy-math500", "train", *own)}
    drawn.clear()
    assert len(experts.documents(toy.Settings(), "drills")) == 2 * toy.BATCH and not drawn
    monkeypatch.setattr(toy, "REPLAY", 1.0)
    monkeypatch.setattr(toy, "base_document", lambda s, rng: "the base's")
    assert set(experts.documents(toy.Settings(), "mbpp")) == {"the base's"}


class Remembers(torch.nn.Module):
    """An expert that writes after each token what followed it in one text."""

    def __init__(self, text):
        super().__init__()
        follow = torch.zeros(tokenizer.VOCAB_SIZE, tokenizer.VOCAB_SIZE)
        follow[text[:-1], text[1:]] = torch.arange(1.0, len(text))  # the last time counts
        self.follow = torch.nn.Parameter(follow, requires_grad=False)

    def forward(self, ids):
        return self.follow[ids], None


def test_what_the_experts_know_by_hand(tiny):
    problems = {b: tasks.dataset(b, "test", 2, Random(b)) for b in ("toy-mbpp", "toy-ifeval")}
    frozen = [Remembers(toy.sample(items[0])[0]) for items in problems.values()] + three()[:1]
    differ = right = tokens = 0
    for item in problems["toy-mbpp"] + problems["toy-ifeval"]:
        prompt, answer = tokenizer.encode_prompt(item.prompt), tokenizer.encode_answer(item.answer)
        for t, token in enumerate(answer):
            own = {int(e(torch.tensor([prompt + answer[:t]]))[0][0, -1].argmax()) for e in frozen}
            differ, right, tokens = differ + (len(own) > 1), right + (token in own), tokens + 1
    assert experts.known(problems | {"general": tasks.dataset("general", "test", 2, Random(0))}, frozen) == {
        "in S": round(differ / tokens, 4), "one is right": round(right / tokens, 4)}
    assert 0 < right < tokens


def test_rows_choose_among_their_experts(tiny, monkeypatch, tmp_path):
    """A whole tiny run: each row's router was trained beside the experts that it decodes with, and new experts are trained once."""
    s = frame.Settings(out=str(tmp_path), device="cpu")
    monkeypatch.setattr(frame, "Settings", lambda: s)
    short = functools.partial(train_sft.Settings, epochs=2)
    short.samples = 12
    monkeypatch.setattr(train_sft, "Settings", short)
    monkeypatch.setattr(paper_train, "train", lambda s, name, spec: paper_train.train_phase1(s, name, replace(spec, samples=12, epochs=2)))
    toy.ensure(toy.Settings(0, str(tmp_path), "cpu"))
    paper_train.train(s, "router_sft", paper_train.Sft())
    beside = []
    real = frame.phase1
    noted = lambda those, start: beside.append((len(those), run.fingerprint(start)))
    monkeypatch.setattr(frame, "phase1", lambda s, those, sft, start: noted(those, start) or real(s, those, sft, start))
    cells = recorded(monkeypatch, experts)
    prints = lambda those: [run.fingerprint(e) for e in those]
    load = lambda name: run.fingerprint(models.load_model(tmp_path / "seed0" / f"{name}.pt", "")[0])
    for (label, line), row in cells.items():
        router, those, how = row["decoder"]
        names = [n if n in (*toy.EXPERTS, "base") else f"open_expert_{n}" for n in experts.SETS[label]]
        assert prints(those) == [load(n) for n in names] and router.W.out_features == len(names), label
        assert how == ({"use_router": False} if line == "routing_only" else {}) and 0 <= row["one is right"] <= 1
    assert len(cells) == 16 and beside == [(n, load("instruct")) for n in (2, 5, 8, 8)]  # one training for both lines
    alone = [cells[f"1 ({e})", "fusionroute"]["decoder"][0].lm for e in toy.EXPERTS]
    assert len(set(prints(alone))) == 1 and set(prints(alone)) != set(prints([cells["3", "fusionroute"]["decoder"][0].lm]))
    assert all(cells[f"1 ({e})", "fusionroute"]["in S"] == 0 for e in toy.EXPERTS)
    written = lambda: (tmp_path / "seed0" / "open_expert_drills.pt").stat().st_mtime_ns
    before = written()
    again = experts.expert(s, "drills")
    assert run.fingerprint(again) == load("open_expert_drills") and written() == before
    base = models.load_model(tmp_path / "seed0" / "base.pt", "")[0].requires_grad_(True)
    with paper_train.steps_of("drills", 2, toy.LR["math"]):  # the same by hand: from the base
        toy.train("drills", base, experts.documents(toy.Settings(0), "drills"), list(experts.PARTS).index("drills"))
    assert run.fingerprint(base) == run.fingerprint(again)
    monkeypatch.setattr(experts, "PARTS", experts.PARTS | {"drills": (None, slice(None), 3)})
    with pytest.raises(run.UserError, match="was made with steps = 2, but 3 is asked"):
        experts.expert(s, "drills")

