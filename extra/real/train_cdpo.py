"""Phase 2 of FusionRoute: complemented DPO, Eq. (3), mixed with SFT, Algorithm 1. Read train_sft.py first.

    python train_cdpo.py           needs the router of phase 1 (python train_sft.py)
    python train_cdpo.py --experts math=DIR code=DIR --pairs pairs.jsonl --data train.jsonl    your own models and data: see own.py

Departures from the paper, readings of it and choices of ours, besides those of phase 1 (train_sft.py):
1. The paper's pairs come from OpenHermes. Here y_w is a right answer, and y_l a wrong one that the fused model of phase 1 itself
   sampled: what it does wrong is what there is to correct. Prompts that it never fails give no pair.
2. Algorithm 1 shuffles single samples; here whole batches, half of them SFT, half pairs, in random order.
3. The SFT batches are phase 1's data again; the paper takes other samples of the same source.
4. The paper passes once over its 100k pairs at 1e-5; the toy, twice over what 2000 prompts give, at 2e-4.

Writes OUT/seedN/router.pt, the pairs as pairs-*.jsonl (the name holds a hash of what they were sampled from), and router.log.jsonl.
A pair step logs: loss; reward_w and reward_l = beta log pi_theta/pi_ref of chosen and rejected; margin, their difference; accuracy,
the share of pairs with margin > 0; bias, the experts' share of Eq. (3); fused_accuracy, the share with margin + bias > 0;
length_w and length_l, answer lengths in tokens. An SFT step logs what phase 1 logs.
"""

import time
from dataclasses import dataclass
from random import Random

import torch
from tqdm import tqdm

import baselines
import common
import own
import parallel
from fusionroute import cdpo_loss, routed_logp, sequence_logp, sft_loss
from toy_experts import pairs
from toy_experts.world import World


@dataclass
class Settings:
    seed: int = 0              # selects the run: all data and weights follow from it
    out: str = "out"           # runs are kept in OUT/seedN/
    device: str = "auto"       # auto, cuda, mps or cpu
    family: str = "llama"      # architecture of the toy's models: llama or gemma (Gemma-2)
    prompts: int = 2000        # prompts of the preference split to make pairs from
    tries: int = 2             # answers sampled for each prompt; the first wrong one becomes y_l
    temperature: float = 1.0   # temperature of these samples
    epochs: int = 2            # passes over the pairs
    batch: int = 16            # SFT samples, or pairs, a step
    lr: float = 2e-4           # peak learning rate of theta_LM
    lr_w: float = 1e-3         # peak learning rate of W (in SFT batches; pairs never move W)
    lam: float = 1 / 3         # lambda of Eq. (2), the weight of the routing loss
    beta: float = 0.1          # beta of Eq. (3)
    loss: str = "paper"        # paper is Eq. (3); its neighbours are in baselines.PAIR_LOSSES
    rejected: str = "fused"    # whose mistakes y_l are: fused (the fused model of phase 1), router, experts or corrupted
    mix: int = 1               # batches of SFT samples to one of pairs
    phase1: str = "router_sft" # what is trained further: OUT/seedN/PHASE1.pt
    pairs_of: str = ""         # the router whose pairs are used: OUT/seedN/PAIRS_OF.pt; nothing means PHASE1's own
    name: str = "router"       # what is written: OUT/seedN/NAME.pt
    save_every: int = 50       # steps between saved states
    fsdp: bool = False         # under torchrun: divide the router among the processes, in place of a copy for each

    def __post_init__(self):
        common.positive(self, "prompts", "tries", "temperature", "epochs", "batch", "lr", "lr_w", "beta", "save_every")
        common.positive(self, "lam", "mix", or_zero=True)
        common.one_of(self, "loss", baselines.PAIR_LOSSES)
        common.one_of(self, "rejected", pairs.SOURCES)
        common.file_stem(self, "phase1", "name")
        parallel.check(self)


def make_plan(sft_lengths, pair_lengths, s):
    """Algorithm 1's shuffled mix: [("sft" or "pair", indices)], every pair s.epochs times, and s.mix times as many SFT batches."""
    plan = [("pair", rows) for e in range(s.epochs) for rows in common.batches(pair_lengths, s.batch, s.seed * 1000 + e)]
    sft = []
    while len(sft) < s.mix * len(plan):
        sft += [("sft", rows) for rows in common.batches(sft_lengths, s.batch, s.seed * 1000 + 500 + len(sft))]
    Random(f"plan {s.seed}").shuffle(mix := plan + sft[:s.mix * len(plan)])
    return mix


def of_pairs(x):
    """What belongs to y_w and what to y_l, whose rows come in turn: (2B,) -> (B,), (B,)."""
    return x[::2], x[1::2]


def main(argv=None):
    s, world = own.settings(Settings, __doc__, argv, "experts", "pairs", "data", "dtype", "bf16", "max_len")
    world = world or World()  # the toy, which own.py exchanges for models and data of your own
    phase1, recipe = world.go_on(s)  # phase1: the recipe of what is trained further
    folder, device = common.prepare(s)
    path, state_path = folder / f"{s.name}{world.suffix}", folder / f"{s.name}.state.pt"
    if path.exists():
        common.check_same(path, world.recipe_of(path, "start again"), recipe)
        return print(f"{path} is there already")

    begun = time.time()
    pair_samples, sft_samples = world.pairs(s, folder, recipe), world.sft(phase1)  # both are read before anything is scored
    tables = {"sft": world.scored(folder, sft_samples), "pair": world.scored(folder, pair_samples)}
    router = world.phase1_router()
    # pi_ref, the router's language model as phase 1 left it, stays frozen: its log-probabilities are computed once.
    ids, mask, lengths, _, _ = tables["pair"]  # rows 2i and 2i + 1: y_w, y_l of pair i
    ref = (world.reference(folder, router, ids, lengths) * mask[:, 1:]).sum(-1).to(device)  # (2 * pairs,)
    if s.loss == "fused":
        ref = baselines.fused_reference(router, world.experts, ids, mask, lengths).to(device)  # (2 * pairs,)
    plan = make_plan(tables["sft"][2], torch.maximum(*of_pairs(lengths)), s)

    router = parallel.spread(router.requires_grad_(True), device, s.fsdp)
    experts = world.experts if {s.loss, phase1["loss"]} & baselines.READ_EXPERTS else None
    world.experts = None  # so that they are freed where nothing reads them
    optimizer = torch.optim.AdamW([{"params": router.lm.parameters(), "peak": s.lr}, {"params": router.W.parameters(), "peak": s.lr_w}],
                                  lr=s.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    start, log = parallel.resume(state_path, recipe, router, optimizer)

    seen, clock = 0, time.time()
    bar = tqdm(range(start, len(plan)), desc="phase 2", initial=start, total=len(plan), mininterval=1.0)
    for step in bar:
        kind, rows = plan[step]
        rows, mean = parallel.share(rows)                                         # all of it, without torchrun
        ids, mask, lengths, logp, choice = tables[kind]
        if kind == "pair":
            rows = torch.stack([2 * rows, 2 * rows + 1], 1).flatten()             # (2B,): y_w, y_l in turn
        T = int(lengths[rows].max())
        x = ids[rows, :T].to(device)                                              # (B, T)
        y, m = x[:, 1:], mask[rows, 1:T].to(device)                               # (B, T-1) both: targets, which of them count
        logits, w = router(x[:, :-1])                                             # (B, T-1, V), (B, T-1, n)
        expert_logp = logp[rows, :T - 1].to(device)                               # (B, T-1, n)
        expert_choice = choice[rows, :T - 1].to(device)                           # (B, T-1, n)
        full = baselines.read(experts, x[:, :-1]) if experts else None            # (B, T-1, n, V): the paper's losses do without
        if kind == "pair" and s.loss == "paper":
            theta = sequence_logp(logits, y, m)                                   # (2B,)
            expert = routed_logp(w, expert_logp, m)                               # (2B,), no gradient: it is detached in the loss
            loss, info = cdpo_loss(*of_pairs(theta), *of_pairs(ref[rows]), *of_pairs(expert), s.beta, mean)
            size_w, size_l = of_pairs(m.sum(-1).float())                          # (B,), answer lengths
            info |= {"length_w": mean(size_w), "length_l": mean(size_l)}
        elif kind == "pair":
            loss, info = baselines.pair_variant(s.loss, logits, w, y, m, expert_logp, ref[rows], s.beta, full, mean)
        elif phase1["loss"] == "paper":                                           # SFT batches go on as phase 1 left off
            loss, info = sft_loss(logits, w, y, m, expert_logp, expert_choice, s.lam, mean=mean)
        else:
            loss, info = baselines.sft_variant(phase1["loss"], logits, w, y, m, expert_logp, expert_choice, s.lam, full, mean)
        info |= {f"route_{name}": share for name, share in zip(world.names, info.pop("routing", []))}

        common.update(loss, router, optimizer, common.schedule(step, len(plan), warmup=20))
        log.append({"step": step, "kind": kind, **{k: round(float(v), 5) for k, v in ({"loss": loss.detach()} | info).items()}})
        seen += int(lengths[rows].sum())
        bar.set_postfix_str(f"{kind} loss {log[-1]['loss']:.3f}, {seen / (time.time() - clock):,.0f} tokens/s", refresh=False)
        if (step + 1) % s.save_every == 0:
            parallel.save_state(state_path, recipe, step + 1, router, optimizer, log)

    router = parallel.whole(router)
    if parallel.first():
        common.write_log(folder / f"{s.name}.log.jsonl", log)
        world.save(path, router, recipe, time.time() - begun, recipe["experts"])
        state_path.unlink(missing_ok=True)


if __name__ == "__main__":
    parallel.run(main)
