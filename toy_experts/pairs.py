"""Preference pairs for phase 2: the right answer against a wrong one that the fused model of phase 1 sampled itself.

The paper takes 100k pairs from OpenHermes. A toy world has no such data set; what it has is exact checkers, so a model's own mistakes
can be told from its right answers, and these are what there is to correct. Prompts that it never fails give no pair.
"""

import hashlib
import json
from random import Random

from tqdm import tqdm

import common
import decode
from toy_experts import tasks, tokenizer

MAX_NEW = 64  # longest answer sampled, in tokens


def sample(s, folder, router, experts, made_from):
    """The file of preference pairs, sampled from the fused model unless an earlier call did: the name holds what they hang on."""
    items = tasks.mixed("preference", s.prompts, Random(f"preference {s.seed}"))
    name = json.dumps([s.seed, s.prompts, s.tries, s.temperature, tokenizer.FINGERPRINT, made_from], sort_keys=True)
    path = folder / f"pairs-{hashlib.sha256(name.encode()).hexdigest()[:8]}.jsonl"
    if not path.exists():
        pairs, size = [], 128
        items = sorted(items, key=lambda i: len(i.prompt))
        for i in tqdm(range(0, len(items), size), desc="sampling pairs"):
            chunk = items[i:i + size]
            prompts = [tokenizer.encode_prompt(item.prompt) for item in chunk for _ in range(s.tries)]
            traces = decode.fused_decode(router, experts, prompts, tokenizer.END, MAX_NEW, temperature=s.temperature,
                                         seed=s.seed * 1_000_000 + i * s.tries)
            texts = [tokenizer.encoding.decode(decode.answer_ids(t)) for t in traces]
            for k, item in enumerate(chunk):
                wrong = [t for t in texts[k * s.tries:(k + 1) * s.tries] if not tasks.check(item, t)
                         and len(tokenizer.encode_answer(t)) <= 2 * MAX_NEW]  # broken characters take more tokens when read again
                pairs += [{"prompt": item.prompt, "chosen": item.answer, "rejected": wrong[0]}] if wrong else []
        common.write(path, "".join(json.dumps(p) + "\n" for p in pairs))
        print(f"saved {path}")
    return path
