"""Block decoding against the ground floor's decoders, in its limits and its distribution."""

import math
from random import Random

import pytest
import torch

import decode
from extra.speed import block
from extra.speed.block import Lookup, block_decode, ended
from fusionroute import Router, naive_fused_greedy
from model import GPT, GPTConfig, sample
from toy_experts import batch as toy_batch, tasks, tokenizer

CONFIG = GPTConfig(vocab_size=19, d_model=16, n_layer=2, n_head=2, n_kv_head=1, head_dim=8, d_ff=24, max_len=64)
END = 3
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [1, 2], [16, 17, 18, 1, 2, 4, 5], [4, 4, 4, 4]]
ALWAYS = 0.0  # as block.SURE: a draft goes on however unlikely its tokens are


def gpt():
    model = GPT(CONFIG).double().eval()
    for p in model.parameters():
        p.data = p.data * 1.5 + 0.1 * torch.randn_like(p)
    return model


@pytest.fixture
def models():
    """A router whose picks change from token to token, and three experts that have nothing in common."""
    router = Router(gpt(), 3).double()
    torch.nn.init.normal_(router.W.weight)
    return router.requires_grad_(False), [gpt().requires_grad_(False) for _ in range(3)]


@pytest.fixture
def small(monkeypatch):
    """decode.decode and toy_batch.decode_batch with this file's end token, and answers of 30 tokens."""
    monkeypatch.setattr(tokenizer, "END", END)
    monkeypatch.setattr(decode, "MAX_NEW", 30)
    torch.set_default_dtype(torch.float64)  # decode_batch collects its logits in torch's default type
    yield
    torch.set_default_dtype(torch.float32)


def plain(models, prompt, end=END, max_new=30):
    """decode.py's loop, as a Trace: two passes a token and no draft. test_equals_the_ground_floor shows that it is the same."""
    return block_decode(*models, prompt, end, max_new, 1)


def record(trace):
    return trace.tokens, trace.pick, trace.expert_choice


@pytest.mark.parametrize("sure", [ALWAYS, 0.2])
def test_equals_the_ground_floor(models, small, monkeypatch, sure):
    """In float64 tokens, picks, the experts' own choices and the weights are those of decode.py's loop, of its decoder for batches
    and of the definition, whatever the block. Drafts must have been kept and refused, or the test shows little."""
    monkeypatch.setattr(block, "SURE", sure)
    router, experts = models
    batch, kept = toy_batch.decode_batch(router, experts, PROMPTS, max_new=30), []
    for p, row in zip(PROMPTS, batch):
        steps = list(decode.decode(router, experts, p))
        tokens, picks = naive_fused_greedy(router, experts, p, END, 30)
        for k in (1, 8):
            trace = block_decode(router, experts, p, END, 30, k)
            assert trace.tokens == [s.token for s in steps] and trace.answer(END) == tokens
            assert trace.pick == [s.pick for s in steps] == picks
            assert trace.expert_choice == [s.expert_choice for s in steps]
            assert record(trace) == (row.tokens, row.pick, row.expert_choice)
            assert torch.tensor(trace.weights).allclose(torch.tensor([s.weights for s in steps]))
            kept.append(len(trace.tokens) / trace.drafted)
    assert min(kept) < 0.8 and max(kept) == 1.0
    assert len({len(t.tokens) for t in batch}) > 1 and any(len(set(t.pick)) > 1 for t in batch)
    assert any(t.expert_choice != t.tokens for t in batch)     # the router changed something


class Spoilt:
    """Guesses the true continuation with every third token wrong: the worst kind of guess, right often enough to be followed."""

    def __init__(self, prompt, tokens):
        self.text, self.rng = prompt + tokens, Random(0)

    def __call__(self, ids, k):
        return [t if self.rng.random() < 0.67 else (t + 1) % 19 for t in self.text[len(ids):len(ids) + k]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sure", [ALWAYS, 0.2])
def test_blocks_change_no_token(models, monkeypatch, sure, temperature):
    """Any block, any guesses: the same Trace as token by token. Drafts must have been kept, cut and refused."""
    monkeypatch.setattr(block, "SURE", sure)  # the random router is never as sure as a trained one
    kept, drafts = [], {}
    for p in PROMPTS[::2]:
        one = block_decode(*models, p, END, 30, 1, None, temperature, seed=5)
        for k in (1, 3, 99):
            for lookup in (None, Lookup([p + one.tokens]), Spoilt(p, one.tokens)):
                trace = block_decode(*models, p, END, 30, k, lookup, temperature, seed=5)
                assert record(trace) == record(one)
                assert torch.tensor(trace.weights).allclose(torch.tensor(one.weights))
                kept.append(len(trace.tokens) / trace.drafted)
                drafts.setdefault((*p, k), set()).add((trace.blocks, trace.drafted))
                if k == 1:
                    assert trace.router_passes == trace.expert_passes == trace.drafted == len(one.tokens)
    assert min(kept) < (0.95 if temperature else 0.8) and max(kept) == 1.0
    assert all(len(x) == 1 for x in drafts.values())  # what the router drafts does not depend on the guesses either


def test_a_draft_that_is_right_costs_one_pass(models, monkeypatch):
    """Experts equal to the router change nothing, and a perfect guess leaves one router pass a block, one pass for each expert in it."""
    monkeypatch.setattr(block, "SURE", ALWAYS)
    router, _ = models
    experts = [router.lm] * 3
    one = plain((router, experts), PROMPTS[0])
    n = len(one.tokens)
    assert n > 16
    for lookup, passes in ((None, n), (lambda ids, k: one.tokens[len(ids) - len(PROMPTS[0]):][:k], -(-n // 8))):
        trace = block_decode(router, experts, PROMPTS[0], END, 30, 8, lookup)
        assert record(trace) == record(one) and trace.drafted == n
        assert trace.router_passes == passes
        assert trace.expert_passes == sum(len(set(one.pick[t:t + 8])) for t in range(0, n, 8))


def test_an_expert_that_is_not_picked_is_not_run(models):
    """No expert reads a token twice that stays, and none runs that no place of the draft needs."""
    router, experts = models
    calls = [0] * 3
    for i, expert in enumerate(experts):
        expert.register_forward_hook(lambda m, args, out, i=i: calls.__setitem__(i, calls[i] + 1))
    trace = plain(models, PROMPTS[0])
    assert calls == [trace.pick.count(i) for i in range(3)] and 0 < sum(calls) == trace.expert_passes
    router.W.weight.data.zero_()                            # the first of equal weights is picked: experts 1 and 2 never
    calls[:] = [0] * 3
    assert set(block_decode(*models, PROMPTS[0], END, 30, 8).pick) == {0} and calls[0] > 0 and calls[1:] == [0, 0]


def test_sampled_drafts_are_kept_where_the_experts_say_nothing(models, monkeypatch):
    """Uniform experts leave the router's distribution: nothing is refused."""
    monkeypatch.setattr(block, "SURE", ALWAYS)
    router, experts = models
    for expert in experts:
        expert.head = torch.nn.Linear(16, 19, bias=False).double().requires_grad_(False)
        expert.head.weight.zero_()
    traces = [block_decode(router, experts, PROMPTS[0], END, 30, 8, temperature=1.0, seed=seed) for seed in range(5)]
    assert all(t.drafted == len(t.tokens) for t in traces) and max(t.blocks for t in traces) > 1


def test_speculative_sampling_gives_p_and_keeps_what_can_be_kept():
    """10^5 drafts from q: the outcome follows p, by chi-square (24 degrees of freedom, false alarm below 1e-6 at 77), and a share
    1 - TV(p, q) stays."""
    g, n, V, temperature = torch.Generator().manual_seed(3), 10**5, 25, 0.7
    q, p = (torch.randn(V, generator=g).log_softmax(-1) for _ in "qp")
    p[:5] = -30.0                                                # q drafts what p never says
    u = torch.rand(n, 3, generator=g)
    drafted = sample(q.expand(n, V), temperature, u=u[:, 0])
    out = block.accepted(drafted.tolist(), q.expand(n, V), p.expand(n, V), temperature, u)
    q, p = ((x / temperature).softmax(-1) for x in (q, p))
    assert float(((out.bincount(minlength=V) - n * p) ** 2 / (n * p).clamp(min=1)).sum()) < 77
    kept, most = float((out == drafted).float().mean()), float(torch.minimum(p, q).sum())
    assert 0.2 < most < 0.8 and abs(kept - most) < 5 * (most * (1 - most) / n) ** 0.5
    assert torch.equal(block.accepted(drafted.tolist(), q.log().expand(n, V), q.log().expand(n, V), 1.0, u), drafted)


def test_greedy_the_argmax_is_what_counts():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert block.accepted([2, 0], -logits, logits).tolist() == [1, 0]


def test_an_unsure_router_drafts_one_token_at_a_time(models, monkeypatch):
    monkeypatch.setattr(block, "SURE", 1.1)
    trace = block_decode(*models, PROMPTS[0], END, 30, 16)
    assert trace.drafted == trace.router_passes == trace.expert_passes == len(trace.tokens)


def test_a_draft_ends_after_the_unsure_token(models, monkeypatch):
    """With SURE at a probability that some tokens of a draft have and others do not: exactly the last of each is below it, unless the
    draft has its full length or ended."""
    router, lengths = models[0], set()
    for sure in (0.2, 0.6, 0.9):
        monkeypatch.setattr(block, "SURE", sure)
        text = list(PROMPTS[2])
        while len(text) < 40:
            tokens, logits, w, passes = block.draft(router, router.lm.new_cache(1), text, 4, -1)
            p = logits.softmax(-1).amax(-1)
            assert (p[:-1] >= sure).all() and (len(tokens) == 4 or p[-1] < sure)
            assert passes == len(tokens) == len(w)
            text, _ = text + tokens, lengths.add(len(tokens))
    assert lengths > {1, 4}


def chi_square(count, p, n):
    """Of the counts of n draws with probabilities p; values that are expected at most once are taken together."""
    big = p * n > 1
    rest, expected = float(count[~big].sum()), float(p[~big].sum() * n)
    return float(((count - n * p)[big] ** 2 / (n * p)[big]).sum()) + (rest - expected) ** 2 / max(expected, 1.0)


def test_block_sampling_follows_eq_1(models, monkeypatch):
    """Second tokens, drafted in a block with the first, against sum over y_1 of p(y_1) p(y_2 | y_1)."""
    monkeypatch.setattr(block, "SURE", ALWAYS)
    router, experts = models

    def final(ids):  # Eq. (1), naively: (V,)
        (r, w), x = router(torch.tensor([ids])), torch.tensor([ids])
        return (r[0, -1].log_softmax(-1) + experts[int(w[0, -1].argmax())](x)[0][0, -1].log_softmax(-1)).softmax(-1)

    first, n = final(PROMPTS[0]), 600
    p = sum(first[y] * final(PROMPTS[0] + [y]) for y in range(19) if y != END)  # (V,), and 1 - sum: ended with the first token
    p = torch.cat([p, first[END:END + 1]])
    traces = [block_decode(router, experts, PROMPTS[0], END, 2, 2, temperature=1.0, seed=seed) for seed in range(n)]
    count = torch.tensor([(t.tokens + [19])[1] if len(t.tokens) > 1 else 19 for t in traces]).bincount(minlength=20)
    assert any(t.router_passes == 2 and t.drafted == 2 for t in traces) and any(t.drafted > 2 for t in traces)  # kept, refused
    assert chi_square(count, p, n) < 66  # 19 degrees of freedom: a false alarm in less than one of 10^6 random seeds


def test_a_draft_stops_where_the_models_stop_reading(models, monkeypatch):
    """An answer that ends inside max_len must not fail because a draft or a guess would have gone on beyond it."""
    monkeypatch.setattr(block, "SURE", ALWAYS)
    prompt = PROMPTS[2] * 8                                    # 56 of 64 tokens
    end = plain(models, prompt, -1, 6).tokens[5]
    one = plain(models, prompt, end, 60)
    for lookup in (None, lambda ids, k: [1] * k):
        assert record(block_decode(*models, prompt, end, 60, 32, lookup)) == record(one)
    with pytest.raises(ValueError, match="65 tokens"):
        block_decode(*models, prompt, -1, 60, 32)


def test_an_answer_ends_at_the_first_of_several_ends(models, monkeypatch):
    """What is said with no end at all, cut after the first token that is one of three."""
    monkeypatch.setattr(block, "SURE", ALWAYS)
    on = [plain(models, p, -1) for p in PROMPTS]
    ends = [on[0].tokens[9], on[1].tokens[4], 99]
    cut = lambda tokens, with_end: tokens[:next((t + with_end for t, token in enumerate(tokens) if token in ends), 30)]
    expected = [cut(t.tokens, True) for t in on]
    assert len({t[-1] for t in expected if len(t) < 30}) == 2  # both of them end an answer
    for several in (ends, tuple(ends)):
        for p, tokens in zip(PROMPTS, expected):
            for lookup in (None, lambda ids, k: [several[0], 1][:k]):
                trace = block_decode(*models, p, several, 30, 8, lookup)
                assert trace.tokens == tokens and trace.answer(several) == cut(tokens, False)


def test_ended():
    assert ended([7, 3], 3) and ended([7, 3], (2, 3)) and ended([3], [3])
    assert not ended([3, 7], 3) and not ended([], 3) and not ended([], (3,)) and not ended([3, 7], (3,))


def test_lookup_goes_on_after_the_longest_match():
    guess = Lookup([[1, 2, 3, 4, 5], [9, 3, 7, 8]], lengths=(3, 2, 1))
    assert guess([1, 2, 3], 2) == [4, 5]         # three tokens match, though 3 alone was last seen before 7
    assert guess([1, 2, 3], 9) == [4, 5, 9]      # a guess as long as the match
    assert guess([9, 3], 9) == [7, 8]            # the known text ends
    assert guess([6, 3], 9) == guess([3], 9) == [7]  # one token
    assert Lookup([[1, 2, 3, 4, 5]], lengths=(3,), ahead=1)([1, 2, 3], 9) == [4]
    assert guess([6], 3) == guess([], 3) == []
    assert guess([1, 2, 3], 0) == []


def test_the_toys_known_texts_are_of_its_train_split(monkeypatch):
    """Guesses go on as an answer of the train split does; a text without a match has none."""
    items = tasks.mixed("train", 60, Random("some"))
    monkeypatch.setattr(block.tasks, "mixed", lambda split, n, rng: items if split == "train" and n > 1000 else None)  # 60 are quick
    prompt, answer = tokenizer.encode_prompt(items[-1].prompt), tokenizer.encode_answer(items[-1].answer)
    guess = block.known_texts.__wrapped__()  # past the cache, which must keep the real ones
    assert guess(prompt, 8) == answer[:8] and len(guess(prompt, 99)) == min(block.AHEAD, len(answer))
    assert block.known_texts.__wrapped__(2)(prompt, 8) == answer[:2]
    assert guess([tokenizer.END] * 12, 8) == []


def test_sixteen_bits_are_widened():
    assert block.wide(torch.zeros(2).bfloat16()).dtype == block.wide(torch.zeros(2).half()).dtype == torch.float32
    assert block.wide(torch.zeros(2).double()).dtype == torch.float64
    logits = torch.tensor([[math.log(0.6), math.log(0.4)]]).bfloat16()
    assert block.wide(logits).log_softmax(-1).exp().sum().item() == pytest.approx(1, abs=1e-6)
