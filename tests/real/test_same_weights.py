"""The trainers of extra/real and those of the ground floor give the same weights on the toy, to the bit. (Rule 5 of the plan: both loops
are written out, and this is how they cannot drift apart.)"""

from copy import deepcopy
from dataclasses import asdict
from random import Random

import pytest
import torch

import extra.gpt
import fusionroute
import model
import train_cdpo
import train_sft
from extra.real import train_cdpo as real_cdpo
from extra.real import train_sft as real_sft
from fusionroute import score
from toy_experts import pairs as toy_pairs
from toy_experts import tasks, tokenizer
from toy_experts.data import Data, scored
from toy_experts.train import EXPERTS, sample

CONFIG = model.GPTConfig(vocab_size=tokenizer.VOCAB_SIZE, d_model=24, n_layer=1, d_ff=32)


def in_real(router):
    """The same router as extra/real has it."""
    lm = extra.gpt.GPT(extra.gpt.GPTConfig(**asdict(router.lm.config)))
    lm.load_state_dict(router.lm.state_dict())
    out = extra.gpt.Router(lm, router.W.out_features)
    out.W.load_state_dict(router.W.state_dict())
    return out


@pytest.fixture(scope="module")
def toy():
    """Three random experts, a router and the toy's own data, scored: the ground floor's train functions start from these."""
    torch.manual_seed(0)
    experts = [model.GPT(CONFIG).requires_grad_(False) for _ in EXPERTS]
    router = fusionroute.Router(deepcopy(experts[2]), 3)
    router.W.weight.data = 0.1 * torch.randn(3, 24)  # W = 0 would hide whose choice is taken
    items = tasks.mixed("train", 40, Random("same weights"))
    sft = scored([sample(item) for item in items], experts)
    found = [{"prompt": item.prompt, "chosen": item.answer, "rejected": other.answer} for item, other in zip(items, items[1:20])
             if item.answer != other.answer]
    both = scored(toy_pairs.samples(found), experts)
    ref = (score([router.lm], both.ids, both.lengths)[0][..., 0] * both.mask[:, 1:]).sum(-1).view(-1, 2)
    return router, sft, Data(*(x.view(-1, 2, *x.shape[1:]) for x in both)), ref


def same(ground, real):
    """Both routers' weights and what both logged, equal to the bit (lengths are logged by extra/real only)."""
    (router, log), (ours, our_log) = ground, real
    state, our_state = router.state_dict(), ours.state_dict()
    extra_terms = {"length_chosen", "length_rejected"}
    return (state.keys() == our_state.keys() and all(torch.equal(state[k], our_state[k]) for k in state)
            and list(log) == [{k: v for k, v in r.items() if k not in extra_terms} for r in our_log])


def phase1(toy):
    router, sft, _, _ = toy
    s = train_sft.Settings(epochs=2, samples=40, seed=3)
    ground = deepcopy(router)
    log = train_sft.train(s, ground.requires_grad_(True), sft)
    settings = real_sft.Settings(seed=3, epochs=2, batch=train_sft.BATCH, lr=s.lr, lr_w=train_sft.LR_W, lam=s.lam)
    return (ground, log), real_sft.train(settings, in_real(router), sft, EXPERTS)


def phase2(toy):
    router, sft, pairs, ref = toy
    s = train_cdpo.Settings(epochs=2, seed=3)
    ground = deepcopy(router)
    plan = train_cdpo.make_plan(s, sft.lengths, pairs.lengths)
    log = train_cdpo.train(s, ground.requires_grad_(True), sft, pairs, ref, plan)
    settings = real_cdpo.Settings(seed=3, epochs=2, batch=train_cdpo.BATCH, lr=s.lr, lr_w=train_cdpo.LR_W, lam=s.lam, beta=s.beta)
    return (ground, log), real_cdpo.train(settings, in_real(router), sft, pairs, ref, EXPERTS)


@pytest.mark.parametrize("phase, steps", [(phase1, 6), (phase2, 8)], ids=["sft", "cdpo"])
def test_both_loops_give_the_same_weights_to_the_bit(phase, steps, toy):
    ground, real = phase(toy)
    assert len(ground[1]) == steps and not torch.equal(ground[0].lm.embed.weight, toy[0].lm.embed.weight)
    assert {r["kind"] for r in real[1]} == ({"sft"} if phase is phase1 else {"sft", "pair"})
    assert same(ground, real)


@pytest.mark.parametrize("phase", [phase1, phase2], ids=["sft", "cdpo"])
@pytest.mark.parametrize("where", ["ground", "real"])
@pytest.mark.parametrize("what", ["betas", "schedule", "clip"])
def test_a_change_to_either_loop_shows(phase, where, what, toy, monkeypatch):
    """What a loop calls is changed for one of the two only; then the weights differ."""
    if what == "betas":
        real = torch.optim.AdamW
        mine = iter([where == "ground", where == "real"])  # the ground floor trains first
        monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **k: real(*a, **k | ({"betas": (0.9, 0.97)} if next(mine) else {})))
    elif what == "schedule":
        module, name = {("ground", phase1): (train_sft.toy, "schedule"), ("ground", phase2): (train_cdpo.toy, "schedule"),
                        ("real", phase1): (real_sft, "schedule"), ("real", phase2): (real_cdpo, "schedule")}[where, phase]
        monkeypatch.setattr(module, name, lambda step, steps, warmup: (step + 1) / 30)
    else:
        steps, calls, real = 6 if phase is phase1 else 8, [], torch.nn.utils.clip_grad_norm_

        def clip(parameters, norm):
            calls.append(1)
            return real(parameters, 0.5 if (len(calls) <= steps) == (where == "ground") else norm)
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    assert not same(*phase(toy))
