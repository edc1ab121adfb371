"""Phase 1 of FusionRoute: supervised fine-tuning of the router with the routing loss, Eq. (2). Read next: train_cdpo.py.

    python train_sft.py            trains the toy experts first where they are missing, then the router
    diff train_sft.py train_cdpo.py    in the loop: what CDPO adds; before it: pairs and pi_ref
    python train_sft.py --init DIR --experts math=DIR code=DIR --data train.jsonl    models and data of your own: see own.py
    torchrun --nproc_per_node=4 train_sft.py ...    the same on several GPUs, with the same result: see parallel.py
    python train_sft.py --init DIR --data math.jsonl --name math    no experts: Eq. (2) is plain fine-tuning, which makes an expert

The router starts from the instruction expert, as in the paper. Departures from it, and choices of ours:
1. The paper passes once over 200k samples at a learning rate of 1e-5, which are the defaults with --experts; the toy, four times over
   2400 at 4e-3, as its models are tiny and know little.
2. W starts at 0, so that no expert is preferred, and has a learning rate of its own.
3. AdamW with betas (0.9, 0.98) and weight decay 0.01; 20 steps of warm-up, then a cosine to a tenth of the peak; gradients clipped to
   norm 1 (common.py, both phases).

Writes OUT/seedN/router_sft.pt and router_sft.log.jsonl: loss, loss_lm and loss_expert (the two terms of Eq. (2)), informative (the share
of answer tokens in S), and route_* (the share of each expert in the routing, inside S). Killed and started again, it goes on from the
last saved step, with the same result.
"""

import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

import baselines
import common
import own
import parallel
from fusionroute import Router, sft_loss
from toy_experts.world import World


@dataclass
class Settings:
    seed: int = 0              # selects the run: all data and weights follow from it
    out: str = "out"           # runs are kept in OUT/seedN/
    device: str = "auto"       # auto, cuda, mps or cpu
    family: str = "llama"      # architecture of the toy's models: llama or gemma (Gemma-2)
    gap: float = 0.25          # share of each benchmark's sub-skills that no expert is trained on
    samples: int = 2400        # SFT samples, equal shares of the benchmarks and general prompts
    epochs: int = 4            # passes over them
    batch: int = 16            # samples a step
    lr: float = 4e-3           # peak learning rate of theta_LM
    lr_w: float = 3e-3         # peak learning rate of W
    lam: float = 1 / 3         # lambda of Eq. (2), the weight of the routing loss
    loss: str = "paper"        # paper is Eq. (2); its neighbours are in baselines.SFT_LOSSES
    name: str = "router_sft"   # what is written: OUT/seedN/NAME.pt
    save_every: int = 100      # steps between saved states
    fsdp: bool = False         # under torchrun: divide the router among the processes, in place of a copy for each

    def __post_init__(self):
        common.positive(self, "samples", "epochs", "batch", "lr", "lr_w", "save_every")
        common.positive(self, "lam", or_zero=True)
        common.one_of(self, "loss", baselines.SFT_LOSSES)
        common.file_stem(self, "name")
        parallel.check(self)


def main(argv=None):
    s, world = own.settings(Settings, __doc__, argv, "init", "experts", "data", "dtype", "bf16", "max_len")
    world = world or World()  # the toy, which own.py exchanges for models and data of your own
    folder, device = common.prepare(s)
    recipe = world.start(s)
    path, state_path = folder / f"{s.name}{world.suffix}", folder / f"{s.name}.state.pt"
    if path.exists():
        common.check_same(path, world.recipe_of(path, "start again"), recipe)
        return print(f"{path} is there already")

    begun = time.time()
    # What training needs to know of the experts: two numbers per expert and token. After this they are not needed.
    ids, mask, lengths, logp, choice = world.scored(folder, world.sft(recipe))
    choices = recipe["experts"] | ({"router": ""} if s.loss == "co_llm_self" else {})  # what W chooses among
    router = Router(world.first_router(), len(choices))
    plan = [rows for epoch in range(s.epochs) for rows in common.batches(lengths, s.batch, s.seed * 1000 + epoch)]

    router = parallel.spread(router.requires_grad_(True), device, s.fsdp)
    experts = world.experts if s.loss in baselines.READ_EXPERTS else None
    world.experts = None  # so that they are freed where nothing reads them
    optimizer = torch.optim.AdamW([{"params": router.lm.parameters(), "peak": s.lr}, {"params": router.W.parameters(), "peak": s.lr_w}],
                                  lr=s.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    start, log = parallel.resume(state_path, recipe, router, optimizer)

    seen, clock = 0, time.time()
    bar = tqdm(range(start, len(plan)), desc="phase 1", initial=start, total=len(plan), mininterval=1.0)
    for step in bar:
        rows, mean = parallel.share(plan[step])                                   # all of it, without torchrun
        T = int(lengths[rows].max())
        x = ids[rows, :T].to(device)                                              # (B, T)
        y, m = x[:, 1:], mask[rows, 1:T].to(device)                               # (B, T-1) both: targets, which of them count
        logits, w = router(x[:, :-1])                                             # (B, T-1, V), (B, T-1, n)
        expert_logp = logp[rows, :T - 1].to(device)                               # (B, T-1, n)
        expert_choice = choice[rows, :T - 1].to(device)                           # (B, T-1, n)
        full = baselines.read(experts, x[:, :-1]) if experts else None            # (B, T-1, n, V): the paper's loss does without
        if s.loss == "paper":
            loss, info = sft_loss(logits, w, y, m, expert_logp, expert_choice, s.lam, mean=mean)
        else:
            loss, info = baselines.sft_variant(s.loss, logits, w, y, m, expert_logp, expert_choice, s.lam, full, mean)
        info |= {f"route_{name}": share for name, share in zip(choices, info.pop("routing"))}

        common.update(loss, router, optimizer, common.schedule(step, len(plan), warmup=20))
        log.append({"step": step, **{k: round(float(v), 5) for k, v in ({"loss": loss.detach()} | info).items()}})
        seen += int(lengths[rows].sum())
        bar.set_postfix_str(f"loss {log[-1]['loss']:.3f}, {seen / (time.time() - clock):,.0f} tokens/s", refresh=False)
        if (step + 1) % s.save_every == 0:
            parallel.save_state(state_path, recipe, step + 1, router, optimizer, log)

    router = parallel.whole(router)
    if parallel.first():
        common.write_log(folder / f"{s.name}.log.jsonl", log)
        world.save(path, router, recipe, time.time() - begun, choices)
        state_path.unlink(missing_ok=True)


if __name__ == "__main__":
    parallel.run(main)
