"""The training half of bench.py: steps of both phases beside plain SFT and plain DPO of the same model, memory, and use of a GPU."""

import multiprocessing
import os
import platform
import time
from copy import deepcopy
from statistics import median

import torch
import torch.nn.functional as F

import model
from fusionroute import Router, sequence_logp, sft_loss, token_logp
from model import GPT
from train_cdpo import pair_loss

EXPERTS = (1, 3, 8, 16)  # numbers of experts


def spread(values):
    """Some numbers as their median, lowest and highest; None for none."""
    return {k: round(f(values), 4) for k, f in (("median", median), ("low", min), ("high", max))} if values else None


def contest(runs, rounds):
    """Seconds of every run (name -> function) in every round; all in turn, another one first each round. name -> list."""
    seconds, names = {name: [] for name in runs}, list(runs)
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for name in names:
        runs[name]()  # to warm up
    for r in range(rounds):
        for name in names[r % len(names):] + names[:r % len(names)]:
            sync()
            begun = time.perf_counter()
            runs[name]()
            sync()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def over(a, b):
    """Element by element a / b, as a spread."""
    return spread([x / y for x, y in zip(a, b)])


class Steps:
    """One step of each kind of training, as in the loops of train_sft.py and train_cdpo.py: a batch is taken out of the data and put on the
    device, with its scores; the model takes a step; what is logged becomes numbers. Toy model, 16 samples (or 8 pairs) of 64 tokens,
    half of them answer. n = 0: no router and no scores, a plain language model."""

    def __init__(self, lm, device, batch=16, T=64, experts=EXPERTS, lr=1e-4):
        N, self.device, self.lr, self.batch, self.models, self.log = 8 * batch, device, lr, batch, {}, []
        self.ids = torch.randint(0, lm.config.vocab_size, (N, T + 1))
        self.mask = torch.zeros(N, T, dtype=torch.bool)
        self.mask[:, T // 2:] = True
        self.logp = {n: -torch.rand(N, T, n) for n in experts}
        self.choice = {n: torch.randint(0, 4, (N, T, n), dtype=torch.int32) for n in experts}
        self.ref = torch.zeros(N)
        for n in (0, *experts):
            m = deepcopy(lm).to(device).requires_grad_(True)
            m = m if n == 0 else Router(m, n).to(device)
            optimizer = torch.optim.AdamW(m.parameters(), lr=lr, fused=True)
            self.models[n] = m, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def take(self):
        """A batch: its rows, ids (B, T+1), mask (B, T)."""
        rows = torch.randperm(len(self.ids))[:self.batch]
        return rows, self.ids[rows].to(self.device), self.mask[rows].to(self.device)

    def __call__(self, phase, n):
        m, optimizer, scheduler = self.models[n]
        (rows, ids, mask), info = self.take(), {}
        logp, choice = (x[n][rows].to(self.device) if n else None for x in (self.logp, self.choice))  # (B, T, n) both
        out, w = m(ids[:, :-1])
        targets = ids[:, 1:]
        if phase == 1 and n:
            loss, info = sft_loss(out, w, targets, mask, logp, choice, 1 / 3)
        elif phase == 1:
            loss = -token_logp(out, targets)[mask].mean()
        else:
            ref = self.ref[rows].view(-1, 2).to(self.device)                  # (B/2, 2): chosen, rejected
            if n:
                loss, info = pair_loss(out, w, targets, mask, logp, ref, 0.1)
            else:  # plain DPO, its reference computed once, too; it logs what one would log of it
                chosen, rejected = (0.1 * (sequence_logp(out, targets, mask).view(-1, 2) - ref)).unbind(1)  # (B/2,) each
                loss = -F.logsigmoid(chosen - rejected).mean()
                info = {"reward_chosen": chosen.mean(), "reward_rejected": rejected.mean(), "accuracy": (chosen > rejected).float().mean()}
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        info |= {f"route_{i}": share for i, share in enumerate(info.pop("routing", []))}
        self.log.append({k: round(v.detach().item(), 5) for k, v in ({"loss": loss} | info).items()})

    def plain_loop(self):
        """What one would write without this project: torch's own attention kernel, cross-entropy and fused AdamW, nothing else."""
        ours = model.attention
        model.attention = lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        try:
            m, optimizer, _ = self.models[0]
            _, ids, mask = self.take()
            logits, _ = m(ids[:, :-1])
            optimizer.zero_grad()
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].masked_fill(~mask, -100).flatten())
            loss.backward()
            optimizer.step()
            self.log.append({"loss": round(float(loss.detach()), 5)})
        finally:
            model.attention = ours


def peak_memory(lm, phase, n, queue):
    """In a process of its own: MiB by which three steps raise the peak of resident memory."""
    import resource
    torch.set_num_threads(1)
    mib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)
    before = mib()
    steps = Steps(lm, "cpu", experts=(n,) if n else ())
    for _ in range(3):
        steps(phase, n)
    queue.put(mib() - before)


def gpu_memory(lm, phase, n):
    """MiB of a GPU's memory at the peak of three steps."""
    torch.cuda.reset_peak_memory_stats()
    steps = Steps(lm, torch.device("cuda"), experts=(n,) if n else ())
    for _ in range(3):
        steps(phase, n)
    return torch.cuda.max_memory_allocated() / 2**20


def memory_section(lm, device):
    """Peak memory of a phase-1 and a phase-2 step with n experts over that of plain SFT and plain DPO; forked before any thread runs."""
    if not hasattr(os, "fork"):
        return None
    fork, out = multiprocessing.get_context("fork"), {}
    for phase, name in ((1, "phase1_over_sft"), (2, "phase2_over_dpo")):
        mib = {}
        for n in (0, *EXPERTS):
            if device.type == "cuda":
                mib[n] = gpu_memory(lm, phase, n)
                continue
            queue = fork.SimpleQueue()
            child = fork.Process(target=peak_memory, args=(lm, phase, n, queue))
            child.start()
            child.join(120)
            mib[n] = None if child.exitcode or queue.empty() else queue.get()
        out[name] = {n: round(mib[n] / mib[0], 4) if mib[n] and mib[0] else None for n in mib if n}
    return out


def training_section(lm, device, rounds):
    torch.set_flush_denormal(True)
    steps, out = Steps(lm, device), {}
    runs = {(phase, n): lambda phase=phase, n=n: steps(phase, n) for phase in (1, 2) for n in (0, *EXPERTS)}
    if not getattr(lm.config, "attn_cap", 0):  # torch's own attention has no cap
        runs["plain loop"] = steps.plain_loop
    seconds = contest(runs, rounds)
    for phase, name in ((1, "phase1_over_sft"), (2, "phase2_over_dpo")):
        ratio = {n: over(seconds[phase, n], seconds[phase, 0]) for n in EXPERTS}
        out[name], out[f"{name}_spread"] = {n: r["median"] for n, r in ratio.items()}, ratio
    out["phase1_over_plain_loop"] = over(seconds["plain loop"], seconds[1, 3]) if "plain loop" in seconds else None
    out["tokens_per_second"] = spread([steps.batch * steps.mask.size(1) / s for s in seconds[1, 3]])
    return out


PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "4090": 165e12}  # bf16 FLOP/s, dense, of data sheets


def utilisation(device, config, batch, T, steps=5, compiled=True):
    """Router training in bf16 (phase 1, three experts): tokens/s and model FLOPs utilisation, 6 FLOPs a weight and token and
    12 L d T a token for attention, over the data sheet's peak, and over what a large matmul reaches here."""
    with torch.device(device):
        lm = GPT(config)
    step = Steps(lm, device, batch, T, experts=(3,))
    params, step.models = sum(p.numel() for p in lm.parameters()), {3: step.models[3]}
    if compiled:
        step.models[3][0].compile()

    def run():
        with torch.autocast(device.type, torch.bfloat16):
            step(1, 3)

    size = 8192 if device.type == "cuda" else 256
    A = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = contest({"step": run, "matmul": lambda: A @ A}, steps)
    tokens = [batch * T / x for x in seconds["step"]]
    flops = median(tokens) * (6 * params + 12 * config.n_layer * config.d_model * T)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    peak = next((x for key, x in PEAK.items() if key in name), None)
    return {"device": name, "parameters": params, "tokens_per_second": spread(tokens), "mfu": round(flops / peak, 4) if peak else None,
            "of_measured_matmul": round(flops / (2 * size**3 / median(seconds["matmul"])), 4)}
