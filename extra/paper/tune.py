"""The settings of the methods, ours and the baselines', chosen on validation prompts.

    python -m extra.paper.tune --seed 0       every setting of the grid below on one seed: OUT/seed0/tuning.json
    python -m extra.paper.tune --seeds 0 1    both tuning seeds, then writes extra/results/tuning.json: what was tried, and what won
    python -m extra.paper.tune --seeds 0 1 --only fine_tuned_sft_long   a part of it; the rest of tuning.json stays as it is

Budgets: the checkpoints NAME_long are tuned over passes and rates alike, the baselines' over at least as many as ours. A winner may be at the
edge of its grid (fine_tuned_sft_long: the most passes, the lowest rate), so something better may lie outside. Not tuned at all:
double and fine_tuned_sft_math (they have fine_tuned_sft_long's settings), co_llm_self and generalist with four passes, phase 2 after the long
budgets, and the better judge of Sequence Selection and Collab.
Seeds 0 and 1 are for tuning; the tables are of other seeds. A setting's score is the mean accuracy over the five benchmarks, on validation prompts, averaged over the seeds. The winners are the
settings in train.TRAINING, in evaluate.py, and the defaults of the ground floor (a test compares). No test prompt is read here. Phase 2
is tuned after the winner of phase 1. Each score is kept as soon as it is there, so a killed run continues; the models are not kept.
"""

import functools
import itertools
import json
from dataclasses import asdict, dataclass, replace
from random import Random

from extra.common import RESULTS, cached, several, write_family
from extra import models
from extra.paper import baselines, evaluate
from extra.paper import train as paper_train
from model import generate
from toy_experts import run, tasks, tokenizer


@dataclass
class Settings:
    seed: int = 0          # selects the run
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    family: str = "llama"  # architecture of the toy's models: llama or gemma (Gemma-2)
    prompts: int = 100     # validation prompts a benchmark

    def __post_init__(self):
        run.positive(self, "prompts")


def grid(**values):
    return [dict(zip(values, row)) for row in itertools.product(*values.values())]


PHASE1, PHASE2 = grid(lr=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3]), grid(lr=[2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4])
TRAINED = {  # checkpoint: (the method that it is judged as, what is tried); the rest of its settings as in train.TRAINING
    "router_sft": ("sft_only", PHASE1),
    "fine_tuned_sft": ("fine_tuned", PHASE1),
    "router": ("fusionroute", PHASE2),
    "fine_tuned": ("fine_tuned", PHASE2 + grid(lr=[5e-5, 1e-4, 2e-4], mix=[0])),
    "router_sft_long": ("sft_only", grid(epochs=[4, 8, 16], lr=[4e-3])),
    "fine_tuned_sft_long": ("fine_tuned", grid(epochs=[4, 8, 16], lr=[2e-3]) + grid(epochs=[16], lr=[1e-3])),
    "co_llm": ("co_llm", grid(lr=[1e-3, 2e-3, 4e-3]) + grid(lr=[1e-3], lr_w=[1e-2])),
    "fused_sft": ("fused_sft", grid(loss=["fused", "fused_own"], lr=[1e-3, 4e-3]) + grid(loss=["fused_own"], lr=[5e-4, 2e-3])),
    "co_llm_self_long": ("co_llm_self", grid(epochs=[8, 16], lr=[4e-3]) + grid(epochs=[16], lr=[2e-3])),
    "fused_sft_long": ("fused_sft", grid(epochs=[8, 16], lr=[2e-3]) + grid(epochs=[16], lr=[1e-3])),
    "generalist_long": ("fine_tuned", grid(epochs=[4, 8, 16], lr=[1e-3]) + grid(epochs=[16], lr=[5e-4])),
}
REWARD = grid(rejected=["fused", "experts"], prefixes=[0, 1])
LOOKAHEAD = grid(lookahead=[4, 8, 16, 32, 64])
MERGED = {"task_arithmetic": grid(scale=[0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0]),
          "dare": grid(drop=[0.1, 0.5, 0.9], scale=[0.1, 0.2, 0.3, 0.5, 1.0])}


WHAT = [*TRAINED, "sequence_selection", *MERGED]  # Collab goes with Sequence Selection: they share the reward model


def known_results(family, only):
    """What tuning.json has of this family besides what is tuned now."""
    path = RESULTS / "tuning.json"
    before = json.loads(path.read_text()).get(family, {}) if path.exists() and set(only) != set(WHAT) else {}
    return {what: r for what, r in before.items() if what not in only}


def train(s, checkpoint, tried):
    """Train `checkpoint` with the settings `tried` as tune.pt; returns the model."""
    path, spec = models.folder(s) / "tune.pt", replace(paper_train.TRAINING[checkpoint], **tried)
    path.unlink(missing_ok=True)  # of a killed run, and of other settings
    paper_train.train(s, "tune", spec)
    model = models.load_model(path, "", run.device(s.device), router=True)[0]
    path.unlink()
    return model


def tune(s, only):
    """{what: [[tried, accuracy], ...]} for one seed; each new score is saved in OUT/seedN/tuning.json at once. only: what is tuned."""
    path, device = models.folder(s) / "tuning.json", run.device(s.device)
    models.ensure(s)
    known, asked = cached(path, run.recipe(s), dict), run.recipe(s)
    experts = models.load_experts(s, "")
    base = models.load_model(models.folder(s) / "base.pt", "", device)[0]
    items = {b: tasks.dataset(b, "validation", s.prompts, Random(f"validation {b} {s.seed}")) for b in tasks.BENCHMARKS}
    end, max_new = tokenizer.END, evaluate.MAX_NEW

    def note(what, tried, make):
        """Score what make() returns, a decoder from token-id prompts to answers, unless the score is known."""
        before = [asdict(paper_train.TRAINING[n]) for n in paper_train.needed(what)[:-1]] if what in paper_train.TRAINING else []
        key = json.dumps([what, tried, before])
        if key not in known:
            decoder, shares = make(), []
            for b in tasks.BENCHMARKS:
                said = evaluate.texts(decoder, items[b])
                shares.append(sum(map(tasks.check, items[b], said)) / len(said))
            known[key] = round(sum(shares) / len(shares), 4)
            run.write(path, json.dumps({"key": asked, "result": known}) + "\n")
        print(f"{what} {json.dumps(tried)}: {known[key]:.3f}")
        out.setdefault(what, []).append([tried, known[key]])

    def trained(checkpoint, method, tried):
        for name in paper_train.needed(checkpoint)[:-1]:
            paper_train.train(s, name)
        router = train(s, checkpoint, tried)
        how = {"fine_tuned": {"use_expert": False}, "co_llm": {"use_router": False}, "co_llm_self": {"use_router": False}}.get(method, {})
        itself = [router.lm] if method == "co_llm_self" else []  # it may choose the router, too
        return evaluate.answering(router, experts + itself, **how)

    out = {}
    for checkpoint, (method, candidates) in TRAINED.items():
        for tried in candidates if checkpoint in only else []:
            note(checkpoint, tried, lambda: trained(checkpoint, method, tried))
    if "sequence_selection" in only:
        paper_train.train(s, "router_sft")  # whose mistakes may be the pairs
    for tried in REWARD if "sequence_selection" in only else []:
        reward = functools.cache(lambda: train(s, "reward", tried))  # trained when the first score is missing
        note("sequence_selection", tried, lambda: lambda p: baselines.sequence_selection(experts, reward(), p, end, max_new))
        for look in LOOKAHEAD if tried["prefixes"] else []:  # Collab scores beginnings
            note("collab", tried | look, lambda: lambda p: baselines.collab(experts, reward(), p, end, max_new, **look))
    for what, candidates in MERGED.items():
        for tried in candidates if what in only else []:
            note(what, tried, lambda: functools.partial(generate, baselines.merge(base, experts, **tried), max_new=max_new, end=end))
    return out


def main(argv=None):
    p = run.parser(Settings, __doc__)
    p.add_argument("--only", nargs="+", choices=WHAT, default=WHAT, help="what to tune (default: everything)")
    only, runs, seeds = several(p, Settings, argv, "only")
    results = [tune(s, only) for s in runs]
    if not seeds:
        return
    out = known_results(runs[0].family, only)
    for what in results[0]:
        tried = [{"settings": t, "accuracy": [r[what][k][1] for r in results]} for k, (t, _) in enumerate(results[0][what])]
        out[what] = {"won": max(tried, key=lambda t: sum(t["accuracy"]))["settings"], "tried": tried}
    meta = {"seeds": seeds, "split": "validation", "prompts per benchmark": runs[0].prompts}
    write_family(RESULTS / "tuning.json", runs[0].family, out, meta)
    print("saved extra/results/tuning.json")


if __name__ == "__main__":
    run.run(main)
