"""Assumption 4.2 on the trained toy: how much does the best expert lose at prefixes of right
answers?

The assumption wants an expert at EVERY prefix s that loses at most Delta:
V*(s) - max_i E_{a ~ pi_i} Q*(s, a) <= Delta. Here the reward is the checker's 1 or 0 at the end. At
a prefix of a right answer y, V* = 1 and Q*(s, y_t) = 1. For other tokens Q* is not known (a few
answers can be written in two ways), so it is taken as 0: the loss of expert i is at most
1 - pi_i(y_t | s). That bound is shown for the best expert at each prefix ("best expert"), and with
Eq. (1), the router and its picked expert, in the place of pi_i ("fused").

Departure: the assumption speaks of every prefix, also of wrong ones. Those have no right next token
here, so they are left out: the true Delta can only be larger.
"""

import time

import torch

from extra.paper import checkpoints, evaluate
from extra.paper.losses import picked, read
from extra.paper.recipes import Cdpo
from extra.paper.train import load_router, train
from fusionroute import fuse, token_logp
from toy_experts.data import pack
from toy_experts.experts import sample_of


@torch.no_grad()
def losses(router, experts, samples, batch=32):
    """1 - pi(y_t) at each token of right answers: of the best expert there, and of Eq. (1).

    Two lists, a tensor (tokens,) for each sample.
    """
    ids, mask, lengths = pack(samples)
    best, fused = [None] * len(ids), [None] * len(ids)
    for rows in lengths.argsort().split(batch):
        x = ids[rows, : int(lengths[rows].max())].to(router.W.weight.device)  # (b, t)
        full = read(experts, x[:, :-1])  # (b, t-1, n, V)
        logits, w = router(x[:, :-1])  # (b, t-1, V), (b, t-1, n)
        gold = x[:, 1:, None, None].expand(-1, -1, full.size(2), 1)  # (b, t-1, n, 1)
        p_best = full.gather(-1, gold)[..., 0].amax(-1).exp().cpu()  # (b, t-1)
        p_fused = token_logp(fuse(logits, picked(full, w)), x[:, 1:]).exp().cpu()  # (b, t-1)
        for k, row in enumerate(rows.tolist()):
            inside = mask[row, 1 : x.size(1)]  # (t-1,)
            best[row], fused[row] = 1 - p_best[k][inside], 1 - p_fused[k][inside]
    return best, fused


def summary(answers):
    """Of the losses of some answers, a tensor (tokens,) for each: Delta is the largest."""
    above = torch.tensor([float((x > 0.5).any()) for x in answers])  # (answers,)
    return {"Delta": float(torch.cat(answers).max()), "answers_above_half": float(above.mean())}


def one_seed(s):
    """{group: {"best expert": summary, "fused": summary}}, and the seconds that it took."""
    checkpoints.ensure(s)
    train(s, Cdpo())
    begun, (router, experts, _) = time.time(), load_router(s, Cdpo())
    held, groups = evaluate.held_out(s), {"covered": [], "uncovered": [], "general": []}
    for b, items in evaluate.draw(s).items():
        for item in items:
            group = "uncovered" if item.skill in held.get(b, ()) else "covered"
            groups["general" if b == "general" else group].append(sample_of(item))
    out = {}
    for group, samples in groups.items():
        both = map(summary, losses(router, experts, samples))
        out[group] = dict(zip(("best expert", "fused"), both))
        for who, columns in out[group].items():
            print(f"{group}, {who}: " + "  ".join(f"{c} {x:.3f}" for c, x in columns.items()))
    return out | {"seconds": time.time() - begun}


def files(runs, results):
    """file -> its content, from the results of several seeds; and what these were made with."""
    rows = {}
    for group in ("covered", "uncovered", "general"):
        rows[group] = {}
        for who, columns in results[0][group].items():
            each = {c: [round(r[group][who][c], 4) for r in results] for c in columns}
            rows[group][who] = each
    seconds = {"seconds": round(sum(r["seconds"] for r in results))}
    return {"delta": {"groups": rows}}, checkpoints.made_with(runs) | seconds
