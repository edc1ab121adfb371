"""Decoding: one prompt, many prompts, and the definition; the limits of Eq. (1); sampling."""

import pytest
import torch

import decode
from decode import METHODS
from fusionroute import Router, fuse, naive_fused_greedy
from model import GPT, GPTConfig, sample
from toy_experts import show, tokenizer
from toy_experts.decode_batch import Uniform, answers, decode_batch
from toy_experts.tasks import Item

CONFIG = GPTConfig(
    vocab_size=19, d_model=16, n_layer=2, n_head=2, n_kv_head=1, head_dim=8, d_ff=24, max_len=64
)
END, MAX_NEW = 3, 20
PROMPTS = [
    [5, 6, 7],
    [8],
    [9, 10, 11, 12, 13, 14, 15],
    [1, 2],
    [16, 17, 18, 1, 2, 4, 5],
    [4, 4, 4, 4],
]
EXPERTS = {"math": 0, "code": 1, "instruct": 2}  # the order of w


def gpt():
    model = GPT(CONFIG).eval()
    for p in model.parameters():
        p.data = p.data * 1.5 + 0.1 * torch.randn_like(p)
    return model.requires_grad_(False)


@pytest.fixture
def models(monkeypatch):
    """A router whose picks change from token to token, and three experts that differ."""
    torch.manual_seed(21)  # here most answers change their expert often, and half of them end
    monkeypatch.setattr(tokenizer, "END", END)
    monkeypatch.setattr(decode, "MAX_NEW", MAX_NEW)
    router = Router(gpt(), 3)
    torch.nn.init.normal_(router.W.weight)
    return router.requires_grad_(False), [gpt() for _ in range(3)]


def one(models, prompt, **how):
    """The steps of decode.decode as lists."""
    steps = decode.decode(*models, prompt, **how)
    columns = zip(*((s.token, s.pick, s.expert_choice, s.weights) for s in steps))
    return [list(column) for column in columns]


def batch(models, prompts, **how):
    return decode_batch(*models, prompts, MAX_NEW, **how)


def slow(models, prompt, method):
    """A method from its own definition, without caches: one row a token."""
    router, experts = models
    ids, rows = list(prompt), []
    while len(rows) < MAX_NEW and ids[-1] != END:
        x = torch.tensor([ids])
        router_logits, w = router(x)
        pick = EXPERTS.get(method, int(w[0, -1].argmax()))
        r, e = router_logits[0, -1].log_softmax(-1), experts[pick](x)[0][0, -1].log_softmax(-1)
        fused = method in ("fusionroute", "sft_only")
        ids.append(int((r + e if fused else r if method == "router" else e).argmax()))
        own = r if method == "router" else e
        rows.append((ids[-1], pick, int(own.argmax()), w[0, -1].softmax(-1).tolist()))
    return [list(column) for column in zip(*rows)]


# --- one prompt, many prompts, and the definition -----------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_decode_equals_decode_batch_and_the_definition(models, method):
    """Tokens, picks, what the expert wanted and the weights; Eq. (1) also by its slow loop."""
    traces = batch(models, PROMPTS, **METHODS[method]) + batch(
        models, PROMPTS[:1], **METHODS[method]
    )
    for p, trace in zip([*PROMPTS, PROMPTS[0]], traces):
        tokens, picks, choices, weights = one(models, p, **METHODS[method])
        *expected, w = slow(models, p, method)
        assert [tokens, picks, choices] == expected
        assert [trace.tokens, trace.pick, trace.expert_choice] == [tokens, picks, choices]
        if method not in EXPERTS:
            assert float((torch.tensor(weights) - torch.tensor(w)).abs().max()) < 1e-4
        if method == "fusionroute":
            assert (trace.answer(), picks) == naive_fused_greedy(*models, p, END, MAX_NEW)
            assert trace.expert_choice != tokens and len(set(picks)) > 1  # else it shows little
        if METHODS[method]:
            assert choices == tokens  # nobody is there to change anything
    assert method != "fusionroute" or len({len(t.tokens) for t in traces}) > 2


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_no_token_is_read_twice(models, prompts):
    """And an expert that no row picks does not run: decode.decode, and rows that end one by one."""
    read, passes = [set() for _ in range(4)], [0] * 4

    def hook(model, args, out):
        ids, cache, *pos = args
        i, rows = everyone.index(model), range(len(prompts))
        rows = rows if cache.rows is None else cache.rows.tolist()
        pos = (
            pos[0]
            if any(x is not None for x in pos)
            else cache.length[:, None] - torch.arange(ids.size(1), 0, -1)
        )
        new = {(b, p) for b, row in zip(rows, pos.tolist()) for p in row}
        assert not new & read[i]  # in one pass the last token may stand twice
        read[i] |= new
        passes[i] += 1

    everyone = [models[0].lm, *models[1]]
    for model in everyone:
        model.register_forward_hook(hook)
    alone = len(prompts) == 1
    picks = [one(models, *prompts)[1]] if alone else [t.pick for t in batch(models, prompts)]
    steps = [{p[k] for p in picks if k < len(p)} for k in range(MAX_NEW)]
    for i, places in enumerate(read):
        expected = set()  # the router reads all; an expert reads a row up to its last pick there
        for b, (prompt, pick) in enumerate(zip(prompts, picks)):
            last = [k for k, p in enumerate(pick) if i in (0, p + 1)][-1:]
            expected |= {(b, k) for k in range(len(prompt) + last[0])} if last else set()
        assert places == expected
        assert passes[i] == sum(bool(s) if i == 0 else i - 1 in s for s in steps)


def test_late_rows_are_read_apart(models, monkeypatch):
    """Without padding to spare, no row waits for one that missed twice as much; answers stay."""
    prompts = [p[i:] + p[:i] for p in PROMPTS for i in range(len(p))]
    passes = []  # of an expert: how many tokens each row missed
    models[1][1].register_forward_hook(
        lambda model, args, out: passes.append([len(set(row)) for row in args[2].tolist()])
    )
    answers = {}
    for padding in (0, 10_000):
        passes.clear()
        monkeypatch.setattr("toy_experts.decode_batch.PADDING", padding)
        answers[padding] = [(t.tokens, t.pick, t.expert_choice) for t in batch(models, prompts)]
        assert any(min(missed) <= max(missed) // 2 for missed in passes) == bool(padding)
    assert answers[0] == answers[10_000]


def test_limits(models):
    """Uniform router logits: routing only. One expert and the router: Eq. (1) of these two."""
    router, experts = models
    for p in PROMPTS[:2]:
        alone = naive_fused_greedy(Router(router.lm, 1), experts[1:2], p, END, MAX_NEW)[0]
        assert batch(models, [p], only=1)[0].answer() == alone
        assert [t for t in one(models, p, only=1)[0] if t != END] == alone
    routing_only = [one(models, p, use_router=False)[0] for p in PROMPTS]
    router.lm.head = torch.nn.Linear(16, 19, bias=False).requires_grad_(False)  # untied
    router.lm.head.weight.zero_()
    assert [one(models, p)[0] for p in PROMPTS] == routing_only
    assert [t.tokens for t in batch(models, PROMPTS)] == routing_only


def test_an_expert_alone_needs_no_router(models, monkeypatch):
    monkeypatch.setattr(Router, "forward", None)
    for method in EXPERTS:
        alone = one(models, PROMPTS[0], **METHODS[method])[0]
        assert alone == batch(models, PROMPTS[:1], **METHODS[method])[0].tokens


def test_answers_come_in_the_order_of_the_items(models, monkeypatch):
    """Items of any length, in batches of two: each answer is its own prompt's."""
    monkeypatch.setattr(tokenizer, "encode_prompt", lambda prompt: [4 + int(c) for c in prompt])
    items = [Item("", "", "", p, "", "", None) for p in ("31415", "9", "265358", "97", "932")]
    traces = answers(*models, items, size=2, max_new=MAX_NEW)
    expected = [one(models, tokenizer.encode_prompt(item.prompt))[0] for item in items]
    assert [t.tokens for t in traces] == expected
    traces = answers(*models, items, max_new=MAX_NEW, use_router=False)
    assert traces[0].tokens == one(models, [7, 5, 8, 5, 9], use_router=False)[0]


def test_in_S_is_where_the_experts_disagree(models):
    """Against each expert's own choice before each token of the answer, first and end included."""
    experts = models[1]
    for p in PROMPTS:
        tokens = one(models, p)[0]
        ids, expected = p + tokens, []
        for t in range(len(p), len(ids)):
            prefix = torch.tensor([ids[:t]])
            expected.append(len({int(e(prefix)[0][0, -1].argmax()) for e in experts}) > 1)
        assert show.in_S(experts, p, tokens) == expected
        assert show.in_S([experts[0]] * 3, p, tokens) == [False] * len(tokens)


# --- sampling -----------------------------------------------------------------------------------


def eq_1(models, prompt):
    """Eq. (1) for the next token. (V,)"""
    router_logits, w = models[0](torch.tensor([prompt]))
    expert_logits = models[1][int(w[0, -1].argmax())](torch.tensor([prompt]))[0]
    return fuse(router_logits[0, -1], expert_logits[0, -1])


def test_sampling_in_a_batch_equals_one_by_one(models):
    """Row b draws from a stream of its own, seeded seed + b."""
    how = {"temperature": 1.2, "top_p": 0.8}
    together = [t.tokens for t in batch(models, PROMPTS, seed=9, **how)]
    for b, p in enumerate(PROMPTS):
        assert batch(models, [p], seed=9 + b, **how)[0].tokens == together[b]
        assert one(models, p, seed=9 + b, **how)[0] == together[b]
    assert together[0] != one(models, PROMPTS[0], seed=1, **how)[0]
    a, b = Uniform(3, seed=5), Uniform(1, seed=7)
    streams = [a([0, 1, 2], "cpu")[2], a([2], "cpu")[0]], [b([0], "cpu")[0], b([0], "cpu")[0]]
    assert streams[0] == streams[1]


def test_temperature_and_top_p_of_one_prompt(models):
    """Every token is `sample` of Eq. (1) with the next number of the seed's stream."""
    ids, stream = list(PROMPTS[0]), torch.Generator().manual_seed(4)
    how = {"temperature": 1.5, "top_p": 0.6, "seed": 4}
    tokens = one(models, PROMPTS[0], **how)[0]
    for token in tokens:
        logits, u = eq_1(models, ids), torch.rand(1, generator=stream)
        assert token == int(sample(logits[None], 1.5, 0.6, u))
        p = (logits / 1.5).softmax(-1)
        assert float(p[p > p[token]].sum()) < 0.6
        ids.append(token)
    greedy = one(models, PROMPTS[0])[0]
    assert tokens != greedy == one(models, PROMPTS[0], **how | {"top_p": 1e-6})[0]
