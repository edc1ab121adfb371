"""What every recipe of train.TRAINING is fed: start, data, pairs, reference, losses, rates. Nothing is trained here, except the reward model.

The run is made of tiny untrained models, no two alike, so that each tells by its weights which it is. A row that is new in TRAINING is tested
too: what is expected follows from its recipe.
"""

import functools
import json
from dataclasses import asdict, replace
from random import Random

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import train_cdpo
import train_sft
from extra import models
from extra.paper import baselines, variants
from extra.paper import train as paper_train
from extra.paper.train import TRAINING, Cdpo, Double, Sft, Union
from fusionroute import Router
from toy_experts import pairs as toy_pairs
from toy_experts import run, tasks
from toy_experts import train as toy
from toy_experts.data import batches, scored

SMALL = {Sft: {"samples": 12}, Cdpo: {"prompts": 9}, baselines.Reward: {"prompts": 9}, Union: {}, Double: {"size": (48, 1)}}
SEED = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Settings of a run with base, experts, and a checkpoint of every name in TRAINING."""
    s = models.Settings(SEED, str(tmp_path_factory.mktemp("run")), "cpu")
    folder, _ = run.prepare(models.place(s))
    torch.manual_seed(SEED)

    def model():
        lm = models.new_gpt("llama", (24, 1))
        for p in lm.parameters():
            p.data += 0.1 * torch.randn_like(p)
        return lm

    for name in ("base", *toy.EXPERTS):
        run.save_model(folder / f"{name}.pt", model(), {"seed": SEED, "gap": 0.25}, 1)
    names = {e: run.fingerprint(run.load_model(folder / f"{e}.pt", "")[0]) for e in toy.EXPERTS}
    for name, spec in TRAINING.items():
        if isinstance(spec, (Union, Double)):
            run.save_model(folder / f"{name}.pt", model(), {"seed": SEED, "gap": 0.25}, 1)
            continue
        choices = names | ({"router": ""} if getattr(spec, "loss", "") == "co_llm_self" else {})
        router = Router(model(), len(choices))
        torch.nn.init.normal_(router.W.weight)
        run.save_model(folder / f"{name}.pt", router, {"seed": SEED} | asdict(spec) | SMALL[type(spec)], 1, choices)
    return s


@pytest.fixture(scope="module")
def loaded(place):
    @functools.cache
    def load(name):
        return models.load_model(models.folder(place) / f"{name}.pt", "", router=name not in ("base", *toy.EXPERTS, "union", "double_start"))[0]
    return load


@pytest.fixture
def trained(place, monkeypatch):
    """trained(spec) -> what the ground floor's loop was given for it, and what was saved. Every checkpoint of `place` stays as it is."""
    def run_recipe(spec, name="made"):
        got, folder = {}, models.folder(place)

        def loop(script):
            def stub(settings, router, sft, *rest):
                got.update(settings=settings, router=run.fingerprint(router), lm=run.fingerprint(router.lm), W=router.W.weight.detach().clone(),
                           grads=all(p.requires_grad for p in router.parameters()), sft=sft, rest=rest, lr_w=script.LR_W)
                router.W.weight.data += 1  # the training
                got["after"] = run.fingerprint(router)
                return run.Log(toy.EXPERTS)
            return stub

        def toy_train(name, model, samples, seed):
            got.update(lm=run.fingerprint(model), samples=samples, steps=toy.STEPS[name], lr=toy.LR[name], seed=seed,
                       grads=all(p.requires_grad for p in model.parameters()))
            model.embed.weight.data += 1
            got["after"] = run.fingerprint(model)

        def sample_pairs(sampler, experts, seed, prompts, source):
            got["sampled"] = (run.fingerprint(sampler), [run.fingerprint(e) for e in experts], seed, prompts, source)
            return some_pairs()

        rates = train_sft.LR_W, train_cdpo.LR_W, dict(toy.STEPS), dict(toy.LR)
        for script in (train_sft, train_cdpo):
            monkeypatch.setattr(script, "train", loop(script))
        monkeypatch.setattr(toy, "train", toy_train)
        monkeypatch.setattr(variants, "sample_pairs", sample_pairs)
        paper_train.MEMORY.clear()
        paper_train.train(place, name, spec)
        assert (train_sft.LR_W, train_cdpo.LR_W, toy.STEPS, toy.LR) == rates  # borrowed, and given back
        path = folder / f"{name}.pt"
        model, content = models.load_model(path, "", router=not isinstance(spec, (Union, Double)))
        assert run.fingerprint(model) == got["after"]
        path.unlink()
        for other in folder.glob(f"{name}.*"):
            other.unlink()
        return got, content
    return run_recipe


def some_pairs():
    items = tasks.mixed("preference", 9, Random(1))
    return [{"prompt": i.prompt, "chosen": i.answer, "rejected": f"no, {k} green apples"} for k, i in enumerate(items)]


def same_data(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


def sft_data(experts, n=12):
    items = tasks.mixed("train", n, Random(f"sft {SEED}"))
    return scored([toy.sample(i) for i in items], experts)


def sft_value(name, batch, experts):
    """The loss `name` of variants on a batch, whose functions test_baselines.py holds to their formulas; full: from the input itself."""
    x, logits, w, *rest = batch
    more = {"full": torch.stack([e(x[:, :-1])[0].log_softmax(-1) for e in experts], 2)} if name in ("renormalised", "fused", "fused_own") else {}
    return float(variants.SFT_LOSSES[name](logits, w, *rest, **more)[0])


def check_sft_loss(handed_in, name, sft, experts, n):
    x, mask, logp, choice = sft.batch(torch.arange(6), "cpu")
    choice[:, ::2] = 0  # untrained experts agree nowhere: S shall not be everything
    logits, w = torch.randn(*x[:, 1:].shape, experts[0].config.vocab_size), torch.randn(*x[:, 1:].shape, n)
    batch = logits, w, x[:, 1:], mask, logp, choice, 0.7
    values = {other: sft_value(other, (x, *batch), experts) for other in variants.SFT_LOSSES if (other == "co_llm_self") == (n == 4)}
    assert float(handed_in(*batch)[0]) == pytest.approx(values[name], rel=1e-4)
    assert [k for k, v in values.items() if v == pytest.approx(values[name], rel=1e-4)] == [name]


SFT = {n: spec for n, spec in TRAINING.items() if isinstance(spec, Sft)} | {"other numbers": Sft(epochs=3, lr=3e-3, lr_w=7e-3, lam=0.9)}


@pytest.mark.parametrize("name", SFT)
def test_what_each_phase_1_is_fed(name, place, loaded, trained):
    """The train split's samples with the experts' scores in their order; its start's weights, W at 0; its loss, rates and passes."""
    spec = replace(SFT[name], **SMALL[Sft])
    experts = [loaded(e) for e in toy.EXPERTS]
    got, content = trained(spec)
    n = 4 if spec.loss == "co_llm_self" else 3
    assert got["lm"] == run.fingerprint(loaded(spec.start)) and got["grads"] and got["W"].shape[0] == n and not got["W"].any()
    assert asdict(got["settings"]) | {"out": "", "device": ""} == {
        "seed": SEED, "out": "", "device": "", "gap": 0.25, "samples": 12, "epochs": spec.epochs, "lr": spec.lr, "lam": spec.lam}
    assert got["lr_w"] == spec.lr_w
    same_data(got["sft"], sft_data(experts))
    (loss,) = got["rest"]
    check_sft_loss(loss, spec.loss, got["sft"], experts, n)
    assert content["recipe"] == {"seed": SEED, "gap": 0.25, **asdict(spec), "experts": {e: run.fingerprint(m) for e, m in zip(toy.EXPERTS, experts)}}
    assert list(content["experts"]) == [*toy.EXPERTS, "router"][:n]


CDPO = {n: spec for n, spec in TRAINING.items() if isinstance(spec, Cdpo)} | {  # and the ablations' kinds
    "through the bias": Cdpo(loss="gradient"), "of the fused policy": Cdpo(loss="fused"), "on y_w": Cdpo(loss="sft"), "no SFT batches": Cdpo(mix=0),
    "other numbers": Cdpo(epochs=3, lr=3e-3, lr_w=7e-3, lam=0.9, beta=0.4), "of experts": Cdpo(rejected="experts")}


@pytest.mark.parametrize("name", CDPO)
def test_what_each_phase_2_is_fed(name, place, loaded, trained):
    """It goes on from its phase 1, which is pi_ref too; the pairs are its sampler's mistakes; both losses, plan, rates and beta are the recipe's."""
    spec = replace(CDPO[name], **SMALL[Cdpo])
    experts, first = [loaded(e) for e in toy.EXPERTS], loaded(spec.phase1)
    got, content = trained(spec)
    sampler = run.fingerprint(loaded(spec.pairs_of or spec.phase1))
    assert got["router"] == run.fingerprint(first) and got["grads"] and got["lr_w"] == spec.lr_w
    assert got["sampled"] == (sampler, [run.fingerprint(e) for e in experts], SEED, 9, spec.rejected)
    assert {k: v for k, v in asdict(got["settings"]).items() if k not in ("out", "device")} == {
        "seed": SEED, "prompts": 9, "epochs": spec.epochs, "lr": spec.lr, "lam": spec.lam, "beta": spec.beta}
    pairs, ref, plan, pair_loss, sft_loss = got["rest"]
    same_data(got["sft"], sft_data(experts))
    both = scored(toy_pairs.samples(some_pairs()), experts)
    same_data(pairs, [x.view(9, 2, *x.shape[1:]) for x in both])

    # pi_ref, answer by answer: the phase 1's language model, or the normalised fused policy of Eq. (1)
    for k in range(9):
        for side in (0, 1):
            ids, learn = pairs.ids[k, side, :int(pairs.lengths[k, side])], pairs.mask[k, side]
            logits, w = first(ids[None, :-1])
            logp = logits[0].log_softmax(-1)
            if spec.loss == "fused":
                full = [e(ids[None, :-1])[0][0].log_softmax(-1) for e in experts]
                logp = (logp + torch.stack([full[int(i)][t] for t, i in enumerate(w[0].argmax(-1))])).log_softmax(-1)
            said = sum(float(logp[t, ids[t + 1]]) for t in range(len(ids) - 1) if learn[t + 1])
            assert float(ref[k, side]) == pytest.approx(said, rel=1e-3)

    # the plan: train_cdpo's own, or as many passes over the pairs alone, shuffled
    kinds = [kind for kind, _ in plan]
    expected = train_cdpo.make_plan(got["settings"], got["sft"].lengths, pairs.lengths) if spec.mix else \
        [("pair", rows) for e in range(spec.epochs) for rows in batches(pairs.lengths.amax(1), 16, SEED * 1000 + e)]
    assert kinds.count("pair") == spec.epochs and kinds.count("sft") == (spec.epochs if spec.mix else 0)
    order = lambda plan: [(kind, rows.tolist()) for kind, rows in plan]
    assert order(plan) == order(expected) if spec.mix else sorted(order(plan)) == sorted(order(expected))

    # the losses by their values on a batch, each unlike all others
    x, mask, logp, choice = pairs.batch(torch.arange(4), "cpu")
    logits, w = torch.randn(*x[:, 1:].shape, experts[0].config.vocab_size), torch.randn(*x[:, 1:].shape, 3)
    full = torch.stack([e(x[:, :-1])[0].log_softmax(-1) for e in experts], 2)
    args = logits, w, x[:, 1:], mask, logp, ref[:4], 0.01
    values = {k: float(f(*args, **({"full": full} if k == "fused" else {}))[0]) for k, f in variants.PAIR_LOSSES.items()}
    assert float(pair_loss(*args)[0]) == pytest.approx(values[spec.loss], rel=1e-4)
    assert [k for k, v in values.items() if v == pytest.approx(values[spec.loss], rel=1e-4)] == [spec.loss]
    check_sft_loss(sft_loss, TRAINING[spec.phase1].loss, got["sft"], experts, 3)

    assert content["recipe"] == {"seed": SEED, "phase1": run.fingerprint(first), "sampler": sampler} | {
        k: v for k, v in asdict(spec).items() if k not in ("pairs_of", "phase1")}
    assert list(content["experts"].values()) == [run.fingerprint(e) for e in experts]


def test_pairs_alone_are_shuffled_and_seen_once_a_pass():
    lengths = torch.randint(5, 60, (330, 2))
    plan = paper_train.only_pairs(train_cdpo.Settings(seed=0, epochs=3), lengths)
    assert torch.cat([rows for _, rows in plan]).bincount().tolist() == [3] * 330 and {kind for kind, _ in plan} == {"pair"}
    passes = [tuple(rows.tolist()) for e in range(3) for rows in batches(lengths.amax(1), 16, e)]
    assert [tuple(rows.tolist()) for _, rows in plan] != passes and sorted(tuple(rows.tolist()) for _, rows in plan) == sorted(passes)


def test_what_the_union_is_fed(place, loaded, trained, monkeypatch):
    """The base's weights, every document of every expert, for as many steps as all of them together."""
    monkeypatch.setattr(toy, "STEPS", {"base": 3, "math": 4, "code": 1, "instruct": 2})
    got, content = trained(Union())
    settings = toy.Settings(seed=SEED, gap=0.25)
    assert got["lm"] == run.fingerprint(loaded("base")) and got["grads"] and (got["steps"], got["lr"]) == (7, toy.LR["math"])
    assert got["samples"] == [d for e in toy.EXPERTS for d in toy.documents(settings, e)] and got["seed"] == SEED * 1000
    assert content["recipe"] == {"seed": SEED, "gap": 0.25, "base": run.fingerprint(loaded("base"))}


def test_what_the_double_is_fed(place, loaded, monkeypatch):
    """A new model of the larger size: the base's documents, then the instruction expert's, with the steps, rates and seeds of both."""
    fed = []

    def toy_train(name, model, samples, seed):
        fed.append((name, run.fingerprint(model), samples, seed, all(p.requires_grad for p in model.parameters())))
        model.embed.weight.data += 1

    monkeypatch.setattr(toy, "train", toy_train)
    paper_train.train(place, "made", Double((48, 1)))
    path, settings = models.folder(place) / "made.pt", toy.Settings(seed=SEED, gap=0.25)
    model, content = models.load_model(path, "")
    torch.manual_seed(SEED)
    new = models.new_gpt("llama", (48, 1))
    assert [(name, seed, grads) for name, _, _, seed, grads in fed] == [("base", SEED * 1000, True), ("instruct", SEED * 1000 + 3, True)]
    assert [samples for _, _, samples, _, _ in fed] == [toy.documents(settings, name) for name in ("base", "instruct")]
    assert fed[0][1] == run.fingerprint(new) and torch.allclose(model.embed.weight, new.embed.weight + 2, atol=1e-5)
    assert content["recipe"] == {"seed": SEED, "gap": 0.25, "size": [48, 1]}
    monkeypatch.setattr(toy, "train", lambda *given: pytest.fail("it was trained again"))
    paper_train.train(place, "made", Double((48, 1)))
    with pytest.raises(run.UserError, match="size"):
        paper_train.train(place, "made", Double((72, 1)))
    path.unlink()
    with pytest.raises(run.UserError, match="multiple of 24"):
        Double((50, 1))


def test_samples_and_pairs_are_shared_only_where_they_are_the_same(place, loaded, trained, monkeypatch):
    """Two recipes in one process: other experts' scores, another number of samples, another sampler or source are made anew."""
    seen = []
    monkeypatch.setattr(paper_train, "scored", lambda samples, experts: seen.append(len(samples)) or scored(samples, experts))
    experts = [loaded(e) for e in toy.EXPERTS]
    ask = lambda n, seed, **names: paper_train.sft_samples(replace(place, seed=seed), n, experts, names)
    paper_train.MEMORY.clear()
    for n, seed, names in ((8, 0, {"math": "a"}), (8, 0, {"math": "a"}), (9, 0, {"math": "a"}), (9, 1, {"math": "a"}), (9, 1, {"math": "b"})):
        assert len(ask(n, seed, **names).ids) == n
    assert seen == [8, 9, 9, 9]
    keys = set()
    for spec in (Cdpo(), Cdpo(pairs_of="sft_all"), Cdpo(rejected="router"), Cdpo(prompts=8)):
        trained(replace(spec, **{} if spec.prompts == 8 else SMALL[Cdpo]))
        keys |= {key for key in paper_train.MEMORY if key[0] == "pairs"}
    assert len(keys) == 4


def test_a_checkpoint_of_another_recipe_is_refused(place, loaded, monkeypatch):
    """One of the same recipe is left as it is; one whose recipe is another, or whose phase 1 or sampler has other weights, is an error."""
    folder, router = models.folder(place), loaded("router_sft")
    names = {e: run.fingerprint(loaded(e)) for e in toy.EXPERTS}
    spec = Cdpo(prompts=9, pairs_of="sft_all")
    recipe = {k: v for k, v in asdict(spec).items() if k != "pairs_of"} | {
        "seed": SEED, "phase1": run.fingerprint(router), "sampler": run.fingerprint(loaded("sft_all"))}
    monkeypatch.setattr(variants, "sample_pairs", lambda *given: pytest.fail("it was trained again"))
    first = Sft(samples=12)
    run.save_model(folder / "made.pt", router, recipe, 1, names)
    run.save_model(folder / "made_sft.pt", router, {"seed": SEED, "gap": 0.25, **asdict(first), "experts": names}, 1, names)
    try:
        paper_train.train(place, "made", spec)
        paper_train.train(place, "made_sft", first)
        for other in (replace(spec, lr=9.0), replace(spec, pairs_of="co_llm"), replace(spec, phase1="co_llm"), replace(spec, mix=0)):
            with pytest.raises(run.UserError, match="was made with"):
                paper_train.train(place, "made", other)
        for other in (replace(first, epochs=9), replace(first, loss="all"), replace(first, start="union")):
            with pytest.raises(run.UserError, match="was made with"):
                paper_train.train(place, "made_sft", other)
    finally:
        for path in folder.glob("made*"):
            path.unlink()


def test_needed_names_what_a_recipe_starts_from_in_order():
    for name, spec in TRAINING.items():
        before = paper_train.needed(name)
        own = {getattr(spec, "phase1", ""), getattr(spec, "pairs_of", ""), getattr(spec, "start", "")} - {"", *toy.EXPERTS}
        own |= {"router_sft"} if isinstance(spec, baselines.Reward) else set()
        assert before[-1] == name and len(set(before)) == len(before) and own <= set(before[:-1]), name
        assert set(before[:-1]) == {x for other in own for x in paper_train.needed(other)}, name
        assert all(set(paper_train.needed(x)) <= set(before[:k + 1]) for k, x in enumerate(before)), name
    assert paper_train.needed("reward") == ["router_sft", "reward"] and "router_sft" in paper_train.needed("fine_tuned")


# --- the reward model -----------------------------------------------------------------------------------------------------------------------


class Told(Router):
    """A reward model whose score of a prefix is computed from its tokens, and told to the test."""

    def forward(self, ids, cache=None, new=None):
        logits, hidden = self.lm(ids, cache, new)
        place = torch.arange(1, ids.size(1) + 1)
        return logits, (0.01 * (ids * place).cumsum(1) + 50 * self.W(hidden)[..., 0])[..., None]


@pytest.mark.parametrize("prefixes", [0, 1])
def test_what_the_reward_model_is_fed(place, loaded, monkeypatch, prefixes):
    """Chosen before rejected, scored at its end or, cut short, after equally many tokens of both answers; a tenth of the pairs only measures;
    it starts as the instruction expert; gradients are clipped."""
    pairs, calls, norms, start = some_pairs(), [], [], []
    folder = models.folder(place)
    monkeypatch.setattr(baselines, "Router", lambda lm, n: start.append((run.fingerprint(lm), n)) or Told(lm, n))
    monkeypatch.setattr(baselines, "BATCH", 4)
    monkeypatch.setattr(variants, "sample_pairs", lambda sampler, experts, seed, n, source: start.append(
        (run.fingerprint(sampler), [run.fingerprint(e) for e in experts], seed, n, source)) or pairs)

    def spy(r_chosen, r_rejected):
        calls.append((r_chosen.detach().clone(), r_rejected.detach().clone()))
        return 100 * (r_rejected - r_chosen).mean()  # of which the gradient is large whatever the scores

    monkeypatch.setattr(baselines, "reward_loss", spy)
    hook = register_optimizer_step_pre_hook(lambda optimizer, *given: norms.append(
        (float(sum(p.grad.square().sum() for g in optimizer.param_groups for p in g["params"] if p.grad is not None) ** 0.5),
         [g["lr"] for g in optimizer.param_groups])))
    try:
        baselines.train_reward(place, "told", baselines.Reward(rejected="fused", prompts=9, epochs=2, prefixes=prefixes, lr=1e-7, lr_w=1e-7))
        content = models.load_model(folder / "told.pt", "", router=True)[1]
        log = [json.loads(line) for line in (folder / "told.log.jsonl").read_text().splitlines()]
    finally:
        hook.remove()
        for path in folder.glob("told*"):
            path.unlink()
    assert start[0] == (run.fingerprint(loaded("router_sft")), [run.fingerprint(loaded(e)) for e in toy.EXPERTS], SEED, 9, "fused")
    assert start[1] == (run.fingerprint(loaded("instruct")), 1)
    assert content["recipe"]["router_sft"] == start[0][0] and content["experts"] == {"reward": ""}

    score = lambda ids: 0.01 * sum((k + 1) * t for k, t in enumerate(ids))
    samples = toy_pairs.samples(pairs)
    whole = {(round(score(samples[2 * i][0]), 1), round(score(samples[2 * i + 1][0]), 1)) for i in range(9)}
    cut = {(round(score(samples[2 * i][0][:a + k + 1]), 1), round(score(samples[2 * i + 1][0][:a + k + 1]), 1))
           for i in range(9) for a in [samples[2 * i][1].index(True)] for k in range(min(sum(samples[2 * i][1]), sum(samples[2 * i + 1][1])))}
    kinds = [calls[k::1 + prefixes] for k in range(1 + prefixes)]                                     # whole answers, and cut ones
    for expected, of_kind in zip((whole, cut), kinds):
        told = [(round(float(a), 1), round(float(b), 1)) for c, r in of_kind for a, b in zip(c, r)]
        near = lambda x: any(abs(x[0] - a) < 0.3 and abs(x[1] - b) < 0.3 for a, b in expected)
        assert len(told) == 16 and all(map(near, told))                                              # 8 of 9 pairs, two passes
    assert len({x for c, _ in kinds[0] for x in c.tolist()}) >= 8 and log[-1]["pairs"] == 9
    (held,) = whole - {min(whole, key=lambda p: abs(p[0] - float(a)) + abs(p[1] - float(b))) for c, r in kinds[0] for a, b in zip(c, r)}
    assert log[-1]["held_out_accuracy"] == float(held[0] > held[1])
    assert len(norms) == 4 and all(norm == pytest.approx(1, abs=1e-3) for norm, _ in norms)           # 100 times the loss: far above 1
    assert [rates[0] / 1e-7 for _, rates in norms] == pytest.approx([1 / 20, 2 / 20, 3 / 20, 4 / 20])
