"""What a pass costs, for bench.py: by its number of tokens, in operations of torch, by the way of multiplying, in bytes read."""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from extra.speed import fast
from extra.speed.training import contest, over, spread

WIDTHS = (1, 2, 3, 4, 8, 16, 32, 64)


def bandwidth(device, mib=400):
    """Bytes a second at which this machine reads memory, at best of several: one matrix of `mib` MiB times a vector."""
    W, x = torch.ones(mib * 256, 1024, device=device), torch.ones(1024, device=device)
    runs = contest({"read": lambda: float((W @ x)[0])}, 7)
    return W.numel() * 4 / min(runs["read"])


def width_cost(lm, rounds):
    """What a pass over T new tokens costs after 32 others, in passes over one token. T -> ratio."""
    device, room = lm.embed.weight.device, max(WIDTHS) + 32
    ids, cache = torch.ones(1, max(WIDTHS), dtype=torch.long, device=device), lm.new_cache(1, room)

    @torch.no_grad()
    def read(T):
        cache.length.fill_(32)
        float(fast.read(lm, ids[:, :T], cache)[0][0, -1, 0])

    seconds = contest({T: lambda T=T: read(T) for T in WIDTHS}, rounds)
    return {T: over(s, seconds[1])["median"] for T, s in seconds.items()}


class Calls(TorchDispatchMode):
    """Counts torch's operations while it is active, those that only look at a tensor in another way (view, transpose) included."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def calls_a_pass(lm, read=fast.read):
    """Operations of one pass over one token."""
    cache, token = lm.new_cache(1, 2), torch.ones(1, 1, dtype=torch.long, device=lm.embed.weight.device)
    read(lm, token, cache)
    with Calls() as calls:
        read(lm, token, cache)
    return calls.count


WAYS = {"model.py": lambda lm, ids, cache: lm(ids, cache), "fast.py": fast.read}


@torch.no_grad()
def one_pass(lm, rounds=100):
    """A pass over one token after 32 others, as model.py computes it and as fast.py does: operations of torch, and microseconds."""
    cache, token = lm.new_cache(1, 40), torch.ones(1, 1, dtype=torch.long, device=lm.embed.weight.device)

    def run(read):
        cache.length.fill_(32)
        return float(read(lm, token, cache)[0][0, -1, 0])

    seconds = contest({name: lambda read=read: run(read) for name, read in WAYS.items()}, rounds)
    return {name: {"operations": calls_a_pass(lm, read), "microseconds": spread([1e6 * x for x in seconds[name]])["median"]}
            for name, read in WAYS.items()}


MATRICES = {"x w', `F.linear`": F.linear, "w x', the weights on the left": lambda x, w: (w @ x.t()).t().contiguous(),
            "in pieces, `fast.times`": fast.times}


@torch.no_grad()
def matrices(lm, rounds=3):
    """Milliseconds of all matrices of the blocks over T tokens, by the way of multiplying: name -> T -> ms."""
    weights = [p for p in lm.blocks.parameters() if p.dim() == 2]
    x = {d: torch.randn(128, d, device=weights[0].device) for d in {w.size(1) for w in weights}}
    runs = {(name, T): lambda way=way, T=T: [way(x[w.size(1)][:T], w) for w in weights]
            for name, way in MATRICES.items() for T in (1, 2, 3, 4, 6, 8, 16, 32, 64, 128)}
    out = {}
    for (name, T), seconds in contest(runs, rounds).items():
        out.setdefault(name, {})[T] = spread([1e3 * x for x in seconds])["median"]
    return out


def cost(widths, c):
    """The cost model: passes of these widths, in passes over one token, c interpolated between its widths."""
    total = 0.0
    for w in widths:
        hi = next((T for T in WIDTHS if T >= w), WIDTHS[-1])
        lo = max((T for T in WIDTHS if T <= w), default=1)
        total += c[lo] + (c[hi] - c[lo]) * (w - lo) / (hi - lo) if hi > lo else c[hi] * max(1, w / hi)
    return total


def watch(models):
    """Record the width of every pass: {name: list}, and a function that ends it. models: name -> list of GPTs.

    While it is on, all passes are model.py's: hooks are what `fast.read` leaves to model(...).
    """
    widths, handles = {name: [] for name in models}, []
    for name, lms in models.items():
        for lm in {id(m): m for m in lms}.values():
            handles.append(lm.register_forward_hook(lambda m, args, out, name=name: widths[name].append(args[0].shape[1])))
    return widths, lambda: [h.remove() for h in handles]
