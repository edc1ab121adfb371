"""Every decoder against its definition: one prompt at a time, from whole texts, without a cache."""

import pytest
import torch

from extra.paper import delta, methods
from extra.paper.methods import METHODS, all_read, first
from fusionroute import Router, naive_fused_greedy
from model import GPT, GPTConfig
from tests.paper.conftest import tiny_gpt, tiny_router
from toy_experts import tokenizer
from toy_experts.data import answer_only

V, END = 11, 3
CONFIG = GPTConfig(vocab_size=V, d_model=24, n_layer=1, n_head=1, n_kv_head=1, d_ff=32, max_len=64)
PROMPTS = [[1, 2, 0], [4, 5], [6, 7, 8, 9, 1], [2], [0, 8], [9, 9, 4, 4], [5, 1, 7], [8]]


def gpt(seed):
    torch.manual_seed(seed)
    model = GPT(CONFIG).eval().requires_grad_(False)
    model.head.weight = torch.nn.Parameter(torch.randn(V, 24) / 5, requires_grad=False)
    return model


def router(seed, n):
    r = Router(gpt(seed), n).requires_grad_(False)
    torch.nn.init.normal_(r.W.weight, std=3)
    return r


@pytest.fixture(autouse=True)
def small_vocabulary(monkeypatch):
    monkeypatch.setattr(methods, "END", END)


@pytest.fixture
def experts():
    return [gpt(i) for i in range(3)]


def greedy(logits_of, prompt, max_new, end=END):
    """An answer by its definition. logits_of: token ids (1, T) -> logits (V,)."""
    text = list(prompt)
    while len(text) < len(prompt) + max_new:
        token = int(logits_of(torch.tensor([text])).argmax())
        if token == end:
            break
        text.append(token)
    return text[len(prompt) :]


def of(model):
    return lambda ids: model(ids)[0][0, -1].log_softmax(-1)


def test_models_that_all_read(experts):
    alone = all_read(experts[:1], PROMPTS, first, 12)
    assert alone == [greedy(of(experts[0]), p, 12) for p in PROMPTS]
    together = all_read(experts, PROMPTS, methods.product, 12)
    assert together == [greedy(lambda x: sum(of(e)(x) for e in experts), p, 12) for p in PROMPTS]
    mean = lambda x: of(experts[0])(x) + (of(experts[1])(x) + of(experts[2])(x)) / 2
    plus = all_read(experts, PROMPTS, methods.plus_mean, 12)
    assert plus == [greedy(mean, p, 12) for p in PROMPTS]
    assert len({str(x) for x in (alone, together, plus)}) == 3 and len(set(map(len, alone))) > 1


def test_a_random_expert_takes_the_picks_place_in_S_only():
    """In S each expert is drawn about equally often; elsewhere the router's pick counts."""
    rule, rows = methods.PlusRandom(), 3000
    one = lambda i: torch.eye(V)[i].expand(rows, V)
    apart = [9 * one(i) for i in range(3)]
    w = [torch.tensor([[0.0, 5.0, 1.0]]).expand(rows, 3), None, None, None]
    drawn = rule([torch.zeros(rows, V), *apart], w).argmax(-1)
    assert all(0.28 < (drawn == i).float().mean() < 0.39 for i in range(3))
    agree = [9 * one(0) + 3 * one(4 + i) for i in range(3)]  # all say 0, expert i also 4 + i
    assert (rule([-9 * one(0), *agree], w).argmax(-1) == 5).all()


def test_a_language_model_judges_by_its_likelihood(experts):
    """Of the answer's tokens alone, its end included."""
    prompt, answer, lm = PROMPTS[0], [7, 9, 7], experts[0]
    said = [*answer, END]
    logp = [float(of(lm)(torch.tensor([prompt + said[:k]]))[t]) for k, t in enumerate(said)]
    got = methods.score_whole(lm, [prompt, PROMPTS[1]], [answer, []], 12)
    assert float(got[0]) == pytest.approx(sum(logp), abs=1e-4)
    cut = methods.score_whole(lm, [prompt], [answer], 3)  # it stopped there: no end
    assert float(cut[0]) == pytest.approx(sum(logp[:3]), abs=1e-4)


def scorer(judge):
    """The judge's score of a text that goes on with some tokens."""

    def score(text, tokens):
        if hasattr(judge, "W"):
            return float(judge(torch.tensor([text + tokens]))[1][0, -1, 0])
        logp = judge(torch.tensor([text + tokens]))[0][0].log_softmax(-1)
        return sum(float(logp[len(text) + k - 1, t]) for k, t in enumerate(tokens))

    return score


MAKERS = {"reward": lambda: router(7, 1), "likelihood": lambda: gpt(7)}
JUDGES = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@JUDGES
def test_sequence_selection_takes_the_answer_of_the_highest_score(experts, make):
    judge = make()
    answers, picks = [all_read([e], PROMPTS, first, 12) for e in experts], []
    chosen = methods.sequence_selection(experts, judge, PROMPTS, 12)
    for b, prompt in enumerate(PROMPTS):
        ended = [a[b] + [END] * (len(a[b]) < 12) for a in answers]
        scores = [scorer(judge)(prompt, a) for a in ended]
        picks.append(scores.index(max(scores)))
        assert chosen[b] == answers[picks[-1]][b]
    assert len(set(picks)) > 1


@JUDGES
@pytest.mark.parametrize("lookahead", [1, 3])
def test_collab_equals_its_definition(experts, make, lookahead):
    """Every expert proposes, continues alone, is scored: from the text anew each time."""
    judge = make()
    max_new = 8
    got = methods.collab(experts, judge, PROMPTS, max_new, lookahead)
    winners = set()
    for prompt, answer in zip(PROMPTS, got):
        text = list(prompt)
        for _ in range(max_new):
            trials = [greedy(of(e), text, lookahead) for e in experts]
            trials = [t + [END] * (len(t) < lookahead) for t in trials]
            scores = [scorer(judge)(text, t) for t in trials]
            best = scores.index(max(scores))
            winners |= {best} if len({t[0] for t in trials}) > 1 else set()
            if trials[best][0] == END:
                break
            text.append(trials[best][0])
        assert text[len(prompt) :] == answer
    assert len(winners) > 1


def test_merging_in_its_limits(experts):
    base, flat = gpt(9), lambda m: torch.cat([p.flatten() for p in m.parameters()])
    deltas = [flat(e) - flat(base) for e in experts]
    assert torch.equal(flat(methods.merge(base, experts, 0.0)), flat(base))
    assert torch.allclose(flat(methods.merge(base, experts[:1], 1.0)), flat(experts[0]), atol=1e-6)
    by_hand = flat(base) + 0.3 * sum(deltas)
    assert torch.allclose(flat(methods.merge(base, experts, 0.3)), by_hand, atol=1e-5)
    dropped = flat(methods.merge(base, experts[:1], 1.0, drop=0.9)) - flat(base)
    kept = dropped != 0
    share = kept[deltas[0] != 0].float().mean()  # of some 5000 coins
    assert share == pytest.approx(0.1, abs=0.02)  # over four standard deviations
    assert torch.allclose(dropped[kept], 10 * deltas[0][kept], atol=1e-3)
    assert torch.equal(flat(base), flat(gpt(9)))  # the base itself is as it was


# --- the table -----------------------------------------------------------------------------------


@pytest.fixture
def models(monkeypatch):
    """base, experts and every checkpoint, no two alike."""
    monkeypatch.setattr(methods, "END", tokenizer.END)
    m = {name: tiny_gpt() for name in ("base", "math", "code", "instruct")}
    for name in dict.fromkeys(c for row in METHODS.values() for c in row.checkpoints):
        m[name] = tiny_router({"reward": 1, "co_llm_self": 4}.get(name, 3))
    return m | {"experts": [m["math"], m["code"], m["instruct"]]}


def test_what_each_row_decodes(models, monkeypatch):
    """Each kind of row against its definition; every row reads the checkpoints that it names."""
    m, experts, new = models, models["experts"], 7
    monkeypatch.setattr(methods, "MAX_NEW", new)
    texts = ("What is 38 mod 5?", "Write green.", "Mia has 14 pens.")
    prompts = [tokenizer.encode_prompt(text) for text in texts]

    def alone(model):
        return lambda p: greedy(of(model), p, new, tokenizer.END)

    def added(*lms):
        return lambda p: greedy(lambda x: sum(of(lm)(x) for lm in lms), p, new, tokenizer.END)

    def picked(name, choices):
        own = lambda x: of(choices[int(m[name](x)[1][0, -1].argmax())])(x)
        return lambda p: greedy(own, p, new, tokenizer.END)

    def fused(name):
        return lambda p: naive_fused_greedy(m[name], experts, p, tokenizer.END, new)[0]

    mean = lambda x: of(m["router"])(x) + sum(of(e)(x) for e in experts) / 3
    merge = lambda *how: alone(methods.merge(m["base"], experts, *how))
    select = lambda judge: lambda p: methods.sequence_selection(experts, judge, [p], new)[0]
    search = lambda judge: lambda p: methods.collab(experts, judge, [p], new, 64)[0]
    definition = {
        "fusionroute": fused("router"),
        "routing_only": picked("router", experts),
        "router": alone(m["router"]),
        "co_llm_self": picked("co_llm_self", [*experts, m["co_llm_self"].lm]),
        "math_expert": alone(m["math"]),
        "uniform_average": added(*experts),
        "router_mean": lambda p: greedy(mean, p, new, tokenizer.END),
        "two_fine_tuned": added(m["fine_tuned_sft_long"], m["fine_tuned_sft_math"]),
        "sequence_selection": select(m["reward"]),
        "collab": search(m["reward"]),
        "selection_lm": select(m["fine_tuned_long"].lm),
        "collab_lm": search(m["fine_tuned_long"].lm),
        "task_arithmetic_paper": merge(1.0),
        "dare": merge(0.5, 0.1),
    }
    with torch.no_grad():
        for name, row in METHODS.items():
            if row.decoder:
                taken = Watched(m)
                found = row.decoder(taken)(prompts)
                named = taken.names - {"base", "experts", *methods.EXPERTS}
                assert named == set(row.checkpoints), name
                if name in definition:
                    assert found == [definition[name](p) for p in prompts], name


class Watched(dict):
    """A dict that remembers which names were asked for."""

    def __init__(self, content):
        super().__init__(content)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


# --- Assumption 4.2 ------------------------------------------------------------------------------


def test_the_loss_at_right_tokens_by_hand(experts):
    """1 - p(y_t) of the best expert at each token, and of Eq. (1); prompts do not count."""
    r, answers = router(8, 3), ([5, 9, END], [7, END], [6, 5, 7, 9, END])
    samples = [answer_only(p, a) for p, a in zip(PROMPTS, answers)]
    best, fused = delta.losses(r, experts, samples, batch=2)
    for (ids, learn), b, f in zip(samples, best, fused):
        assert len(b) == len(f) == sum(learn)
        for k, t in enumerate(range(len(ids) - sum(learn), len(ids))):
            x = torch.tensor([ids[:t]])
            p = [of(e)(x) for e in experts]
            both = (of(r)(x) + p[int(r(x)[1][0, -1].argmax())]).softmax(-1)
            assert float(b[k]) == pytest.approx(
                1 - max(float(q.exp()[ids[t]]) for q in p), abs=1e-5
            )
            assert float(f[k]) == pytest.approx(1 - float(both[ids[t]]), abs=1e-5)
    assert delta.summary([torch.tensor([0.1, 0.6]), torch.tensor([0.2])]) == pytest.approx(
        {"Delta": 0.6, "answers_above_half": 0.5}
    )
