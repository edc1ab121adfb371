"""The fast fused decoder against the naive one, in batches, with lagging experts, in its limits; block decoding against both."""

import json
from random import Random

import pytest
import torch
import torch.nn.functional as F

import decode
from decode import Lookup, block_decode, fused_decode
from fusionroute import Router, naive_fused_greedy
from model import GPT, GPTConfig, generate, sample
from tests.conftest import mistake

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
    """First tokens of 4000 samples against the fused distribution: chi-square, 18 degrees of freedom; false alarm below 1e-6 (64)."""
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
    assert chi < 64


# --- block decoding ---------------------------------------------------------------------------------------------------------------------


def record(trace):
    return trace.tokens, trace.pick, trace.expert_choice


ALWAYS = -float("inf")  # as decode.SURE: sure of everything


class Spoilt:
    """Guesses the true continuation with every third token wrong: the worst kind of guess, right often enough to be followed."""

    def __init__(self, prompt, tokens):
        self.text, self.rng = prompt + tokens, Random(0)

    def __call__(self, ids, k):
        return [t if self.rng.random() < 0.67 else (t + 1) % 19 for t in self.text[len(ids):len(ids) + k]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sure", [ALWAYS, -1.6])
def test_blocks_change_no_token(models, monkeypatch, sure, temperature):
    """Any block, any guesses: the same Trace as token by token; greedy: as fused_decode's. Drafts must have been kept, cut and refused."""
    monkeypatch.setattr(decode, "SURE", sure)  # the random router is never as sure as a trained one
    router, experts = models
    kept, drafts = [], {}
    for p in PROMPTS[::2]:
        if temperature:
            plain = block_decode(router, experts, p, END, 30, 1, None, temperature, seed=5)
        else:
            (plain,) = fused_decode(router, experts, [p], END, 30)
        for block in (1, 3, 99):
            for lookup in (None, Lookup([p + plain.tokens]), Spoilt(p, plain.tokens)):
                trace = block_decode(router, experts, p, END, 30, block, lookup, temperature, seed=5)
                assert record(trace) == record(plain)
                assert torch.tensor(trace.weights).allclose(torch.tensor(plain.weights))
                kept.append(len(trace.tokens) / trace.drafted)
                drafts.setdefault((*p, block), set()).add((trace.blocks, trace.drafted))
                if block == 1:
                    assert trace.router_passes == trace.expert_passes == trace.drafted == len(plain.tokens)
    assert min(kept) < (0.95 if temperature else 0.8) and max(kept) == 1.0
    assert all(len(x) == 1 for x in drafts.values())  # what the router drafts does not depend on the guesses either


def test_a_draft_that_is_right_costs_one_pass(models, monkeypatch):
    """Experts equal to the router change nothing, and a perfect guess leaves one router pass a block, one pass for each expert in it."""
    monkeypatch.setattr(decode, "SURE", ALWAYS)
    router, _ = models
    experts = [router.lm] * 3
    (plain,) = fused_decode(router, experts, [PROMPTS[0]], END, 30)
    n = len(plain.tokens)
    assert n > 16
    for lookup, passes in ((None, n), (lambda ids, k: plain.tokens[len(ids) - len(PROMPTS[0]):][:k], -(-n // 8))):
        trace = block_decode(router, experts, PROMPTS[0], END, 30, 8, lookup)
        assert record(trace) == record(plain) and trace.drafted == n
        assert trace.router_passes == passes
        assert trace.expert_passes == sum(len(set(plain.pick[t:t + 8])) for t in range(0, n, 8))


def test_sampled_drafts_are_kept_where_the_experts_say_nothing(models, monkeypatch):
    """Uniform experts leave the router's distribution: nothing is refused."""
    monkeypatch.setattr(decode, "SURE", ALWAYS)
    router, experts = models
    for expert in experts:
        expert.head = torch.nn.Linear(16, 19, bias=False).double().requires_grad_(False)
        expert.head.weight.zero_()
    traces = [block_decode(router, experts, PROMPTS[0], END, 30, 8, temperature=1.0, seed=seed) for seed in range(5)]
    assert all(t.drafted == len(t.tokens) for t in traces) and max(t.blocks for t in traces) > 1


def test_speculative_sampling_gives_p_and_keeps_what_can_be_kept():
    """10^5 drafts from q: the outcome follows p, by chi-square (24 degrees of freedom, false alarm below 1e-6 at 77), and 1 - TV(p, q) stay."""
    g, n, V, temperature = torch.Generator().manual_seed(3), 10**5, 25, 0.7
    q, p = (torch.randn(V, generator=g).log_softmax(-1) for _ in "qp")
    p[:5] = -30.0                                                # q drafts what p never says
    u = torch.rand(n, 3, generator=g)
    drafted = sample(q.expand(n, V), temperature, u=u[:, 0])
    out = decode.accepted(drafted.tolist(), q.expand(n, V), p.expand(n, V), temperature, u)
    q, p = ((x / temperature).softmax(-1) for x in (q, p))
    assert float(((out.bincount(minlength=V) - n * p) ** 2 / (n * p).clamp(min=1)).sum()) < 77
    kept, most = float((out == drafted).float().mean()), float(torch.minimum(p, q).sum())
    assert 0.2 < most < 0.8 and abs(kept - most) < 5 * (most * (1 - most) / n) ** 0.5
    assert torch.equal(decode.accepted(drafted.tolist(), q.log().expand(n, V), q.log().expand(n, V), 1.0, u), drafted)


def test_an_unsure_router_drafts_one_token_at_a_time(models, monkeypatch):
    monkeypatch.setattr(decode, "SURE", 0.1)
    router, experts = models
    trace = block_decode(router, experts, PROMPTS[0], END, 30, 16)
    assert trace.drafted == trace.router_passes == trace.expert_passes == len(trace.tokens)


def test_block_sampling_follows_eq_1(models, monkeypatch):
    """Second tokens, drafted in a block with the first, against sum over y_1 of p(y_1) p(y_2 | y_1): chi-square as above."""
    monkeypatch.setattr(decode, "SURE", ALWAYS)
    router, experts = models

    def final(ids):  # Eq. (1), naively: (V,)
        (r, w), x = router(torch.tensor([ids])), torch.tensor([ids])
        return (r[0, -1].log_softmax(-1) + experts[int(w[0, -1].argmax())](x)[0][0, -1].log_softmax(-1)).softmax(-1)

    first, n = final(PROMPTS[0]), 1000
    p = sum(first[y] * final(PROMPTS[0] + [y]) for y in range(19) if y != END)  # (V,), and 1 - sum: ended with the first token
    p = torch.cat([p, first[END:END + 1]])
    traces = [block_decode(router, experts, PROMPTS[0], END, 2, 2, temperature=1.0, seed=seed) for seed in range(n)]
    count = torch.tensor([(t.tokens + [19])[1] if len(t.tokens) > 1 else 19 for t in traces]).bincount(minlength=20)
    assert any(t.router_passes == 2 and t.drafted == 2 for t in traces) and any(t.drafted > 2 for t in traces)  # kept, refused
    big = p * n > 1
    rest = torch.tensor([float(count[~big].sum()), float(p[~big].sum() * n)])
    chi = float(((count - n * p)[big] ** 2 / (n * p)[big]).sum()) + float((rest[0] - rest[1]) ** 2 / max(float(rest[1]), 1.0))
    assert chi < 66  # 19 degrees of freedom: a false alarm in less than one of 10^6 random seeds


def test_a_draft_stops_where_the_models_stop_reading(models, monkeypatch):
    """An answer that ends inside max_len must not fail because a draft or a guess would have gone on beyond it."""
    monkeypatch.setattr(decode, "SURE", ALWAYS)
    router, experts = models
    prompt = PROMPTS[2] * 8                                    # 56 of 64 tokens
    (plain,) = fused_decode(router, experts, [prompt], -1, 6)
    end = plain.tokens[5]
    (plain,) = fused_decode(router, experts, [prompt], end, 60)
    for lookup in (None, lambda ids, k: [1] * k):
        assert record(block_decode(router, experts, prompt, end, 60, 32, lookup)) == record(plain)
    with pytest.raises(ValueError, match="65 tokens"):
        block_decode(router, experts, prompt, -1, 60, 32)


def test_lookup_goes_on_after_the_longest_match():
    guess = Lookup([[1, 2, 3, 4, 5], [9, 3, 7, 8]], lengths=(3, 2, 1))
    assert guess([1, 2, 3], 2) == [4, 5]         # three tokens match, though 3 alone was last seen before 7
    assert guess([1, 2, 3], 9) == [4, 5, 9]      # a guess as long as the match
    assert guess([9, 3], 9) == [7, 8]            # the known text ends
    assert guess([6, 3], 9) == guess([3], 9) == [7]  # one token
    assert Lookup([[1, 2, 3, 4, 5]], lengths=(3,), ahead=1)([1, 2, 3], 9) == [4]
    assert guess([6], 3) == guess([], 3) == []
    assert guess([1, 2, 3], 0) == []


def test_an_answer_ends_at_the_first_of_several_ends(models, monkeypatch):
    """What is said with no end at all, cut behind the first token that is one of three; the first expert alone likewise."""
    monkeypatch.setattr(decode, "SURE", ALWAYS)
    router, experts = models
    on = fused_decode(router, experts, PROMPTS, -1, 30)
    ends = [on[0].tokens[9], on[1].tokens[4], 99]
    cut = lambda tokens, with_end: tokens[:next((t + with_end for t, token in enumerate(tokens) if token in ends), 30)]
    expected = [cut(t.tokens, True) for t in on]
    assert len({t[-1] for t in expected if len(t) < 30}) == 2  # both of them end an answer
    for several in (ends, tuple(ends)):
        assert [t.tokens for t in fused_decode(router, experts, PROMPTS, several, 30)] == expected
        for p, tokens in zip(PROMPTS, expected):
            for lookup in (None, lambda ids, k: [several[0], 1][:k]):
                trace = block_decode(router, experts, p, several, 30, 8, lookup)
                assert trace.tokens == tokens and decode.answer_ids(trace, several) == cut(tokens, False)
        without = generate(experts[0], PROMPTS, 30, -1)
        assert generate(experts[0], PROMPTS, 30, several) == [cut(t, False) for t in without] != without


def test_block_1_switches_it_off_and_changes_nothing_else(world, capsys):
    said = []
    for block in (16, 1):
        decode.main(["--out", str(world), "--json", "--block", str(block), "What is 38 mod 5?"])
        said.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
        decode.main(["--out", str(world), "--block", str(block), "What is 38 mod 5?"])
        assert ("passes a token" in capsys.readouterr().out) == (block > 1)
    assert [t["id"] for t in said[0][:-1]] == [t["id"] for t in said[1][:-1]]
    assert {k: said[0][-1][k] for k in said[1][-1]} == said[1][-1] and "drafted" not in said[1][-1]  # the first counts its blocks besides
    assert "--block is 0" in mistake("decode", "--block", "0", "What is 38 mod 5?")
