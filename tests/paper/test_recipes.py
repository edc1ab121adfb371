"""What every recipe is fed: start, data, pairs, reference, losses, rates. Nothing is trained here.

The run is made of tiny untrained models, no two alike, so that each tells by its weights which it
is. A recipe that is new in TRAINING is tested too: what is expected follows from its settings.
"""

import json
from copy import deepcopy
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

import train_cdpo
import train_sft
from extra.paper import altered, checkpoints, losses, methods, train
from extra.paper.recipes import TRAINING, Cdpo, Expert, Reward, Sft, Update, name_of
from extra.paper.variations import VARIATIONS
from tests.paper.conftest import tiny_router
from toy_experts import experts as toy
from toy_experts import pairs, script, tasks, tokenizer
from toy_experts.data import scored
from toy_experts.decode_batch import Trace

SEED = 3
print_of = script.fingerprint


def some_pairs(n=9):
    items = tasks.mixed("preference", n, Random(1))
    rejected = [f"no, {k} green apples" for k in range(n)]
    return [
        {"prompt": i.prompt, "chosen": i.answer, "rejected": r} for i, r in zip(items, rejected)
    ]


@pytest.fixture
def made(run, monkeypatch):
    """made(recipe) -> what the lesson's loop was given for it, and the checkpoint's content.

    Checkpoints that the recipe starts from are made up. Whatever is made is removed afterwards.
    """
    got, before = {}, set(checkpoints.path(run, "x").parent.iterdir())

    def loop(settings, router, sft, *rest):
        got.update(settings=settings, lm=print_of(router.lm), W=router.W.weight.detach().clone())
        got.update(rest=rest, sft=sft, grads=[p.requires_grad for p in router.parameters()])
        router.W.weight.data += 100 * settings.lr  # the training: no two are alike
        return [{"step": 0}]

    def lm_loop(model, samples, seed, steps, lr, name):
        got.update(lm=print_of(model), samples=samples, seed=seed, steps=steps, lr=lr)
        model.embed.weight.data += 1

    def sample_pairs(sampler, models, *asked):
        got["sampled"] = (print_of(sampler), [print_of(m) for m in models], *asked)
        return some_pairs()

    monkeypatch.setattr(toy, "STEPS", {"base": 3, "math": 4, "code": 1, "instruct": 2})
    for module in (train_sft, train_cdpo):
        monkeypatch.setattr(module, "train", loop)
    monkeypatch.setattr(toy, "train", lm_loop)
    monkeypatch.setattr(train, "sample_pairs", sample_pairs)

    def make(recipe):
        name = train.train(run, recipe)
        router = not isinstance(recipe, Expert)
        return dict(got), checkpoints.load(run, name, router)

    yield make
    for path in set(checkpoints.path(run, "x").parent.iterdir()) - before:
        path.unlink()


def loaded(run, recipe):
    router = not isinstance(recipe, (str, Expert))
    return checkpoints.load(run, name_of(recipe), router)[0]


def same_data(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


def check_sft_loss(handed_in, name, sft, models, n):
    """The loss that was handed in has the value of the named one on a batch, and of no other."""
    x, mask, logp, choice = sft.batch(torch.arange(6), "cpu")
    choice[:, ::2] = 0  # untrained experts agree nowhere: S shall not be everything
    logits = torch.randn(*x[:, 1:].shape, tokenizer.VOCAB_SIZE)
    batch = logits, torch.randn(*x[:, 1:].shape, n), x[:, 1:], mask, logp, choice, 0.7
    names = [x for x in losses.SFT_LOSSES if (x == "co_llm_self") == (n == 4)]
    values = {x: float(losses.sft_loss_of(x, models)(*batch)[0]) for x in names}
    value = float(handed_in(*batch)[0])
    assert [x for x, v in values.items() if v == pytest.approx(value, rel=1e-4)] == [name]


SFT = {name: r for name, r in TRAINING.items() if isinstance(r, Sft)}
SFT |= {
    "other numbers": Sft(epochs=3, lr=3e-3, lr_w=7e-3, lam=0.9),
    "two experts": Sft(experts=("math", "instruct")),
    "half of S": Sft(share=0.5),
    "without math": Sft(items="without math"),
    "changed": Sft(changed="x 4"),
    "two-faced": Sft(changed="two-faced"),
}


@pytest.mark.parametrize("name", SFT)
def test_what_each_phase_1_is_fed(name, run, made):
    """The train split's samples with the experts' scores; its start's weights, W at 0; its loss,
    rates and passes."""
    recipe = replace(SFT[name], samples=12)
    got, (_, content) = made(recipe)
    models = [loaded(run, e) for e in recipe.experts]
    n = 4 if recipe.loss == "co_llm_self" else len(models)
    assert got["lm"] == print_of(loaded(run, recipe.start)) and all(got["grads"])
    assert got["W"].shape[0] == n and not got["W"].any()
    settings = {"samples": 12, "epochs": recipe.epochs, "lr": recipe.lr, "lr_w": recipe.lr_w}
    given = {
        k: v
        for k, v in vars(got["settings"]).items()
        if k not in ("out", "device", "gap", "experts")
    }
    assert given == settings | {"seed": SEED, "lam": recipe.lam}
    samples = toy.sft_samples(12, SEED)
    if recipe.items:
        samples = [toy.sample_of(i) for i in altered.sft_items(SEED, 12, recipe.items)]
    data = scored(samples, altered.change(models, recipe.changed if name == "changed" else ""))
    data = altered.feign(data) if name == "two-faced" else data
    same_data(got["sft"], altered.with_share(data, 0.5, SEED) if recipe.share < 1 else data)
    if len(models) == 3 and name != "two-faced":
        check_sft_loss(got["rest"][0], recipe.loss, got["sft"], models, n)
    prints = dict(zip(recipe.experts, map(print_of, models)))
    assert content["experts"] == prints | ({"router": ""} if n == 4 else {})
    assert content["recipe"]["gap"] == 0.25 and content["recipe"]["seed"] == SEED


CDPO = {name: r for name, r in TRAINING.items() if isinstance(r, Cdpo)}
CDPO |= {f"loss {x}": Cdpo(loss=x) for x in losses.PAIR_LOSSES if x != "reinforce"}
CDPO |= {
    "no SFT batches": Cdpo(mix=0),
    "other numbers": Cdpo(epochs=3, lr=3e-3, lr_w=7e-3, lam=0.9, beta=0.4),
    "of experts": Cdpo(rejected="experts"),
    "flipped": Cdpo(flipped=0.4),
    "without math": Cdpo(without="math"),
}


@pytest.mark.parametrize("name", CDPO)
def test_what_each_phase_2_is_fed(name, run, made, monkeypatch):
    """It goes on from its phase 1, which is pi_ref too; the pairs are its sampler's mistakes; both
    losses, plan, rates and beta are the recipe's."""
    recipe = replace(CDPO[name], prompts=9, phase1=replace(CDPO[name].phase1, samples=12))
    if recipe.sampler:
        recipe = replace(recipe, sampler=replace(recipe.sampler, samples=12))
    part = [p | {"chosen": "x"} for p in some_pairs()[:4]]
    monkeypatch.setattr(
        train,
        "leave_out",
        lambda found, *asked: (
            part if asked == ("math", SEED, 9) and found == some_pairs() else None
        ),
    )
    got, (_, content) = made(recipe)
    models = [loaded(run, e) for e in script.EXPERTS]
    first, sampler = loaded(run, recipe.phase1), loaded(run, recipe.sampler or recipe.phase1)
    assert got["lm"] == print_of(first.lm) and all(got["grads"])
    assert got["sampled"] == (
        print_of(sampler),
        [print_of(e) for e in models],
        SEED,
        9,
        recipe.rejected,
    )
    given = {k: v for k, v in vars(got["settings"]).items() if k not in ("out", "device")}
    names = ("prompts", "epochs", "lr", "lr_w", "lam", "beta")
    assert given == {"seed": SEED} | {k: getattr(recipe, k) for k in names}
    data, ref, plan, pair_loss, sft_loss = got["rest"]
    found = some_pairs()
    found = altered.flip(found, 0.4, SEED) if recipe.flipped else part if recipe.without else found
    expected, lm_ref = train_cdpo.scored_pairs(found, models, first.lm)
    same_data(data, expected)
    same_data(got["sft"], scored(toy.sft_samples(12, SEED), models))
    if recipe.loss == "fused":
        lm_ref = losses.fused_reference(first, models, data)
    torch.testing.assert_close(ref, lm_ref)

    kinds = [kind for kind, _ in plan]
    assert kinds.count("pair") == recipe.epochs
    assert kinds.count("sft") == (recipe.epochs if recipe.mix else 0)
    if recipe.mix:
        again = train_cdpo.make_plan(got["settings"], got["sft"].lengths, data.lengths)
        same_data([rows for _, rows in plan], [rows for _, rows in again])

    x, mask, logp, _ = data.batch(torch.arange(4), "cpu")
    logits = torch.randn(*x[:, 1:].shape, tokenizer.VOCAB_SIZE)
    batch = logits, torch.randn(*x[:, 1:].shape, 3), x[:, 1:], mask, logp, ref[:4], 0.01
    names = [x for x in losses.PAIR_LOSSES if x != "reinforce"]
    values = {x: float(losses.pair_loss_of(x, models)(*batch)[0]) for x in names}
    value = float(pair_loss(*batch)[0])
    assert [x for x in names if values[x] == pytest.approx(value, rel=1e-4)] == [recipe.loss]
    check_sft_loss(sft_loss, recipe.phase1.loss, got["sft"], models, 3)
    assert content["recipe"]["phase1"] == print_of(first)


EXPERTS = {
    "union": TRAINING["union"],
    "wide": Expert("instruct", start=Expert("base", start=None, size=(144, 3))),
    "of Gemma-2": Expert("code", start=None, family="gemma", size=(48, 1)),
    "part": Expert("math500-2"),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_what_each_language_model_is_fed(name, run, made, monkeypatch):
    """Its start's weights or new ones, its documents, steps, rate and seed."""
    parts = {n: (b, which, 2) for n, (b, which, _) in train.PARTS.items()}
    monkeypatch.setattr(train, "PARTS", parts)
    recipe = EXPERTS[name]
    got, (model, content) = made(recipe)
    settings = toy.Settings(seed=SEED)
    base = print_of(loaded(run, "base"))
    if name == "union":
        documents = [d for e in script.EXPERTS for d in toy.documents(settings, e)]
        expected = base, documents, 7, SEED * 1000
    elif name == "wide":
        documents = toy.documents(settings, "instruct")
        expected = print_of(loaded(run, recipe.start)), documents, 2, SEED * 1000 + 3
        assert model.config.d_model == 144
    elif name == "of Gemma-2":
        torch.manual_seed(SEED)
        new = checkpoints.new_gpt("gemma", (48, 1))
        expected = print_of(new), toy.documents(settings, "code"), 1, SEED * 1000 + 2
        assert model.config.window == 32 and content["config"]["attn_cap"]
    else:
        number = list(parts).index(recipe.data)
        documents = train.part_documents(settings, recipe.data)
        expected = base, documents, 2, SEED * 1000 + number
    assert (got["lm"], got["samples"], got["steps"], got["seed"]) == expected
    assert got["lr"] == toy.LR["math"] and not content["experts"]


def test_a_part_s_documents_are_its_own(monkeypatch):
    """Only its benchmark and sub-skills, apart from the replay."""
    drawn, real = [], tasks.draw

    def draw(bench, split, rng, skills):
        drawn.append((bench, split, *skills))
        return real(bench, split, rng, skills)

    monkeypatch.setattr(toy, "REPLAY", 0.0)
    monkeypatch.setattr(tasks, "draw", draw)
    parts = {n: (b, which, 1) for n, (b, which, _) in train.PARTS.items()}
    monkeypatch.setattr(train, "PARTS", parts)
    skills = toy.covered(toy.Settings(), "toy-math500")
    for name, own in (("math500", skills), ("math500-1", skills[::2]), ("math500-2", skills[1::2])):
        drawn.clear()
        assert len(train.part_documents(toy.Settings(), name)) == toy.BATCH
        assert set(drawn) == {("toy-math500", "train", *own)}
    monkeypatch.setattr(toy, "REPLAY", 1.0)
    monkeypatch.setattr(toy, "base_document", lambda s, rng: "the base's")
    assert set(train.part_documents(toy.Settings(), "mbpp")) == {"the base's"}


@pytest.mark.parametrize("theta", [False, True])
def test_an_expert_joins(run, theta, monkeypatch):
    """W gets a row of zeros in the newcomer's place; one pass trains W, and theta_LM if asked."""
    router, given = tiny_router(2), []
    content = {"experts": {"math": "", "instruct": ""}}
    monkeypatch.setattr(train, "load_router", lambda s, recipe: (deepcopy(router), [], content))
    learn = train_sft.train

    def watched(settings, start, *rest):
        given.append((settings.epochs, start.W.weight.detach().clone()))
        return learn(settings, start, *rest)

    monkeypatch.setattr(train_sft, "train", watched)
    before = Sft(experts=("math", "instruct"), samples=12)
    new, _, choices = train.update(run, Update(before, theta=theta))
    assert list(choices) == script.EXPERTS
    [(epochs, W)] = given
    assert epochs == 1 and torch.equal(W[[0, 2]], router.W.weight) and not W[1].any()
    assert (new.W.weight != W).any(1).all()
    moved = [not torch.equal(p, router.lm.get_parameter(n)) for n, p in new.lm.named_parameters()]
    assert any(moved) == theta


# --- names, and what is there already ------------------------------------------------------------


def test_names_tell_recipes_apart():
    """Every recipe of the table of variations and of TRAINING has a name of its own."""
    recipes = set(TRAINING.values())
    for rows in VARIATIONS.values():
        for row in rows():
            recipes |= set(row.recipe) if isinstance(row.recipe, tuple) else {row.recipe}
    names = {name_of(r) for r in recipes}
    assert len(names) == len(recipes) > 60 and all(len(name) < 200 for name in names)
    assert {name for name in names if "/" in name or " " in name} == set()
    assert [name_of(r) for r in TRAINING.values()] == list(TRAINING)
    assert name_of(Sft(lam=0.0)) == "sft_lam_0.0"


def test_a_checkpoint_of_another_recipe_or_start_is_refused(run, made, monkeypatch):
    recipe = replace(Cdpo(), prompts=9, phase1=Sft(samples=12))
    _, (router, content) = made(recipe)
    path = checkpoints.path(run, name_of(recipe))
    monkeypatch.setattr(train, "phase2", lambda *given: pytest.fail("it was trained again"))
    assert train.train(run, recipe) == path.stem  # one of the same recipe is left as it is
    saved = content["recipe"]
    for change in ({"beta": 9.0}, {"loss": "ipo"}, {"models": ["x"]}, {"phase1": "x"}, {"seed": 4}):
        script.save_model(path, router, saved | change, 1, content["experts"])
        with pytest.raises(script.UserError, match="was made with"):
            train.train(run, recipe)
    script.save_model(path, router, saved, 1, content["experts"] | {"math": "other weights"})
    with pytest.raises(script.UserError, match="math = other weights"):
        train.load_router(run, recipe)


def test_the_lesson_s_own_files_are_taken(run, made, monkeypatch):
    """router_sft.pt and router.pt as the lesson writes them: with fewer words in their recipes."""
    lesson = {"seed": SEED, "gap": 0.25}
    lesson |= {k: getattr(Sft, k) for k in ("samples", "epochs", "lr", "lr_w", "lam")}
    prints = train.prints_of({e: loaded(run, e) for e in script.EXPERTS})
    router = tiny_router()
    script.save_model(checkpoints.path(run, "router_sft"), router, lesson, 1, prints)
    second = {"seed": SEED, "phase1": print_of(router)}
    second |= {k: getattr(Cdpo, k) for k in ("prompts", "epochs", "lr", "lr_w", "lam", "beta")}
    script.save_model(checkpoints.path(run, "router"), router, second, 1, prints)
    monkeypatch.setattr(train, "phase2", lambda *given: pytest.fail("it was trained again"))
    assert train.train(run, Cdpo()) == "router"
    script.save_model(checkpoints.path(run, "router"), router, second | {"lam": 9}, 1, prints)
    with pytest.raises(script.UserError, match="lam = 9"):
        train.train(run, Cdpo())


def test_the_settings_in_use_are_the_winners_of_the_tuning():
    tuned = json.loads((checkpoints.RESULTS / "tuning.json").read_text())
    assert tuned["meta"]["llama"]["split"] == "validation"
    untrained = {"task_arithmetic": methods.TASK_ARITHMETIC, "dare": methods.DARE}
    for what, r in tuned["llama"].items():
        scores = [np.mean(t["accuracy"]) for t in r["tried"]]
        assert r["won"] == r["tried"][int(np.argmax(scores))]["settings"], what
        recipe = TRAINING.get(what, TRAINING["reward"])
        used = vars(recipe) | methods.LOOKAHEAD | untrained.get(what, {})
        same = [all(used[k] == v for k, v in t["settings"].items()) for t in r["tried"]]
        # Sequence Selection shares Collab's reward model, which costs it next to nothing.
        slack = 0.01 if what == "sequence_selection" else 0
        assert scores[same.index(True)] >= max(scores) - slack, what


# --- pairs, REINFORCE, the reward model ----------------------------------------------------------


def test_where_rejected_answers_come_from(monkeypatch):
    """Each source decodes as it says, with the temperature and the seeds of the lesson's."""
    asked = []

    def decode(router, models, prompts, max_new, **how):
        asked.append(how)
        return [Trace(tokens=tokenizer.encode_answer("nonsense")) for _ in prompts]

    monkeypatch.setattr(pairs, "decode_batch", decode)
    items = {i.prompt: i for i in tasks.mixed("preference", 300, Random("preference 2"))}
    for source in train.SOURCES:
        found = train.sample_pairs("router", ["a", "b", "c"], 2, 300, source)
        assert len(found) > 200 and all(p["chosen"] == items[p["prompt"]].answer for p in found)
        assert all(p["rejected"] != p["chosen"] for p in found)
    shared = [{"temperature": 1.0, "seed": 2_000_000 + 2 * i} for i in (0, 128, 256)]
    alone = [how | {"use_router": False, "only": i} for i, how in enumerate(shared)]
    assert asked == shared + [how | {"use_expert": False} for how in shared] + alone


def test_corruption_changes_one_token():
    rng = Random(0)
    for answer in ("The answer is 34.", "green, lamp, river"):
        text, ids = train.corrupt(answer, rng), tokenizer.encode_answer(answer)[:-1]
        decode = tokenizer.encoding.decode
        around = [(decode(ids[:i]), decode(ids[i + 1 :])) for i in range(len(ids))]
        assert text != answer and any(text.startswith(a) and text.endswith(b) for a, b in around)


def test_reinforce_samples_while_it_trains(monkeypatch):
    """Four answers to each of four prompts of the preference split, by Eq. (1) at temperature 1;
    their rewards are where the loop looks for pi_ref."""
    asked = []

    def decode(router, models, prompts, **how):
        asked.append((router, models, prompts, how))
        texts = ["right" if k % 3 == 0 else "wrong" for k in range(16)]
        return [Trace(tokens=tokenizer.encode_answer(x)) for x in texts]

    monkeypatch.setattr(train, "decode_batch", decode)
    monkeypatch.setattr(train.judge, "check", lambda item, text: text == "right")
    plan = [("pair", None), ("sft", "rows"), ("pair", None)]
    data = train.Sampled("router", ["a"], SEED, plan)
    assert [kind for kind, _ in data.plan] == ["pair", "sft", "pair"] and data.plan[1][1] == "rows"
    rows = data.plan[2][1]
    x, mask, logp, _ = data.batch(rows, "cpu")
    assert data.reward[rows].tolist() == [float(k % 3 == 0) for k in range(16)]
    router, models, prompts, how = asked[0]
    assert (router, models, how) == ("router", ["a"], {"temperature": 1.0, "seed": 2000})
    items = tasks.mixed("preference", 8, Random(f"reinforce {SEED}"))[::-1][:4]
    assert prompts == [tokenizer.encode_prompt(i.prompt) for i in items for _ in range(4)]
    said = [ids[1:][learn].tolist() for ids, learn in zip(x, mask)]
    assert said[:2] == [tokenizer.encode_answer("right"), tokenizer.encode_answer("wrong")]
    assert logp.shape == (*mask.shape, 1)


@pytest.mark.parametrize("prefixes", [0, 1])
def test_what_the_reward_model_is_fed(run, made, prefixes, monkeypatch):
    """Scores after the last token of both answers and, cut short, after equally many of each; a
    tenth of the pairs only measures; it starts as the instruction expert."""
    recipe = Reward(prompts=9, prefixes=prefixes, epochs=2, sampler=Sft(samples=12))
    monkeypatch.setattr(train_cdpo, "BATCH", 4)
    got, (_, content) = made(recipe)
    assert got["lm"] == print_of(loaded(run, "instruct")) and content["experts"] == {"reward": ""}
    assert got["sampled"][0] == print_of(loaded(run, recipe.sampler))
    assert got["sampled"][2:] == (SEED, 9, "experts") and not got["W"].any()
    assert (got["settings"].lr, got["settings"].lr_w) == (1e-3, 1e-2)
    data, _, plan, loss = got["rest"]
    seen = torch.cat([rows for _, rows in plan])
    assert seen.bincount(minlength=9).sort()[0].tolist() == [0] + [2] * 8  # one pair is held out
    samples, calls = pairs.samples(some_pairs()), []
    monkeypatch.setattr(
        losses, "bradley_terry", lambda scores, at: calls.append((scores, at)) or torch.zeros(())
    )
    rows = plan[0][1]
    x, mask, logp, _ = data.batch(rows, "cpu")
    ends = [len(samples[2 * int(i) + side][0]) for i in rows for side in (0, 1)]
    w = x[:, :-1, None].float()  # a score that tells its token
    loss(None, w, x[:, 1:], mask, logp, None, 0.1)
    scores, at = calls[0]
    assert at.tolist() == [end - 1 for end in ends] and len(calls) == 1 + prefixes
    assert (scores.gather(1, at[:, None]) == tokenizer.END).all()
    for _, at in calls[1:]:
        begins = [samples[2 * int(i) + side][1].index(True) for i in rows for side in (0, 1)]
        offset = (at - torch.tensor(begins)).view(-1, 2)
        assert (offset[:, 0] == offset[:, 1]).all() and (offset >= 0).all()
        assert (at < torch.tensor(ends)).all()
