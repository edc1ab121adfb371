"""Writes vocab.txt again from the training texts. This is needed after a change of the tasks.

python -m docs.tools.vocabulary
"""

import json
from collections import Counter
from random import Random

import regex  # a dependency of tiktoken, with the \p{L} that `re` lacks

from toy_experts import script, tasks
from toy_experts.tokenizer import PATTERN, VOCAB_FILE


def main(argv=None):
    """Every piece of two or more bytes that occurs 8 times or more, one JSON string a line."""
    script.Parser(description=__doc__).parse_args(argv)
    counts = Counter()
    for bench in tasks.BENCHMARKS + ["general"]:
        for item in tasks.dataset(bench, "train", 6000, Random(0)):
            counts.update(regex.findall(PATTERN, item.prompt) + regex.findall(PATTERN, item.answer))
    words = sorted(piece for piece, n in counts.items() if n >= 8 and len(piece.encode()) > 1)
    script.write(VOCAB_FILE, "".join(json.dumps(word) + "\n" for word in words))
    print(f"{VOCAB_FILE.name}: {len(words)} words, {256 + len(words) + 3} tokens")


if __name__ == "__main__":
    script.run(main)
