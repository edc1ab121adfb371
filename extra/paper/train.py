"""Trains the model of a recipe with the lesson's own loops, unless it is there.

The files router_sft.pt and router.pt are the same as the lesson's.
"""

import itertools
import json
import time
from dataclasses import fields, replace
from random import Random

import torch

import train_cdpo
import train_sft
from extra.paper import checkpoints, losses
from extra.paper.altered import change, feign, flip, leave_out, sft_items, with_share
from extra.paper.recipes import (
    EXPERTS,
    MODELS,
    Cdpo,
    Expert,
    Reward,
    Sft,
    Update,
    models_of,
    name_of,
)
from fusionroute import Router
from toy_experts import experts as toy
from toy_experts import judge, pairs, script, tasks, tokenizer
from toy_experts.data import Data, answer_only, batches, pack, scored
from toy_experts.decode_batch import decode_batch

# --- training ------------------------------------------------------------------------------------


def train(s, recipe):
    """Train a recipe's checkpoint in the run of s, unless it is there. Returns its name."""
    if isinstance(recipe, str):  # base or expert
        return recipe
    prints = []
    for model in models_of(recipe):
        name = train(s, model)
        router = not isinstance(model, (str, Expert))
        prints.append(script.fingerprint(checkpoints.load(s, name, router)[0]))
    script.prepare(checkpoints.place(s))
    own = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name not in MODELS}
    made_from = {"seed": s.seed, "gap": checkpoints.gap(s), "models": prints} | own
    name, kind = name_of(recipe), type(recipe)
    if kind is Cdpo:
        made_from |= {"phase1": prints[0]}
    path = checkpoints.path(s, name)
    if path.exists():
        saved = checkpoints.load(s, name, router=kind is not Expert)[1]["recipe"]
        # The lesson's own files say nothing of what the lesson cannot change.
        usual = {f.name: f.default for f in fields(recipe) if f.name in own}
        usual |= {"gap": made_from["gap"], "models": prints}
        script.check_same(path, usual | saved, made_from)
        return name
    begun = time.time()
    how = {Expert: expert, Sft: phase1, Update: update, Cdpo: phase2, Reward: reward}[kind]
    model, log, choices = how(s, recipe)
    script.save_model(path, model, made_from, time.time() - begun, choices)
    script.write(path.with_suffix(".log.jsonl"), "".join(json.dumps(x) + "\n" for x in log))
    return name


MEMORY = {}  # what several trainings of one process share: samples and pairs, scored


def once(make, *key):
    """make(), or what it returned when it was called with this key before."""
    if key not in MEMORY:
        MEMORY[key] = make()
    return MEMORY[key]


def load_experts(s, recipe):
    """The models that a recipe's router chooses among: name -> model, in its order."""
    among = recipe.phase1.experts if isinstance(recipe, Cdpo) else recipe.experts
    return {name: checkpoints.load(s, name)[0] for name in map(name_of, among)}


def prints_of(models):
    """name -> fingerprint of these models."""
    return {name: script.fingerprint(model) for name, model in models.items()}


def load_router(s, recipe):
    """A recipe's router, what it chooses among, and its checkpoint's dict without the weights.

    A router of the loss co_llm_self also chooses itself: its language model is then the last.
    """
    name, models = name_of(recipe), load_experts(s, recipe)
    router, content = checkpoints.load(s, name, router=True)
    script.check_same(checkpoints.path(s, name), content["experts"], prints_of(models))
    itself = [router.lm] if "router" in content["experts"] else []
    return router, [*models.values(), *itself], content


# --- language models -----------------------------------------------------------------------------

# (a) Narrower experts: (benchmark, which of its covered sub-skills, steps). A narrower one is
# trained on fewer sub-skills for fewer steps: each of them about as often as the lesson's.
PARTS = {
    "gsm8k": ("toy-gsm8k", slice(None), 1000),
    "math500": ("toy-math500", slice(None), 1000),
    "mbpp": ("toy-mbpp", slice(None), 300),
    "humaneval": ("toy-humaneval", slice(None), 300),
    "gsm8k-1": ("toy-gsm8k", slice(0, None, 2), 500),
    "gsm8k-2": ("toy-gsm8k", slice(1, None, 2), 500),
    "math500-1": ("toy-math500", slice(0, None, 2), 500),
    "math500-2": ("toy-math500", slice(1, None, 2), 500),
    "ifeval-1": ("toy-ifeval", slice(0, None, 2), 1000),
    "ifeval-2": ("toy-ifeval", slice(1, None, 2), 1000),
}


def part_documents(settings, name):
    """Training documents of one of PARTS, made as toy_experts.experts makes an expert's."""
    bench, which, steps = PARTS[name]
    rng, skills = Random(f"open {name} {settings.seed}"), toy.covered(settings, bench)[which]
    documents = []
    for _ in range(min(steps * toy.BATCH, 20_000)):
        replay = rng.random() < toy.REPLAY
        item = None if replay else tasks.draw(bench, "train", rng, skills)
        documents.append(toy.base_document(settings, rng) if replay else toy.sample_of(item))
    return documents


def documents(settings, data):
    """What an Expert is trained on, for how many steps, and a number for its seed."""
    if data in PARTS:
        return part_documents(settings, data), PARTS[data][2], list(PARTS).index(data)
    if data == "union":  # the documents of all experts, for as many steps as all of them
        union = [d for e in EXPERTS for d in toy.documents(settings, e)]
        return union, sum(toy.STEPS[e] for e in EXPERTS), 0
    return toy.documents(settings, data), toy.STEPS[data], ["base", *EXPERTS].index(data)


def expert(s, r):
    settings = checkpoints.place(s, checkpoints.gap(s))
    torch.manual_seed(s.seed)
    if r.start:
        model = checkpoints.load(s, name_of(r.start))[0].requires_grad_(True)
    else:
        model = checkpoints.new_gpt(r.family or s.family, r.size).to(script.device(s.device))
    samples, steps, number = documents(settings, r.data)
    lr = toy.LR.get(r.data, toy.LR["math"])
    toy.train(model, samples, s.seed * 1000 + number, steps, lr, r.data)
    return model, [], None


# --- phase 1 -------------------------------------------------------------------------------------


def sft_data(s, r, models):
    """Phase 1's samples as these experts score them, with what the recipe changes in them."""
    key = s.seed, r.samples, r.items, r.changed, r.share, *prints_of(models).values()
    return once(lambda: score_sft(s, r, models), "sft", *key)


def score_sft(s, r, models):
    models = list(models.values())
    if r.items:
        samples = [toy.sample_of(item) for item in sft_items(s.seed, r.samples, r.items)]
    else:
        samples = toy.sft_samples(r.samples, s.seed)
    if r.changed == "two-faced":
        data = feign(scored(samples, models))
    else:
        data = scored(samples, change(models, r.changed))
    return data if r.share == 1 else with_share(data, r.share, s.seed)


def lesson_settings(cls, s, r):
    """The lesson's settings (of train_sft or train_cdpo) for the seed of s and a recipe."""
    shared = {f.name for f in fields(cls)} & {f.name for f in fields(r)} - set(MODELS)
    return cls(seed=s.seed, **{name: getattr(r, name) for name in shared})


def start_of(s, r, n):
    """A router with n choices over a copy of what the recipe starts from. W is 0."""
    lm = checkpoints.load(s, name_of(r.start))[0]
    return Router(lm, n).to(lm.embed.weight.device).requires_grad_(True)


def phase1(s, r):
    models = load_experts(s, r)
    choices = prints_of(models) | ({"router": ""} if r.loss == "co_llm_self" else {})
    router = start_of(s, r, len(choices))
    sft, loss = sft_data(s, r, models), losses.sft_loss_of(r.loss, list(models.values()))
    log = train_sft.train(lesson_settings(train_sft.Settings, s, r), router, sft, loss)
    return router, log, choices


def update(s, r):
    router, _, content = load_router(s, r.router)
    models = load_experts(s, r)
    rows = dict(zip(content["experts"], router.W.weight.detach()))
    none = torch.zeros_like(router.W.weight[0])  # (d,)
    wider = torch.stack([rows.get(name, none) for name in models])  # (n, d)
    router.W = torch.nn.Linear(*wider.shape[::-1], bias=False)
    router.W.weight.data = wider
    router.lm.requires_grad_(r.theta)
    settings = lesson_settings(train_sft.Settings, s, replace(r.router, epochs=1))
    log = train_sft.train(settings, router, sft_data(s, r.router, models))
    return router, log, prints_of(models)


# --- phase 2 -------------------------------------------------------------------------------------

SOURCES = {  # whose mistakes the rejected answers are
    "fused": "the router's and the experts' together, Eq. (1), as in the lesson",
    "router": "the router's language model's alone",
    "experts": "one expert's alone, in turn",
    "corrupted": "the right answer with one token exchanged",
}


def corrupt(answer, rng):
    """The answer with one of its tokens exchanged for another word of the vocabulary."""
    ids = tokenizer.encode_answer(answer)[:-1]
    ids[rng.randrange(len(ids))] = rng.randrange(256, tokenizer.USER)
    return tokenizer.encoding.decode(ids)


def sample_pairs(router, models, seed, n_prompts, source):
    """toy_experts.pairs.make_pairs with rejected answers from one of SOURCES."""
    rng, turn = Random(f"corrupted {seed}"), itertools.cycle(range(len(models)))

    def write(items, seed):
        if source == "corrupted":
            return [corrupt(item.answer, rng) for item in items for _ in range(pairs.TRIES)]
        how = {"router": {"use_expert": False}}.get(source, {})
        if source == "experts":
            how = {"use_router": False, "only": next(turn)}
        return pairs.write_answers(router, models, items, seed, **how)

    return pairs.make_pairs(router, models, seed, n_prompts, write)


def phase2(s, r):
    router, models, first = load_router(s, r.phase1)
    sampler = load_router(s, r.sampler)[0] if r.sampler else router
    settings = lesson_settings(train_cdpo.Settings, s, r)
    sft = sft_data(s, r.phase1, load_experts(s, r.phase1))
    asked = s.seed, r.prompts, r.rejected
    key = script.fingerprint(sampler), *asked
    found = once(lambda: sample_pairs(sampler, models, *asked), "pairs", *key)
    found = flip(found, r.flipped, s.seed) if r.flipped else found
    found = leave_out(found, r.without, s.seed, r.prompts) if r.without else found
    data, ref = train_cdpo.scored_pairs(found, models, router.lm)
    if r.loss == "fused":
        ref = losses.fused_reference(router, models, data)
    plan = train_cdpo.make_plan(settings, sft.lengths, data.lengths, mix=r.mix)
    if r.loss == "reinforce":
        data = Sampled(router, models, s.seed, plan)
        plan, ref = data.plan, data.reward
    pair_loss = losses.pair_loss_of(r.loss, models)
    sft_loss = losses.sft_loss_of(r.phase1.loss, models)
    router.requires_grad_(True)
    log = train_cdpo.train(settings, router, sft, data, ref, plan, pair_loss, sft_loss)
    return router, log, first["experts"]


class Sampled:
    """REINFORCE in the place of the pairs: answers that the router writes while it is trained.

    train_cdpo.train asks for a batch of pairs. It gets SAMPLES answers to each of a few prompts,
    sampled from Eq. (1) with the router as it is at this step. Their rewards are where it expects
    log pi_ref. A step looks at half as many answers as one on pairs, and must sample them.
    """

    def __init__(self, router, models, seed, plan):
        self.router, self.models = router, models
        self.size = train_cdpo.BATCH // losses.SAMPLES  # prompts a step
        n = self.size * sum(kind == "pair" for kind, _ in plan)
        self.items = tasks.mixed("preference", n, Random(f"reinforce {seed}"))
        # the rows of step i are i * BATCH, i * BATCH + 1, ...
        rows = torch.arange(len(plan) * train_cdpo.BATCH).split(train_cdpo.BATCH)
        self.plan = [(kind, new if kind == "pair" else old) for (kind, old), new in zip(plan, rows)]
        self.reward = torch.zeros(len(plan) * train_cdpo.BATCH)

    def batch(self, rows, device):
        drawn = [self.items.pop() for _ in range(self.size)]
        drawn = [item for item in drawn for _ in range(losses.SAMPLES)]
        prompts = [tokenizer.encode_prompt(item.prompt) for item in drawn]
        step = int(rows[0]) // train_cdpo.BATCH
        traces = decode_batch(self.router, self.models, prompts, temperature=1.0, seed=step * 1000)
        right = [float(judge.check(item, t.text())) for item, t in zip(drawn, traces)]
        self.reward[rows] = torch.tensor(right)
        ids, mask, _ = pack([answer_only(p, t.tokens) for p, t in zip(prompts, traces)])
        nothing = torch.zeros(*mask[:, 1:].shape, len(self.models))  # the experts' scores
        return ids.to(device), mask[:, 1:].to(device), nothing.to(device), nothing


# --- the reward model ----------------------------------------------------------------------------


def reward(s, r):
    router, models, _ = load_router(s, r.sampler)
    found = sample_pairs(router, models, s.seed, r.prompts, r.rejected)
    ids, mask, lengths = pack(pairs.samples(found))  # rows 2i and 2i + 1: pair i
    coin = torch.Generator().manual_seed(s.seed)
    order = torch.randperm(len(found), generator=coin)  # they are sorted by length
    held, rest = order.tensor_split([max(1, len(order) // 10)])  # a tenth only measures
    plan = []
    for epoch in range(r.epochs):
        drawn = batches(lengths[::2][rest], train_cdpo.BATCH, s.seed * 1000 + epoch)
        plan += [("pair", rest[rows]) for rows in drawn]
    # A score is read after each token of an answer, its end included. train_cdpo.train gives the
    # model all tokens but the last, so one is added, and the mask is of what is read.
    more = torch.zeros(len(ids), 1, dtype=torch.long)  # (2P, 1)
    nothing = torch.zeros(len(ids), ids.size(1), 1)  # (2P, T, 1): no expert has scored these
    columns = torch.cat([ids, more], 1), torch.cat([more.bool(), mask], 1), lengths + 1
    data = Data(*(x.view(-1, 2, *x.shape[1:]) for x in (*columns, nothing, nothing)))
    coin.manual_seed(s.seed)

    def loss(logits, w, targets, mask, logp, ref, beta):
        """Bradley-Terry at the end of both answers, and after as many tokens of each."""
        first, size = mask.int().argmax(1), mask.sum(1)  # (2B,): where an answer begins
        total = losses.bradley_terry(w[..., 0], first + size - 1)
        if r.prefixes:
            shorter = size.view(-1, 2).amin(1).cpu()  # (B,)
            cut = (torch.rand(len(shorter), generator=coin) * shorter).long()  # (B,)
            at = first + cut.repeat_interleave(2).to(first.device)  # (2B,)
            total = (total + losses.bradley_terry(w[..., 0], at)) / 2
        return total, {}

    model, ref = start_of(s, r, 1), torch.zeros(len(found), 2)
    settings = lesson_settings(train_cdpo.Settings, s, r)
    log = train_cdpo.train(settings, model, None, data, ref, plan, loss)
    x, mask, *_ = data.batch(held, script.device(s.device))
    at = mask.int().argmax(1) + mask.sum(1) - 1  # (2 held,)
    with torch.no_grad():
        chosen, rejected = model(x[:, :-1])[1][..., 0].gather(1, at[:, None]).view(-1, 2).unbind(1)
    right = round(float((chosen > rejected).float().mean()), 4)
    log.append({"pairs": len(found), "held_out_accuracy": right})
    print(f"the reward model prefers the chosen answer in {right:.0%} of {len(held)} pairs")
    return model, log, {"reward": ""}
