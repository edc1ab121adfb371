"""Models of transformers for the byte decoder: what their tokens spell, and how they are read.

    tok = ChatTokenizer(tokenizer)
    model = ByteModel(ModelReader(lm), tok.vocabulary, tok.prompt(messages))

Tokenizers of two families are known: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2), and those with
the alphabet of SentencePiece (Llama 2, Mistral, Gemma).
"""

import codecs
import json
import re
from functools import cache

import torch
from transformers import DynamicCache
from transformers.convert_slow_tokenizer import bytes_to_unicode

from extra.real.data import Encoder, Wrong, check_room
from extra.real.loading import Unusable, load_tokenizer, longest
from extra.real.modeling import read
from extra.tokenizers import decode, spans
from extra.tokenizers.bytewise import END, ByteModel, Reader, Vocabulary, encode_bytes
from extra.tokenizers.scores import scored
from fusionroute import token_logp
from toy_experts.data import Data
from toy_experts.script import UserError

BYTE = {c: b for b, c in bytes_to_unicode().items()}  # GPT-2 writes each byte as one character
PROBE = "A  b\n\tc 12,3 é"  # what a tokenizer must give back unchanged


def words_of(tokenizer):
    """{token: its bytes}, all but special tokens."""
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
    return words


class ChatTokenizer:
    """A tokenizer of transformers, with its chat template, as scores.py and the decoders need it.

    Unusable: it gives back another text than it got.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.encoder = tokenizer, Encoder(tokenizer)
        self.words, self.end = words_of(tokenizer), self.encoder.end
        byte = {word: i for i, word in self.words.items() if len(word) == 1}
        encode = lambda text: encode_bytes(text, self.ids, byte)
        self.vocabulary = Vocabulary(self.words, self.end, encode)
        # SentencePiece puts a space before a text. Behind a line break it does not.
        for self.before in ("", "\n"):
            back = b"".join(self.words[i] for i in self.vocabulary.encode(PROBE.encode()))
            if back == PROBE.encode():
                return
        raise Unusable(f"the tokenizer of {tokenizer.name_or_path} writes {PROBE!r} as {back!r}")

    def ids(self, text):
        """Token ids of a text in the middle of an answer, without what is unknown."""
        how = {"add_special_tokens": False, "split_special_tokens": True}  # what is typed is text
        skip = len(self.tokenizer(self.before, **how).input_ids)
        ids = self.tokenizer(self.before + text, **how).input_ids[skip:]
        return [i for i in ids if i in self.words]

    def prompt(self, messages):
        """Token ids up to where the answer begins. messages: a list, or what the user says."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        try:
            return self.encoder.prompt(messages)
        except Wrong as e:
            where = f"{self.tokenizer.name_or_path}, {messages[-1]['content'][:60]!r}"
            raise UserError(f"{where}: {e}") from e

    def answer(self, text):
        return [*self.vocabulary.encode(text.encode()), self.end]


@cache
def chat_tokenizer(path):
    return ChatTokenizer(load_tokenizer(path))


class ModelReader(Reader):
    """A Reader of a causal language model of transformers; with W, of a router."""

    def __init__(self, model, W=None):
        super().__init__(model, DynamicCache(config=model.config))
        self.W = W

    def run(self, new, have):
        if have + len(new) > longest(self.model):
            raise UserError(
                f"{self.model.name_or_path} reads {longest(self.model)} tokens at most, and prompt "
                f"and answer have {have + len(new)} in its tokens"
            )
        if too_many := self.cache.get_seq_length() - have:
            self.cache.crop(-too_many)
        ids = torch.tensor([self.have[:have] + new])  # (1, T)
        logits, hidden = read(self.model, ids, torch.ones_like(ids), self.cache, 0)
        second = hidden[0] if self.W is None else self.W(hidden[0].float())  # (t, d) or (t, n)
        return logits[0].float().cpu(), second.cpu()


# --- what extra/real does with --fuse bytes and --fuse spans -------------------------------------


def scores(run, samples, tokenizer, answers=1):
    """Samples of extra/real/data.py as toy_experts.data.Data in the router's tokens.

    run: runs.Run. answers: 2 for preference pairs. The experts read each conversation through their
    own chat templates. The scores are not kept: a training that starts again asks anew.
    """
    talks = [json.loads(x) for x in samples["talk"]]
    paths = run.s.experts.values()
    toks = [chat_tokenizer(path) for path in paths]
    # What a chat template refuses is said here, before hours of scoring.
    most = [max(len(tok.prompt(p) + tok.answer(a)) for p, a in talks) for tok in toks]
    experts = ((ModelReader(run.expert(path, T)), tok) for path, tok, T in zip(paths, toks, most))
    found = scored(talks, ChatTokenizer(tokenizer), experts)
    return found if answers == 1 else Data(*(x.view(-1, 2, *x.shape[1:]) for x in found))


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
    names, paths = zip(*model.config.experts)
    toks = [chat_tokenizer(path) for path in (s.router, *paths)]
    readers = [ModelReader(model.router, model.W), *map(ModelReader, model.experts)]
    router, *experts = [
        ByteModel(reader, tok.vocabulary, tok.prompt(messages))
        for reader, tok in zip(readers, toks)
    ]
    for name, m in zip(("the router", *names), (router, *experts)):  # a byte: a token at most
        check_room(name, longest(m.reader.model), len(m.prompt), s.max_new)
    how = {"use_router": model.use_router, "only": model.only}
    if s.fuse == "spans":
        args = toks[0].vocabulary, router.prompt, experts, s.max_new
        found = spans.decode(router.reader, *args, **how)
        pieces = [(toks[0].words.get(token, b""), token, pick) for token, pick in found]
    else:
        how |= {"temperature": s.temperature, "seed": s.seed}
        found = decode.decode(router, experts, s.max_new, **how)
        end = b"", toks[0].end
        pieces = [(*(end if x == END else (bytes([x]), None)), pick) for x, pick in found]
    text = codecs.getincrementaldecoder("utf-8")("replace")
    # Every piece shows its author: whether all experts agree there, only all of them could say.
    same = {"weights": {}, "expert_choice": "", "changed": False, "in_S": True}
    return [
        {"token": text.decode(word), "id": i, "expert": names[pick]} | same
        for word, i, pick in pieces
    ]
