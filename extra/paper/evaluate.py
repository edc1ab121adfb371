"""Answers, and how they are judged: the prompts, the decoders' texts, and shares of right answers.

An answer counts when it is right in content and in form. "covered" are the prompts whose sub-skill
some expert was trained on, "uncovered" the others. General prompts are also graded (judge.grade:
content, then form, then brevity), in the place of the paper's GPT-4o.
"""

from random import Random

import numpy as np

from extra.paper import checkpoints
from toy_experts import judge, tasks, tokenizer
from toy_experts.decode_batch import in_batches

BENCHES = tasks.BENCHMARKS + ["general"]


def draw(s, split="test"):
    """benchmark -> its prompts of a split; "general" is one of them."""
    n = {b: s.general or s.prompts if b == "general" else s.prompts for b in BENCHES}
    return {b: tasks.dataset(b, split, n[b], Random(f"{split} {b} {s.seed}")) for b in BENCHES}


def texts(decoder, items):
    """What the decoder answers to each item, as text."""
    return [tokenizer.encoding.decode(ids) for ids in in_batches(decoder, items)]


def held_out(s):
    """benchmark -> the sub-skills that no expert was trained on."""
    gap = checkpoints.gap(s)
    return {b: tasks.held_out(b, gap, s.seed) for b in tasks.BENCHMARKS}


def accuracy(s, decoder, problems, check=judge.check):
    """What is right of a decoder's answers: means over the benchmarks.

    Columns: average, covered, uncovered, general; those that these problems have.
    """
    held, rows = held_out(s), {"average": [], "covered": [], "uncovered": [], "general": []}
    for b, items in problems.items():
        right = [check(item, text) for item, text in zip(items, texts(decoder, items))]
        rows["general" if b == "general" else "average"].append(np.mean(right))
        for name, is_held in (("covered", False), ("uncovered", True)):
            part = [x for x, i in zip(right, items) if (i.skill in held.get(b, ())) == is_held]
            rows[name] += [np.mean(part)] if part and b in held else []
    return {name: round(float(np.mean(values)), 4) for name, values in rows.items() if values}


def means(rows):
    """The mean of each column over those of the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {n: round(float(np.mean([row[n] for row in rows if n in row])), 4) for n in names}
