"""Phase 1 of FusionRoute: supervised fine-tuning of the router with the routing loss, Eq. (2).

    python train_sft.py                trains the toy's experts first, where they are missing
    python train_sft.py --experts shipped    takes those of toy_experts/weights instead

Read fusionroute.py first, and train_cdpo.py next. Departures from the paper, and choices of ours:
1. The paper passes once over 200k samples at a learning rate of 1e-5. The toy passes four times
   over 2400 samples at 4e-3: its models are tiny and know little. lambda = 1/3 is the paper's.
2. The router starts as a copy of the instruction expert, as in the paper: it is the expert that
   writes most generally. W starts at 0: no expert is preferred. It has its own learning rate.
3. AdamW with betas (0.9, 0.98) and weight decay 0.01; 20 steps of warm-up, then a cosine down to a
   tenth; gradients clipped to norm 1.

Writes router_sft.pt and router_sft.log.jsonl into OUT/seedN. A step logs: loss; loss_lm and
loss_expert, the two terms of Eq. (2); informative, the share of answer tokens in S; and route_*,
how often each expert is picked in S.
"""

import time
from copy import deepcopy
from dataclasses import dataclass

import torch
from tqdm import tqdm

from fusionroute import Router, sft_loss
from toy_experts import progress, script
from toy_experts.data import batches, schedule, scored
from toy_experts.experts import ensure, sft_samples
from toy_experts.script import EXPERTS

BATCH = 16  # samples a step


@dataclass
class Settings:
    seed: int = 0  # selects the run: all random numbers follow from it
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "auto"  # auto, cuda, mps or cpu
    experts: str = "own"  # own: train what is missing; shipped: take those of toy_experts/weights
    gap: float = 0.25  # share of each benchmark's sub-skills that no expert is trained on
    samples: int = 2400  # SFT samples, equal shares of the benchmarks and general prompts
    epochs: int = 4  # passes over them
    lr: float = 4e-3  # peak learning rate of theta_LM
    lr_w: float = 3e-3  # peak learning rate of W
    lam: float = 1 / 3  # lambda of Eq. (2), the weight of the routing loss

    def __post_init__(self):
        script.positive(self, "samples", "epochs", "lr", "lr_w")
        script.positive(self, "lam", or_zero=True)
        script.one_of(self, "experts", ["own", "shipped"])


def train(s, router, sft, loss_fn=sft_loss):  # loss_fn: see exercises/train.py
    """Train the router in place on sft (toy_experts.data.Data); returns the log."""
    plan = [b for e in range(s.epochs) for b in batches(sft.lengths, BATCH, s.seed * 1000 + e)]
    optimizer = torch.optim.AdamW(
        [
            {"params": router.lm.parameters(), "lr": s.lr},
            {"params": router.W.parameters(), "lr": s.lr_w},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,  # one kernel for all parameters; nothing to do with Eq. (1)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, len(plan), warmup=20)
    )
    log, device = progress.Log(), router.W.weight.device
    for rows in tqdm(plan, desc="phase 1", mininterval=1.0):
        x, mask, logp, choice = sft.batch(rows, device)  # (B, T), (B, T-1), (B, T-1, n) twice
        logits, w = router(x[:, :-1])  # (B, T-1, V), (B, T-1, n)
        loss, terms = loss_fn(logits, w, x[:, 1:], mask, logp, choice, s.lam)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        log.add(loss, terms)
    return log


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    experts = ensure(s, shipped=s.experts == "shipped")
    folder, device = script.prepare(s)
    if script.is_there(folder, "router_sft", script.recipe(s)):
        return
    begun = time.time()
    sft = scored(sft_samples(s.samples, s.seed), experts)
    router = Router(deepcopy(experts[EXPERTS.index("instruct")]), len(experts)).to(device)

    (item,) = progress.validation_items(s.seed, s.gap, 1)
    kind = "of a kind that no expert knows" if s.gap else "of a kind that an expert knows"
    print(f"a validation prompt, {kind}: {item.prompt}")
    print(f"a right answer: {item.answer!r}")
    print(f"before: {progress.answer_of(router, experts, item)!r}")
    first = batches(sft.lengths, BATCH, s.seed * 1000)[0]  # the first batch of `train`
    progress.expect_losses(sft.batch(first, "cpu"))
    progress.expect_end("router_sft", ["sft"])
    log = train(s, router.requires_grad_(True), sft)  # it is a frozen model's copy
    print(f"after: {progress.answer_of(router, experts, item)!r}")

    seconds = time.time() - begun
    script.save_router(folder, "router_sft", router, experts, script.recipe(s), seconds, log)


if __name__ == "__main__":
    script.run(main)
