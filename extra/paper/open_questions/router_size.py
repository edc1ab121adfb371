"""(i) The size of the router: what does a smaller one cost in quality, and save?

    python -m extra.paper.open_questions.router_size --seeds 2 3

Varied: width and layers of the router. It is made as the ordinary one is: trained as a base on the base's documents, then on the instruction
expert's, then phase 1 beside the three ordinary experts (phase 2 is left out). Logits can be added as long as the vocabulary is the same; nothing else
of a router has to fit its experts.

Held fixed: the experts, all data, steps and learning rates, which were tuned for the ordinary size. Lines: FusionRoute, the picked expert alone, and the
router alone. The column cost is what a fused token reads, the parameters of the router and of one expert, over those of one expert alone.
"""

import time

import torch

from extra import models
from extra.paper.open_questions import frame
from toy_experts import run
from toy_experts import train as toy

SIZES = [(72, 3), (48, 4), (24, 4)]  # width, layers: about a half, a third and a tenth of the ordinary model's parameters
WAYS = {"fusionroute": {}, "routing_only": {"use_router": False}, "router": {"use_expert": False}}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def other(s, expert, family, size):
    """An expert (or "base") of another architecture, trained from a base of its own as toy_experts.train does, unless it is there. Frozen."""
    base_content = run.load(models.folder(s) / "base.pt", ("recipe",), "train the run first")
    documents = toy.Settings(**base_content["recipe"])
    stem = f"open_{family}_{size[0]}x{size[1]}"
    path = models.folder(s) / f"{stem}_{expert}.pt"
    if not path.exists():
        begun = time.time()
        torch.manual_seed(s.seed)
        model = models.new_gpt(family, size) if expert == "base" else other(s, "base", family, size).requires_grad_(True)
        number = 0 if expert == "base" else 1 + toy.EXPERTS.index(expert)
        toy.train(expert, model.to(run.device(s.device)), toy.documents(documents, expert), s.seed * 1000 + number)
        run.save_model(path, model, base_content["recipe"] | {"size": list(size), "family": family}, time.time() - begun)
    model, content = models.load_model(path, "start again", run.device(s.device))
    run.check_same(path, content["recipe"], base_content["recipe"] | {"size": list(size), "family": family})
    return model


def measure(s, cell):
    usual, experts, _ = models.load_router(s, "router_sft")
    problems, made = frame.items(s), {}

    def judged(label, make, how):
        if label not in made:
            made[label] = make()
        router = made[label]
        cost = (parameters(router.lm) + parameters(experts[0])) / parameters(experts[0])
        return frame.judged(s, frame.fused(router, experts, **how), problems) | {"cost": round(cost, 3)}

    routers = {"96 x 3": lambda: usual} | {f"{w} x {n}": lambda size=(w, n): frame.phase1(s, experts, frame.sft_data(s, experts), other(s, "instruct", "llama", size))
                                        for w, n in SIZES}
    for label, make in routers.items():
        for line, how in WAYS.items():
            cell(label, line, lambda: judged(label, make, how))


if __name__ == "__main__":
    run.run(lambda: frame.main("router_size", measure, __doc__, "width x layers of the router"))
