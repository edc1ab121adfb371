"""(g) Other objectives for phase 2, with the same experts as a bias.

    python -m extra.paper.open_questions.objectives --seeds 2 3

Varied: the loss of a pair. Write m = [log pi_theta(y_w)/pi_ref(y_w) - log pi_theta(y_l)/pi_ref(y_l)] and b = stopgrad(log pi_expert(y_w) - log
pi_expert(y_l)), so that Eq. (3) is -log sigmoid(beta (m + b)). Then

    IPO        (m + b - 1 / (2 beta))^2                      Azar et al. 2023, Eq. (17), whose tau is called beta here
    hinge      max(0, 1 - beta (m + b))                      SLiC-HF, Zhao et al. 2023, with log-ratios to pi_ref
    SimPO      -log sigmoid(beta (s_w - s_l) - beta / 2)     Meng et al. 2024, Eq. (6), gamma = beta / 2: no pi_ref; s is the mean over the answer's
                                                             tokens of log pi_theta + stopgrad(log pi_expert)
    REINFORCE  -(r - mean r) log pi_final(y)                 Williams 1992: no pairs. y is sampled from Eq. (1), r is the checker's 1 or 0, the mean is
                                                             over SAMPLES answers to the same prompt. The experts are inside pi_final, Eq. (1)

Held fixed: phase 1, the pairs, the number of steps, half of them SFT steps, and the learning rates. Each objective's beta (REINFORCE has none) is chosen
among three on validation prompts of the same seed, and judged on test prompts; the column beta says which. For REINFORCE each pair step becomes a step on
BATCH / SAMPLES prompts of the preference split: it looks at half as many answers as a pair step, and must sample them, which takes longer.
"""

from copy import deepcopy
from random import Random

import torch
import torch.nn.functional as F
from tqdm import tqdm

import train_cdpo
from extra import models
from extra.paper import train as paper_train
from extra.paper import variants
from extra.paper.open_questions import frame
from fusionroute import fuse, routed_logp, sequence_logp, sft_loss
from toy_experts import run, tasks, tokenizer
from toy_experts import train as toy
from toy_experts.batch import decode_batch
from toy_experts.data import answer_only, pack

SAMPLES = 4  # answers to each prompt, for REINFORCE's mean


def sums(logits, w, targets, mask, logp):
    """log pi_theta and log pi_expert of chosen and rejected answers, (B, 2) each; the experts' without a gradient."""
    return sequence_logp(logits, targets, mask).view(-1, 2), routed_logp(w, logp, mask).view(-1, 2).detach()


def margin(logits, w, targets, mask, logp, ref):
    """m + b, (B,)."""
    theta, expert = sums(logits, w, targets, mask, logp)
    chosen, rejected = (theta - ref + expert).unbind(1)
    return chosen - rejected


def told(x):
    """What a step logs: the share of pairs whose m + b is positive."""
    return {"fused_accuracy": (x > 0).float().mean()}


def ipo(logits, w, targets, mask, logp, ref, beta):
    x = margin(logits, w, targets, mask, logp, ref)
    return ((x - 1 / (2 * beta)) ** 2).mean(), told(x)


def hinge(logits, w, targets, mask, logp, ref, beta):
    x = margin(logits, w, targets, mask, logp, ref)
    return F.relu(1 - beta * x).mean(), told(x)


def simpo(logits, w, targets, mask, logp, ref, beta):
    theta, expert = sums(logits, w, targets, mask, logp)
    s = (theta + expert) / mask.sum(-1).view(-1, 2)                                  # (B, 2)
    x = s[:, 0] - s[:, 1]
    return -F.logsigmoid(beta * x - beta / 2).mean(), told(x)


OBJECTIVES = {"CDPO": ("paper", [0.03, 0.1, 0.3]), "IPO": ("ipo", [0.1, 0.5, 2.0]), "hinge": ("hinge", [0.03, 0.1, 0.3]),
              "SimPO": ("simpo", [1.0, 2.0, 5.0])}
variants.PAIR_LOSSES |= {"ipo": ipo, "hinge": hinge, "simpo": simpo}  # so that a recipe can name them


def reinforce_loss(logits, w, targets, mask, reward, full):
    """-(r - mean r) log pi_final(y), mean over answers. Rows are SAMPLES answers to each prompt; reward (B,), full (B, T, n, V)."""
    advantage = (reward.view(-1, SAMPLES) - reward.view(-1, SAMPLES).mean(1, keepdim=True)).flatten()  # (B,)
    logp = sequence_logp(fuse(logits, variants.picked(full, w)), targets, mask)                        # (B,)
    return -(advantage * logp).mean()


def reinforce(s, router, experts, sft, plan):
    """Phase 2 with REINFORCE in the place of each pair step of the plan; train_cdpo.train's optimiser and schedule. In place."""
    defaults, size, device = train_cdpo.Settings(), train_cdpo.BATCH // SAMPLES, router.W.weight.device
    items = tasks.mixed("preference", size * sum(kind == "pair" for kind, _ in plan), Random(f"reinforce {s.seed}"))
    optimizer = torch.optim.AdamW([{"params": router.lm.parameters(), "lr": defaults.lr}, {"params": router.W.parameters(), "lr": train_cdpo.LR_W}],
                                  betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: toy.schedule(step, len(plan), warmup=20))
    for step, (kind, rows) in enumerate(tqdm(plan, desc="REINFORCE", mininterval=1.0)):
        if kind == "sft":
            x, mask, logp, choice = sft.batch(rows, device)
            loss = sft_loss(*router(x[:, :-1]), x[:, 1:], mask, logp, choice, defaults.lam)[0]
        else:
            drawn = [item for item in (items.pop() for _ in range(size)) for _ in range(SAMPLES)]
            prompts = [tokenizer.encode_prompt(item.prompt) for item in drawn]
            traces = decode_batch(router, experts, prompts, temperature=1.0, seed=step * 1000)
            reward = torch.tensor([float(tasks.check(item, t.text())) for item, t in zip(drawn, traces)])
            x, mask, _ = (v.to(device) for v in pack([answer_only(p, t.tokens) for p, t in zip(prompts, traces)]))
            loss = reinforce_loss(*router(x[:, :-1]), x[:, 1:], mask[:, 1:], reward.to(device), variants.read(experts, x[:, :-1]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
        scheduler.step()


def measure(s, cell):
    phase1, experts, content = models.load_router(s, "router_sft")
    validation = {b: drawn[:50] for b, drawn in frame.items(s, "validation").items() if b != "general"}
    cell("phase 1 only", "fusionroute", lambda: frame.judged(s, frame.fused(phase1, experts)))

    def best_of(label, loss, betas):
        scored = []
        for beta in betas:
            name = f"open_{label.lower()}_{beta}"
            paper_train.train(s, name, paper_train.Cdpo(loss=loss, beta=beta))
            router = models.load_router(s, name)[0]
            scored.append((frame.judged(s, frame.fused(router, experts), validation)["average"], beta, router))
        _, beta, router = max(scored, key=lambda row: row[0])
        return frame.judged(s, frame.fused(router, experts)) | {"beta": beta}

    for label, (loss, betas) in OBJECTIVES.items():
        cell(label, "fusionroute", lambda: best_of(label, loss, betas))

    def by_reward():
        sft = paper_train.sft_samples(s, content["recipe"]["samples"], experts, content["experts"])
        settings, pairs = train_cdpo.Settings(seed=s.seed), (models.folder(s) / "pairs.jsonl").read_text().count("\n")
        router = deepcopy(phase1).requires_grad_(True)
        reinforce(s, router, experts, sft, train_cdpo.make_plan(settings, sft.lengths, torch.ones(pairs, 2)))
        return frame.judged(s, frame.fused(router.requires_grad_(False), experts))

    cell("REINFORCE", "fusionroute", by_reward)


if __name__ == "__main__":
    run.run(lambda: frame.main("objectives", measure, __doc__, "objective of phase 2"))
