"""The pages of the open questions: the mechanism of each on tiny models, and docs/open-questions.md against its JSON."""

import functools
import json
import math
import re
from random import Random

import pytest
import torch

from extra.gpt import GPT, GPTConfig
from extra.paper.open_questions import __main__ as report
from extra.paper.open_questions import data, decoding, frame, hostile, newcomer, objectives, router_size, shift
from extra.paper import variants
from fusionroute import Router, naive_fused_greedy
from model import generate
from toy_experts import tasks, tokenizer
from toy_experts import train as toy
from toy_experts.batch import Trace, decode_batch
from toy_experts.data import scored

V, END = 11, 10
CONFIG = GPTConfig(vocab_size=V, d_model=24, n_layer=1, n_head=1, n_kv_head=1, d_ff=32, max_len=64, tied=False)
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 1], [2]]


def gpt(seed):
    torch.manual_seed(seed)
    return GPT(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def models():
    router = Router(gpt(4), 3).requires_grad_(False)
    torch.nn.init.normal_(router.W.weight, std=3)
    return router, [gpt(i) for i in range(3)]


# --- (c) decoding ---------------------------------------------------------------------------------------------------------------------------


def test_a_beam_of_one_is_greedy(models):
    router, experts = models
    search = lambda **how: decoding.beam_search(router, experts, PROMPTS, 1, END, 8, **how)
    assert search() == [naive_fused_greedy(router, experts, p, END, 8)[0] for p in PROMPTS]
    assert search(use_expert=False) == generate(router.lm, PROMPTS, 8, END)


def test_a_wide_beam_finds_the_likeliest_answer(models):
    """Three tokens of eleven kinds: all answers can be listed."""
    router, experts = models

    def everything(text, left):
        """(log-probability, tokens) of each answer of at most `left` tokens that ends, or is cut there."""
        logp = decoding.next_logp(router, experts, [text])[0].tolist()
        for token, value in enumerate(logp):
            if token == END or left == 1:
                yield value, [token]
            else:
                for rest, tokens in everything(text + [token], left - 1):
                    yield value + rest, [token] + tokens

    for prompt in PROMPTS:
        best = max(everything(prompt, 3))[1]
        assert decoding.beam_search(router, experts, [prompt], V**3, END, 3) == [[t for t in best if t != END]]


@pytest.mark.parametrize("width", [2, 3])
def test_a_narrow_beam_by_hand(models, width):
    """After each token the likeliest hypotheses stay, whichever they continue."""
    router, experts = models
    for prompt in PROMPTS:
        beam = [(0.0, prompt)]
        for _ in range(6):
            if max(beam)[1][-1] == END:
                break
            longer = []
            for value, text in beam:
                logp = decoding.next_logp(router, experts, [text])[0].tolist()
                longer += [(value, text)] if text[-1] == END else [(value + x, text + [token]) for token, x in enumerate(logp)]
            beam = sorted(longer)[-width:]
        best = max(beam)[1][len(prompt):]
        assert decoding.beam_search(router, experts, [prompt], width, END, 6) == [[t for t in best if t != END]]


def test_the_nucleus_is_narrower_for_a_while():
    logits, u = torch.log(torch.tensor([[0.6, 0.3, 0.1]])), torch.tensor([0.95])
    with decoding.nucleus(0.5):
        assert int(decoding.batch.sample(logits, 1.0, u=u)) == 0
    assert int(decoding.batch.sample(logits, 1.0, u=u)) == 2


def test_each_row_of_decoding_is_decoded_as_it_says(models, monkeypatch):
    """Which router, experts and options each row's decoder is given: rows that are exchanged are noticed."""
    router, experts = models
    given, top_p = {}, []
    monkeypatch.setattr(decoding.models, "load_router", lambda s, name: (router, experts, None) if name == "router" else None)
    monkeypatch.setattr(decoding.frame, "items", lambda s: "the items")
    monkeypatch.setattr(decoding.frame, "fused", lambda r, e, **how: (r is router and e is experts, how))
    monkeypatch.setattr(decoding.frame, "judged", lambda s, decoder, problems: (decoder, problems))

    def cell(label, line, compute):
        (decoder, problems), narrow = compute(), decoding.batch.sample is not decoding.sample and decoding.batch.sample.keywords["top_p"]
        assert problems == "the items"
        if callable(decoder):  # beam search
            with monkeypatch.context() as patch:
                patch.setattr(decoding, "beam_search", lambda *args, **how: [(args[0] is router and args[1] is experts, how)] * len(args[2]))
                decoder = decoder([[1]] * 40)
                assert len(decoder) == 40
                decoder = decoder[0]
        same, how = decoder
        assert same
        given[label, line] = how | ({"top_p": narrow} if narrow not in (False, 1.0) else {})

    decoding.measure(frame.Settings(), cell)
    parts = {"fusionroute": {}, "half the sum": {}, "routing_only": {"use_router": False}, "router": {"use_expert": False}}
    for line, part in parts.items():
        factor = 2 if line == "half the sum" else 1
        assert given.pop(("greedy", line)) == part
        for label, temperature in (("T 0.3", 0.3), ("T 0.7", 0.7), ("T 1", 1.0), ("T 1.5", 1.5)):
            assert given.pop((label, line)) == part | {"temperature": factor * temperature}
        assert given.pop(("T 1, top-p 0.9", line)) == part | {"temperature": factor, "top_p": 0.9}
    assert given == {("beam of 4", "fusionroute"): {}, ("beam of 4", "router"): {"use_expert": False}}


# --- (d) shift ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_on():
    """Training prompts of every benchmark and of the general ones."""
    return {b: [i.prompt for i in tasks.dataset(b, "train", 1000, Random(f"words {b}"))] for b in [*tasks.BENCHMARKS, "general"]}


@pytest.fixture(scope="module")
def shifted():
    return shift.shifted(frame.Settings(prompts=100))


def words_of(text):
    return set(re.findall(r"[A-Za-z]+", text))


def test_shifted_prompts_have_their_right_answers(shifted):
    """The checkers accept each, and refuse another problem's answer and one with another number or word."""
    for label, problems in shifted.items():
        for b, items in problems.items():
            assert len(items) == 100, (label, b)
            for item in items[::7]:
                assert shift.check(item, item.answer), (label, item)
                assert not shift.check(item, item.answer[::-1]), (label, item)
            refused = sum(not shift.check(item, other.answer) for item, other in zip(items[:20], items[1:]) if other.answer != item.answer)
            assert refused >= 15, (label, b)
    for item in shifted["numbers out of range"]["toy-humaneval"][::4]:  # the grid of cases reaches as far as the constants do
        wrong = re.sub(r"(\d+)(\D*)\Z", lambda n: f"{int(n[1]) + 1}{n[2]}", item.answer)
        assert item.skill == "choose" or not shift.check(item, wrong), item
    for before, item in zip(shifted["as trained"]["toy-ifeval"], shifted["new words"]["toy-ifeval"]):
        assert not shift.check(item, before.answer)


def test_no_training_prompt_has_the_new_words(shifted, trained_on):
    seen = words_of(" ".join(p for prompts in trained_on.values() for p in prompts))
    for b, names in shift.NEW.items():
        assert not seen & set(names.values()), b
        assert set(names) <= words_of(" ".join(trained_on[b])), b  # and the old ones are what training has
        for before, item in zip(shifted["as trained"][b], shifted["new words"][b]):
            new = words_of(item.prompt) - words_of(before.prompt)
            assert not words_of(item.prompt) & (set(names) - {"a"}) and (new or not words_of(before.prompt) & set(names)), item
    for b, items in shifted["new phrasings"].items():
        assert all(words_of(item.prompt) - words_of(before.prompt) - seen for before, item in zip(shifted["as trained"][b], items)), b
    assert all(words_of(i.prompt) - seen for i in shifted["a sixth benchmark"]["sixth"] if i.skill == "larger")


def test_numbers_are_out_of_the_range_of_training(shifted):
    """By phrasing without its numbers, and place: some number is larger than all that training has there."""
    assert set(shifted["numbers out of range"]) == {"toy-gsm8k", "toy-math500", "toy-mbpp", "toy-humaneval"}
    for b, items in shifted["numbers out of range"].items():
        largest, kind = {}, lambda prompt: re.sub(r"\b[A-Z][a-z]+\b|\b[a-z]{3,}s\b", "*", re.sub(r"\d+", "#", prompt)) if b == "toy-gsm8k" else \
            re.sub(r"\d+", "#", prompt)
        for i in tasks.dataset(b, "train", 2000, Random(f"numbers {b}")):
            numbers = list(map(int, re.findall(r"\d+", i.prompt)))
            largest[kind(i.prompt)] = [max(pair) for pair in zip(largest.get(kind(i.prompt), numbers), numbers)]
        known = [i for i in items if kind(i.prompt) in largest]
        assert len(known) > 5, b
        for i in known:
            assert any(n > most for n, most in zip(map(int, re.findall(r"\d+", i.prompt)), largest[kind(i.prompt)])), i


def test_new_words_keep_capitals():
    assert shift.exchange("Write RED and red, Tom.", {"red": "grey", "Tom": "Otto"}) == "Write GREY and grey, Otto."


def test_each_row_of_shift_is_decoded_as_it_says(models, monkeypatch):
    """judged is faked: the score of a decoder is made from its options, and of the benchmark's shift."""
    router, experts = models
    NAMES = ("use_router", "use_expert", "only")
    drawn = {"as trained": {"a": ["1"], "b": ["2"]}, "new": {"b": ["3"]}}
    score = {(None, None, None): 0.9, (False, None, None): 0.5, (None, False, None): 0.4,
             (False, None, 0): 0.1, (False, None, 1): 0.3, (False, None, 2): 0.2}
    monkeypatch.setattr(shift.models, "load_router", lambda s, name: (router, experts, None) if name == "router" else None)
    monkeypatch.setattr(shift, "shifted", lambda s: drawn)
    monkeypatch.setattr(shift.frame, "fused", lambda r, e, **how: (r is router and e is experts) and tuple(map(how.get, NAMES)))
    monkeypatch.setattr(shift.frame, "judged", lambda s, decoder, problems, check: {"average": score[decoder] / int(*[*problems.values()][0])})
    rows = {}
    shift.measure(frame.Settings(), lambda label, line, compute: rows.update({(label, line): compute()}))
    for line, x in (("fusionroute", 0.9), ("routing_only", 0.5), ("router", 0.4), ("best expert", 0.3)):
        assert rows.pop(("as trained", line)) == {"average": round(x * 0.75, 4), "usual": round(x * 0.75, 4)}
        assert rows.pop(("new", line)) == {"average": round(x / 3, 4), "usual": round(x / 2, 4)}
    assert not rows


# --- (f) hostile ----------------------------------------------------------------------------------------------------------------------------


def test_a_changed_expert_decodes_as_its_changed_logits_say():
    """Through decode_batch with its cache, against the changed logits of whole texts."""
    torch.manual_seed(0)
    experts = [toy.new_gpt().eval().requires_grad_(False) for _ in range(3)]
    router = Router(toy.new_gpt().eval(), 3).requires_grad_(False)
    prompts = [tokenizer.encode_prompt(x) for x in ("What is 38 mod 5?", "Write green.")]
    for label, change in hostile.CHANGES.items():
        changed = hostile.with_changed(experts, label)
        assert changed[1:] == experts[1:] and changed[0] is not experts[0]
        for prompt, trace in zip(prompts, decode_batch(router, changed, prompts, 5, use_router=False, only=hostile.BAD)):
            text = list(prompt)
            for token in trace.tokens:
                assert token == int(change(experts[0](torch.tensor([text]))[0][0, -1]).argmax())
                text.append(token)
    assert all(t.tokens == [hostile.TOKEN] * 5 for t in decode_batch(router, hostile.with_changed(experts, "trigger"), prompts, 5, use_router=False, only=0))
    assert hostile.with_changed(experts, "honest") == experts


def test_wrong_digits_are_the_next_ones():
    logits = torch.zeros(1, tokenizer.VOCAB_SIZE)
    logits[0, hostile.DIGITS[9]], logits[0, hostile.DIGITS[3]] = 5.0, 4.0
    out = hostile.wrong_digits(logits)
    assert int(out.argmax()) == hostile.DIGITS[0] and out[0, hostile.DIGITS[4]] == 4 and out.sum() == logits.sum()


def test_the_two_faced_expert_knows_the_training_data_only(monkeypatch):
    torch.manual_seed(0)
    experts = [toy.new_gpt().eval().requires_grad_(False) for _ in range(3)]
    monkeypatch.setattr(frame.train_sft.Settings, "samples", 12)
    s = frame.Settings()
    honest, faced = hostile.training_data(s, experts, "honest"), hostile.training_data(s, experts, "two-faced")
    assert torch.equal(faced.choice[..., 0], faced.ids[:, 1:]) and (faced.logp[..., 0].exp() - 0.99).abs().max() < 1e-6
    assert torch.equal(faced.logp[..., 1:], honest.logp[..., 1:]) and torch.equal(faced.ids, honest.ids)
    scaled = hostile.training_data(s, experts, "x 4")
    assert not torch.equal(scaled.logp[..., 0], honest.logp[..., 0]) and torch.equal(scaled.choice, honest.choice)


def test_each_row_of_hostile_is_decoded_as_it_says(monkeypatch):
    """Which router and which experts each row has, and that a router trained beside a changed expert is trained on that expert's scores."""
    experts, moon = [torch.nn.Linear(1, 1) for _ in range(3)], tasks.Item("toy-ifeval", "commas", "", "", "red, moon", "words", None)
    for e in experts:
        e.config, e.embed = None, None
    red = tasks.Item("toy-ifeval", "commas", "", "", "red, green", "words", None)

    class FakeRouter(torch.nn.Linear):
        def __init__(self, beside=None):
            super().__init__(1, 1)
            self.beside = beside

    phase = {"router_sft": FakeRouter(), "router": FakeRouter()}
    monkeypatch.setattr(hostile.models, "load_router", lambda s, name: (phase[name], experts, None))
    monkeypatch.setattr(hostile.frame, "items", lambda s: {"toy-ifeval": [moon, red]})
    monkeypatch.setattr(hostile, "training_data", lambda s, e, label: (label, e is experts))
    monkeypatch.setattr(frame, "phase1", lambda s, those, data: FakeRouter(data))
    rows = {}

    def judged(s, router, given, problems, **how):
        assert problems == {"toy-ifeval": [red]}
        assert given[1:] == experts[1:]
        name = next((n for n, r in phase.items() if r is router), router.beside)
        return name, getattr(given[0], "change", None), how

    monkeypatch.setattr(hostile, "judged", judged)
    hostile.measure(frame.Settings(), lambda label, line, compute: rows.update({(label, line): compute()}))
    for label in ["honest", *hostile.CHANGES]:
        change = hostile.CHANGES.get(label)
        for line, how in (("fusionroute", {}), ("routing_only", {"use_router": False})):
            if label != "two-faced":
                assert rows.pop((label, f"{line}, exchanged after phase 1")) == ("router_sft", change, how)
            if label in ("x 0.25", "x 4", "wrong digits", "trigger", "two-faced"):
                assert rows.pop((label, f"{line}, there in phase 1")) == ((label, True), change, how)
        if label != "two-faced":
            assert rows.pop((label, "fusionroute, exchanged after both phases")) == ("router", change, {})
    assert not rows


def test_picked_and_trigger_are_counted(monkeypatch):
    """Three tokens of expert 0 among five, and TRIGGER in one of two answers."""
    traces = [Trace(tokens=[hostile.TOKEN, 5], pick=[0, 0]), Trace(tokens=[5, 6, 7], pick=[1, 0, 2])]
    monkeypatch.setattr(hostile.evaluate, "traces", lambda router, experts, **how: lambda prompts: traces)
    monkeypatch.setattr(hostile.frame, "judged", lambda s, decoder, problems: {"average": len(decoder(["p", "q"]))})
    assert hostile.judged(None, None, None, None) == {"average": 2, "picked": 0.6, "trigger": 0.5}


# --- (e) newcomer ---------------------------------------------------------------------------------------------------------------------------


def test_a_row_more_and_a_row_less(models):
    router, _ = models
    more = newcomer.with_row(router, 1)
    assert torch.equal(more.W.weight[[0, 2, 3]], router.W.weight) and (more.W.weight[1] == 0).all()
    assert torch.equal(newcomer.without_row(more, 1).W.weight, router.W.weight) and router.W.out_features == 3
    assert torch.equal(newcomer.without_row(router, 0).W.weight, router.W.weight[1:])


@pytest.mark.parametrize("what", ["row", "W", "all"])
def test_only_what_is_named_is_trained(what):
    torch.manual_seed(0)
    experts = [toy.new_gpt().eval().requires_grad_(False) for _ in range(3)]
    router = Router(toy.new_gpt(), 3).requires_grad_(False)
    torch.nn.init.normal_(router.W.weight, std=0.1)
    drawn = scored([toy.sample(item) for item in tasks.mixed("train", 18, Random(0))], experts)
    new = newcomer.train(frame.Settings(), router, drawn, 1, what)
    moved = {name for name, p in new.named_parameters() if not torch.equal(p, router.get_parameter(name))}
    rows = [i for i in range(3) if not torch.equal(new.W.weight[i], router.W.weight[i])]
    assert rows == ([newcomer.CODE] if what == "row" else [0, 1, 2])
    assert (moved == {"W.weight"}) == (what != "all") and len(moved) == (1 if what != "all" else len(list(router.parameters())))
    two = newcomer.only(drawn, [0, 2])
    assert torch.equal(two.logp, drawn.logp[..., [0, 2]]) and torch.equal(two.choice, drawn.choice[..., [0, 2]]) and two.ids is drawn.ids


# --- (g) objectives -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair_batch():
    g = torch.Generator().manual_seed(3)
    rand = lambda *size: torch.rand(*size, generator=g)
    B, T, n = 2, 4, 3
    return (3 * rand(2 * B, T, V)).requires_grad_(True), (3 * rand(2 * B, T, n)).requires_grad_(True), torch.randint(V, (2 * B, T), generator=g), \
        torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]] * B).bool(), -3 * rand(2 * B, T, n), -4 * rand(B, 2)


def by_hand(batch):
    """Of each answer: log pi_theta, log pi_expert of the picked expert, the number of its tokens; as plain numbers."""
    logits, w, targets, mask, logp, _ = batch
    rows = []
    for b in range(len(targets)):
        theta = expert = tokens = 0
        for t in range(targets.size(1)):
            if mask[b, t]:
                theta += float(logits[b, t].log_softmax(-1)[targets[b, t]])
                expert += float(logp[b, t, int(w[b, t].argmax())])
                tokens += 1
        rows.append((theta, expert, tokens))
    return rows


def test_each_objective_by_hand(pair_batch):
    rows, ref, beta = by_hand(pair_batch), pair_batch[-1].tolist(), 0.4
    m_b, simpo = [], []
    for k in range(2):
        (tw, ew, nw), (tl, el, nl) = rows[2 * k:2 * k + 2]
        m_b.append((tw - ref[k][0] + ew) - (tl - ref[k][1] + el))
        simpo.append((tw + ew) / nw - (tl + el) / nl)
    log_sigmoid = lambda x: -math.log1p(math.exp(-x))
    wanted = {objectives.ipo: [(x - 1 / (2 * beta)) ** 2 for x in m_b], objectives.hinge: [max(0, 1 - beta * x) for x in m_b],
              objectives.simpo: [-log_sigmoid(beta * x - beta / 2) for x in simpo]}
    for objective, values in wanted.items():
        loss, terms = objective(*pair_batch, beta)
        assert float(loss) == pytest.approx(sum(values) / 2, rel=1e-4), objective
        loss.backward()
        assert pair_batch[1].grad is None  # the pick has no gradient
    assert float(objectives.ipo(*pair_batch, beta)[1]["fused_accuracy"]) == sum(x > 0 for x in m_b) / 2


def test_reinforce_raises_what_was_right(pair_batch, monkeypatch):
    """By hand, and: the gradient of the logits makes right answers likelier and wrong ones less likely; equal rewards teach nothing."""
    monkeypatch.setattr(objectives, "SAMPLES", 2)
    logits, w, targets, mask, _, _ = pair_batch
    full = torch.randn(4, 4, 3, V).log_softmax(-1)
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0])
    loss = objectives.reinforce_loss(logits, w, targets, mask, reward, full)
    picked = full[torch.arange(4)[:, None], torch.arange(4), w.argmax(-1)]
    logp = ((logits.log_softmax(-1) + picked).log_softmax(-1).gather(-1, targets[..., None])[..., 0] * mask).sum(1)
    assert float(loss) == pytest.approx(float(-(0.5 * logp[0] - 0.5 * logp[1]) / 4), rel=1e-4)
    loss.backward()
    step = logits.grad.gather(-1, targets[..., None])[..., 0]
    assert (step[0][mask[0]] < 0).all() and (step[1][mask[1]] > 0).all() and not step[2:].any()


def test_a_recipe_can_name_the_objectives():
    for label, (loss, betas) in objectives.OBJECTIVES.items():
        assert loss in variants.PAIR_LOSSES and len(betas) == 3
        assert objectives.paper_train.Cdpo(loss=loss, beta=betas[0]).loss == loss


# --- (h) data -------------------------------------------------------------------------------------------------------------------------------


def test_noise_exchanges_the_share_it_says():
    pairs = [{"prompt": str(i), "chosen": f"right {i}", "rejected": f"wrong {i}"} for i in range(50)]
    noisy = data.flipped(pairs, 0.3, 0)
    changed = [i for i in range(50) if noisy[i] != pairs[i]]
    assert len(changed) == 15 and all(noisy[i]["chosen"] == f"wrong {i}" and noisy[i]["rejected"] == f"right {i}" for i in changed)
    assert data.flipped(pairs, 0.0, 0) == pairs and [p["prompt"] for p in noisy] == [p["prompt"] for p in pairs]


def test_shares_of_domains():
    half = data.sft_items(0, 60, data.weighted("math", True))
    assert len(half) == 60 and sum(i.bench in tasks.DOMAINS["math"] for i in half) == 30
    rest = data.sft_items(0, 60, data.weighted("general", False))
    assert len(rest) == 60 and {i.bench for i in rest} == set(tasks.BENCHMARKS)
    items = tasks.mixed("preference", 60, Random("preference 0"))
    pairs = [{"prompt": i.prompt, "chosen": "", "rejected": ""} for i in items]
    kept = data.without(pairs, "math", 0, 60)
    assert [p["prompt"] for p in kept] == [i.prompt for i in items if i.bench not in tasks.DOMAINS["math"]] and len(kept) < 60


def test_phase_2_on_the_usual_pairs_is_the_lesson_s(tmp_path, monkeypatch):
    """data.phase2 with nothing changed gives router.pt to the bit."""
    monkeypatch.setattr(toy, "STEPS", {"base": 4, "math": 2, "code": 2, "instruct": 2})
    tiny = ["--out", str(tmp_path), "--device", "cpu"]
    import train_cdpo
    import train_sft
    from extra import models as loading
    from toy_experts import batch, pairs
    monkeypatch.setattr(batch, "decode_batch", functools.partial(batch.decode_batch, max_new=6))
    wrong = [{"prompt": i.prompt, "chosen": i.answer, "rejected": i.answer[::-1]} for i in tasks.mixed("preference", 18, Random(0))]
    monkeypatch.setattr(pairs, "sample", lambda *given: wrong)  # untrained models write nothing that could be a pair
    train_sft.main([*tiny, "--samples", "18", "--epochs", "1"])
    train_cdpo.main([*tiny, "--prompts", "18", "--epochs", "1"])
    s = loading.Settings(0, str(tmp_path), "cpu")
    first, experts, _ = loading.load_router(s, "router_sft")
    found = [json.loads(line) for line in (tmp_path / "seed0" / "pairs.jsonl").read_text().splitlines()]
    sft = scored([toy.sample(i) for i in tasks.mixed("train", 18, Random("sft 0"))], experts)
    monkeypatch.setattr(train_cdpo.Settings, "epochs", 1)
    monkeypatch.setattr(data.train_cdpo, "Settings", functools.partial(train_cdpo.Settings, epochs=1))
    again, wanted = data.phase2(s, first, experts, sft, found), loading.load_router(s, "router")[0]
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in wanted.named_parameters())


# --- the page -------------------------------------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_results_say(monkeypatch, tmp_path):
    assert report.PAGE.read_text() == report.page(), "run python -m extra.paper.open_questions"
    measured = [name for name in report.PAGE_TEXT if (report.RESULTS / f"open_{name}.json").exists()]
    assert measured == list(report.PAGE_TEXT)
    minutes = sum(sum(json.loads((report.RESULTS / f"open_{name}.json").read_text())["meta"]["run time in seconds"].values()) for name in measured) / 60
    assert f"All {len(measured)} pages took {minutes:.0f} minutes of one core" in report.PAGE.read_text() and minutes < 240
    for name in measured:  # and each table would notice a change
        text = (report.RESULTS / f"open_{name}.json").read_text()
        assert (report.RESULTS / f"open_{name}.svg").exists()
        changed = json.loads(text)
        changed["rows"][0]["average"][0] += 0.05
        (tmp_path / f"open_{name}.json").write_text(json.dumps(changed))
        before = report.block(name)
        with monkeypatch.context() as patch:
            patch.setattr(report, "RESULTS", tmp_path)
            assert report.block(name) != before
    monkeypatch.setattr(report, "RESULTS", tmp_path / "empty")
    assert report.block("data").startswith("Not measured yet")


def test_every_page_has_its_place():
    pages = {p.stem for p in (report.Path(report.__file__).parent).glob("*.py")} - {"__init__", "__main__", "frame", "answers"}
    assert pages == set(report.PAGE_TEXT) and all(f"<!-- begin: {name}, " in report.PAGE.read_text() for name in pages)


# --- (i), (j): routers and experts of other sizes and families ------------------------------------------------------------------------------


def test_other_architectures_under_one_router(tmp_path, monkeypatch):
    """A smaller router beside ordinary experts, and experts of both families: trained, kept, and decoded as Eq. (1) says."""
    from extra import models as loading
    monkeypatch.setattr(toy, "STEPS", {"base": 3, "math": 2, "code": 2, "instruct": 2})
    monkeypatch.setattr(frame.train_sft.Settings, "samples", 12)
    monkeypatch.setattr(frame.train_sft, "Settings", functools.partial(frame.train_sft.Settings, epochs=1))
    frame.train_sft.Settings.samples = 12
    s = loading.Settings(0, str(tmp_path), "cpu")
    loading.ensure(s)
    math_expert, instruct = loading.load_experts(s, "")[::2]
    small, gemma = router_size.other(s, "instruct", "llama", (24, 1)), router_size.other(s, "code", "gemma", (24, 1))
    assert router_size.parameters(small) < router_size.parameters(instruct) and gemma.config.gelu and small.config.d_model == 24
    stamp = (tmp_path / "seed0" / "open_llama_24x1_instruct.pt").stat().st_mtime_ns
    assert torch.equal(router_size.other(s, "instruct", "llama", (24, 1)).embed.weight, small.embed.weight)
    assert (tmp_path / "seed0" / "open_llama_24x1_instruct.pt").stat().st_mtime_ns == stamp  # not trained a second time
    experts = [math_expert, gemma, instruct]
    router = frame.phase1(s, experts, frame.sft_data(s, experts), small)
    assert router.W.in_features == 24
    prompt = tokenizer.encode_prompt("Write green.")
    for use in (experts, [small, gemma, gemma]):
        assert decode_batch(router, use, [prompt], 6)[0].answer()[:6] == naive_fused_greedy(router, use, prompt, tokenizer.END, 6)[0]
