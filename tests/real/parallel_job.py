"""What torchrun runs for tests/test_parallel.py: many trainings by the same processes, which take longer to start than to train.

    torchrun ... tests/parallel_job.py FOLDER    trains what FOLDER/jobs.json says, [[script, [flags]], ...], and leaves a RANK.json there
    torchrun ... tests/parallel_job.py FOLDER wait    process 0 is busy for a minute, while the other waits for it
"""

import importlib
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

import baselines
import own
import parallel
from fusionroute import cdpo_loss, mean, sft_loss


def close(a, b, what):
    assert torch.allclose(torch.as_tensor(a).float(), torch.as_tensor(b).float(), rtol=1e-5, atol=1e-6), (what, a, b)


def losses():
    """Every loss on shares of a batch: its value, what it logs and its gradient are those of the whole batch at once."""
    for B in (7, 2, 1):                                                       # fewer rows than processes: some have none
        torch.manual_seed(B)
        T, V, n = 5, 11, 3
        logits, w = torch.randn(2 * B, T, V), torch.randn(2 * B, T, n + 1)    # (2B, T, V), (2B, T, n+1)
        targets, mask = torch.randint(V, (2 * B, T)), torch.rand(2 * B, T) < 0.6
        mask[:, -1] = True
        logp, full = -torch.rand(2 * B, T, n), torch.randn(2 * B, T, n, V).log_softmax(-1)
        choice, ref = torch.zeros(2 * B, T, n, dtype=torch.int32), torch.randn(2 * B)
        choice[0, :, 0] = 1                                                   # S lies in row 0, in the share of process 0

        def sft(name, rows, mean, logits, w):
            w = w if name == "co_llm_self" else w[..., :n]
            batch = logits, w, targets[rows], mask[rows], logp[rows], choice[rows], 0.3
            return sft_loss(*batch, mean=mean) if name == "paper" else baselines.sft_variant(name, *batch, full[rows], mean)

        def pair(name, rows, mean, logits, w):
            batch = logits, w[..., :n], targets[rows], mask[rows], logp[rows], ref[rows], 0.5
            if name != "paper":
                return baselines.pair_variant(name, *batch, full[rows], mean)
            return cdpo_loss(*((logits.sum((1, 2)) + i)[i::2] for i in (0, 1)), ref[rows][::2], ref[rows][1::2],
                             logp[rows].sum((1, 2))[::2], logp[rows].sum((1, 2))[1::2], 0.5, mean)

        for kind, name in [(sft, name) for name in baselines.SFT_LOSSES] + [(pair, name) for name in baselines.PAIR_LOSSES]:
            def run(rows, mean):
                if kind is pair:
                    rows = torch.stack([2 * rows, 2 * rows + 1], 1).flatten()
                x, y = logits.clone().requires_grad_(), w.clone().requires_grad_()
                loss, info = kind(name, rows, mean, x[rows], y[rows])
                loss.backward()
                return loss, info, [torch.zeros_like(p) if p.grad is None else p.grad for p in (x, y)]
            loss, info, grads = run(torch.arange(B), mean)
            part, told, ours = run(*parallel.share(torch.arange(B)))
            close(part.detach(), loss.detach(), name)
            assert set(told) == set(info)
            for key in info:
                close(torch.tensor([float(v) for v in info[key]] if isinstance(info[key], list) else float(info[key])),
                      torch.tensor([float(v) for v in told[key]] if isinstance(told[key], list) else float(told[key])), (name, key))
            for whole, g in zip(grads, ours):
                dist.all_reduce(g)
                close(g / dist.get_world_size(), whole, name)


def job():
    folder = Path(sys.argv[1])
    if "wait" in sys.argv:
        (folder / "busy").touch()
        time.sleep(60)
    parallel.release()
    base, told = parallel.store, {"scored": 0, "held": []}
    losses()
    real_score, real_spread, own.CHUNK = own.score, parallel.spread, 2

    def score(*args):
        told["scored"] += 1
        return real_score(*args)

    def spread(router, device, fsdp):
        """Counts the numbers that are trained, and those of them that this process holds."""
        whole = sum(p.numel() for p in router.parameters())
        router = real_spread(router, device, fsdp)
        told["held"].append([fsdp, whole, sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in router.parameters())])
        return router

    own.score, parallel.spread = score, spread
    for k, (name, flags) in enumerate(json.loads((folder / "jobs.json").read_text())):
        parallel.store = dist.PrefixStore(str(k), base)
        parallel.in_turn(partial(importlib.import_module(name).main, flags))
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    parallel.run(job)
