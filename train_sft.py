"""Phase 1 of FusionRoute: supervised fine-tuning of the router with the routing loss, Eq. (2).

    python train_sft.py                trains the toy's experts first, where they are missing
    diff train_sft.py train_cdpo.py    what CDPO adds

Read fusionroute.py first, and train_cdpo.py next. Departures from the paper, and choices of ours:
1. The paper passes once over 200k samples at a learning rate of 1e-5. The toy passes four times
   over 2400 samples at 4e-3: its models are tiny and know little.
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
from random import Random

import torch
from tqdm import tqdm

from fusionroute import Router, sft_loss
from toy_experts import run, tasks
from toy_experts import train as toy
from toy_experts.data import batches, scored
from toy_experts.batch import expect_losses, show_accuracy, show_answer, validation_item

BATCH, LR_W = 16, 3e-3     # samples a step; peak learning rate of W


@dataclass
class Settings:
    seed: int = 0          # selects the run: all random numbers follow from it
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    gap: float = 0.25      # share of each benchmark's sub-skills that no expert is trained on
    samples: int = 2400    # SFT samples, equal shares of the benchmarks and general prompts
    epochs: int = 4        # passes over them
    lr: float = 4e-3       # peak learning rate of theta_LM
    lam: float = 1 / 3     # lambda of Eq. (2), the weight of the routing loss

    def __post_init__(self):
        run.positive(self, "samples", "epochs", "lr")
        run.positive(self, "lam", or_zero=True)


def train(s, router, sft, loss=sft_loss):
    """Train the router in place on sft (toy_experts.data.Data); returns the log."""
    plan = [b for e in range(s.epochs) for b in batches(sft.lengths, BATCH, s.seed * 1000 + e)]
    optimizer = torch.optim.AdamW([{"params": router.lm.parameters(), "lr": s.lr},
                                   {"params": router.W.parameters(), "lr": LR_W}],
                                  betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: toy.schedule(step, len(plan), warmup=20))
    log, device = run.Log(toy.EXPERTS), router.W.weight.device
    for rows in tqdm(plan, desc="phase 1", mininterval=1.0):
        x, mask, logp, choice = sft.batch(rows, device)          # (B, T), (B, T-1), (B, T-1, n) * 2
        logits, w = router(x[:, :-1])                            # (B, T-1, V), (B, T-1, n)
        total, terms = loss(logits, w, x[:, 1:], mask, logp, choice, s.lam)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        log.add(total, terms)
    return log


def main(argv=None):
    s = run.settings(Settings, __doc__, argv)
    folder, device = run.prepare(s)
    experts = toy.ensure(toy.Settings(s.seed, s.out, s.device, s.gap))
    names = dict(zip(toy.EXPERTS, map(run.fingerprint, experts)))
    recipe, path = run.recipe(s) | {"experts": names}, folder / "router_sft.pt"
    if path.exists():
        saved = run.load_model(path, "start again", router=True)[1]["recipe"]
        run.check_same(path, saved, recipe)
        return print(f"{path} is there already; remove it to see its training again")

    begun = time.time()
    items = tasks.mixed("train", s.samples, Random(f"sft {s.seed}"))
    sft = scored([toy.sample(item) for item in items], experts)
    router = Router(deepcopy(experts[toy.EXPERTS.index("instruct")]), len(experts)).to(device)

    item = validation_item(s.seed)
    print(f"a validation prompt, of a kind that no expert knows: {item.prompt}")
    show_answer("before", router, experts, item)
    expect_losses(sft.batch(batches(sft.lengths, BATCH, s.seed * 1000)[0], "cpu"))
    run.expect("router_sft", ["sft"])
    log = train(s, router.requires_grad_(True), sft)
    show_answer("after", router, experts, item)
    show_accuracy(router, experts, s.seed)

    log.save(folder / "router_sft.log.jsonl")
    run.save_model(path, router, recipe, time.time() - begun, names)


if __name__ == "__main__":
    run.run(main)
