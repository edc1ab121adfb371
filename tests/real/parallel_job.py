"""What torchrun runs for test_parallel.py: many trainings by the same processes, which take longer to start than to train.

    torchrun ... tests/real/parallel_job.py FOLDER    trains what FOLDER/jobs.json says, [[script, [flags]], ...]; leaves a RANK.json there
    torchrun ... tests/real/parallel_job.py FOLDER wait    process 0 is busy for a minute, while the other waits for it
"""

import importlib
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from extra.real import parallel, scores
from fusionroute import cdpo_loss, sft_loss


def close(a, b, what):
    assert torch.allclose(torch.as_tensor(a).float(), torch.as_tensor(b).float(), rtol=1e-5, atol=1e-6), (what, a, b)


def losses():
    """Both losses on shares of a batch: the value, what is logged and the gradient are those of the whole batch at once."""
    for B in (7, 2, 1):                                                       # fewer rows than processes: some have none
        torch.manual_seed(B)
        T, V, n = 5, 11, 3
        logits, w = torch.randn(2 * B, T, V), torch.randn(2 * B, T, n)        # (2B, T, V), (2B, T, n)
        targets, mask = torch.randint(V, (2 * B, T)), torch.rand(2 * B, T) < 0.6
        mask[:, -1] = True
        logp, ref = -torch.rand(2 * B, T, n), torch.randn(B, 2)
        choice = torch.zeros(2 * B, T, n, dtype=torch.int32)
        choice[0, :, 0] = 1                                                   # S lies in row 0, in the share of process 0

        def sft(rows, logits, w):
            loss, terms = sft_loss(logits[rows], w[rows], targets[rows], mask[rows], logp[rows], choice[rows], 0.3)
            count = mask[rows].sum()
            return loss, terms, count, terms["informative"] * count

        def pair(rows, logits, w):
            theta, expert = logits.sum((1, 2)).view(-1, 2)[rows], logp.sum((1, 2)).view(-1, 2)[rows]     # (b, 2)
            loss, terms = cdpo_loss(*theta.unbind(1), *ref[rows].unbind(1), *expert.unbind(1), 0.5)
            return loss + 0 * w.sum(), terms, len(rows), 0

        for kind in (sft, pair):
            def run(rows, whole):
                x, y = logits.clone().requires_grad_(), w.clone().requires_grad_()
                rows, weight = (rows, 1) if whole else parallel.share(rows)
                loss, terms, count, in_S = kind(rows, x, y)
                value = loss
                if not whole:
                    loss, value, terms = parallel.of_whole_batch(loss, terms, count, weight, in_S)
                loss.backward()
                return value.detach(), terms, [x.grad, y.grad]
            loss, terms, grads = run(torch.arange(B), True)
            part, told, ours = run(torch.arange(B), False)
            close(part, loss, kind.__name__)
            assert set(told) == set(terms)
            for key in terms:
                values = [torch.tensor([float(v) for v in t[key]] if isinstance(t[key], list) else float(t[key])) for t in (terms, told)]
                close(values[1], values[0], (kind.__name__, key))
            for whole, g in zip(grads, ours):
                dist.all_reduce(g)
                close(g / dist.get_world_size(), whole, kind.__name__)


def job():
    folder = Path(sys.argv[1])
    if "wait" in sys.argv:
        (folder / "busy").touch()
        time.sleep(60)
    parallel.release()
    base, told = parallel.store, {"scored": 0, "held": []}
    losses()
    real_score, real_spread, scores.CHUNK = scores.score, parallel.spread, 2

    def score(*args):
        told["scored"] += 1
        return real_score(*args)

    def spread(router, device, fsdp):
        """Counts the numbers that are trained, and those of them that this process holds."""
        whole = sum(p.numel() for p in router.parameters())
        router = real_spread(router, device, fsdp)
        told["held"].append([fsdp, whole, sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in router.parameters())])
        return router

    scores.score, parallel.spread = score, spread
    for k, (name, flags) in enumerate(json.loads((folder / "jobs.json").read_text())):
        parallel.store = dist.PrefixStore(str(k), base)
        parallel.in_turn(partial(importlib.import_module(f"extra.real.{name}").main, flags))
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    parallel.run(job)
