"""(h) Data: noise in the pairs, and shares of the domains in the pairs and in the SFT samples.

    python -m extra.paper.open_questions.data --seeds 2 3

Varied, one at a time:

    N% flipped       chosen and rejected are exchanged in N per cent of the pairs; both phases
    pairs without X  phase 2 without the pairs whose prompt is of X, with the same number of passes over the others; both phases
    SFT without X    phase 1 with the same number of samples, none of them of X; phase 1 only
    SFT: half X      phase 1 with the same number of samples, X taking half of them; phase 1 only

X is the benchmarks of a domain, or the general prompts. Held fixed: everything else. The line says which phases were run, so that a row is
compared with the row "as always" of its line.
"""

import json
from copy import deepcopy
from random import Random

import torch

import train_cdpo
import train_sft
from extra import models
from extra.paper import train as paper_train
from extra.paper.open_questions import frame
from toy_experts import pairs as toy_pairs
from toy_experts import run, tasks
from toy_experts import train as toy
from toy_experts.data import Data, scored

NOISE = (0.1, 0.2, 0.3, 0.4)
PARTS = tasks.DOMAINS | {"general": ["general"]}  # what a share is of


def flipped(pairs, share, seed):
    """The pairs with chosen and rejected exchanged in a share of them, drawn at random."""
    which = set(Random(f"noise {seed}").sample(range(len(pairs)), round(share * len(pairs))))
    return [p | {"chosen": p["rejected"], "rejected": p["chosen"]} if i in which else p for i, p in enumerate(pairs)]


def without(pairs, part, seed, n_prompts=train_cdpo.Settings.prompts):
    """The pairs whose prompt is not of the part."""
    bench = {item.prompt: item.bench for item in tasks.mixed("preference", n_prompts, Random(f"preference {seed}"))}
    return [p for p in pairs if bench[p["prompt"]] not in PARTS[part]]


def sft_items(seed, n, weights):
    """n SFT problems: each benchmark, and the general prompts, in proportion to its weight."""
    rng, benches = Random(f"sft {seed}"), [b for b in weights if weights[b]]
    total, items, due = sum(weights.values()), [], 0.0
    for b in benches:
        due += n * weights[b] / total                                      # how many there should be by now
        items += tasks.dataset(b, "train", round(due) - len(items), rng)
    rng.shuffle(items)
    return items


def weighted(part, half):
    """Weights of the benchmarks: the part has half of all, or (half False) nothing."""
    benches = [b for names in PARTS.values() for b in names]
    inside, rest = PARTS[part], [b for b in benches if b not in PARTS[part]]
    return {b: (len(rest) / len(inside) if half else 0) if b in inside else 1 for b in benches}


def phase2(s, phase1, experts, sft, found):
    """train_cdpo.py's main, on given pairs."""
    both = scored(toy_pairs.samples(found), experts)
    ref = paper_train.reference(phase1.lm, both)                                                      # (2N,)
    pairs, settings = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both)), train_cdpo.Settings(seed=s.seed)
    router = deepcopy(phase1).requires_grad_(True)
    torch.manual_seed(s.seed)
    train_cdpo.train(settings, router, sft, pairs, ref.view(-1, 2), train_cdpo.make_plan(settings, sft.lengths, pairs.lengths))
    return router.requires_grad_(False)


def measure(s, cell):
    first, experts, _ = models.load_router(s, "router_sft")
    both = models.load_router(s, "router")[0]
    found = [json.loads(line) for line in (models.folder(s) / "pairs.jsonl").read_text().splitlines()]
    n, made = train_sft.Settings.samples, {}

    def usual():
        if "sft" not in made:
            made["sft"] = frame.sft_data(s, experts)
        return made["sft"]

    def judged(router):
        return frame.judged(s, frame.fused(router, experts))

    cell("as always", "both phases", lambda: judged(both))
    for share in NOISE:
        cell(f"{share:.0%} flipped", "both phases", lambda: judged(phase2(s, first, experts, usual(), flipped(found, share, s.seed))))
    for part in ("math", "general"):
        cell(f"pairs without {part}", "both phases", lambda: judged(phase2(s, first, experts, usual(), without(found, part, s.seed))))
    cell("as always", "phase 1 only", lambda: judged(first))
    for part, half in (("math", False), ("general", False), ("math", True)):
        label = f"SFT: half {part}" if half else f"SFT without {part}"
        cell(label, "phase 1 only", lambda: judged(
            frame.phase1(s, experts, scored([toy.sample(item) for item in sft_items(s.seed, n, weighted(part, half))], experts))))


if __name__ == "__main__":
    run.run(lambda: frame.main("data", measure, __doc__, "data"))
