"""p(byte | text) against sums over token sequences that are written out one by one."""

import itertools
import math
import weakref

import numpy as np
import pytest
import torch

import decode as token_decode
from extra.tokenizers import decode, spans
from extra.tokenizers.bytewise import END, ByteModel, Reader, Vocabulary, encode_bytes
from extra.tokenizers.scores import byte_scores, scored
from extra.tokenizers.toy import roomy, tokenizer_of
from fusionroute import Router, score
from model import GPT, GPTConfig
from toy_experts import script

WORDS = {0: b"a", 1: b"b", 2: b"ab", 3: b"ba", 4: b"aab", 5: b"bb"}
STOP, PROMPT = 6, 7  # the end token, and a special token that begins every prompt
MERGES = [("a", "b"), ("b", "a"), ("b", "b"), ("a", "ab")]


def bpe(text):
    """What a tokenizer with these merges makes of a's and b's, applied one merge at a time."""
    parts = list(text)
    for left, right in MERGES:
        i = 0
        while i + 1 < len(parts):
            if (parts[i], parts[i + 1]) == (left, right):
                parts[i : i + 2] = [left + right]
            i += 1
    return [token for p in parts for token, word in WORDS.items() if word == p.encode()]


BYTE = {b"a": 0, b"b": 1}
VOCABULARY = Vocabulary(WORDS, STOP, lambda text: encode_bytes(text, bpe, BYTE))
TEXTS = [bytes(t) for n in range(5) for t in itertools.product(b"ab", repeat=n)]


def tiny(seed, vocab_size=8, bold=2.0):
    """A random GPT in double precision; bold makes it prefer some tokens clearly."""
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size, 16, 2, n_head=2, n_kv_head=1, head_dim=8, d_ff=32, max_len=64)
    model = GPT(config)
    for p in model.parameters():
        p.data *= bold if p.dim() == 2 else 1.0
    return model.double().eval().requires_grad_(False)


def reader(model):
    return Reader(model, getattr(model, "lm", model).new_cache(1))


def byte_model(model, least=0.0):
    return ByteModel(reader(model), VOCABULARY, [PROMPT], least)


def behind(model, text):
    """The state behind a text, byte by byte."""
    state = model.seek(b"")
    for byte in text:
        state = model.push(state, byte)
    return state


class Sums:
    """The definition: P(text) as a sum over covers, without branches, slices or caches."""

    def __init__(self, model):
        self.model, self.known = model, {}

    def p(self, tokens):
        """p(next token), a dict; special tokens never occur."""
        if tokens not in self.known:
            logits = self.model(torch.tensor([[PROMPT, *tokens]]))[0][0, -1, [*WORDS, STOP]]
            self.known[tokens] = dict(zip([*WORDS, STOP], logits.softmax(-1).tolist()))
        return self.known[tokens]

    def covers(self, text, tokens=()):
        """P(text), given that the answer begins with these tokens and the text comes after."""
        if not text:
            return 1.0
        total = 0.0
        for token, word in WORDS.items():
            if word.startswith(text) or text.startswith(word):
                p = self.p(tokens)[token]
                total += p * self.covers(text[len(word) :], (*tokens, token))
        return total

    def whole(self, text, tokens=()):
        """P(text, then the end): the sum over all tokenizations."""
        if not text:
            return self.p(tokens)[STOP]
        ways = [(t, w) for t, w in WORDS.items() if text.startswith(w)]
        p = self.p(tokens)
        return sum(p[t] * self.whole(text[len(w) :], (*tokens, t)) for t, w in ways)


@pytest.mark.parametrize("seed", [0, 1])
def test_next_and_logp_equal_the_sum_over_all_covers(seed):
    sums, model = Sums(tiny(seed)), byte_model(tiny(seed))
    for text in TEXTS:
        state, P = behind(model, text), sums.covers(text)
        p = model.next(state).exp()
        assert state.logp == pytest.approx(math.log(P), abs=1e-10)
        assert float(p[END]) == pytest.approx(sums.whole(text) / P, abs=1e-10)
        for byte in b"ab":
            right = sums.covers(text + bytes([byte])) / P
            assert float(p[byte]) == pytest.approx(right, abs=1e-10)
        assert float(p.sum()) == pytest.approx(1)


class Table:
    """A model that looks its probabilities up: the page's worked example."""

    rows = {(): [0.5, 0.2, 0.2, 0.1], (0,): [0.1, 0.6, 0.1, 0.2]}

    def __call__(self, tokens, n):
        p = [self.rows.get((*tokens[: len(tokens) - i],), [0.25] * 4) for i in reversed(range(n))]
        return torch.tensor(p, dtype=torch.double).log(), torch.zeros(n, 1)


def test_three_tokens_two_bytes_by_hand():
    words = {0: b"a", 1: b"b", 2: b"ab"}
    model = ByteModel(Table(), Vocabulary(words, 3, lambda text: []), [], least=0)
    state = model.seek(b"")
    assert model.next(state).exp()[[97, 98, END]].tolist() == pytest.approx([0.7, 0.2, 0.1])
    state = model.push(state, ord("a"))  # tokens "a", and "ab" of which "b" is to come
    right = [0.1 / 0.7, 0.5 / 0.7, 0.1 / 0.7]  # P("aa"), P("ab"), P("a", END), each over P("a")
    assert model.next(state).exp()[[97, 98, END]].tolist() == pytest.approx(right)
    state = model.push(state, ord("b"))
    assert math.exp(state.logp) == pytest.approx(0.5)  # "ab" 0.2 and "a", "b" 0.5 * 0.6


def test_the_garden_path_by_hand(monkeypatch):
    """Over tokens "." wins, 0.4 * 0.4; over bytes the space collects two words, 0.6 * 0.6."""
    words = {0: b" cat", 1: b" car", 2: b"."}
    monkeypatch.setattr(Table, "rows", {(): [0.3, 0.3, 0.4, 0.0]})
    vocabulary = Vocabulary(words, 3, lambda text: [])
    router, expert = (ByteModel(Table(), vocabulary, [], least=0) for _ in range(2))
    assert next(decode.decode(router, [expert], 9)) == (ord(" "), 0)
    assert next(spans.decode(Table(), vocabulary, [], [expert], 9)) == (2, 0)


def test_dropped_branches_are_within_their_bound():
    sums = Sums(tiny(4, bold=3.0))
    for least in (0.3, 0.1, 0.01):
        model, dropped = byte_model(tiny(4, bold=3.0), least), 0
        for text in [b"abbaabab", b"bbbbaab"]:
            state = behind(model, text)
            assert state.logp <= math.log(sums.covers(text)) + 1e-10
            assert math.log(sums.covers(text)) <= state.logp + math.log1p(state.lost) + 1e-10
            dropped += state.lost
        assert dropped > 0


# --- catching up and recovering ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """The shipped math expert: a Reader, and the toy's tokenizer."""
    model, _ = script.load_model(script.WEIGHTS / "math.pt", "", build=roomy)
    return reader(model), tokenizer_of("toy")


QUESTION = "Maya has 14 apples. She loses 5 of them. How many apples are there now?"
ANSWER = "After losing, 14 - 5 = 9. The answer is 9."


def test_seek_equals_push_at_every_cut(trained):
    lm, tok = trained
    model = ByteModel(lm, tok.vocabulary, tok.prompt(QUESTION))
    text, pushed, worst = ANSWER.encode(), model.seek(b""), []
    for cut, byte in enumerate(text, 1):
        pushed = model.push(pushed, byte)
        a, b = model.next(pushed).exp(), model.next(model.seek(text[:cut])).exp()
        worst.append(float((a - b).abs().sum() / 2))
    assert max(worst) < 1e-3  # total variation


def test_any_last_token_counts_when_catching_up(trained):
    """Behind "14 - " the model has written " - " and the tokenizer writes " -", " "."""
    lm, tok = trained
    text = b"After losing, 14 - "
    assert tok.words[tok.vocabulary.encode(text)[-1]] == b" "
    model = ByteModel(lm, tok.vocabulary, tok.prompt(QUESTION))
    assert tok.words[model.best(model.seek(text)).tokens[-1]] == b" - "
    assert int(model.next(model.seek(text)).argmax()) == ord("5")


def test_an_overruled_byte_is_possible_and_the_model_goes_on(trained):
    lm, tok = trained
    model = ByteModel(lm, tok.vocabulary, tok.prompt(QUESTION))
    state = behind(model, b"After lo")
    logp = model.next(state)
    assert logp.isfinite().all() and float(logp.exp().sum()) == pytest.approx(1)
    for byte in b"zq":  # no training text has this
        state = model.push(state, byte)
    assert state.text == b"After lozq" and model.next(state).isfinite().all()
    again = model.next(behind(ByteModel(lm, tok.vocabulary, model.prompt), b"After lozq"))
    assert torch.allclose(again, model.next(state))  # what came before does not matter


def test_a_text_may_end_inside_a_character():
    encode = lambda text: [1000 + ord(c) for c in text]
    byte = {bytes([b]): b for b in range(256) if b != 0xFF}
    assert encode_bytes("né".encode()[:2], encode, byte) == [1110, 0xC3]
    assert encode_bytes(b"\xffa\xc3b", encode, byte) == [1097, 0xC3, 1098]  # no token for FF
    model = ByteModel(reader(tiny(0)), VOCABULARY, [PROMPT])
    state = behind(model, b"a\xc3b")  # this vocabulary has no C3: the model reads "ab"
    assert state.text == b"a\xc3b"
    assert torch.allclose(model.next(state), model.next(behind(model, b"ab")))


# --- what training needs -------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [ANSWER, "38 mod 5 = 3. The answer is 3.", "qz, q"])
def test_spine_scores_are_those_of_pushed_bytes(trained, answer):
    """Also where the model would go on with another token, and where it would never write this."""
    lm, tok = trained
    model = ByteModel(lm, tok.vocabulary, tok.prompt(QUESTION))
    logp, choice = byte_scores(model, answer)
    exact = ByteModel(lm, tok.vocabulary, model.prompt, least=1e-9)
    state, pushed = exact.seek(b""), []
    for symbol in [*answer.encode(), END]:
        pushed.append(exact.next(state))
        state = exact.push(state, symbol) if symbol != END else state
    pushed = ((1 - 1e-4) * torch.stack(pushed).exp() + 1e-4 / 257).log()  # (n+1, 257)
    right = pushed[range(len(pushed)), [*answer.encode(), END]]
    assert np.abs(logp - right.numpy()).max() < 0.02
    assert (choice == pushed.argmax(-1).numpy()).all()


def test_an_answer_scores_nearly_as_its_own_tokens(trained):
    lm, tok = trained
    samples = [(QUESTION, ANSWER), ("What is 38 mod 5?", "38 mod 5 = 3. The answer is 3.")]
    ours = scored(samples, tok, [(lm, tok), (lm, tok)], least=0)
    logp, _ = score([lm.model], ours.ids, ours.lengths)
    total = (logp[..., 0] * ours.mask[:, 1:]).sum(-1)
    assert ours.logp[..., 0].sum(-1).tolist() == pytest.approx(total.tolist(), abs=0.1)
    assert (ours.choice[..., 0] == ours.choice[..., 1]).all()  # one expert twice: S is empty

    made = []

    def load():  # the one before is no longer in memory
        assert not made or made[-1]() is None
        model = Reader(lm.model, lm.cache)
        made.append(weakref.ref(model))
        return model

    again = scored(samples, tok, ((load(), tok) for _ in range(2)), least=0)
    assert len(made) == 2 and torch.equal(again.logp, ours.logp)


def test_the_spans_of_an_answer_sum_to_its_log_probability(trained):
    lm, tok = trained
    other = tokenizer_of("pieces")
    ours = scored([(QUESTION, ANSWER)], other, [(lm, tok)])  # a router with other tokens
    logp, _ = byte_scores(ByteModel(lm, tok.vocabulary, tok.prompt(QUESTION)), ANSWER)
    mask = ours.mask[0, 1:]
    assert int(mask.sum()) == len(other.answer(ANSWER))
    assert float(ours.logp[0, mask].sum()) == pytest.approx(logp.sum(), abs=1e-3)
    cuts = np.cumsum([0] + [len(other.words.get(t, b"e")) for t in other.answer(ANSWER)])
    each = [logp[a:b].sum() for a, b in zip(cuts, cuts[1:])]
    assert ours.logp[0, mask, 0].tolist() == pytest.approx(each, abs=1e-4)


# --- decoding ------------------------------------------------------------------------------------


def byte_world():
    """A router and two experts whose tokens are the single bytes, and the end."""
    models = [tiny(seed, vocab_size=257, bold=1.3).float() for seed in range(3)]
    router = Router(models[0], 2).requires_grad_(False)
    torch.nn.init.normal_(router.W.weight)
    return router, models[1:]


def test_with_bytes_as_tokens_fusion_is_that_of_decode_py(monkeypatch):
    router, experts = byte_world()
    vocabulary = Vocabulary({b: bytes([b]) for b in range(256)}, END, list)
    monkeypatch.setattr(token_decode.tokenizer, "END", END)
    monkeypatch.setattr(token_decode, "MAX_NEW", 20)
    picks = set()
    for method in ("fusionroute", "routing_only", "router", "code"):
        how, prompt = token_decode.METHODS[method], [*b"Hello"]
        right = [(s.token, s.pick) for s in token_decode.decode(router, experts, prompt, **how)]
        models = [ByteModel(reader(m), vocabulary, prompt, least=0) for m in (router, *experts)]
        assert list(decode.decode(models[0], models[1:], 20, **how)) == right
        picks |= {pick for _, pick in right}
        if method in ("fusionroute", "routing_only"):
            how = {k: v for k, v in how.items() if k != "use_expert"}
            args = (reader(router), vocabulary, prompt, models[1:], 20)
            assert list(spans.decode(*args, **how)) == right
    assert picks == {0, 1}


def test_the_end_is_written_and_ends_an_answer():
    """An expert that always stops, and a router that does not mind."""
    model, quiet = byte_model(tiny(0)), byte_model(tiny(1))
    quiet.outputs = lambda tokens, n: [(np.array([0.0] * 6 + [1.0]), torch.zeros(1))] * n
    model.outputs = lambda tokens, n: [(np.full(7, 1 / 7), torch.zeros(1))] * n
    assert list(decode.decode(model, [quiet], 9)) == [(END, 0)]


def test_spans_finds_the_best_token_of_all():
    """Against every token's sum, written out; it need not be the router's favourite."""
    favourites = []
    for seed in range(4):
        router, expert = tiny(seed), byte_model(tiny(seed + 10))
        reads = Reader(lambda *a: (router(*a)[0], torch.zeros(1, 1, 1)), router.new_cache(1))
        ids, text = [PROMPT], b""
        for token, _ in spans.decode(reads, VOCABULARY, [PROMPT], [expert], 3):
            logp = router(torch.tensor([ids]))[0][0, -1].log_softmax(-1)
            state, total = behind(expert, text), {}
            for v, word in WORDS.items():
                total[v] = float(logp[v]) + behind(expert, text + word).logp - state.logp
            total[STOP] = float(logp[STOP] + expert.next(state)[END])
            assert token == max(total, key=total.get)
            favourites.append(token == max(total, key=lambda v: float(logp[v])))
            ids, text = ids + [token], text + WORDS.get(token, b"")
    assert len(favourites) > 6 and 0 < sum(favourites) < len(favourites)
