"""The toy with two more tokenizers, and experts that are trained on them from scratch.

    toy         the toy's own tokens: a word with the space before it; digits are single
    trailing    a word with the space behind it
    pieces      at most three letters, with the space before them

An expert here has a base of its own, from other random weights, so it shares nothing with the
router. Base and expert read the lesson's documents, in their own tokens, for the lesson's steps.
"""

import time
from collections import Counter
from copy import deepcopy
from functools import cache
from itertools import accumulate, groupby
from random import Random

import regex
import torch

from extra.tokenizers.bytewise import Vocabulary, encode_bytes
from model import GPT, GPTConfig
from toy_experts import experts, script, tasks, tokenizer

PATTERNS = {
    "trailing": r"\p{L}+ ?|\d|[^\s\p{L}\d]+ ?|\s+",
    "pieces": r" ?\p{L}{1,3}|\d| ?[^\s\p{L}\d]+|\s+",
}
MAX_LEN = 512  # of the models here: shorter tokens make longer texts


class Tokenizer:
    """A tiktoken.Encoding with the toy's three special tokens, as the byte decoder needs it."""

    def __init__(self, encoding):
        self.encoding, special = encoding, encoding.encode_single_token
        self.user, self.assistant, self.end = map(special, ("<|user|>", "<|assistant|>", "<|end|>"))
        words = {i: encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab)}
        for i in (self.user, self.assistant, self.end):
            words.pop(i)
        self.words = words  # {token: bytes}
        byte = {word: i for i, word in words.items() if len(word) == 1}
        encode = lambda text: encode_bytes(text, encoding.encode_ordinary, byte)
        self.vocabulary = Vocabulary(words, self.end, encode)

    def prompt(self, text):
        return [self.user, *self.vocabulary.encode(text.encode()), self.assistant]

    def answer(self, text):
        return [*self.vocabulary.encode(text.encode()), self.end]

    def translate(self, sample):
        """A sample (ids, learn) of the toy's tokens in these. A token learns if its last byte did.

        The text between two special tokens is written anew as a whole.
        """
        special = {tokenizer.USER: self.user, tokenizer.ASSISTANT: self.assistant}
        special[tokenizer.END] = self.end
        out = []
        for is_special, run in groupby(zip(*sample), lambda pair: pair[0] in special):
            if is_special:
                out += [(special[token], flag) for token, flag in run]
                continue
            words = [(tokenizer.encoding.decode_single_token_bytes(t), flag) for t, flag in run]
            flags = [flag for word, flag in words for _ in word]  # of each byte
            ids = self.vocabulary.encode(b"".join(word for word, _ in words))
            ends = accumulate(len(self.words[i]) for i in ids)
            out += [(i, flags[end - 1]) for i, end in zip(ids, ends)]
        return [i for i, _ in out], [flag for _, flag in out]


@cache
def tokenizer_of(kind):
    """The Tokenizer of that name: every piece that training texts have eight times is a token."""
    if kind == "toy":
        return Tokenizer(tokenizer.encoding)
    counts, split = Counter(), regex.compile(PATTERNS[kind])
    for item in tasks.mixed("train", 12_000, Random(0)):
        counts.update(split.findall(item.prompt) + split.findall(item.answer))
    words = sorted(piece for piece, n in counts.items() if n >= 8)
    return Tokenizer(tokenizer.build(words, PATTERNS[kind]))


def roomy(config):
    """A GPT for a checkpoint's config, with room for MAX_LEN tokens."""
    return script.gpt_of(config | {"max_len": MAX_LEN})


def expert(s, kind, name):
    """The model `name` of the run s on tokenizer `kind`, frozen. Trained first if it is missing.

    s: experts.Settings. Kept in OUT/seedN/KIND/NAME.pt, beside the base that it was trained from.
    """
    folder, _ = script.prepare(s)
    path, recipe = folder / kind / f"{name}.pt", {"seed": s.seed, "gap": s.gap, "tokenizer": kind}
    if not path.exists():
        begun, tok, seed = time.time(), tokenizer_of(kind), s.seed + 1_000_000  # not the lesson's
        torch.manual_seed(seed)
        if name == "base":
            model = GPT(GPTConfig(vocab_size=tok.encoding.n_vocab, max_len=MAX_LEN))
        else:
            model = deepcopy(expert(s, kind, "base")).requires_grad_(True)
        samples = [tok.translate(sample) for sample in experts.documents(s, name)]
        title = f"{kind} {name}"
        experts.train(model, samples, seed, experts.STEPS[name], experts.LR[name], title)
        path.parent.mkdir(exist_ok=True)
        script.save_model(path, model, recipe, time.time() - begun)
    model, content = script.load_model(path, "start again")
    script.check_same(path, content["recipe"], recipe)
    return model
