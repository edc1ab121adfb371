"""(e) An expert that comes after the training, and one that leaves: what is the cheapest update that uses the newcomer and forgets nothing?

    python -m extra.paper.open_questions.newcomer --seeds 2 3

The router is trained (phase 1 only) beside two experts; then the third, the code expert, joins, and W gets a row. Varied: what is trained
afterwards, and for how many passes over the SFT samples.

    before                  two experts, no third
    joins, nothing trained  the new row of W is zero: the newcomer is picked where both others have a negative weight
    new row of W            this row alone, one pass
    all of W                W alone, one pass
    W and theta             both, one pass
    from scratch            three experts from the beginning, four passes: what always happens here

And the other way round, from a router that was trained beside three: the code expert leaves.

    leaves, row dropped     nothing is trained
    leaves, W trained       W alone, one pass

Held fixed: the experts, the samples, the learning rates. The rows: "code" is the mean accuracy on the newcomer's two benchmarks, "others" that on
the other three, whose fall would be forgetting. Lines: FusionRoute (Eq. (1)), and the picked expert alone.
"""

from copy import deepcopy

import numpy as np
import torch

import train_sft
from extra import models
from extra.paper.open_questions import frame
from fusionroute import Router
from toy_experts import run, tasks
from toy_experts import train as toy
from toy_experts.data import Data

CODE = toy.EXPERTS.index("code")
LINES = {"fusionroute": {}, "routing_only": {"use_router": False}}


def with_row(router, place):
    """A copy of a router that chooses among one expert more: a row of zeros at `place`."""
    new = deepcopy(router)
    new.W = torch.nn.Linear(router.W.in_features, router.W.out_features + 1, bias=False)
    rows = list(router.W.weight.detach())
    rows.insert(place, torch.zeros_like(rows[0]))
    new.W.weight.data = torch.stack(rows)
    return new


def without_row(router, place):
    """A copy of a router that chooses among all experts but the one at `place`."""
    new = deepcopy(router)
    new.W = torch.nn.Linear(router.W.in_features, router.W.out_features - 1, bias=False)
    new.W.weight.data = torch.stack([row for i, row in enumerate(router.W.weight.detach()) if i != place])
    return new


def only(data, kept):
    """Phase 1's samples as some of the experts score them."""
    return Data(data.ids, data.mask, data.lengths, data.logp[..., kept], data.choice[..., kept])


def train(s, router, data, epochs, what):
    """Train a copy of the router further, by Eq. (2). what: "row" (the newcomer's row of W), "W", or "all"."""
    router = deepcopy(router).requires_grad_(what == "all")
    router.W.requires_grad_(True)
    old = router.W.weight.detach().clone()
    if what == "row":  # only the gradient of this row is let through
        keep = torch.zeros_like(old)
        keep[CODE] = 1
        router.W.weight.register_hook(lambda g: g * keep)
    train_sft.train(train_sft.Settings(seed=s.seed, epochs=epochs), router, data)
    if what == "row":  # and weight decay has moved nothing else
        router.W.weight.data = torch.where(keep.bool(), router.W.weight.data, old)
    return router.requires_grad_(False)


def judged(s, router, experts, problems, **how):
    rows = {b: frame.judged(s, frame.fused(router, experts, **how), {b: drawn}) for b, drawn in problems.items()}
    mean = lambda benches: round(float(np.mean([rows[b]["average"] for b in benches])), 4)
    coding = tasks.DOMAINS["code"]
    return {"average": mean(tasks.BENCHMARKS), "code": mean(coding), "others": mean([b for b in tasks.BENCHMARKS if b not in coding])}


def measure(s, cell):
    three, experts, _ = models.load_router(s, "router_sft")
    problems = {b: drawn for b, drawn in frame.items(s).items() if b != "general"}
    rest = [i for i in range(len(experts)) if i != CODE]
    two = [experts[i] for i in rest]
    made = {}

    def once(name, make):
        if name not in made:
            made[name] = make()
        return made[name]

    def data():
        return once("data", lambda: frame.sft_data(s, experts))

    def before():
        def make():
            torch.manual_seed(s.seed)
            start = deepcopy(experts[toy.EXPERTS.index("instruct")])
            router = Router(start, len(two)).to(start.embed.weight.device)
            return train(s, router, only(data(), rest), train_sft.Settings.epochs, "all")
        return once("before", make)

    joined = lambda: with_row(before(), CODE)
    routers = {
        "before": (before, two), "joins, nothing trained": (joined, experts),
        "new row of W": (lambda: train(s, joined(), data(), 1, "row"), experts),
        "all of W": (lambda: train(s, joined(), data(), 1, "W"), experts),
        "W and theta": (lambda: train(s, joined(), data(), 1, "all"), experts),
        "from scratch": (lambda: three, experts),
        "leaves, row dropped": (lambda: without_row(three, CODE), two),
        "leaves, W trained": (lambda: train(s, without_row(three, CODE), only(data(), rest), 1, "W"), two),
    }
    for label, (make, those) in routers.items():
        for line, how in LINES.items():
            cell(label, line, lambda: judged(s, once(label, make), those, problems, **how))


if __name__ == "__main__":
    run.run(lambda: frame.main("newcomer", measure, __doc__, "what is trained"))
