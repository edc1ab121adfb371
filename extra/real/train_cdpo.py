"""Phase 2 with models and data of your own: Eq. (3) and Algorithm 1, as in train_cdpo.py of the ground floor. Read train_sft.py first.

    python -m extra.real.train_cdpo --experts math=DIR code=DIR --pairs pairs.jsonl --data train.jsonl
    torchrun --nproc_per_node=4 -m extra.real.train_cdpo ...

It needs the router of phase 1, OUT/seedN/router_sft, and the experts that it was trained with. On the same data this loop gives the same
weights as the ground floor's, to the bit (a test). Defaults are the paper's: one pass over the pairs at a learning rate of 1e-5.

Writes the directory OUT/seedN/router and router.log.jsonl beside it, which holds what the ground floor's logs hold, and in a pair step
length_chosen and length_rejected: answer lengths in tokens.
"""

import time
from dataclasses import dataclass
from random import Random

import torch
from tqdm import tqdm

from extra.common import file_stem
from extra.real import own, parallel
from extra.real.locks import only_run
from fusionroute import sft_loss
from toy_experts import run
from toy_experts.data import Data, batches
from toy_experts.train import schedule
from train_cdpo import pair_loss


@dataclass
class Settings:
    seed: int = 0              # selects the run, and the order of samples and pairs
    out: str = "own"           # runs are kept in OUT/seedN/
    device: str = "auto"       # auto, cuda, mps or cpu
    epochs: int = 1            # passes over the pairs
    batch: int = 16            # SFT samples, or pairs, a step, of all processes together
    lr: float = 1e-5           # peak learning rate of theta_LM
    lr_w: float = 1e-5         # peak learning rate of W (in SFT batches; pairs never move W)
    lam: float = 1 / 3         # lambda of Eq. (2), the weight of the routing loss
    beta: float = 0.1          # beta of Eq. (3)
    mix: int = 1               # SFT batches to one batch of pairs
    phase1: str = "router_sft" # what is trained further: OUT/seedN/PHASE1
    name: str = "router"       # what is written: the directory OUT/seedN/NAME
    save_every: int = 50       # steps between saved states
    fsdp: bool = False         # under torchrun: divide the router among the processes, instead of a copy for each

    def __post_init__(self):
        run.positive(self, "epochs", "batch", "lr", "lr_w", "beta", "save_every")
        run.positive(self, "lam", "mix", or_zero=True)
        file_stem(self, "phase1", "name")
        parallel.check(self)


def make_plan(s, sft_lengths, pair_lengths):
    """Algorithm 1's shuffled mix, [("sft" or "pair", rows)]: every pair s.epochs times, and s.mix times as many SFT batches."""
    plan = [("pair", rows) for e in range(s.epochs) for rows in batches(pair_lengths.amax(1), s.batch, s.seed * 1000 + e)]
    sft = []
    while len(sft) < s.mix * len(plan):
        sft += [("sft", rows) for rows in batches(sft_lengths, s.batch, s.seed * 1000 + 500 + len(sft))]
    Random(f"plan {s.seed}").shuffle(mix := plan + sft[:s.mix * len(plan)])
    return mix


def train(s, router, sft, pairs, ref, names, device="cpu", recipe=None, state=None):
    """Train a router on sft and pairs (Data); returns it and the log. ref: log pi_ref of the answers, (pairs, 2). See train_sft.train."""
    plan = make_plan(s, sft.lengths, pairs.lengths)
    router = parallel.spread(router.requires_grad_(True), device, s.fsdp)
    optimizer = torch.optim.AdamW([{"params": router.lm.parameters(), "lr": s.lr, "peak": s.lr},
                                   {"params": router.W.parameters(), "lr": s.lr_w, "peak": s.lr_w}],
                                  betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    log = run.Log(names)
    start, records = parallel.resume(state, recipe, router, optimizer)
    log.extend(records)
    for step in tqdm(range(start, len(plan)), desc="phase 2", initial=start, total=len(plan), mininterval=1.0):
        kind, rows = plan[step]
        rows, weight = parallel.share(rows)                          # without torchrun: all of the batch
        x, mask, logp, choice = (pairs if kind == "pair" else sft).batch(rows, device)
        logits, w = router(x[:, :-1])                                # (B or 2B, T-1, V), (.., T-1, n)
        if kind == "pair":                                           # moves theta_LM, never W
            total, terms = pair_loss(logits, w, x[:, 1:], mask, logp, ref[rows].to(device), s.beta)
            length_chosen, length_rejected = mask.sum(-1).float().view(-1, 2).mean(0)
            terms |= {"length_chosen": length_chosen, "length_rejected": length_rejected}
            count, in_S = len(rows), 0
        else:
            total, terms = sft_loss(logits, w, x[:, 1:], mask, logp, choice, s.lam)
            count = mask.sum()
            in_S = terms["informative"] * count
        total, loss, terms = parallel.of_whole_batch(total, terms, count, weight, in_S)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, len(plan), warmup=20)
        optimizer.zero_grad()                                        # to None, not 0: W must not move on pairs at all
        total.backward()
        torch.nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
        log.add(loss, terms, kind)
        if (step + 1) % s.save_every == 0:
            parallel.save_state(state, recipe, step + 1, router, optimizer, log)
    return parallel.whole(router), log


def main(argv=None):
    s, setup = own.settings(Settings, __doc__, argv, "experts", "pairs", "data", "dtype", "bf16", "max_len")
    recipe = setup.recipe(s)
    folder, device = run.prepare(s)
    with only_run(folder, s.name):
        run_phase(s, setup, recipe, folder, device)


def run_phase(s, setup, recipe, folder, device):
    path, state = folder / s.name / own.FILE, folder / f"{s.name}.state.pt"
    if path.exists():
        run.check_same(path, setup.read(path, "start again")["recipe"], recipe)
        return print(f"{path} is there already")

    begun = time.time()
    # both files are read before anything is scored
    pair_samples, sft_samples = setup.samples("pairs", "chosen", "rejected"), setup.samples("data", "completion")
    sft, both = setup.scored(folder, sft_samples), setup.scored(folder, pair_samples)  # both: chosen, rejected, chosen, ...
    router = setup.phase1_router()
    ref = setup.reference(folder, router, both).view(-1, 2)
    pairs = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
    router, log = train(s, router, sft, pairs, ref, setup.names, device, recipe, state)
    if parallel.first():
        log.save(folder / f"{s.name}.log.jsonl")
        setup.save(path, router, recipe, time.time() - begun)
        state.unlink(missing_ok=True)


if __name__ == "__main__":
    parallel.run(main)
