"""Eq. (1), Eq. (2) and Eq. (3): by hand, against finite differences, and in their limits."""

import math

import pytest
import torch

from fusionroute import (Router, cdpo_loss, fuse, informative, log_pi_agg, routed_logp, score, sequence_logp, sft_loss,
                         token_logp)
from model import GPT, GPTConfig
from toy_experts.data import answer_only, pack
from train_cdpo import pair_loss

LOG2 = math.log(2)


def tiny_router(n=3, vocab=11):
    router = Router(GPT(GPTConfig(vocab_size=vocab, d_model=8, n_layer=1, n_head=2, n_kv_head=1, head_dim=4, d_ff=12, max_len=16)), n)
    torch.nn.init.normal_(router.W.weight)
    return router.double()


def some_scores(B=2, T=5, n=3, vocab=11):
    logp = -torch.rand(B, T, n, dtype=torch.float64) * 3
    choice = torch.randint(0, 2, (B, T, n))
    mask = torch.rand(B, T) < 0.7
    mask[:, 0] = True
    return torch.randint(0, vocab, (B, T + 1)), mask, logp, choice


# --- Eq. (1) -----------------------------------------------------------------------------------------------------------------------------


def test_fuse_by_hand():
    """Router (1/2, 1/2), expert (3/4, 1/4): product (3/8, 1/8), normalised (3/4, 1/4). Router (1/10, 9/10): (3/40, 9/40) -> (1/4, 3/4)."""
    expert = torch.tensor([0.75, 0.25]).log()
    torch.testing.assert_close(fuse(torch.tensor([0.5, 0.5]).log(), expert).softmax(-1), torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(fuse(torch.tensor([0.1, 0.9]).log(), expert).softmax(-1), torch.tensor([0.25, 0.75]))


def test_uniform_router_logits_mean_the_expert_alone():
    expert = torch.randn(4, 7)
    torch.testing.assert_close(fuse(torch.full((4, 7), 2.5), expert).softmax(-1), expert.softmax(-1))
    torch.testing.assert_close(fuse(expert, torch.zeros(4, 7)).softmax(-1), expert.softmax(-1))


# --- Eq. (2) -----------------------------------------------------------------------------------------------------------------------------


def test_informative_set():
    assert informative(torch.tensor([[1, 1, 1], [1, 1, 2], [2, 1, 1], [3, 4, 5]])).tolist() == [False, True, True, True]
    assert informative(torch.tensor([[4]])).tolist() == [False]  # one expert has nothing to be routed


def test_log_pi_agg_by_hand():
    """Equal weights: the mean of the log-probabilities. w = (log 3, 0) is (3/4, 1/4)."""
    logp = torch.tensor([-1.0, -3.0])
    assert float(log_pi_agg(torch.zeros(2), logp)) == pytest.approx(-2.0)
    assert float(log_pi_agg(torch.tensor([math.log(3), 0.0]), logp)) == pytest.approx(-1.5)


def test_sft_loss_by_hand():
    """Two answer tokens and one prompt token, V = 2, two experts.

    Router logits 0: -log 1/2 a token, so L_LM = log 2. The experts agree at the first answer token and differ at the second, where
    w = (log 3, 0) and log pi = (-1, -3): L_expert = 1.5 / 2 tokens = 0.75. lambda = 1/3: L = log 2 + 0.25. The prompt token, where
    they differ too, must not count.
    """
    logits, targets, mask = torch.zeros(1, 3, 2), torch.tensor([[0, 1, 0]]), torch.tensor([[False, True, True]])
    w = torch.tensor([math.log(3), 0.0]).expand(1, 3, 2)
    logp = torch.tensor([[[-9.0, -9.0], [-5.0, -7.0], [-1.0, -3.0]]])
    choice = torch.tensor([[[0, 1], [1, 1], [0, 1]]])
    loss, info = sft_loss(logits, w, targets, mask, logp, choice, lam=1 / 3)
    assert float(loss) == pytest.approx(LOG2 + 0.25)
    assert float(info["loss_lm"]) == pytest.approx(LOG2) and float(info["loss_expert"]) == pytest.approx(0.75)
    assert float(info["informative"]) == 0.5 and [float(x) for x in info["routing"]] == [1.0, 0.0]


def test_identical_experts_give_an_empty_S():
    router, (ids, mask, logp, _) = tiny_router(), some_scores()
    logits, w = router(ids[:, :-1])
    same = torch.full((2, 5, 3), 4)
    loss, info = sft_loss(logits, w, ids[:, 1:], mask, logp, same, lam=1 / 3)
    assert float(info["loss_expert"].detach()) == 0 and float(info["informative"]) == 0
    loss.backward()
    assert router.W.weight.grad is None or float(router.W.weight.grad.abs().max()) == 0
    torch.testing.assert_close(loss, -token_logp(logits, ids[:, 1:])[mask].mean())


def finite_differences(f, parameters, count=12, h=1e-6):
    """Compare backward's gradient with (f(p + h) - f(p - h)) / 2h in `count` random places of each parameter."""
    loss = f()
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    for p, g in zip(parameters, grads):
        flat = p.data.view(-1)
        for i in torch.randint(0, len(flat), (count,)).tolist():
            old = float(flat[i])
            flat[i] = old + h
            up = float(f().detach())
            flat[i] = old - h
            down = float(f().detach())
            flat[i] = old
            got = 0.0 if g is None else float(g.reshape(-1)[i])
            assert got == pytest.approx((up - down) / (2 * h), abs=1e-7, rel=1e-5)


def test_gradient_of_eq_2():
    router, (ids, mask, logp, choice) = tiny_router(), some_scores()

    def f():
        logits, w = router(ids[:, :-1])
        return sft_loss(logits, w, ids[:, 1:], mask, logp, choice, lam=1 / 3)[0]

    finite_differences(f, [router.W.weight, router.lm.embed.weight, router.lm.blocks[0].wq.weight, router.lm.norm.weight])


def test_lambda_scales_the_routing_loss_only():
    router, (ids, mask, logp, choice) = tiny_router(), some_scores()
    logits, w = router(ids[:, :-1])
    at = lambda lam: sft_loss(logits, w, ids[:, 1:], mask, logp, choice, lam)
    assert float((at(2.0)[0] - at(0.0)[0]).detach()) == pytest.approx(2 * float(at(1.0)[1]["loss_expert"]))
    grad = torch.autograd.grad(at(0.0)[0], router.W.weight, allow_unused=True)[0]
    assert grad is None or float(grad.abs().max()) == 0  # without the routing loss nothing trains W


# --- Eq. (3) -----------------------------------------------------------------------------------------------------------------------------


def test_cdpo_loss_by_hand():
    """beta = 1/2. theta/ref: +1 on y_w, -1 on y_l: margin 1/2 (1 + 1) = 1. Experts -4 and -6: bias 1/2 * 2 = 1.
    Loss = -log sigmoid(2) = log(1 + e^-2)."""
    t = lambda x: torch.tensor([float(x)])
    loss, info = cdpo_loss(t(-2), t(-5), t(-3), t(-4), t(-4), t(-6), beta=0.5)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)))
    assert [float(info[k]) for k in ("reward_chosen", "reward_rejected", "margin", "bias")] == [0.5, -0.5, 1.0, 1.0]
    assert float(info["accuracy"]) == float(info["fused_accuracy"]) == 1.0
    info = cdpo_loss(t(-2), t(-5), t(-3), t(-4), t(-9), t(-6), beta=0.5)[1]  # margin 1, bias -1.5: the experts outweigh it
    assert (float(info["accuracy"]), float(info["fused_accuracy"])) == (1.0, 0.0)


def test_gradient_of_eq_3_with_the_bias_held_fixed():
    """d/d theta against finite differences in which the bias does not move, since stopgrad says so; the experts are picked by w."""
    router = tiny_router()
    ids, mask, logp, _ = some_scores(B=4)
    ref = -torch.rand(4, dtype=torch.float64) * 9
    with torch.no_grad():
        fixed = routed_logp(router(ids[:, :-1])[1], logp, mask)

    def f(expert=None):
        logits, w = router(ids[:, :-1])
        theta = sequence_logp(logits, ids[:, 1:], mask)
        expert = routed_logp(w, logp, mask) if expert is None else expert
        return cdpo_loss(theta[::2], theta[1::2], ref[::2], ref[1::2], expert[::2], expert[1::2], beta=0.1)[0]

    parameters = [router.lm.embed.weight, router.lm.blocks[0].w_down.weight, router.lm.norm.weight]
    finite_differences(lambda: f(fixed), parameters)
    for a, b in zip(torch.autograd.grad(f(), parameters), torch.autograd.grad(f(fixed), parameters)):
        torch.testing.assert_close(a, b)
    assert torch.autograd.grad(f(), router.W.weight, allow_unused=True)[0] is None  # no gradient to W from pairs


def test_bias_weights_the_gradient():
    """d loss / d theta_w = -beta sigmoid(-(margin + bias)): small where the experts prefer y_w, large where they prefer y_l."""
    for bias in (-30.0, -2.0, 0.0, 2.0, 30.0):
        theta, zero = torch.zeros(1, requires_grad=True), torch.zeros(1)
        expert = torch.tensor([bias / 0.1], requires_grad=True)
        loss, _ = cdpo_loss(theta, zero, zero, zero, expert, zero, beta=0.1)
        loss.backward()
        assert float(theta.grad) == pytest.approx(-0.1 / (1 + math.exp(bias)), rel=1e-4)
        assert expert.grad is None  # stopgrad


def test_beta_to_zero():
    """The loss goes to log 2 whatever the models say, and its gradient over beta to half of the gradient of -(log pi_w - log pi_l)."""
    theta_w, theta_l = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True), torch.tensor([-1.0], dtype=torch.float64)
    z = torch.zeros(1, dtype=torch.float64)
    loss, _ = cdpo_loss(theta_w, theta_l, z, z, z - 7, z - 2, beta=1e-9)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(LOG2) and float(theta_w.grad) / 1e-9 == pytest.approx(-0.5, rel=1e-6)


def test_indifferent_experts_give_plain_dpo():
    a, b, c, d = torch.randn(4, 6)
    same = torch.randn(6)
    loss, _ = cdpo_loss(a, b, c, d, same, same, beta=0.3)
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(0.3 * ((a - c) - (b - d))).mean())


# --- experts are scored once, right, and never touched -----------------------------------------------------------------------------------


def test_score_equals_each_expert_on_each_sample_alone():
    experts = [tiny_router().lm.float() for _ in range(3)]
    samples = [torch.randint(0, 11, (n,)).tolist() for n in (4, 9, 2, 7, 7)]
    ids, _, lengths = pack([answer_only(s[:1], s[1:]) for s in samples])
    logp, choice = score(experts, ids, lengths, batch=2)
    for b, s in enumerate(samples):
        for i, expert in enumerate(experts):
            p = expert(torch.tensor([s]))[0][0].log_softmax(-1)  # (T, V)
            for t in range(len(s) - 1):
                assert float(logp[b, t, i]) == pytest.approx(p[t, s[t + 1]].item(), abs=1e-5)
                assert int(choice[b, t, i]) == int(p[t].argmax())
    assert not logp.requires_grad


def test_routed_logp_takes_the_picked_expert():
    """Picks 1 then 0, the third position is not part of the answer: -2 + -30 = -32 (the other picks: -1 + -4)."""
    w = torch.tensor([[[0.0, 1.0], [5.0, 1.0], [9.0, 0.0]]])
    logp = torch.tensor([[[-1.0, -2.0], [-30.0, -4.0], [-100.0, -100.0]]])
    assert float(routed_logp(w, logp, torch.tensor([[True, True, False]]))) == -32.0


def test_pair_loss_is_eq_3_with_the_rows_in_the_right_places():
    """Two pairs, rows chosen, rejected, chosen, rejected, against cdpo_loss on the six numbers of each, computed one row at a time."""
    router, (ids, mask, logp, _) = tiny_router(), some_scores(B=4)
    ref, parts = -torch.rand(2, 2, dtype=torch.float64) * 9, []
    with torch.no_grad():
        logits, w = router(ids[:, :-1])
        for row in range(4):
            where = mask[row].nonzero()[:, 0].tolist()
            theta = sum(logits[row, t].log_softmax(-1)[ids[row, t + 1]] for t in where)
            parts.append((theta, sum(logp[row, t, w[row, t].argmax()] for t in where)))
        losses = []
        for p in range(2):
            (c, expert_c), (r, expert_r) = parts[2 * p], parts[2 * p + 1]
            x = 0.4 * ((c - ref[p, 0]) - (r - ref[p, 1])) + 0.4 * (expert_c - expert_r)
            losses.append(math.log1p(math.exp(-float(x))))
        loss, info = pair_loss(logits, w, ids[:, 1:], mask, logp, ref, 0.4)
    assert float(loss) == pytest.approx(sum(losses) / 2)
    assert float(info["reward_chosen"]) == pytest.approx(0.2 * float(parts[0][0] - ref[0, 0] + parts[2][0] - ref[1, 0]))


def test_a_pair_step_leaves_W_alone_to_the_last_bit():
    """An SFT step first, so that the optimizer holds momentum and weight decay for W; then a pair step must not move it."""
    router, (ids, mask, logp, choice) = tiny_router(), some_scores(B=4)
    optimizer = torch.optim.AdamW(router.parameters(), lr=1e-2, weight_decay=0.1)

    def step(loss):
        before = router.W.weight.clone(), router.lm.embed.weight.clone()
        optimizer.zero_grad()
        loss(*router(ids[:, :-1])).backward()
        optimizer.step()
        return [not torch.equal(a, b) for a, b in zip(before, (router.W.weight, router.lm.embed.weight))]

    assert step(lambda logits, w: sft_loss(logits, w, ids[:, 1:], mask, logp, choice, 1 / 3)[0]) == [True, True]
    zero = torch.zeros(2, 2, dtype=torch.float64)
    assert step(lambda logits, w: pair_loss(logits, w, ids[:, 1:], mask, logp, zero, 0.1)[0]) == [False, True]
