"""The fast fused decoder against the naive one, in batches, with lagging experts, and in its limits."""

import pytest
import torch
import torch.nn.functional as F

from decode import fused_decode
from fusionroute import Router, naive_fused_greedy
from model import GPT, GPTConfig, generate

CONFIG = GPTConfig(vocab_size=19, d_model=16, n_layer=2, n_head=2, n_kv_head=1, head_dim=8, d_ff=24, max_len=64)
END = 3


def gpt():
    model = GPT(CONFIG).double().eval()
    for p in model.parameters():
        p.data = p.data * 1.5 + 0.1 * torch.randn_like(p)
    return model


@pytest.fixture
def models():
    """A router whose picks change from token to token, and three experts of no common mind."""
    router = Router(gpt(), 3).double()
    torch.nn.init.normal_(router.W.weight)
    return router.requires_grad_(False), [gpt().requires_grad_(False) for _ in range(3)]


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [1, 2], [16, 17, 18, 1, 2, 4, 5], [4, 4, 4, 4]]


def naive(router, experts, prompt, max_new=30):
    return naive_fused_greedy(router, experts, prompt, END, max_new)


def test_equals_the_naive_decoder_alone_and_in_a_batch(models):
    router, experts = models
    expected = [naive(router, experts, p) for p in PROMPTS]
    together = fused_decode(router, experts, PROMPTS, END, 30)
    for p, (tokens, picks), trace in zip(PROMPTS, expected, together):
        (alone,) = fused_decode(router, experts, [p], END, 30)
        assert [t for t in alone.tokens if t != END] == tokens and alone.pick == picks
        assert (trace.tokens, trace.pick, trace.expert_choice) == (alone.tokens, alone.pick, alone.expert_choice)
    assert len({len(t.tokens) for t in together}) > 1          # rows ended at different times
    assert all(len(set(t.pick)) > 1 for t in together[:1])     # experts fell behind and caught up
    assert any(t.expert_choice != t.tokens for t in together)  # the router changed something


def test_an_expert_that_is_not_picked_is_not_run(models):
    router, experts = models
    calls = [[] for _ in experts]
    for i, expert in enumerate(experts):
        expert.register_forward_hook(lambda m, args, out, i=i: calls[i].append(args[0].shape[1]))
    (trace,) = fused_decode(router, experts, [PROMPTS[0]], END, 30)
    for i in range(3):
        assert len(calls[i]) == trace.pick.count(i)  # one pass for each time it is picked
        if calls[i]:  # all that it missed is read then: the prompt and every token before its last pick
            last = len(trace.pick) - 1 - trace.pick[::-1].index(i)
            assert sum(calls[i]) == len(PROMPTS[0]) + last


def test_no_token_is_read_twice(models):
    """In a batch whose rows pick different experts and end at different times, too: what each model reads, summed over its passes."""
    router, experts = models
    read = [0] * 4
    for i, model in enumerate([router.lm, *experts]):
        model.register_forward_hook(lambda m, args, out, i=i: read.__setitem__(i, read[i] + int(args[2].sum())))
    traces = fused_decode(router, experts, PROMPTS, END, 30)
    assert read[0] == sum(len(p) + len(t.tokens) - 1 for p, t in zip(PROMPTS, traces))
    for i in range(3):  # an expert reads a row up to the last token that it is picked for
        last = [max((k for k, pick in enumerate(t.pick) if pick == i), default=-len(p)) for p, t in zip(PROMPTS, traces)]
        assert read[1 + i] == sum(len(p) + k for p, k in zip(PROMPTS, last))


def test_the_record_says_what_happened(models):
    """Token t must be the argmax of Eq. (1) with the recorded expert; expert_choice that expert's argmax; weights softmax(w)."""
    router, experts = models
    (trace,) = fused_decode(router, experts, [PROMPTS[2]], END, 20)
    ids = list(PROMPTS[2])
    for token, pick, weights, wanted in zip(trace.tokens, trace.pick, trace.weights, trace.expert_choice):
        x = torch.tensor([ids])
        (r, w), e = router(x), experts[pick](x)[0][0, -1]
        assert pick == int(w[0, -1].argmax()) and wanted == int(e.argmax())
        assert weights == pytest.approx(w[0, -1].softmax(-1).tolist())
        assert token == int((r[0, -1].log_softmax(-1) + e.log_softmax(-1)).argmax())
        ids.append(token)


def test_limits(models):
    """Uniform router logits: routing only. use_expert=False: the router alone. only=i without router: expert i alone."""
    router, experts = models
    alone = lambda m, p: generate(m, [p], 25, END)[0]
    cut = lambda t: [x for x in t.tokens if x != END]
    for p in PROMPTS[:3]:
        assert cut(fused_decode(router, experts, [p], END, 25, use_expert=False)[0]) == alone(router.lm, p)
        for i in range(3):
            assert cut(fused_decode(router, experts, [p], END, 25, use_router=False, only=i)[0]) == alone(experts[i], p)
    routing_only = [cut(t) for t in fused_decode(router, experts, PROMPTS, END, 25, use_router=False)]
    fixed = fused_decode(router, experts, PROMPTS, END, 25, only=1)  # fused with expert 1 throughout: one expert leaves no choice
    one = Router(router.lm, 1).double()
    assert [cut(t) for t in fixed] == [naive_fused_greedy(one, experts[1:2], p, END, 25)[0] for p in PROMPTS]
    router.lm.head = torch.nn.Linear(16, 19, bias=False).double().requires_grad_(False)  # untied, so that only the logits change
    router.lm.head.weight.zero_()
    assert [cut(t) for t in fused_decode(router, experts, PROMPTS, END, 25)] == routing_only


def test_sampling_in_a_batch_equals_one_by_one(models):
    router, experts = models
    together = fused_decode(router, experts, PROMPTS, END, 20, temperature=1.0, seed=9)
    for b, p in enumerate(PROMPTS):
        assert fused_decode(router, experts, [p], END, 20, temperature=1.0, seed=9 + b)[0].tokens == together[b].tokens
    assert together[0].tokens != fused_decode(router, experts, [PROMPTS[0]], END, 20, temperature=1.0, seed=1)[0].tokens


def test_sampling_follows_eq_1(models):
    """First tokens of 4000 samples against the fused distribution: chi-square, 18 degrees of freedom; false alarm below 1e-6 (60)."""
    router, experts = models
    x, n = torch.tensor([PROMPTS[0]]), 4000
    r, w = router(x)
    e = experts[int(w[0, -1].argmax())](x)[0][0, -1]
    p = (F.log_softmax(r[0, -1], -1) + F.log_softmax(e, -1)).softmax(-1)
    traces = fused_decode(router, experts, [PROMPTS[0]] * n, END, 1, temperature=1.0)
    count = torch.tensor([t.tokens[0] for t in traces]).bincount(minlength=19)
    big = p * n > 1
    rest = torch.tensor([float(count[~big].sum()), float(p[~big].sum() * n)])
    chi = float(((count - n * p)[big] ** 2 / (n * p)[big]).sum()) + float((rest[0] - rest[1]) ** 2 / max(float(rest[1]), 1.0))
    assert chi < 60
