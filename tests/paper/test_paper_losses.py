"""The neighbours of Eq. (2) and Eq. (3): each by hand, and in limits where the answer is known."""

import math
from random import Random

import pytest
import torch
import torch.nn.functional as F

from extra.paper import losses
from extra.paper.losses import PAIR_LOSSES, SFT_LOSSES
from fusionroute import cdpo_loss, fuse, sft_loss
from tests.paper.conftest import tiny_gpt, tiny_router
from toy_experts import experts as toy
from toy_experts import pairs, tasks
from toy_experts.data import Data, pack

V, N = 11, 3


@pytest.fixture
def batch():
    """Two rows of four positions: logits, w (with gradients), targets, mask, logp, choice, lam, and
    the experts' whole distributions."""
    torch.manual_seed(3)
    logits = torch.randn(2, 4, V, requires_grad=True)
    w = torch.randn(2, 4, N, requires_grad=True)
    full = (2 * torch.randn(2, 4, N, V)).log_softmax(-1)
    full[0, 0] = full[0, 0, :1]  # here all experts agree: not in S
    targets = torch.randint(V, (2, 4))
    mask = torch.tensor([[True, True, True, True], [False, True, True, False]])
    logp = full.gather(-1, targets[..., None, None].expand(2, 4, N, 1))[..., 0]
    return logits, w, targets, mask, logp, full.argmax(-1), 0.5, full


@pytest.fixture
def values(batch):
    """The same without gradients."""
    return tuple(x.detach() if torch.is_tensor(x) else x for x in batch)


def by_hand(batch, term, positions="S", lam=0.5, lm=None):
    """(sum over answer tokens of -log p, plus lam times that of term(b, t) over the positions) /
    number of answer tokens."""
    logits, w, targets, mask, logp, choice, _, full = batch
    total, count = 0.0, int(mask.sum())
    for b, t in mask.nonzero().tolist():
        p = logits[b, t].softmax(-1) if lm is None else lm(b, t)
        total -= math.log(p[targets[b, t]].item())
        if positions == "all" or len(set(choice[b, t].tolist())) > 1:
            total -= lam * term(b, t)
    return total / count


def handed_in(of, name, given, full):
    """A loss by its name, as a training calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "read", lambda experts, ids: full)
        return of(name, None)(*given)


def test_every_neighbour_of_eq_2_by_hand(values):
    batch = logits, w, targets, mask, logp, choice, lam, full = values
    q = w.softmax(-1)

    def agg(b, t):
        return float((q[b, t] * logp[b, t]).sum())

    def mix(b, t):
        return math.log(float((q[b, t] * logp[b, t].exp()).sum()))

    def renormalised(b, t):
        p = (q[b, t][:, None] * full[b, t]).sum(0).exp()
        return math.log(float(p[targets[b, t]] / p.sum()))

    def fused(b, t):
        p = logits[b, t].softmax(-1) * full[b, t, w[b, t].argmax()].exp()
        return p / p.sum()

    expected = {
        "plain": by_hand(batch, agg, lam=0),
        "all": by_hand(batch, agg, "all"),
        "mixture": by_hand(batch, mix),
        "best": by_hand(batch, lambda b, t: math.log(float(q[b, t, logp[b, t].argmax()]))),
        "raw": by_hand(batch, lambda b, t: float((w[b, t] * logp[b, t]).sum())),
        "renormalised": by_hand(batch, renormalised),
        "co_llm": by_hand(batch, mix, "all", lam=1.0),
        "fused": by_hand(batch, agg, lm=fused),
        "fused_own": by_hand(batch, agg, lm=fused) + 0.2 * by_hand(batch, agg, lam=0),
    }
    ours = {name: handed_in(losses.sft_loss_of, name, values[:-1], full) for name in expected}
    assert {name: float(loss) for name, (loss, _) in ours.items()} == pytest.approx(expected, 1e-4)
    assert len({round(v, 4) for v in expected.values()}) == len(expected)  # no two are the same
    assert set(expected) | {"paper", "co_llm_self"} == set(SFT_LOSSES)
    assert SFT_LOSSES["paper"] is sft_loss


def test_co_llm_self_has_the_router_as_one_more_choice(values):
    logits, _, targets, mask, logp, choice, lam, full = values
    w, total = torch.randn(2, 4, N + 1), 0.0
    loss, terms = SFT_LOSSES["co_llm_self"](logits, w, targets, mask, logp, choice, lam)
    for b, t in mask.nonzero().tolist():
        own = logits[b, t].softmax(-1)[targets[b, t]].view(1)
        p = torch.cat([logp[b, t].exp(), own])
        total -= math.log(float((w[b, t].softmax(-1) * p).sum())) + math.log(float(own))
    assert float(loss) == pytest.approx(total / int(mask.sum()), rel=1e-4)
    assert len(terms["routing"]) == N + 1 and terms["route_router"] == terms["routing"][-1]


def test_training_through_the_fusion_leaves_the_router_what_the_expert_lacks(batch):
    """The gradient on the router's logits is p_fused - onehot: none where the expert is right."""
    logits, w, targets, mask, logp, choice, _, full = batch
    right = targets[..., None, None].expand(2, 4, N, 1)
    sure = torch.full_like(full, -20.0).scatter(-1, right, 0.0)
    given = logits, w, targets, mask, logp, choice, 0.0
    loss, _ = handed_in(losses.sft_loss_of, "fused", given, sure)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-4
    loss, _ = sft_loss(*given)  # the router's own loss knows nothing of the expert
    assert torch.autograd.grad(loss, logits)[0].abs().max() > 0.05


def sequences(logits, targets, mask):
    return (logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0] * mask).sum(-1)


def pair_loss(name, batch, ref, full=None, beta=0.1):
    logits, w, targets, mask, logp, _, _, own = batch
    given = logits, w, targets, mask, logp, ref, beta
    return handed_in(losses.pair_loss_of, name, given, own if full is None else full)[0]


def test_every_neighbour_of_eq_3_by_hand(batch):
    logits, w, targets, mask, logp, _, _, full = batch
    ref, theta = torch.tensor([[-3.0, -5.0]]), sequences(logits, targets, mask)  # one pair
    margin = lambda x: F.softplus(-0.1 * ((x[0] - ref[0, 0]) - (x[1] - ref[0, 1])))
    assert torch.isclose(pair_loss("plain", batch, ref), margin(theta))
    soft = ((w.softmax(-1) * logp).sum(-1) * mask).sum(-1)
    assert torch.isclose(pair_loss("gradient", batch, ref), margin(theta + soft))
    picked = [torch.stack([full[b, t, w[b, t].argmax()] for t in range(4)]) for b in range(2)]
    fused = sequences(fuse(logits, torch.stack(picked)), targets, mask)
    assert torch.isclose(pair_loss("fused", batch, ref), margin(fused))
    lm = -logits[0].log_softmax(-1)[range(4), targets[0]].mean()
    assert torch.isclose(pair_loss("sft", batch, ref), lm)
    routed = (logp.gather(-1, w.argmax(-1, keepdim=True))[..., 0] * mask).sum(-1)
    scores = theta[:1], theta[1:], ref[:, 0], ref[:, 1], routed[:1], routed[1:]
    with_bias = cdpo_loss(*scores, 0.1)[0]  # the paper's loss, of which all others leave out a part
    assert torch.isclose(pair_loss("paper", batch, ref), with_bias)
    assert not torch.isclose(with_bias, pair_loss("plain", batch, ref))
    uniform = torch.full_like(full, -math.log(V))  # then the fused policy is the router's
    same = pair_loss("fused", batch, ref, uniform)
    assert torch.isclose(same, pair_loss("plain", batch, ref))


def test_who_gets_a_gradient_from_a_pair(batch):
    logits, w, ref = batch[0], batch[1], torch.zeros(1, 2)
    for name in ("plain", "fused", "sft", "ipo", "hinge", "simpo"):
        loss = pair_loss(name, batch, ref)
        assert torch.autograd.grad(loss, [logits, w], allow_unused=True)[1] is None, name
    assert torch.autograd.grad(pair_loss("gradient", batch, ref), w)[0].abs().sum() > 0


def test_each_other_objective_by_hand(batch):
    """IPO, hinge and SimPO from m + b and the mean scores of one pair, as plain numbers."""
    logits, w, targets, mask, logp, *_ = batch
    ref, beta, rows = [-1.0, -2.5], 0.4, []
    for b in range(2):
        at = [t for t in range(4) if mask[b, t]]
        theta = sum(float(logits[b, t].detach().log_softmax(-1)[targets[b, t]]) for t in at)
        expert = sum(float(logp[b, t, int(w[b, t].argmax())]) for t in at)
        rows.append((theta, expert, len(at)))
    (tw, ew, nw), (tl, el, nl) = rows
    x, s = (tw - ref[0] + ew) - (tl - ref[1] + el), (tw + ew) / nw - (tl + el) / nl
    expected = {
        "ipo": (x - 1 / (2 * beta)) ** 2,
        "hinge": max(0, 1 - beta * x),
        "simpo": math.log1p(math.exp(-(beta * s - beta / 2))),
    }
    for name, value in expected.items():
        got = pair_loss(name, batch, torch.tensor([ref]), beta=beta)
        assert float(got) == pytest.approx(value, rel=1e-4), name
    terms = PAIR_LOSSES["ipo"](*batch[:5], torch.tensor([ref]), beta)[1]
    assert float(terms["fused_accuracy"]) == float(x > 0)


def test_reinforce_raises_what_was_right(batch, monkeypatch):
    """By hand, and: right answers get likelier and wrong ones less; equal rewards teach nothing."""
    monkeypatch.setattr(losses, "SAMPLES", 2)
    logits, w, targets, mask, logp, _, _, full = batch
    two = lambda x: torch.cat([x, x])  # the second prompt's answers are both right
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0])
    given = two(logits), two(w), two(targets), two(mask), two(logp), reward, 0.0
    loss, _ = handed_in(losses.pair_loss_of, "reinforce", given, two(full))
    picked = full[torch.arange(2)[:, None], torch.arange(4), w.argmax(-1)]
    said = sequences(fuse(logits, picked), targets, mask)
    assert float(loss) == pytest.approx(float(-(0.5 * said[0] - 0.5 * said[1]) / 4), rel=1e-4)
    loss.backward()
    step = logits.grad.gather(-1, targets[..., None])[..., 0]
    assert (step[0][mask[0]] < 0).all() and (step[1][mask[1]] > 0).all()


def test_bradley_terry():
    """Scores at the places that count: 2 against 0, and 0 against 1."""
    scores = torch.tensor([[9.0, 2.0], [0.0, 9.0], [0.0, 9.0], [9.0, 1.0]])
    value = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert float(losses.bradley_terry(scores, torch.tensor([1, 0, 0, 1]))) == pytest.approx(value)


def test_fused_reference_equals_the_policy_before_training():
    """Policy and reference are the same model then: DPO begins at log 2, padding or not."""
    router, experts = tiny_router(), [tiny_gpt() for _ in range(3)]
    answers = [
        {"prompt": f"Write {x}.", "chosen": x, "rejected": "no " * (k + 1)}
        for k, x in enumerate(("red", "green, lamp", "a"))
    ]
    ids, mask, lengths = pack(pairs.samples(answers))
    nothing = torch.zeros(*ids[:, 1:].shape, 3)
    data = Data(*(x.view(3, 2, *x.shape[1:]) for x in (ids, mask, lengths, nothing, nothing)))
    ref = losses.fused_reference(router, experts, data, batch=2)
    x, mask, logp, _ = data.batch(torch.arange(3), "cpu")
    given = *router(x[:, :-1]), x[:, 1:], mask, logp, ref, 0.1
    loss, terms = losses.pair_loss_of("fused", experts)(*given)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-5)
    assert float(terms["reward_chosen"]) == pytest.approx(0, abs=1e-5)


def test_the_models_inputs_are_known_from_the_targets():
    """Every sample begins with <|user|>: the losses that read the experts again read the same."""
    ids, _, _ = pack([toy.sample_of(i) for i in tasks.mixed("train", 12, Random(0))])
    assert torch.equal(losses.inputs(ids[:, 1:]), ids[:, :-1])
