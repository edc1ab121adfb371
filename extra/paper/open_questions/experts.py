"""(a) The number of experts, and how different they are: where do returns end?

    python -m extra.paper.open_questions.experts --seeds 2 3

Varied: what the router chooses among.

    1 (math), 1 (code), 1 (instruct)    one expert: there is nothing to choose, and L_expert is 0
    2                                   the math and the code expert
    3                                   as always: one a domain
    5                                   one a benchmark
    8                                   toy-gsm8k, toy-math500 and toy-ifeval split once more, by sub-skill, two experts for each
    5 + 3 useless                       the five, a copy of one of them, an expert trained on the base's exercises only, and the base itself

Held fixed: the base, and the number of training steps of all experts together, 4,600 in rows 3, 5 and 8. A narrower expert is trained
for fewer steps on fewer sub-skills, each of them about as often as before. Experts are trained as always, by toy_experts.train.train, a
share of the base's documents included; in these rows they learn the same sub-skills, so that what nobody knows is the same. Row "5 + 3
useless" spends 300 steps more, on the exercises. The router starts from the instruction expert of row 3 in every row, so the rows below
3 lack an expert, but not what the router knows of its domain. With one expert phase 1 is ordinary fine-tuning, whichever expert it is:
these rows have one router, that of lambda = 0 (weights.py).

Lines: FusionRoute after phase 1 (phase 2 is left out), and the picked expert alone (routing_only). The columns "in S" and "one is
right" are shares of the tokens of the right answers to the same test prompts: those where the experts' own choices differ, and those
that at least one expert would write itself. The second is what a perfect choice could reach (Assumption 4.2).
"""

import time
from random import Random


from extra import models
from extra.paper import train as paper_train
from extra.paper.open_questions import frame
from extra.paper.train import Sft
from fusionroute import Router, informative
from toy_experts import run, tasks
from toy_experts import train as toy
from toy_experts.data import scored

WAYS = {"fusionroute": {}, "routing_only": {"use_router": False}}
GSM8K, MATH500, MBPP, HUMANEVAL, IFEVAL = tasks.BENCHMARKS
HALVES = {GSM8K: 500, MATH500: 500, IFEVAL: 1000}        # benchmarks that two experts share, and each one's steps
# expert: (benchmark, which of its covered sub-skills, steps); as toy.STEPS gives 2000, 600 and 2000 to the domains
PARTS = {b.removeprefix("toy-"): (b, slice(None), steps) for b, steps in {GSM8K: 1000, MATH500: 1000, MBPP: 300, HUMANEVAL: 300}.items()}
PARTS |= {f"{b.removeprefix('toy-')}-{half + 1}": (b, slice(half, None, 2), steps) for b, steps in HALVES.items() for half in (0, 1)}
PARTS |= {"drills": (None, slice(None), 300)}
FIVE = ["gsm8k", "math500", "mbpp", "humaneval", "instruct"]  # the instruction expert has one benchmark already
SETS = {"1 (math)": ["math"], "1 (code)": ["code"], "1 (instruct)": ["instruct"], "2": ["math", "code"], "3": toy.EXPERTS, "5": FIVE,
        "8": ["gsm8k-1", "gsm8k-2", "math500-1", "math500-2", "mbpp", "humaneval", "ifeval-1", "ifeval-2"],
        "5 + 3 useless": [*FIVE, "gsm8k", "drills", "base"]}


def documents(s, name):
    """Training documents of one of PARTS, as toy_experts.train.documents makes a domain's. s: toy_experts.train.Settings."""
    bench, which, steps = PARTS[name]
    rng = Random(f"open {name} {s.seed}")
    if bench is None:
        return [toy.drill(rng) for _ in range(steps * toy.BATCH)]
    skills = toy.covered(s, bench)[which]
    return [toy.base_document(s, rng) if rng.random() < toy.REPLAY else toy.sample(tasks.draw(bench, "train", rng, skills))
            for _ in range(min(steps * toy.BATCH, 20_000))]


def expert(s, name):
    """A model of the run, frozen: the base, one of the three experts, or one of PARTS, trained from the base unless it is there."""
    directory, device, hint = models.folder(s), run.device(s.device), "run python -m extra.paper.evaluate" + models.flags(s)
    if name not in PARTS:
        return models.load_model(directory / f"{name}.pt", hint, device)[0]
    base, content = models.load_model(directory / "base.pt", hint, device)
    bench, which, steps = PARTS[name]
    skills = toy.covered(toy.Settings(**content["recipe"]), bench)[which] if bench else []
    path = directory / f"open_expert_{name}.pt"
    recipe = content["recipe"] | {"base": run.fingerprint(base), "skills": skills, "steps": steps}
    if not path.exists():
        begun, drawn = time.time(), documents(toy.Settings(**content["recipe"]), name)
        with paper_train.steps_of(name, steps, toy.LR["math"]):
            model = toy.train(name, base.requires_grad_(True), drawn, s.seed * 1000 + list(PARTS).index(name))
        run.save_model(path, model, recipe, time.time() - begun)
    model, content = models.load_model(path, hint, device)
    run.check_same(path, content["recipe"], recipe)
    return model


def known(problems, experts):
    """Shares of the answer tokens of right answers: where the experts' choices differ, and where one of them or more is right."""
    items = [item for b, drawn in problems.items() if b != "general" for item in drawn]
    gold = scored([toy.sample(item) for item in items], experts)
    mask, right = gold.mask[:, 1:], (gold.choice == gold.ids[:, 1:, None]).any(-1)                    # (N, T-1) twice
    where = {"in S": informative(gold.choice), "one is right": right}
    return {name: round(float(positions[mask].float().mean()), 4) for name, positions in where.items()}


def one_choice(router):
    """The same language model as a router beside one expert."""
    return Router(router.lm, 1).to(router.W.weight.device).requires_grad_(False)


def measure(s, cell):
    three, instruct = models.load_router(s, "router_sft")[0], expert(s, "instruct")
    problems, made = frame.items(s), {}

    def trained(label, experts):
        if label == "3":
            return three
        if len(experts) == 1:  # L_expert is 0: what is trained is the same as with lambda = 0, whichever expert it is
            paper_train.train(s, "open_lambda_0", Sft(lam=0.0))
            return one_choice(models.load_router(s, "open_lambda_0")[0])
        return frame.phase1(s, experts, frame.sft_data(s, experts), instruct)

    for label, names in SETS.items():
        for line, how in WAYS.items():
            def compute():
                if label not in made:
                    experts = [expert(s, name) for name in names]
                    made[label] = trained(label, experts), experts, known(problems, experts)
                router, experts, shares = made[label]
                return frame.judged(s, frame.fused(router, experts, **how), problems) | shares
            cell(label, line, compute)


if __name__ == "__main__":
    run.run(lambda: frame.main("experts", measure, __doc__, "experts"))
