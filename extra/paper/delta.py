"""Assumption 4.2 on the trained toy: how much does the best expert lose at the prefixes of right answers?

    python -m extra.paper.delta --seeds 2 3    writes extra/results/delta.json; python -m extra.paper.report then fills extra/paper/README.md

The assumption wants an expert at EVERY prefix s that loses at most Delta: V*(s) - max_i E_{a ~ pi_i} Q*(s, a) <= Delta. Here the reward is
the checker's 1 or 0 at the end. At a prefix of a right answer y, V* = 1, and Q*(s, y_t) = 1. For other tokens Q* is not known (a
few answers can be written in two ways), so it is taken as 0, and the loss of expert i is at most 1 - pi_i(y_t | s). What is
shown is that bound, for the best expert at each prefix, and beside it 1 - pi_final(y_t | s) of the router with its picked expert, Eq. (1).

Departure: the assumption speaks of every prefix, also of wrong ones. Those have no right next token here, so they are left out: the true
Delta can only be larger.
"""

import json
import time

import torch

from extra import models
from extra.common import RESULTS, several
from extra.paper import evaluate
from extra.paper.ablate import Settings
from extra.paper.variants import picked, read
from fusionroute import fuse, token_logp
from toy_experts import run, tasks
from toy_experts import train as toy
from toy_experts.data import pack

GROUPS = ("covered", "uncovered", "general")


@torch.no_grad()
def losses(router, experts, samples, batch=32):
    """1 - pi(y_t) at every token of right answers: of the best expert there, and of Eq. (1). Two lists, a tensor (tokens,) for each sample."""
    ids, mask, lengths = pack(samples)
    best, fused = [None] * len(ids), [None] * len(ids)
    for rows in lengths.argsort().split(batch):
        x = ids[rows, :int(lengths[rows].max())].to(router.W.weight.device)                                       # (b, t)
        full = read(experts, x[:, :-1])                                                                           # (b, t-1, n, V)
        logits, w = router(x[:, :-1])                                                                             # (b, t-1, V), (b, t-1, n)
        gold = x[:, 1:, None, None].expand(-1, -1, full.size(2), 1)                                               # (b, t-1, n, 1)
        p_best = full.gather(-1, gold)[..., 0].amax(-1).exp().cpu()                                               # (b, t-1)
        p_fused = token_logp(fuse(logits, picked(full, w)), x[:, 1:]).exp().cpu()                                 # (b, t-1)
        for k, row in enumerate(rows.tolist()):
            inside = mask[row, 1:x.size(1)]                                                                       # (t-1,)
            best[row], fused[row] = 1 - p_best[k][inside], 1 - p_fused[k][inside]
    return best, fused


def summary(per_answer):
    """Of the losses of some answers, a tensor (tokens,) for each: Delta as the largest, and what it hides."""
    every = torch.cat(per_answer)
    return {"Delta": float(every.max()), "mean": float(every.mean()), "above_half": float((every > 0.5).float().mean()),
            "answers_above_half": float(torch.tensor([bool((x > 0.5).any()) for x in per_answer]).float().mean()),
            "sum": float(torch.stack([x.sum() for x in per_answer]).mean()), "tokens": float(torch.tensor([len(x) for x in per_answer]).float().mean())}


def measure(s):
    """{group: {"best expert": summary, "fused": summary}} of one seed."""
    router, experts, _ = models.load_router(s, "router")
    gap, groups = models.gap(s), {group: [] for group in GROUPS}
    for b, items in evaluate.drawn("test", s.seed, s.prompts, s.prompts).items():
        for item in items:
            held = b != "general" and item.skill in tasks.held_out(b, gap, s.seed)
            groups["general" if b == "general" else "uncovered" if held else "covered"].append(toy.sample(item))
    return {group: dict(zip(("best expert", "fused"), map(summary, losses(router, experts, samples)))) for group, samples in groups.items()}


def main(argv=None):
    runs, seeds = several(run.parser(Settings, __doc__), Settings, argv)
    begun = time.time()
    results = [measure(s) for s in runs]
    rows = {g: {who: {k: [round(r[g][who][k], 4) for r in results] for k in first} for who, first in results[0][g].items()} for g in GROUPS}
    for g, row in rows.items():
        for who, values in row.items():
            print(f"{g}, {who}: " + "  ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in values.items()))
    if seeds:
        meta = {"seeds": seeds, "split": "test", "prompts per benchmark": runs[0].prompts, "seconds": round(time.time() - begun)}
        run.write(RESULTS / "delta.json", json.dumps({"groups": rows, "meta": meta}, indent=1) + "\n")
        print("saved extra/results/delta.json")


if __name__ == "__main__":
    run.run(main)
