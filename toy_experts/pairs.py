"""Preference pairs for phase 2: a right answer (chosen), and a wrong one (rejected).

The rejected answer is one that the fused model of phase 1 wrote itself: its own mistakes are what
there is to correct. judge.py tells right from wrong. Prompts on which it made no mistake give no
pair. (The paper takes 100k pairs from OpenHermes, a public data set.)
"""

import json
from functools import partial
from random import Random

from tqdm import tqdm

from toy_experts import judge, script, tasks, tokenizer
from toy_experts.data import answer_only
from toy_experts.decode_batch import answers, decode_batch

TRIES = 2  # answers sampled per prompt; the first wrong one is the rejected answer
TEMPERATURE = 1.0  # of these samples
MAX_NEW = 64  # longest answer sampled, in tokens
CHUNK = 128  # prompts that are answered side by side


def write_answers(router, experts, items, seed, **how):
    """TRIES sampled answers to each item, as texts, item after item. how: see decode.METHODS."""
    prompts = [tokenizer.encode_prompt(item.prompt) for item in items for _ in range(TRIES)]
    traces = decode_batch(
        router, experts, prompts, MAX_NEW, temperature=TEMPERATURE, seed=seed, **how
    )
    return [trace.text() for trace in traces]


def make_pairs(router, experts, seed, n_prompts, answer_with=None):
    """Dicts {prompt, chosen, rejected}: one for each prompt that was answered wrongly.

    answer_with(items, seed): the answers' author; unless given, the router and experts, fused.
    """
    answer_with = answer_with or partial(write_answers, router, experts)
    items = tasks.mixed("preference", n_prompts, Random(f"preference {seed}"))
    items.sort(key=lambda item: len(item.prompt))  # similar lengths together: less padding
    pairs = []
    for i in tqdm(range(0, len(items), CHUNK), desc="sampling pairs", mininterval=1.0):
        chunk = items[i : i + CHUNK]
        texts = answer_with(chunk, seed * 1_000_000 + i * TRIES)  # row b draws from this seed + b
        for k, item in enumerate(chunk):
            pair = pair_of(item, texts[k * TRIES : (k + 1) * TRIES])
            pairs += [pair] if pair else []
    if not pairs:
        raise script.UserError("no answer was wrong, so there are no pairs; raise --prompts")
    return pairs


def pair_of(item, texts):
    """The pair of an item and the first of these answers that is wrong; None if there is none."""
    for text in texts:  # broken UTF-8 has become U+FFFD, three tokens each, and may be too long
        if not judge.check(item, text) and len(tokenizer.encode_answer(text)) <= 2 * MAX_NEW:
            return {"prompt": item.prompt, "chosen": item.answer, "rejected": text}
    return None


def samples(pairs):
    """Pairs -> samples (ids, learn) for data.scored: chosen, rejected, chosen, rejected, ..."""
    return [
        answer_only(tokenizer.encode_prompt(p["prompt"]), tokenizer.encode_answer(p[side]))
        for p in pairs
        for side in ("chosen", "rejected")
    ]


def text(pairs):
    """Pairs as JSON Lines."""
    return "".join(json.dumps(p) + "\n" for p in pairs)


def first_mistake(router, experts, items):
    """The first item that the fused model answers wrongly (else the last one), and the answer."""
    for item, trace in zip(items, answers(router, experts, items)):
        if not judge.check(item, trace.text()):
            break
    return item, trace.text()
