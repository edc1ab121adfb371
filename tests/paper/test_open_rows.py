"""The open questions (e), newcomer, (g), objectives, and (h), data: each row is what its label says."""

import json
from copy import deepcopy
from random import Random

import pytest
import torch

from extra.paper.open_questions import data, frame, newcomer, objectives
from fusionroute import Router
from model import GPT, GPTConfig
from toy_experts import run, tasks, tokenizer
from toy_experts import train as toy
from toy_experts.batch import decode_batch


@pytest.fixture
def tiny(monkeypatch):
    """A router and three experts."""
    monkeypatch.setattr(toy, "new_gpt", lambda: GPT(GPTConfig(vocab_size=tokenizer.VOCAB_SIZE, d_model=24, n_layer=1)))
    torch.manual_seed(0)
    router = Router(toy.new_gpt(), 3).requires_grad_(False)
    torch.nn.init.normal_(router.W.weight)
    return router, [toy.new_gpt().eval().requires_grad_(False) for _ in range(3)]


def cells_of(page, s):
    cells = {}
    page.measure(s, lambda label, line, compute: cells.update({(label, line): compute()}))
    return cells


# --- (e) newcomer ---------------------------------------------------------------------------------------------------------------------------


def test_what_is_trained_in_each_row(tiny, monkeypatch):
    """Which router each row starts from, what is trained for how long, beside which experts, and who is there when it decodes."""
    three, experts = tiny
    code, rest = newcomer.CODE, [0, 2]
    assert toy.EXPERTS[code] == "code"

    def train(s, router, sft, epochs, what):
        new = deepcopy(router)
        new.history = [*getattr(router, "history", []), (what, epochs, sft.logp.size(-1))]
        if what == "all" and epochs == 4:
            new.W.weight.data.fill_(1.0)  # so that a new row of zeros is seen
        return new

    monkeypatch.setattr(newcomer, "train", train)
    monkeypatch.setattr(newcomer, "judged", lambda s, router, those, problems, **how: {"of": (router, those, how)})
    monkeypatch.setattr(newcomer.models, "load_router", lambda s, name: ({"router_sft": three}[name], experts, {}))
    monkeypatch.setattr(newcomer.train_sft.Settings, "samples", 18)
    monkeypatch.setattr(newcomer.frame, "items", lambda s: {})
    cells = cells_of(newcomer, frame.Settings())
    histories = {"before": [("all", 4, 2)], "joins, nothing trained": [("all", 4, 2)], "new row of W": [("all", 4, 2), ("row", 1, 3)],
                 "all of W": [("all", 4, 2), ("W", 1, 3)], "W and theta": [("all", 4, 2), ("all", 1, 3)], "from scratch": [],
                 "leaves, row dropped": [], "leaves, W trained": [("W", 1, 2)]}
    assert {label for label, _ in cells} == set(histories)
    for (label, line), row in cells.items():
        router, those, how = row["of"]
        assert getattr(router, "history", []) == histories[label], label
        among_two = label == "before" or label.startswith("leaves")
        assert [id(e) for e in those] == [id(experts[i]) for i in (rest if among_two else range(3))], label
        assert router.W.out_features == len(those) and how == ({"use_router": False} if line == "routing_only" else {})
        start = experts[2] if histories[label][:1] == [("all", 4, 2)] else three.lm  # a copy of the instruction expert, or the usual router
        assert run.fingerprint(router.lm) == run.fingerprint(start), label
    rows = lambda label: cells[label, "fusionroute"]["of"][0].W.weight
    assert rows("joins, nothing trained").any(1).tolist() == [i != code for i in range(3)] and torch.equal(rows("leaves, row dropped"), three.W.weight[rest])
    assert torch.equal(rows("leaves, W trained"), three.W.weight[rest]) and torch.equal(rows("from scratch"), three.W.weight)


def test_two_experts_are_scored_as_these_two(tiny, monkeypatch):
    """The samples that the router of `before` is trained on have the columns of the experts that stay."""
    three, experts = tiny
    given = []
    monkeypatch.setattr(newcomer, "train", lambda s, router, sft, epochs, what: given.append(sft) or deepcopy(router))
    monkeypatch.setattr(newcomer, "judged", lambda *those, **how: {})
    monkeypatch.setattr(newcomer.models, "load_router", lambda s, name: (three, experts, {}))
    monkeypatch.setattr(newcomer.train_sft.Settings, "samples", 18)
    monkeypatch.setattr(newcomer.frame, "items", lambda s: {})
    cells_of(newcomer, frame.Settings())
    two, all_three = given[0], given[1]
    assert torch.equal(two.logp, all_three.logp[..., [0, 2]]) and not torch.equal(two.logp, all_three.logp[..., [0, 1]])


# --- (g) objectives -------------------------------------------------------------------------------------------------------------------------


def test_beta_is_chosen_on_validation_prompts(tiny, monkeypatch, tmp_path):
    """Each objective's best beta of three by validation prompts, then judged on the test prompts; the loss is the one of its label."""
    three, experts = tiny
    specs, splits = {"router_sft": "phase 1"}, []
    best = {"paper": 0.03, "ipo": 2.0, "hinge": 0.1, "simpo": 5.0}

    def items(s, split="test"):
        splits.append(split)
        return {b: [split] * 60 for b in (*tasks.BENCHMARKS, "general")}

    def judged(s, decoder, problems=None):
        if problems is None:  # frame.judged draws the test prompts itself
            return {"average": 0.5, "of": decoder}
        assert set(problems) == set(tasks.BENCHMARKS) and {x for drawn in problems.values() for x in drawn} == {"validation"}
        return {"average": 1 - abs(decoder[0].beta - best[decoder[0].loss])}

    monkeypatch.setattr(objectives.frame, "items", items)
    monkeypatch.setattr(objectives.frame, "judged", judged)
    monkeypatch.setattr(objectives.frame, "fused", lambda router, those, **how: (router, those, how))
    monkeypatch.setattr(objectives.paper_train, "train", lambda s, name, spec: specs.update({name: spec}))
    content = {"recipe": {"samples": 18}, "experts": {}}
    monkeypatch.setattr(objectives.models, "load_router", lambda s, name: (three if name == "router_sft" else specs[name], experts, content))
    monkeypatch.setattr(objectives.models, "folder", lambda s: tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}\n" * 40)
    monkeypatch.setattr(objectives.paper_train, "sft_samples", lambda *given: type("", (), {"lengths": torch.ones(18)}))
    plans = []
    monkeypatch.setattr(objectives, "reinforce", lambda s, router, those, sft, plan: plans.append(plan))
    cells = cells_of(objectives, frame.Settings())
    for label, loss in (("CDPO", "paper"), ("IPO", "ipo"), ("hinge", "hinge"), ("SimPO", "simpo")):
        row = cells[label, "fusionroute"]
        assert row["beta"] == best[loss] and row["of"][0] == objectives.paper_train.Cdpo(loss=loss, beta=best[loss]) and row["of"][2] == {}
    assert cells["phase 1 only", "fusionroute"]["of"][0] is three and set(splits) == {"validation"}
    (plan,) = plans  # as many steps, half of them SFT steps, as phase 2 on these 40 pairs in two passes
    assert [kind for kind, _ in plan].count("pair") == 2 * 3 == len(plan) / 2
    learned = cells["REINFORCE", "fusionroute"]["of"][0]
    assert learned is not three and torch.equal(learned.W.weight, three.W.weight) and not any(p.requires_grad for p in learned.parameters())


def test_reinforce_learns_what_is_rewarded(tiny, monkeypatch):
    """Answers of one token, of which half of the vocabulary is right: its probability under Eq. (1) rises, and falls where the reward is turned round.

    The answers are drawn from router and experts together, with temperature 1.
    """
    router, experts = tiny
    asked = []

    def decode(router, those, prompts, **how):
        groups = [prompts[i:i + objectives.SAMPLES] for i in range(0, len(prompts), objectives.SAMPLES)]
        assert len(prompts) == 16 and all(group == [group[0]] * 4 for group in groups) and len({str(group[0]) for group in groups}) == 4
        asked.append((those, how["temperature"], how.get("use_router", True), how.get("use_expert", True)))
        return decode_batch(router, those, prompts, 1, **how)

    prompts = [tokenizer.encode_prompt(item.prompt) for item in tasks.mixed("preference", 60, Random("x"))]

    @torch.no_grad()
    def probability(router):
        """Of the right half, at the first token, on average."""
        shares = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            logits, w = router(ids)
            own = experts[int(w[0, -1].argmax())](ids)[0][0, -1]
            shares.append(float((logits[0, -1].log_softmax(-1) + own.log_softmax(-1)).softmax(-1)[:tokenizer.VOCAB_SIZE // 2].sum()))
        return sum(shares) / len(shares)

    class Right:  # an answer's token, without its text
        def __init__(self, sign):
            self.sign = sign

        def __call__(self, item, text):
            return (text < tokenizer.VOCAB_SIZE // 2) == self.sign

    monkeypatch.setattr(objectives, "decode_batch", decode)
    monkeypatch.setattr("toy_experts.batch.Trace.text", lambda trace: trace.tokens[0])
    monkeypatch.setattr(objectives.train_cdpo, "Settings", lambda: type("", (), {"lr": 2e-3, "lam": 1 / 3}))
    learned = {}
    for sign in (True, False):
        monkeypatch.setattr(objectives.tasks, "check", Right(sign))
        learned[sign] = deepcopy(router).requires_grad_(True)
        objectives.reinforce(frame.Settings(), learned[sign], experts, None, [("pair", None)] * 12)
    before, up, down = probability(router), probability(learned[True]), probability(learned[False])
    assert down + 0.05 < before < up - 0.05
    assert all(row == (experts, 1.0, True, True) for row in asked) and len(asked) == 24
    assert all(torch.equal(r.W.weight, router.W.weight) for r in learned.values())  # W has no gradient of a pair step


# --- (h) data -------------------------------------------------------------------------------------------------------------------------------


def test_each_row_has_its_data(tiny, monkeypatch, tmp_path):
    three, experts = tiny
    items = tasks.mixed("preference", 60, Random("preference 0"))
    pairs = [{"prompt": i.prompt, "chosen": "right", "rejected": "wrong"} for i in items]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    real = data.without
    monkeypatch.setattr(data, "without", lambda found, part, seed: real(found, part, seed, 60))
    monkeypatch.setattr(data.models, "folder", lambda s: tmp_path)
    monkeypatch.setattr(data.models, "load_router", lambda s, name: (name, experts, {}))
    monkeypatch.setattr(data, "scored", lambda drawn, those: drawn)
    monkeypatch.setattr(data.frame.train, "scored", lambda drawn, those: drawn)
    monkeypatch.setattr(data.toy, "sample", lambda item: item)
    monkeypatch.setattr(data.train_sft.Settings, "samples", 60)
    monkeypatch.setattr(data, "phase2", lambda s, first, those, sft, found: ("phase 2", first, sft, found))
    monkeypatch.setattr(data.frame, "phase1", lambda s, those, sft: ("phase 1", None, sft, None))
    monkeypatch.setattr(data.frame, "fused", lambda router, those, **how: router)
    monkeypatch.setattr(data.frame, "judged", lambda s, decoder: decoder)
    cells = cells_of(data, frame.Settings())
    assert cells.pop(("as always", "both phases")) == "router" and cells.pop(("as always", "phase 1 only")) == "router_sft"
    usual = [i.prompt for i in tasks.mixed("train", 60, Random("sft 0"))]
    math = lambda drawn: sum(i.bench in tasks.DOMAINS["math"] for i in drawn)
    general = lambda drawn: sum(i.bench == "general" for i in drawn)
    part_of = {i.prompt: i for i in items}
    for (label, line), (phase, first, sft, found) in cells.items():
        assert line == ("both phases" if phase == "phase 2" else "phase 1 only") and len(sft) == 60
        if phase == "phase 2":
            flips = sum(p["chosen"] == "wrong" for p in found)
            drawn = [part_of[p["prompt"]] for p in found]
            assert first == "router_sft" and [i.prompt for i in sft] == usual
            assert flips == (round(60 * float(label.split("%")[0]) / 100) if "flipped" in label else 0)
            assert (math(drawn) == 0) == (label == "pairs without math") and (general(drawn) == 0) == (label == "pairs without general")
        else:
            assert math(sft) == {"SFT without math": 0, "SFT: half math": 30}.get(label, math(sft)) and (math(sft) == 0) == (label == "SFT without math")
            assert (general(sft) == 0) == (label == "SFT without general")
    assert {label for label, _ in cells} == {*(f"{n}% flipped" for n in (10, 20, 30, 40)), "pairs without math", "pairs without general",
                                             "SFT without math", "SFT without general", "SFT: half math"}
