"""Models of transformers for the byte decoder: what their tokens spell, and how they are read.

    tok = ChatTokenizer(tokenizer)
    model = ByteModel(ModelReader(lm), tok.vocabulary, tok.prompt(messages))

Tokenizers of two families are known: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2), and those with
the alphabet of SentencePiece (Llama 2, Mistral, Gemma).
"""

import codecs
import re

import torch
from transformers import DynamicCache

from extra.real.data import Encoder, conversation, rows
from extra.real.loading import Unusable, load, load_tokenizer
from extra.real.modeling import read
from extra.tokenizers import decode, spans
from extra.tokenizers.bytewise import END, ByteModel, Reader, Vocabulary, encode_bytes
from extra.tokenizers.scores import scored
from fusionroute import token_logp
from toy_experts.data import Data

# GPT-2 writes each byte as one visible character: those that are visible as themselves, the others
# as the characters from 256 on.
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [b for b in range(256) if b not in VISIBLE]
BYTE = {chr(b): b for b in VISIBLE} | {chr(256 + i): b for i, b in enumerate(HIDDEN)}
PROBE = "A  b\n\tc 12,3 é"  # what a tokenizer must give back unchanged


def words_of(tokenizer):
    """{token: its bytes}, all but special tokens; and whether the tokenizer is byte-level."""
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    vocabulary = {i: word for word, i in tokenizer.get_vocab().items() if i not in special}
    byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    words = {}
    for i, word in vocabulary.items():
        if byte_level and i not in tokenizer.added_tokens_decoder:
            words[i] = bytes(BYTE[c] for c in word)
        elif not byte_level and re.fullmatch("<0x[0-9A-F]{2}>", word):
            words[i] = bytes([int(word[3:5], 16)])
        else:
            words[i] = (word if byte_level else word.replace("▁", " ")).encode()
    return words, byte_level


class ChatTokenizer:
    """A tokenizer of transformers, with its chat template, as scores.py and the decoders need it.

    Unusable: it gives back another text than it got.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.encoder = tokenizer, Encoder(tokenizer)
        self.words, byte_level = words_of(tokenizer)
        self.end = self.encoder.end
        # SentencePiece puts a space before a text. Behind a line break it does not.
        self.before = "" if byte_level else "\n"
        self.skip = len(self.ids(self.before))
        byte = {word: i for i, word in self.words.items() if len(word) == 1}
        encode = lambda text: self.ids(self.before + text)[self.skip :]
        self.vocabulary = Vocabulary(
            self.words, self.end, lambda text: encode_bytes(text, encode, byte)
        )
        back = b"".join(self.words[i] for i in self.vocabulary.encode(PROBE.encode()))
        if back != PROBE.encode():
            name = tokenizer.name_or_path
            raise Unusable(f"the tokenizer of {name} writes {PROBE!r} as {back!r}")

    def ids(self, text):
        how = {"add_special_tokens": False, "split_special_tokens": True}  # what is typed is text
        return self.tokenizer(text, **how).input_ids

    def prompt(self, messages):
        """Token ids up to where the answer begins. messages: a list, or what the user says."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.encoder.prompt(messages)

    def answer(self, text):
        return [*self.vocabulary.encode(text.encode()), self.end]


class ModelReader(Reader):
    """A Reader of a causal language model of transformers; with W, of a router."""

    def __init__(self, model, W=None):
        super().__init__(model, DynamicCache(config=model.config))
        self.W = W

    def run(self, new, have):
        if too_many := self.cache.get_seq_length() - have:
            self.cache.crop(-too_many)
        ids = torch.tensor([self.have[:have] + new])  # (1, T)
        logits, hidden = read(self.model, ids, torch.ones_like(ids), self.cache, 0)
        second = hidden[0] if self.W is None else self.W(hidden[0].float())  # (t, d) or (t, n)
        return logits[0].float().cpu(), second.cpu()


# --- what extra/real does with --fuse bytes and --fuse spans -------------------------------------


def scored_rows(s, path, sides, tokenizer):
    """The rows of a file as toy_experts.data.Data in the router's tokens; pairs if two sides.

    s: runs.Settings. The experts read each answer behind their own chat templates.
    """
    tok, samples = ChatTokenizer(tokenizer), []
    for _, row in rows(path):
        prompt, answers = conversation(row, sides, s.ignore)
        if all(len(tok.prompt(prompt) + tok.answer(a)) <= s.max_len for a in answers):
            samples += [(prompt, a) for a in answers]
    how = {"dtype": getattr(torch, s.dtype)}
    experts = [
        (ModelReader(load(p, s.ignore, **how)), ChatTokenizer(load_tokenizer(p)))
        for p in s.experts.values()
    ]
    found = scored(samples, tok, experts)
    return found if len(sides) == 1 else Data(*(x.view(-1, 2, *x.shape[1:]) for x in found))


@torch.no_grad()
def reference(model, pairs, batch=16):
    """log pi_ref of the chosen and the rejected answers, (pairs, 2). model: a FusionRoute."""
    ids, mask = pairs.ids.flatten(0, 1), pairs.mask.flatten(0, 1)[:, 1:]  # (2N, T), (2N, T-1)
    logp = [
        (token_logp(model(x[:, :-1]).logits, x[:, 1:]).cpu() * m).sum(-1)
        for x, m in zip(ids.to(model.device).split(batch), mask.split(batch))
    ]
    return torch.cat(logp).view(-1, 2)


def answer(model, messages, s):
    """What extra.real.decode.answer returns, a dict for each piece of text. s: its Settings."""
    names, toks = zip(*((n, ChatTokenizer(load_tokenizer(p))) for n, p in model.config.experts))
    mine = ChatTokenizer(model.tokenizer)
    models = [
        ByteModel(ModelReader(lm, W), tok.vocabulary, tok.prompt(messages))
        for lm, W, tok in zip(
            [model.router, *model.experts], [model.W, *[None] * len(names)], [mine, *toks]
        )
    ]
    if s.fuse == "spans":
        args = mine.vocabulary, models[0].prompt, models[1:], s.max_new
        found = spans.decode(models[0].reader, *args)
        pieces = [(mine.words.get(token, b""), token, pick) for token, pick in found]
    else:
        how = {"temperature": s.temperature, "seed": s.seed}
        found = decode.decode(models[0], models[1:], s.max_new, **how)
        pieces = [
            (b"", mine.end, pick) if symbol == END else (bytes([symbol]), symbol, pick)
            for symbol, pick in found
        ]
    text = codecs.getincrementaldecoder("utf-8")("replace")
    return [
        {"token": text.decode(word), "id": i, "expert": names[pick], "weights": {}}
        | {"expert_choice": "", "changed": False, "in_S": False}
        for word, i, pick in pieces
    ]
