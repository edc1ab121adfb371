"""Phase 1 with models and data of your own: Eq. (2), as in train_sft.py of the ground floor. Read that first, then own.py.

    python -m extra.real.train_sft --init DIR --experts math=DIR code=DIR --data train.jsonl
    python -m extra.real.train_sft --init DIR --data math.jsonl --name math     no experts: plain fine-tuning, which makes an expert
    torchrun --nproc_per_node=4 -m extra.real.train_sft ...                     on several GPUs, with the same result: see parallel.py

On the same data this loop gives the same weights as the ground floor's, to the bit (a test). It adds: a share of each batch for each
process, saved states, and training without experts. Defaults are the paper's: one pass over the data at a learning rate of 1e-5.

Writes the directory OUT/seedN/router_sft and router_sft.log.jsonl beside it, which holds what the ground floor's logs hold. Killed and
started again, it resumes from the last saved step, with the same result.
"""

import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from extra.common import file_stem
from extra.real import own, parallel
from extra.real.locks import only_run
from fusionroute import sft_loss, token_logp
from toy_experts import run
from toy_experts.data import batches
from toy_experts.train import schedule


@dataclass
class Settings:
    seed: int = 0              # selects the run, and the order of the samples
    out: str = "own"           # runs are kept in OUT/seedN/
    device: str = "auto"       # auto, cuda, mps or cpu
    epochs: int = 1            # passes over the samples
    batch: int = 16            # samples a step, of all processes together
    lr: float = 1e-5           # peak learning rate of theta_LM
    lr_w: float = 1e-5         # peak learning rate of W
    lam: float = 1 / 3         # lambda of Eq. (2), the weight of the routing loss
    name: str = "router_sft"   # what is written: the directory OUT/seedN/NAME
    save_every: int = 100      # steps between saved states
    fsdp: bool = False         # under torchrun: divide the router among the processes, instead of a copy for each

    def __post_init__(self):
        run.positive(self, "epochs", "batch", "lr", "lr_w", "save_every")
        run.positive(self, "lam", or_zero=True)
        file_stem(self, "name")
        parallel.check(self)


def loss_of(logits, w, targets, mask, logp, choice, lam):
    """fusionroute.sft_loss; without experts what is left of Eq. (2): L_LM."""
    if w.size(-1):
        return sft_loss(logits, w, targets, mask, logp, choice, lam)
    loss_lm = -token_logp(logits, targets)[mask].sum() / mask.sum()
    return loss_lm, {"loss_lm": loss_lm, "loss_expert": loss_lm.new_zeros(()), "informative": loss_lm.new_zeros(())}


def train(s, router, sft, names, device="cpu", recipe=None, state=None):
    """Train a router on sft (toy_experts.data.Data); returns it and the log. names: of the experts.

    recipe, state: what a saved state must have been made with, and its path; None: no state is saved.
    """
    plan = [rows for e in range(s.epochs) for rows in batches(sft.lengths, s.batch, s.seed * 1000 + e)]
    router = parallel.spread(router.requires_grad_(True), device, s.fsdp)
    optimizer = torch.optim.AdamW([{"params": router.lm.parameters(), "lr": s.lr, "peak": s.lr},
                                   {"params": router.W.parameters(), "lr": s.lr_w, "peak": s.lr_w}],
                                  betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    log = run.Log(names)
    start, records = parallel.resume(state, recipe, router, optimizer)
    log.extend(records)
    for step in tqdm(range(start, len(plan)), desc="phase 1", initial=start, total=len(plan), mininterval=1.0):
        rows, weight = parallel.share(plan[step])                    # without torchrun: all of the batch
        x, mask, logp, choice = sft.batch(rows, device)              # (B, T), (B, T-1), (B, T-1, n) twice
        logits, w = router(x[:, :-1])                                # (B, T-1, V), (B, T-1, n)
        total, terms = loss_of(logits, w, x[:, 1:], mask, logp, choice, s.lam)
        count = mask.sum()
        total, loss, terms = parallel.of_whole_batch(total, terms, count, weight, in_S=terms["informative"] * count)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, len(plan), warmup=20)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
        log.add(loss, terms)
        if (step + 1) % s.save_every == 0:
            parallel.save_state(state, recipe, step + 1, router, optimizer, log)
    return parallel.whole(router), log


def main(argv=None):
    s, setup = own.settings(Settings, __doc__, argv, "init", "experts", "data", "dtype", "bf16", "max_len")
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
    sft = setup.scored(folder, setup.samples("data", "completion"))
    router, log = train(s, setup.first_router(), sft, setup.names, device, recipe, state)
    if parallel.first():
        log.save(folder / f"{s.name}.log.jsonl")
        setup.save(path, router, recipe, time.time() - begun)
        state.unlink(missing_ok=True)


if __name__ == "__main__":
    parallel.run(main)
