"""Preference pairs for phase 2: the right answer against a wrong one that the fused model of phase 1 sampled itself.

The paper takes 100k pairs from OpenHermes. A toy world has no such data set; what it has is exact checkers, so a model's own mistakes
can be told from its right answers, and these are what there is to correct. Prompts that it never fails give no pair.

For an ablation y_l may come from elsewhere: see SOURCES.
"""

import hashlib
import json
from random import Random

from tqdm import tqdm

import common
import decode
from toy_experts import tasks, tokenizer

MAX_NEW = 64  # longest answer sampled, in tokens
SOURCES = {  # whose mistakes y_l are
    "fused": "the router's and experts' together, Eq. (1)",
    "router": "the router's language model's alone",
    "experts": "one expert's alone, in turn",
    "corrupted": "the right answer with one token exchanged",
}


def corrupt(answer, rng):
    """The answer with one of its tokens exchanged for another word of the vocabulary."""
    ids = tokenizer.encode_answer(answer)[:-1]
    ids[rng.randrange(len(ids))] = rng.randrange(256, tokenizer.USER)
    return tokenizer.encoding.decode(ids)


def sample(s, folder, router, experts, made_from):
    """The file of preference pairs, made unless an earlier call did: its name holds what the pairs depend on.

    s: settings with seed, prompts, tries, temperature and rejected, one of SOURCES.
    """
    common.one_of(s, "rejected", SOURCES)
    items = tasks.mixed("preference", s.prompts, Random(f"preference {s.seed}"))
    name = json.dumps([s.seed, s.prompts, s.tries, s.temperature, s.rejected, tokenizer.FINGERPRINT, made_from], sort_keys=True)
    path = folder / f"pairs-{hashlib.sha256(name.encode()).hexdigest()[:8]}.jsonl"
    if not path.exists():
        pairs, size, rng = [], 128, Random(f"corrupted {s.seed}")
        items = sorted(items, key=lambda i: len(i.prompt))
        for i in tqdm(range(0, len(items), size), desc="sampling pairs"):
            chunk = items[i:i + size]
            if s.rejected == "corrupted":
                texts = [corrupt(item.answer, rng) for item in chunk for _ in range(s.tries)]
            else:
                prompts = [tokenizer.encode_prompt(item.prompt) for item in chunk for _ in range(s.tries)]
                how = {"fused": {}, "router": {"use_expert": False}, "experts": {"use_router": False, "only": i // size % len(experts)}}
                traces = decode.fused_decode(router, experts, prompts, tokenizer.END, MAX_NEW, temperature=s.temperature,
                                             seed=s.seed * 1_000_000 + i * s.tries, **how[s.rejected])
                texts = [tokenizer.encoding.decode(decode.answer_ids(t)) for t in traces]
            for k, item in enumerate(chunk):
                wrong = [t for t in texts[k * s.tries:(k + 1) * s.tries] if not tasks.check(item, t)
                         and len(tokenizer.encode_answer(t)) <= 2 * MAX_NEW]  # broken characters take more tokens when read again
                pairs += [{"prompt": item.prompt, "chosen": item.answer, "rejected": wrong[0]}] if wrong else []
        common.write(path, "".join(json.dumps(p) + "\n" for p in pairs))
        print(f"saved {path}")
    return path


def read(path, max_len):
    """Lines of {prompt, chosen, rejected} -> samples, chosen and rejected in turn: rows 2i and 2i + 1 are pair i."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        samples = [common.answer_only(tokenizer.encode_prompt(p["prompt"]), tokenizer.encode_answer(p[side]))
                   for p in lines for side in ("chosen", "rejected")]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise common.UserError(f"{path} is not lines of {{prompt, chosen, rejected}}; remove it, and it is made anew") from e
    if not samples:
        raise common.UserError(f"{path} holds no pairs: raise --prompts, --tries or --temperature")
    if max(len(ids) for ids, _ in samples) > max_len:
        raise common.UserError(f"{path} has answers of more than {max_len} tokens with their prompts; remove it, and it is made anew")
    return samples
