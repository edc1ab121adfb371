"""(j) Experts of different sizes and of both families under one router.

    python -m extra.paper.open_questions.mixed --seeds 2 3

Varied: the math expert is a smaller model of the same family (72 x 3), the code expert a model of Gemma-2's architecture (extra/gpt.py), or both; the
instruction expert and the router stay ordinary. Each comes from a base of its own, trained on the same documents for as many steps.

Held fixed: vocabulary, data, steps, rates; phase 1 (phase 2 is left out). Lines: FusionRoute, the picked expert alone, and for each benchmark the expert
that is best on it (it is known only afterwards), which says how good the experts of that row are.
"""

from extra import models
from extra.models import SIZE
from extra.paper.open_questions import frame
from extra.paper.open_questions.router_size import other
from toy_experts import run

SMALL = (72, 3)
WAYS = {"fusionroute": {}, "routing_only": {"use_router": False}}


def measure(s, cell):
    usual, (math, code, instruct), _ = models.load_router(s, "router_sft")
    problems, made = frame.items(s), {}
    sets = {"all ordinary": lambda: [math, code, instruct], "math smaller": lambda: [other(s, "math", "llama", SMALL), code, instruct],
            "code of Gemma-2": lambda: [math, other(s, "code", "gemma", SIZE), instruct],
            "both": lambda: [other(s, "math", "llama", SMALL), other(s, "code", "gemma", SIZE), instruct]}

    def of(label):
        if label not in made:
            experts = sets[label]()
            made[label] = (usual if label == "all ordinary" else frame.phase1(s, experts, frame.sft_data(s, experts))), experts
        return made[label]

    def best(label):
        router, experts = of(label)
        rows = [frame.best_expert(s, router, experts, b, drawn) for b, drawn in problems.items() if b != "general"]
        return {k: round(sum(r[k] for r in rows if k in r) / sum(k in r for r in rows), 4) for k in ("average", "covered", "uncovered")}

    for label in sets:
        for line, how in WAYS.items():
            cell(label, line, lambda: frame.judged(s, frame.fused(*of(label), **how), problems))
        cell(label, "best expert", lambda: best(label))


if __name__ == "__main__":
    run.run(lambda: frame.main("mixed", measure, __doc__, "the experts"))
