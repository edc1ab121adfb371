"""Eq. (1), Eq. (2) and Eq. (3): by hand, against finite differences, and in their limits."""

import math

import pytest
import torch

from fusionroute import (
    Router,
    cdpo_loss,
    fuse,
    informative,
    log_pi_agg,
    routed_logp,
    score,
    sequence_logp,
    sft_loss,
    token_logp,
)
from model import GPT, GPTConfig
from toy_experts.data import answer_only, pack
from train_cdpo import pair_loss

LOG2 = math.log(2)
SIZES = dict(d_model=8, n_layer=1, n_head=2, n_kv_head=1, head_dim=4, d_ff=12, max_len=16)


def tiny_router():
    router = Router(GPT(GPTConfig(vocab_size=11, **SIZES)), 3)
    torch.nn.init.normal_(router.W.weight)
    return router.double()


def some_scores(B=2):
    """ids (B, 6), and mask (B, 5), logp and choice (B, 5, 3) of their last five tokens."""
    logp = -torch.rand(B, 5, 3, dtype=torch.float64) * 3
    mask = torch.rand(B, 5) < 0.7
    mask[:, 0] = True
    return torch.randint(0, 11, (B, 6)), mask, logp, torch.randint(0, 2, (B, 5, 3))


# --- Eq. (1) ------------------------------------------------------------------------------------


def test_fuse_by_hand():
    """Expert (3/4, 1/4). Router (1/2, 1/2): product (3/8, 1/8), normalised (3/4, 1/4).

    Router (1/10, 9/10): product (3/40, 9/40), normalised (1/4, 3/4). The logits are shifted,
    as only their differences may count.
    """
    expert = torch.tensor([0.75, 0.25]).log() - 9
    for router, fused in (([0.5, 0.5], [0.75, 0.25]), ([0.1, 0.9], [0.25, 0.75])):
        got = fuse(torch.tensor(router).log() + 4, expert)
        torch.testing.assert_close(got.softmax(-1), torch.tensor(fused))
        assert got.max() < 0  # a sum of log-probabilities, not of logits
    x = torch.randn(4, 7)  # uniform logits of one model: the other alone
    torch.testing.assert_close(fuse(torch.full((4, 7), 2.5), x).softmax(-1), x.softmax(-1))
    torch.testing.assert_close(fuse(x, torch.zeros(4, 7)).softmax(-1), x.softmax(-1))


# --- Eq. (2) ------------------------------------------------------------------------------------


def test_informative_set():
    choice = torch.tensor([[1, 1, 1], [1, 1, 2], [2, 1, 1], [3, 4, 5]])
    assert informative(choice).tolist() == [False, True, True, True]
    assert informative(torch.tensor([[4]])).tolist() == [False]  # one expert: nothing to route


def test_log_pi_agg_by_hand():
    """Equal weights: the mean of the log-probabilities. w = (log 3, 0) is (3/4, 1/4)."""
    logp = torch.tensor([-1.0, -3.0])
    assert float(log_pi_agg(torch.zeros(2), logp)) == pytest.approx(-2.0)
    assert float(log_pi_agg(torch.tensor([math.log(3), 0.0]), logp)) == pytest.approx(-1.5)


def test_sft_loss_by_hand():
    """Two answer tokens after one prompt token, V = 2, two experts.

    Router logits 0: -log 1/2 a token, so L_LM = log 2. The experts agree at the first answer token
    and differ at the second, where w = (log 3, 0) and log pi = (-1, -3): L_expert = 1.5 / 2 tokens
    = 0.75. lambda = 1/3: L = log 2 + 0.25. At the prompt token they differ too: it must not count.
    """
    logits, targets = torch.zeros(1, 3, 2), torch.tensor([[0, 1, 0]])
    mask = torch.tensor([[False, True, True]])
    w = torch.tensor([[[0.0, 9.0], [0.0, 9.0], [math.log(3), 0.0]]])
    logp = torch.tensor([[[-9.0, -9.0], [-5.0, -7.0], [-1.0, -3.0]]])
    choice = torch.tensor([[[0, 1], [1, 1], [0, 1]]])
    loss, info = sft_loss(logits, w, targets, mask, logp, choice, lam=1 / 3)
    assert float(loss) == pytest.approx(LOG2 + 0.25)
    assert float(info["loss_lm"]) == pytest.approx(LOG2)
    assert float(info["loss_expert"]) == pytest.approx(0.75)
    assert float(info["informative"]) == 0.5
    assert [float(x) for x in info["routing"]] == [1.0, 0.0]


def test_identical_experts_give_an_empty_S():
    router, (ids, mask, logp, _) = tiny_router(), some_scores()
    logits, w = router(ids[:, :-1])
    same = torch.full((2, 5, 3), 4)
    loss, info = sft_loss(logits, w, ids[:, 1:], mask, logp, same, lam=1 / 3)
    assert float(info["loss_expert"].detach()) == 0 and float(info["informative"]) == 0
    torch.testing.assert_close(loss, -token_logp(logits, ids[:, 1:])[mask].mean())
    loss.backward()
    assert router.W.weight.grad is None or float(router.W.weight.grad.abs().max()) == 0


def finite_differences(f, parameters, count=12, h=1e-6):
    """backward's gradient against (f(p + h) - f(p - h)) / 2h in some places of each parameter."""
    grads = torch.autograd.grad(f(), parameters, allow_unused=True)
    for p, g in zip(parameters, grads):
        flat = p.data.view(-1)
        for i in torch.randint(0, len(flat), (count,)).tolist():
            old, values = float(flat[i]), []
            for x in (old + h, old - h):
                flat[i] = x
                values.append(float(f().detach()))
            flat[i] = old
            got = 0.0 if g is None else float(g.reshape(-1)[i])
            expected = (values[0] - values[1]) / (2 * h)
            assert got == pytest.approx(expected, abs=1e-7, rel=1e-5)
    return grads


def test_gradient_of_eq_2():
    """L_expert trains W, and through the hidden state theta_LM too: h is not detached."""
    router, (ids, mask, logp, choice) = tiny_router(), some_scores()
    lm = router.lm

    def loss(lam):
        logits, w = router(ids[:, :-1])
        return sft_loss(logits, w, ids[:, 1:], mask, logp, choice, lam)

    parameters = [router.W.weight, lm.embed.weight, lm.blocks[0].wq.weight, lm.norm.weight]
    finite_differences(lambda: loss(1 / 3)[0], parameters)
    difference = (loss(2.0)[0] - loss(0.0)[0]).detach()
    assert float(difference) == pytest.approx(2 * float(loss(1.0)[1]["loss_expert"].detach()))
    grad = torch.autograd.grad(loss(0.0)[0], router.W.weight, allow_unused=True)[0]
    assert grad is None or float(grad.abs().max()) == 0  # without L_expert nothing trains W


# --- Eq. (3) ------------------------------------------------------------------------------------


def test_cdpo_loss_by_hand():
    """beta = 1/2. theta/ref: +1 on y_w, -1 on y_l: margin 1/2 (1 + 1) = 1.

    Experts -4 and -6: bias 1/2 * 2 = 1. Loss = -log sigmoid(2) = log(1 + e^-2).
    """
    t = lambda x: torch.tensor([float(x)])
    loss, info = cdpo_loss(t(-2), t(-5), t(-3), t(-4), t(-4), t(-6), beta=0.5)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)))
    names = ("reward_chosen", "reward_rejected", "margin", "bias", "accuracy", "fused_accuracy")
    assert [float(info[k]) for k in names] == [0.5, -0.5, 1.0, 1.0, 1.0, 1.0]
    info = cdpo_loss(t(-2), t(-5), t(-3), t(-4), t(-9), t(-6), beta=0.5)[1]  # the bias is -1.5
    assert [float(info[k]) for k in names[4:]] == [1.0, 0.0]
    info = cdpo_loss(t(0), t(0), t(0), t(0), t(0), t(0), beta=0.5)[1]  # nobody prefers anything
    assert [float(info[k]) for k in names[4:]] == [0.0, 0.0]


def test_gradient_of_eq_3():
    """The routed expert is an argmax: no gradient to W from pairs."""
    router, (ids, mask, logp, _) = tiny_router(), some_scores(B=4)
    ref = torch.randn(2, 2, dtype=torch.float64)

    def f():
        logits, w = router(ids[:, :-1])
        return pair_loss(logits, w, ids[:, 1:], mask, logp, ref, beta=0.4)[0]

    parameters = [router.W.weight, router.lm.embed.weight, router.lm.blocks[0].wo.weight]
    assert finite_differences(f, parameters)[0] is None


def test_bias_weights_the_gradient():
    """d loss / d theta_w = -beta sigmoid(-(margin + bias)): small where experts prefer y_w."""
    for bias in (-30.0, -2.0, 0.0, 2.0, 30.0):
        theta, zero = torch.zeros(1, requires_grad=True), torch.zeros(1)
        expert = torch.tensor([bias / 0.1], requires_grad=True)
        cdpo_loss(theta, zero, zero, zero, expert, zero, beta=0.1)[0].backward()
        assert float(theta.grad) == pytest.approx(-0.1 / (1 + math.exp(bias)), rel=1e-4)
        assert expert.grad is None  # stopgrad


def test_limits_of_eq_3():
    """beta -> 0: the loss goes to log 2 whatever the models say, and its gradient over beta to
    -1/2 for y_w. Indifferent experts: plain DPO."""
    z = torch.zeros(1, dtype=torch.float64)
    theta = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    loss, _ = cdpo_loss(theta, z - 1, z, z, z - 7, z - 2, beta=1e-9)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(LOG2)
    assert float(theta.grad) / 1e-9 == pytest.approx(-0.5, rel=1e-6)
    (a, b, c, d), same = torch.randn(4, 6), torch.randn(6)
    dpo = -torch.nn.functional.logsigmoid(0.3 * ((a - c) - (b - d))).mean()
    torch.testing.assert_close(cdpo_loss(a, b, c, d, same, same, beta=0.3)[0], dpo)


def test_sequence_and_routed_logp_by_hand():
    """Three tokens, the third is no part of the answer. V = 2, the targets have p = 1/2 and 1/4.

    Picks 1, then 0: -2 - 30 = -32. (The other picks: -1 - 4.)
    """
    logits = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]]).log()
    mask = torch.tensor([[True, True, False]])
    got = sequence_logp(logits, torch.tensor([[1, 0, 0]]), mask)
    assert got.tolist() == pytest.approx([math.log(1 / 8)])
    w = torch.tensor([[[0.0, 1.0], [5.0, 1.0], [9.0, 0.0]]])
    logp = torch.tensor([[[-1.0, -2.0], [-30.0, -4.0], [-100.0, -100.0]]])
    assert routed_logp(w, logp, mask).tolist() == [-32.0]


def test_pair_loss_is_eq_3_with_the_rows_in_the_right_places():
    """Two pairs, rows chosen, rejected, chosen, rejected, each computed one row at a time."""
    router, (ids, mask, logp, _) = tiny_router(), some_scores(B=4)
    ref, rows, losses = -torch.rand(2, 2, dtype=torch.float64) * 9, [], []
    with torch.no_grad():
        logits, w = router(ids[:, :-1])
        for b in range(4):
            places = mask[b].nonzero()[:, 0].tolist()
            theta = sum(logits[b, t].log_softmax(-1)[ids[b, t + 1]] for t in places)
            rows.append((theta, sum(logp[b, t, w[b, t].argmax()] for t in places)))
        for p in range(2):
            (c, expert_c), (r, expert_r) = rows[2 * p], rows[2 * p + 1]
            x = 0.4 * ((c - ref[p, 0]) - (r - ref[p, 1]) + expert_c - expert_r)
            losses.append(math.log1p(math.exp(-float(x))))
        loss, info = pair_loss(logits, w, ids[:, 1:], mask, logp, ref, 0.4)
    assert float(loss) == pytest.approx(sum(losses) / 2)
    reward = 0.2 * float(rows[0][0] - ref[0, 0] + rows[2][0] - ref[1, 0])
    assert float(info["reward_chosen"]) == pytest.approx(reward)


# --- what training knows of the experts ---------------------------------------------------------


def test_score_equals_each_expert_on_each_sample_alone():
    experts = [tiny_router().lm.float() for _ in range(3)]
    samples = [torch.randint(0, 11, (n,)).tolist() for n in (4, 9, 2, 7, 7)]
    ids, _, lengths = pack([answer_only(s[:1], s[1:]) for s in samples])
    logp, choice = score(experts, ids, lengths, batch=2)
    assert not logp.requires_grad
    for b, s in enumerate(samples):
        for i, expert in enumerate(experts):
            p = expert(torch.tensor([s]))[0][0, :-1].log_softmax(-1)  # (T-1, V)
            picked = p.gather(1, torch.tensor(s[1:])[:, None])[:, 0]
            torch.testing.assert_close(logp[b, : len(s) - 1, i], picked)
            assert choice[b, : len(s) - 1, i].tolist() == p.argmax(-1).tolist()
