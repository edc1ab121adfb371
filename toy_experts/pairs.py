"""Preference pairs for phase 2: a right answer (chosen), and a wrong one (rejected).

The rejected answer is one that the fused model of phase 1 wrote itself: its own mistakes are what
there is to correct. A checker tells right from wrong (tasks.py). Prompts on which it made no
mistake give no pair. (The paper takes 100k pairs from OpenHermes, a public data set.)
"""

import json
from random import Random

from tqdm import tqdm

from toy_experts import run, tasks, tokenizer
from toy_experts.data import answer_only
from toy_experts.batch import decode_batch

TRIES = 2          # answers sampled per prompt; the first wrong one is the rejected answer
TEMPERATURE = 1.0  # of these samples
MAX_NEW = 64       # longest answer sampled, in tokens


def sample(router, experts, seed, n_prompts):
    """Dicts {prompt, chosen, rejected}: one for each prompt that the fused model got wrong."""
    items = tasks.mixed("preference", n_prompts, Random(f"preference {seed}"))
    items.sort(key=lambda item: len(item.prompt))    # similar lengths together: less padding
    pairs, size = [], 128
    for i in tqdm(range(0, len(items), size), desc="sampling pairs", mininterval=1.0):
        chunk = items[i:i + size]
        prompts = [tokenizer.encode_prompt(item.prompt) for item in chunk for _ in range(TRIES)]
        traces = decode_batch(router, experts, prompts, MAX_NEW, temperature=TEMPERATURE,
                              seed=seed * 1_000_000 + i * TRIES)
        for k, item in enumerate(chunk):
            texts = [t.text() for t in traces[k * TRIES:(k + 1) * TRIES]]
            pair = of_item(item, texts)
            pairs += [pair] if pair else []
    if not pairs:
        raise run.UserError("the model of phase 1 made no mistake: no pairs; raise --prompts")
    return pairs


def of_item(item, texts):
    """The pair of an item and the first of these answers that is wrong; None if there is none."""
    for text in texts:  # bytes that are no character take more tokens when they are read again
        if not tasks.check(item, text) and len(tokenizer.encode_answer(text)) <= 2 * MAX_NEW:
            return {"prompt": item.prompt, "chosen": item.answer, "rejected": text}
    return None


def samples(pairs):
    """Pairs -> samples (ids, learn) for data.scored: chosen, rejected, chosen, rejected, ..."""
    return [answer_only(tokenizer.encode_prompt(p["prompt"]), tokenizer.encode_answer(p[side]))
            for p in pairs for side in ("chosen", "rejected")]


def text(pairs):
    """Pairs as JSON Lines."""
    return "".join(json.dumps(p) + "\n" for p in pairs)
