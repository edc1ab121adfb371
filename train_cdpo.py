"""Phase 2 of FusionRoute: complemented DPO, Eq. (3), mixed with SFT, Algorithm 1.

    python train_cdpo.py               needs the router of phase 1: python train_sft.py

Read train_sft.py first. Departures from the paper, and choices of ours, besides those of phase 1:
1. The paper's pairs come from OpenHermes. Here the rejected answer is a mistake that the fused
   model of phase 1 made itself, see toy_experts/pairs.py. So the experts often prefer it, and the
   bias of Eq. (3) is negative on average.
2. Algorithm 1 shuffles single samples. Here whole batches are shuffled, half of them SFT batches.
3. The SFT batches are phase 1's data again; the paper takes other samples of the same source.
4. The paper passes once over 100k pairs at a learning rate of 1e-5; the toy, twice over the pairs
   of 2000 prompts at 2e-4.

Writes router.pt, router.log.jsonl and pairs.jsonl into OUT/seedN. A pair step logs: loss;
reward_chosen and reward_rejected, beta log pi_theta/pi_ref of the two answers; margin, their
difference; accuracy, the share of pairs with margin > 0; bias, the experts' part of Eq. (3);
fused_accuracy, the share with margin + bias > 0 (section 6 of docs/dpo.md: not the share for which
Eq. (1) prefers the chosen answer). An SFT step logs what phase 1 logs.
"""

import time
from dataclasses import dataclass
from random import Random

import torch
from tqdm import tqdm

from fusionroute import cdpo_loss, routed_logp, score, sequence_logp, sft_loss
from toy_experts import pairs as preference
from toy_experts import progress, script
from toy_experts.data import Data, batches, schedule, scored
from toy_experts.experts import sft_samples

BATCH = 16  # samples, or pairs, a step


@dataclass
class Settings:
    seed: int = 0  # selects the run: all random numbers follow from it
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "auto"  # auto, cuda, mps or cpu
    prompts: int = 2000  # prompts from which pairs are made
    epochs: int = 2  # passes over the pairs
    lr: float = 2e-4  # peak learning rate of theta_LM
    lr_w: float = 1e-3  # peak learning rate of W
    lam: float = 1 / 3  # lambda of Eq. (2), the weight of the routing loss
    beta: float = 0.1  # beta of Eq. (3)

    def __post_init__(self):
        script.positive(self, "prompts", "epochs", "lr", "lr_w", "beta")
        script.positive(self, "lam", or_zero=True)


def make_plan(s, sft_lengths, pair_lengths, batch=BATCH, mix=1):  # batch, mix: for extra/
    """Algorithm 1's shuffled mix, [("sft" or "pair", rows)]: mix SFT batches to one of pairs."""
    pairs = [
        ("pair", rows)
        for epoch in range(s.epochs)
        for rows in batches(pair_lengths.amax(1), batch, s.seed * 1000 + epoch)
    ]
    sft = []
    while len(sft) < mix * len(pairs):
        seed = s.seed * 1000 + 500 + len(sft)
        sft += [("sft", rows) for rows in batches(sft_lengths, batch, seed)]
    plan = pairs + sft[: mix * len(pairs)]
    Random(f"plan {s.seed}").shuffle(plan)
    return plan


def scored_pairs(pairs, experts, lm):
    """Preference pairs -> Data of shape (pairs, 2, ...), log pi_ref of both answers (pairs, 2).

    pi_ref is the router's language model lm as phase 1 left it. It stays as it is, so it reads the
    answers once.
    """
    both = scored(preference.samples(pairs), experts)  # 2N rows: chosen, rejected, chosen, ...
    logp, _ = score([lm], both.ids, both.lengths)  # (2N, T-1, 1), of the ids shifted by one
    ref = (logp[..., 0] * both.mask[:, 1:]).sum(-1)  # (2N,)
    return Data(*(x.view(-1, 2, *x.shape[1:]) for x in both)), ref.view(-1, 2)


def pair_loss(logits, w, targets, mask, logp, ref, beta):
    """Eq. (3) for a batch in which each pair is two rows, the chosen answer and the rejected one.

    logits (2B, T, V), w and logp (2B, T, n), targets and mask (2B, T), ref (B, 2). The rows
    alternate: chosen, rejected, chosen, rejected, ... (toy_experts.data.Data.batch).
    """
    theta = sequence_logp(logits, targets, mask).view(-1, 2)  # (B, 2): chosen, rejected
    expert = routed_logp(w, logp, mask).view(-1, 2)  # (B, 2)
    return cdpo_loss(*theta.unbind(1), *ref.unbind(1), *expert.unbind(1), beta)


def train(s, router, sft, pairs, ref, plan, pair_loss_fn=pair_loss, loss_fn=sft_loss):
    """Train the router in place on sft and pairs (Data) in the order of the plan; returns the log.

    ref: log pi_ref of the chosen and the rejected answers, (pairs, 2). *_fn: exercises/train.py.
    """
    optimizer = torch.optim.AdamW(
        [
            {"params": router.lm.parameters(), "lr": s.lr},
            {"params": router.W.parameters(), "lr": s.lr_w},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, len(plan), warmup=20)
    )
    log, device = progress.Log(), router.W.weight.device
    for kind, rows in tqdm(plan, desc="phase 2", mininterval=1.0):
        data = pairs if kind == "pair" else sft
        x, mask, logp, choice = data.batch(rows, device)  # (.., T), (.., T-1), (.., T-1, n) twice
        logits, w = router(x[:, :-1])  # (B or 2B, T-1, V), (.., T-1, n)
        if kind == "pair":  # moves theta_LM, but not W: argmax has no gradient, W.grad is None
            this_ref = ref[rows].to(device)  # (B, 2)
            loss, terms = pair_loss_fn(logits, w, x[:, 1:], mask, logp, this_ref, s.beta)
        else:
            loss, terms = loss_fn(logits, w, x[:, 1:], mask, logp, choice, s.lam)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        log.add(loss, terms, kind)
    return log


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    folder, device = script.prepare(s)
    hint = f"run python train_sft.py{script.flags(s)}"
    router, experts, phase1 = script.load_router(folder, "router_sft", device, hint)
    recipe = script.recipe(s) | {"phase1": script.fingerprint(router)}
    if script.is_there(folder, "router", recipe):
        return
    begun = time.time()
    sft = scored(sft_samples(phase1["recipe"]["samples"], s.seed), experts)
    found = preference.make_pairs(router, experts, s.seed, s.prompts)
    script.write(folder / "pairs.jsonl", preference.text(found))
    pairs, ref = scored_pairs(found, experts, router.lm)
    print(f"{len(found)} pairs from {s.prompts} prompts; one of them: {found[len(found) // 2]}")

    items = progress.validation_items(s.seed, phase1["recipe"]["gap"], 40)
    item, before = preference.first_mistake(router, experts, items)
    print(f"a validation prompt that phase 1 may get wrong: {item.prompt}")
    print(f"a right answer: {item.answer!r}")
    print(f"before: {before!r}")
    print(
        "expect at the first pair step: rewards and margin about 0, as pi_theta is still close to "
        "pi_ref (accuracy says nothing yet). DPO would start at log 2 = 0.693; here it is the mean "
        "of -log sigmoid(bias)"
    )
    progress.expect_end("router", ["sft", "pair"])
    plan = make_plan(s, sft.lengths, pairs.lengths)
    log = train(s, router.requires_grad_(True), sft, pairs, ref, plan)  # it was loaded frozen
    print(f"after: {progress.answer_of(router, experts, item)!r}")

    seconds = time.time() - begun
    script.save_router(folder, "router", router, experts, recipe, seconds, log)


if __name__ == "__main__":
    script.run(main)
