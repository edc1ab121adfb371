"""A language model over tokens, read and written one byte at a time: p(byte | text).

The model gives p(token | tokens). Many token sequences spell the same text, and the last token may
reach beyond it. A cover of a text is a sequence of tokens that spells the text or more, but no
longer does so without its last token. With pi(c) the model's probability of the tokens c,

    P(text) = sum over the text's covers c of pi(c),     p(byte | text) = P(text + byte) / P(text).

So a text drawn byte by byte is drawn from the model. Covers share beginnings, and one beginning is
a Branch: tokens that spell the text up to some point, and the `rest` of the text. The next token
must spell the rest and go beyond. Such tokens stand together in the alphabetical order of all
words, so a Branch stands for all its covers at once: they are a slice of the vocabulary.

The number of branches grows fast, but a trained model finds nearly all of them unlikely. A branch
with a smaller share of P(text) than `least` is dropped before the model reads it. With least = 0
nothing is dropped and everything is exact.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
import torch

END, NONE = 256, 257  # symbols behind the 256 bytes: the answer's end; "this word has no byte here"
SPINE = 0.01  # what is read at once, see ByteModel.spine: smaller shares are not followed


def encode_bytes(text, encode, byte):
    """Token ids of any bytes. encode: str -> ids. byte: {a single byte: its token}.

    Tokenizers take only str. What is not UTF-8, such as half a character at the end, becomes tokens
    of one byte. A byte without a token is left out.
    """
    try:
        return encode(text.decode())
    except UnicodeDecodeError as e:
        single = [text[i : i + 1] for i in range(e.start, e.end)]
        before = encode(text[: e.start].decode()) + [byte[b] for b in single if b in byte]
        return before + encode_bytes(text[e.end :], encode, byte)


class Vocabulary:
    """What the tokens of an answer spell, in alphabetical order: a common beginning is a slice.

    words: {token: bytes}, without special tokens. end: the token that ends an answer. encode: how
    the tokenizer writes a text, bytes -> tokens.
    """

    def __init__(self, words, end, encode):
        self.word, self.encode = words, encode
        self.words, ids = zip(*sorted((word, token) for token, word in words.items()))
        self.ids = torch.tensor([*ids, end])  # (N+1,), in the order of words
        self.longest = max(map(len, self.words))
        self.byte = np.full((self.longest + 1, len(self.words)), NONE, np.int16)
        for k, word in enumerate(self.words):
            self.byte[: len(word), k] = list(word)  # byte[i, k]: byte i of word k

    def split(self, rest):
        """first, lo, hi: words[first:lo] are the rest itself, words[lo:hi] begin with it."""
        first = lo = bisect_left(self.words, rest)
        while lo < len(self.words) and self.words[lo] == rest:
            lo += 1
        return first, lo, bisect_left(self.words, rest + b"\xff" * (self.longest + 1), lo)


class Reader:
    """Runs a GPT or Router of model.py over token sequences of which many begin alike.

    One cache serves all of them: it is rewound to where two sequences part.
    """

    def __init__(self, model, cache):
        self.model, self.cache = model, cache
        self.have, self.passes = [], 0

    @torch.no_grad()
    def __call__(self, tokens, n):
        """What the model says after each of the last n tokens: logits (n, V), second (n, ...)."""
        same, most = 0, min(len(self.have), len(tokens) - n)
        while same < most and self.have[same] == tokens[same]:
            same += 1
        logits, second = self.run(tokens[same:], same)
        self.have, self.passes = tokens, self.passes + 1
        return logits[-n:], second[-n:]

    def run(self, new, have):
        self.cache.length = torch.tensor([have])
        logits, second = self.model(torch.tensor([new]), self.cache)
        return logits[0], second[0]


@dataclass
class Branch:
    tokens: list  # the prompt's too
    rest: bytes  # the bytes of the text behind them
    weight: float  # pi(tokens of the answer) / P(text)
    p: np.ndarray = None  # (N+1,), of the next token, in the order of Vocabulary.ids
    second: torch.Tensor = None  # the model's other output there: a router's weights w


@dataclass
class State:
    text: bytes  # of the answer so far
    branches: list
    logp: float = 0.0  # log P(text); after `seek`, log P of what came later
    lost: float = 0.0  # with the dropped branches, P(text) is at most (1 + lost) times as large


class ByteModel:
    """A model behind a prompt, asked for bytes. States are values: an old one can be used again."""

    def __init__(self, reader, vocabulary, prompt, least=1e-4):
        """prompt: token ids. least: see the top of this file."""
        self.reader, self.vocabulary, self.least = reader, vocabulary, least
        self.prompt, self.known = list(prompt), {}

    def outputs(self, tokens, n):
        """After each of the last n tokens: [(p (N+1,), second)]. Special tokens never occur."""
        logits, second = self.reader(tokens, n)
        p = logits[:, self.vocabulary.ids].double().softmax(-1).numpy()  # (n, N+1)
        return list(zip(p, second))

    def next(self, state):
        """log p(symbol | text), (257,): the bytes and END.

        A symbol that only dropped branches could write gets a little, so that it is never ruled
        out: a share `least` of the probability is spread evenly.
        """
        p = np.zeros(258)
        for b in state.branches:
            first, _, hi = self.vocabulary.split(b.rest)
            symbol = self.vocabulary.byte[len(b.rest), first:hi]
            p += b.weight * np.bincount(symbol, b.p[first:hi], 258)
            if not b.rest:
                p[END] += b.weight * b.p[-1]
        p = p[:NONE] / p[:NONE].sum()  # without NONE: these words have become branches of their own
        return torch.from_numpy((1 - self.least) * p + self.least / NONE).log()

    def push(self, state, byte, least=None):
        """The state when the text goes on with this byte.

        least: in place of the model's own. Branches whose outputs are known already are kept.
        """
        text, grown = state.text + bytes([byte]), []
        for b in state.branches:
            rest = b.rest + bytes([byte])
            first, lo, hi = self.vocabulary.split(rest)
            for k in range(first, lo):  # a word ends here: another token follows
                tokens, weight = b.tokens + [int(self.vocabulary.ids[k])], b.weight * b.p[k]
                grown.append((weight, Branch(tokens, b"", weight)))
            if hi > lo:  # a word goes on
                grown.append((b.weight * b.p[lo:hi].sum(), replace(b, rest=rest)))
        total = sum(mass for mass, _ in grown)
        if not total > 0:  # only dropped branches could write this byte
            return self.seek(text)
        least, branches, kept = self.least if least is None else least, [], 0.0
        for mass, b in grown:
            known = self.known.get(tuple(b.tokens))
            if known or mass > least * total:
                p, second = known or (b.p, b.second)
                if p is None:
                    p, second = self.outputs(b.tokens, 1)[0]
                branches.append(Branch(b.tokens, b.rest, b.weight / total, p, second))
                kept += mass
        lost = (state.lost + total - kept) / total
        return State(text, branches, state.logp + math.log(total), lost)

    def spine(self, text, start=0):
        """The states behind each byte of a text, from the first `start` of its tokens on.

        One pass reads the tokenizer's own tokens. Other covers are followed, a pass each, if they
        have more than the share SPINE: behind "14 - " a model may have written " - ", where the
        tokenizer writes " -" and " ".
        """
        tokens = self.vocabulary.encode(text)
        words = [self.vocabulary.word[t] for t in tokens]
        outputs = self.outputs(self.prompt + tokens, len(tokens) - start + 1)
        ends = range(len(self.prompt) + start, len(self.prompt) + len(tokens) + 1)
        self.known = {tuple((self.prompt + tokens)[:end]): o for end, o in zip(ends, outputs)}
        begin = Branch(self.prompt + tokens[:start], b"", 1.0, *outputs[0])
        states = [State(b"".join(words[:start]), [begin])]
        for byte in b"".join(words[start:]):
            states.append(self.push(states[-1], byte, max(self.least, SPINE)))
        return states

    def seek(self, text):
        """The state behind a text, whatever was read before; its logp begins at 0."""
        tokens, start = self.vocabulary.encode(text), 0
        left = sum(len(self.vocabulary.word[t]) for t in tokens)
        for token in tokens:
            left -= len(self.vocabulary.word[token])
            if left < self.vocabulary.longest:  # the next token may reach the end
                break
            start += 1
        return replace(self.spine(text, start)[-1], text=text, logp=0.0, lost=0.0)

    def best(self, state):
        """The branch with the largest share of P(text)."""

        def share(b):
            _, lo, hi = self.vocabulary.split(b.rest)
            return b.weight * (b.p[lo:hi].sum() if b.rest else 1.0)

        return max(state.branches, key=share)
