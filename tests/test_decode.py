"""decode.decode, one prompt, against the definition, against decode_batch, and in its limits; then how an answer is shown."""

import json

import pytest
import torch
import torch.nn.functional as F

import decode
from decode import Step
from fusionroute import Router, fuse, naive_fused_greedy
from model import GPT, GPTConfig, generate, sample
from toy_experts import show, tokenizer
from toy_experts.batch import METHODS, answers, decode_batch
from toy_experts.tasks import Item

CONFIG = GPTConfig(vocab_size=19, d_model=16, n_layer=2, n_head=2, n_kv_head=1, head_dim=8, d_ff=24, max_len=64)
END, MAX_NEW = 3, 20
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [1, 2], [16, 17, 18, 1, 2, 4, 5], [4, 4, 4, 4]]
EXPERTS = {"math": 0, "code": 1, "instruct": 2}  # the order of the routing weights


def gpt():
    model = GPT(CONFIG).eval()
    for p in model.parameters():
        p.data = p.data * 1.5 + 0.1 * torch.randn_like(p)
    return model.requires_grad_(False)


@pytest.fixture
def models(monkeypatch):
    """A router whose picks change from token to token, and three experts that agree on nothing."""
    torch.manual_seed(21)  # a seed with which most answers change their expert often, and half of them end
    monkeypatch.setattr(tokenizer, "END", END)
    monkeypatch.setattr(decode, "MAX_NEW", MAX_NEW)
    router = Router(gpt(), 3)
    torch.nn.init.normal_(router.W.weight)
    return router.requires_grad_(False), [gpt() for _ in range(3)]


def batch(router, experts, prompts, **how):
    return decode_batch(router, experts, prompts, MAX_NEW, **how)


def one(router, experts, prompt, **how):
    """decode.decode's steps as the lists that decode_batch's Trace has."""
    steps = list(decode.decode(router, experts, prompt, **how))
    return [list(column) for column in zip(*((s.token, s.pick, s.expert_choice, s.weights) for s in steps))]


def slow(router, experts, prompt, method):
    """Each method from its own definition, without caches and without decode.py: tokens and picks, the end token's included."""
    ids, picks = list(prompt), []
    while len(picks) < MAX_NEW:
        x = torch.tensor([ids])
        router_logits, w = router(x)
        pick = EXPERTS.get(method, int(w[0, -1].argmax()))
        r, e = router_logits[0, -1].log_softmax(-1), experts[pick](x)[0][0, -1].log_softmax(-1)
        logits = {"fusionroute": r + e, "sft_only": r + e, "router": r}.get(method, e)  # the others: the expert alone
        picks.append(pick)
        ids.append(int(logits.argmax()))
        if ids[-1] == END:
            break
    return ids[len(prompt):], picks


# --- one prompt, many prompts, and the definition ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_decode_equals_decode_batch_and_the_definition(models, method):
    """Tokens, picks, what the expert wanted and the weights, alone and in a batch; Eq. (1) also against naive_fused_greedy."""
    router, experts = models
    prompts = PROMPTS if method == "fusionroute" else PROMPTS[:3]
    together = batch(router, experts, prompts, **METHODS[method]) + batch(router, experts, PROMPTS[:1], **METHODS[method])
    for p, trace in zip([*prompts, PROMPTS[0]], together):
        tokens, picks, choices, weights = one(router, experts, p, **METHODS[method])
        assert (tokens, picks) == slow(router, experts, p, method)
        assert (trace.tokens, trace.pick, trace.expert_choice) == (tokens, picks, choices)
        if method not in EXPERTS:
            torch.testing.assert_close(torch.tensor(trace.weights), torch.tensor(weights), rtol=1e-4, atol=1e-5)
        if method == "fusionroute":
            assert ([t for t in tokens if t != END], picks) == naive_fused_greedy(router, experts, p, END, MAX_NEW)
    if method == "fusionroute":
        assert len({len(t.tokens) for t in together}) > 2           # rows ended at different times
        assert all(len(set(t.pick)) > 1 for t in together)          # experts fell behind and caught up
        assert all(t.expert_choice != t.tokens for t in together)   # the router changed something
    if METHODS[method]:
        assert all(t.expert_choice == t.tokens for t in together)   # nobody is there to change anything


@pytest.mark.parametrize("how", ["decode", "batch"])
def test_an_expert_that_is_not_picked_is_not_run(models, how):
    router, experts = models
    calls = [[] for _ in range(4)]
    for i, model in enumerate([router.lm, *experts]):
        model.register_forward_hook(lambda m, args, out, i=i: calls[i].append(args[0].shape[1]))
    pick = one(router, experts, PROMPTS[0])[1] if how == "decode" else batch(router, experts, PROMPTS[:1])[0].pick
    assert len(calls[0]) == len(pick) and sum(calls[0]) == len(PROMPTS[0]) + len(pick) - 1  # the router reads each token once
    for i in range(3):
        assert len(calls[1 + i]) == pick.count(i)  # one pass for each time it is picked
        if calls[1 + i]:  # all that it missed is read then: the prompt and every token before its last pick
            last = len(pick) - 1 - pick[::-1].index(i)
            assert sum(calls[1 + i]) == len(PROMPTS[0]) + last


def test_no_token_is_read_twice(models):
    """In a batch whose rows pick different experts and end at different times, too: what each model reads, summed over its passes."""
    router, experts = models
    read = [0] * 4
    for i, model in enumerate([router.lm, *experts]):
        model.register_forward_hook(lambda m, args, out, i=i: read.__setitem__(i, read[i] + int(args[2].sum())))
    traces = batch(router, experts, PROMPTS)
    assert read[0] == sum(len(p) + len(t.tokens) - 1 for p, t in zip(PROMPTS, traces))
    for i in range(3):  # an expert reads a row up to the last token that it is picked for
        last = [max((k for k, pick in enumerate(t.pick) if pick == i), default=-len(p)) for p, t in zip(PROMPTS, traces)]
        assert read[1 + i] == sum(len(p) + k for p, k in zip(PROMPTS, last))


def test_the_record_says_what_happened(models):
    """Token t must be the argmax of Eq. (1) with the recorded expert; expert_choice that expert's argmax; weights softmax(w)."""
    router, experts = models
    ids = list(PROMPTS[2])
    for s in decode.decode(router, experts, ids.copy()):
        x = torch.tensor([ids])
        (r, w), e = router(x), experts[s.pick](x)[0][0, -1]
        assert s.pick == int(w[0, -1].argmax()) and s.expert_choice == int(e.argmax())
        assert s.weights == pytest.approx(w[0, -1].softmax(-1).tolist(), abs=1e-5)
        assert s.token == int((r[0, -1].log_softmax(-1) + e.log_softmax(-1)).argmax())
        ids.append(s.token)
    assert len(ids) > len(PROMPTS[2])


def test_limits(models):
    """Uniform router logits: routing only. One expert only, with the router: the fused decoder of one expert."""
    router, experts = models
    cut = lambda tokens: [x for x in tokens if x != END]
    for p in PROMPTS[1:2]:
        assert cut(one(router, experts, p, use_expert=False)[0]) == generate(router.lm, [p], MAX_NEW, END)[0]
        for i in range(3):
            assert cut(one(router, experts, p, use_router=False, only=i)[0]) == generate(experts[i], [p], MAX_NEW, END)[0]
        alone = naive_fused_greedy(Router(router.lm, 1), experts[1:2], p, END, MAX_NEW)[0]
        assert cut(one(router, experts, p, only=1)[0]) == alone == cut(batch(router, experts, [p], only=1)[0].tokens)
    routing_only = [one(router, experts, p, use_router=False)[0] for p in PROMPTS]
    router.lm.head = torch.nn.Linear(16, 19, bias=False).requires_grad_(False)  # untied, so that only the logits change
    router.lm.head.weight.zero_()
    assert [one(router, experts, p)[0] for p in PROMPTS] == routing_only == [t.tokens for t in batch(router, experts, PROMPTS)]


def test_answers_come_in_the_order_of_the_items(models, monkeypatch):
    """Items of any length, in batches of two: each answer is its own prompt's."""
    router, experts = models
    monkeypatch.setattr(tokenizer, "encode_prompt", lambda prompt: [4 + int(c) for c in prompt])
    items = [Item("", "", "", prompt, "", "", None) for prompt in ("31415", "9", "265358", "97", "932")]
    traces = answers(router, experts, items, size=2, max_new=MAX_NEW)
    assert [t.tokens for t in traces] == [one(router, experts, tokenizer.encode_prompt(i.prompt))[0] for i in items]


# --- sampling ----------------------------------------------------------------------------------------------------------------------------


def test_sampling_in_a_batch_equals_one_by_one(models):
    router, experts = models
    together = batch(router, experts, PROMPTS, temperature=1.0, seed=9)
    for b, p in enumerate(PROMPTS):
        assert batch(router, experts, [p], temperature=1.0, seed=9 + b)[0].tokens == together[b].tokens
        assert one(router, experts, p, temperature=1.0, seed=9 + b)[0] == together[b].tokens
    assert together[0].tokens != one(router, experts, PROMPTS[0], temperature=1.0, seed=1)[0]


def first_token(router, experts, prompt):
    """log of Eq. (1) for the first token of an answer, naively. (V,)"""
    r, w = router(torch.tensor([prompt]))
    e = experts[int(w[0, -1].argmax())](torch.tensor([prompt]))[0][0, -1]
    return F.log_softmax(r[0, -1], -1) + F.log_softmax(e, -1)


def chi_square(tokens, p):
    """Of observed tokens against probabilities p (V,); rare tokens are counted as one."""
    n, count = len(tokens), torch.tensor(tokens).bincount(minlength=len(p))
    big = p * n > 1
    rest = float(count[~big].sum()), float(p[~big].sum() * n)
    return float(((count - n * p)[big] ** 2 / (n * p)[big]).sum()) + (rest[0] - rest[1]) ** 2 / max(rest[1], 1.0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampling_follows_eq_1(models, temperature):
    """First tokens of 4000 samples against the fused distribution: chi-square, 18 degrees of freedom; false alarm below 1e-6 (64)."""
    router, experts = models
    p = (first_token(router, experts, PROMPTS[0]) / temperature).softmax(-1)
    traces = decode_batch(router, experts, [PROMPTS[0]] * 4000, 1, temperature=temperature)
    assert chi_square([t.tokens[0] for t in traces], p) < 64
    hot = (first_token(router, experts, PROMPTS[0]) / (3 * temperature)).softmax(-1)
    assert chi_square([t.tokens[0] for t in traces], hot) > 64  # and it would notice another temperature


def test_temperature_and_top_p_of_one_prompt(models):
    """Every token is `sample` of Eq. (1) at this temperature and top_p with the next number of the seed's stream; top_p keeps it to
    the likeliest tokens."""
    router, experts = models
    ids, stream = list(PROMPTS[0]), torch.Generator().manual_seed(4)
    steps = list(decode.decode(router, experts, ids.copy(), temperature=1.5, top_p=0.6, seed=4))
    for s in steps:
        logits, u = first_token(router, experts, ids), torch.rand(1, generator=stream)
        assert s.token == int(sample(logits[None], 1.5, 0.6, u))
        p = (logits / 1.5).softmax(-1)
        assert float(p[p > p[s.token]].sum()) < 0.6
        ids.append(s.token)
    assert [s.token for s in steps] != one(router, experts, PROMPTS[0])[0]
    nearly = one(router, experts, PROMPTS[0], temperature=1.5, top_p=1e-6, seed=4)[0]
    assert nearly == one(router, experts, PROMPTS[0])[0]  # a tiny nucleus is greedy


# --- showing an answer -------------------------------------------------------------------------------------------------------------------


def token(text):
    (t,) = tokenizer.encoding.encode_ordinary(text)
    return t


def shown(steps, S, method="fusionroute"):
    rows = list(show.records(steps, S, method))
    return rows, show.plain(rows), show.coloured(rows)


def step(text, pick=0, wanted=None, weights=(0.8, 0.1, 0.1)):
    ids = [text if isinstance(text, int) else token(text), wanted if isinstance(wanted, int) else token(wanted or text)
           if not isinstance(text, int) else text]
    return Step(ids[0], pick, list(weights), ids[1])


def test_only_tokens_in_S_have_an_expert():
    """Outside S plain; inside in the expert's colour, or in brackets after its name; what the router changed in «» or underlined."""
    steps = [step(" apples", 0), step(" eggs", 1), step(" cakes", 1), step(" books", 2, " coins"), step(" cups", 0, " pens"),
             step(tokenizer.END)]
    rows, plain, colour = shown(steps, [False, True, True, True, False, False])
    assert plain == " apples[code: eggs cakes][instruct:« books»]« cups»"
    assert colour == (" apples\033[32m eggs\033[0m\033[32m cakes\033[0m\033[33;4m books\033[0m\033[4m cups\033[0m")
    assert [r["in_S"] for r in rows] == [False, True, True, True, False, False]
    assert [r["changed"] for r in rows] == [False, False, False, True, True, False] and rows[3]["expert_choice"] == " coins"
    assert [r["expert"] for r in rows] == ["math", "code", "code", "instruct", "math", "math"]
    assert rows[0]["weights"] == {"math": 0.8, "code": 0.1, "instruct": 0.1}
    legend = show.legend(steps, rows, False)
    assert legend == ("(6 tokens with the end; the experts disagree at 3: code 2, instruct 1; changed by the router: "
                      "' coins' -> ' books', ' pens' -> ' cups')")
    assert "\033[32mcode\033[0m 2" in show.legend(steps, rows, True) and "\033" not in plain + legend
    assert "changed by the router: none" in show.legend(steps[:3], rows[:3], False)


def test_the_router_alone_has_no_expert():
    rows, plain, colour = shown([step(" apples", 1), step(" eggs", 1)], [True, False], "router")
    assert {r["expert"] for r in rows} == {"router"} and all(r["weights"] == {} for r in rows)
    assert plain == "[router: apples] eggs" and colour == "\033[35m apples\033[0m eggs"


E_ACUTE = list("\u00e9".encode())  # two bytes, two tokens


def test_part_of_a_character_is_never_shown_as_the_end():
    """The last byte of a character brings all of it; the first shows nothing. Cut short, an answer shows that a part is missing."""
    a, b = E_ACUTE
    assert show.pieces([a, b, token(" eggs")]) == ["", "\u00e9", " eggs"] and show.pieces([a]) == ["\ufffd"]
    assert show.pieces([a, tokenizer.END]) == ["\ufffd", ""] and show.pieces([token(" eggs"), tokenizer.END]) == [" eggs", ""]
    steps = [step(a, 0), step(b, 0), step(tokenizer.END, 1)]
    rows, plain, colour = shown(steps, [True, True, True])
    assert plain == "[math:\u00e9]" and colour == "\033[34m\u00e9\033[0m"
    changed = show.legend([step(a, 0, tokenizer.END), step(tokenizer.END, 0, a), step(" eggs", 0, b)], rows, False)
    assert changed.endswith("changed by the router: '<|end|>' -> byte 0xc3, byte 0xc3 -> '<|end|>', byte 0xa9 -> ' eggs')")


def test_a_token_shown_alone_keeps_its_leading_space():
    assert (show.alone(token(" apples")), show.alone(token(".")), show.alone(token("\n"))) == ("' apples'", "'.'", r"'\n'")


def test_in_S_is_where_the_experts_disagree(models):
    """Against each expert's own choice before each token of the answer, the first and the end's included."""
    router, experts = models
    for p in PROMPTS:
        tokens = one(router, experts, p)[0]
        text = p + tokens
        choices = [[int(e(torch.tensor([text[:t]]))[0][0, -1].argmax()) for e in experts] for t in range(len(p), len(text))]
        assert show.in_S(experts, p, tokens) == [len(set(c)) > 1 for c in choices]
        assert show.in_S([experts[0]] * 3, p, tokens) == [False] * len(tokens)


@pytest.mark.parametrize("method", ["fusionroute", "router", "code"])
def test_what_decode_prints(world, method, capsys):
    """The plain lines, from the JSON of the same prompt: one implementation, two forms."""
    prompt = "What is 38 mod 5?"
    decode.main(["--out", str(world), "--method", method, "--json", prompt])
    *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    decode.main(["--out", str(world), "--method", method, prompt])
    out = capsys.readouterr().out
    assert out.startswith(show.plain(rows) + "\n") and f"({len(rows) + bool(last['end'])} tokens with the end;" in out
    assert ("stopped: 96 tokens" in out) == (last["end"] is None)
