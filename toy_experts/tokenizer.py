"""The toy tokenizer: a local tiktoken.Encoding, nothing to download.

Its first 256 tokens are the single bytes, so every text has an encoding and comes back unchanged.
The words in vocab.txt are tokens as a whole. Digits are always single, so that a model sees how a
number is written. Three special tokens mark the turns:

    <|user|>Maya has 12 apples. ...<|assistant|>After buying, 12 + 5 = 17. ...<|end|>

vocab.txt is made by docs/tools/vocabulary.py.
"""

import hashlib
import json
from pathlib import Path

import regex  # a dependency of tiktoken, with the \p{L} that `re` lacks
import tiktoken

VOCAB_FILE = Path(__file__).with_name("vocab.txt")
# A piece is a line break with its indentation, an operator between spaces before a digit, a word
# with the space before it, one digit, other signs, spaces.
PATTERN = r"\n *| (?:\*\*|//|[<>=!]=|[-+*/%=<>]) (?=\d)| ?\p{L}+|\d| ?[^\s\p{L}\d]+| +|\s"


def build(words, pattern):
    ranks = {bytes([b]): b for b in range(256)}
    for word in words:
        ranks.setdefault(word.encode(), len(ranks))
    n = len(ranks)
    special = {"<|user|>": n, "<|assistant|>": n + 1, "<|end|>": n + 2}
    return tiktoken.Encoding(
        "fusionroute-toy", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )


WORDS = [json.loads(line) for line in VOCAB_FILE.read_text("utf-8").splitlines()]
encoding = build(WORDS, PATTERN)
USER, ASSISTANT, END = (
    encoding.encode_single_token(s) for s in ("<|user|>", "<|assistant|>", "<|end|>")
)
VOCAB_SIZE = encoding.n_vocab
# A checkpoint stores this, and is never loaded with another vocabulary. It is made from the words,
# not from the file's bytes: those differ where git ends lines as Windows does.
FINGERPRINT = hashlib.sha256(
    "".join(json.dumps(word) + "\n" for word in WORDS).encode() + PATTERN.encode()
).hexdigest()[:16]


def encode_prompt(prompt):
    """Token ids of a prompt, up to where the answer begins. Special tokens typed in stay text."""
    return [USER] + encoding.encode_ordinary(prompt) + [ASSISTANT]


def encode_answer(answer):
    return encoding.encode_ordinary(answer) + [END]


def unseen(prompt):
    """What no training text has, as a user may type it: foreign words, numbers of three digits.

    >>> unseen("What is 140 modulo 5?")
    ['140', 'modulo']
    """
    numbers = regex.findall(r"\d{3,}", prompt)
    words = regex.findall(r"\p{L}+", prompt)
    known = lambda text: len(encoding.encode_ordinary(text)) == 1
    foreign = [w for w in words if not known(w) and not known(" " + w)]
    return list(dict.fromkeys(numbers + foreign))
