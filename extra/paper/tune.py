"""The settings of every method, ours and the baselines', chosen on validation prompts.

    python tune.py --seed 0          every setting of the grid below on one seed: OUT/seed0/tuning.json
    python tune.py --seeds 0 1       several, then writes results/tuning.json: what was tried, and what won

A setting's score is the mean accuracy over the five benchmarks, on validation prompts, averaged over the seeds. The winners stand in
evaluate.py and as the scripts' defaults (a test compares). No test prompt is read here. Phase 2 is tuned on top of the winner of phase 1.
Scores are kept one by one, so a killed run goes on where it was; the models tried are thrown away.
"""

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import baselines
import common
import decode
import evaluate
from model import generate
from toy_experts import tasks, tokenizer


@dataclass
class Settings:
    seed: int = 0          # selects the run
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    family: str = "llama"  # architecture of the toy's models: llama or gemma (Gemma-2)
    prompts: int = 100     # validation prompts a benchmark

    def __post_init__(self):
        common.positive(self, "prompts")


def grid(**values):
    return [dict(zip(values, row)) for row in itertools.product(*values.values())]


PHASE1, PHASE2 = grid(lr=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3]), grid(lr=[2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4])
PHASE1_OF = "router_sft", "fine_tuned_sft"  # what phase 2 starts from
TRAINED = {  # checkpoint: (the method that it is judged as, what is tried); the rest of its settings as in evaluate.TRAINING
    "router_sft": ("sft_only", PHASE1),
    "fine_tuned_sft": ("fine_tuned", PHASE1),
    "router": ("fusionroute", PHASE2),
    "fine_tuned": ("fine_tuned", PHASE2 + grid(lr=[5e-5, 1e-4, 2e-4], mix=[0])),
    "co_llm": ("co_llm", grid(lr=[1e-3, 2e-3, 4e-3]) + grid(lr=[1e-3], lr_w=[1e-2])),
    "fused_sft": ("fused_sft", grid(loss=["fused", "fused_own"], lr=[1e-3, 4e-3]) + grid(loss=["fused_own"], lr=[5e-4, 2e-3])),
}
REWARD = grid(rejected=["fused", "experts"], prefixes=[0, 1])
LOOKAHEAD = grid(lookahead=[4, 8, 16, 32, 64])
MERGED = {"task_arithmetic": grid(scale=[0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0]),
          "dare": grid(drop=[0.1, 0.5, 0.9], scale=[0.1, 0.2, 0.3, 0.5, 1.0])}


def train(s, checkpoint, tried):
    """Train `checkpoint` with the settings `tried` as tune.pt; returns the model."""
    path = common.run_dir(s) / "tune.pt"
    path.unlink(missing_ok=True)
    path.with_name("tune.state.pt").unlink(missing_ok=True)  # of a killed run, and of other settings
    module, flags = evaluate.TRAINING[checkpoint]
    argv = f"{flags} " + " ".join(f"--{k} {v}" for k, v in tried.items())  # a flag given twice: the last one counts
    module.main([*common.where(s), *argv.split(), "--name", "tune"])
    model = common.load_model(path, tokenizer.FINGERPRINT, "", common.device(s.device), router=True)[0]
    path.unlink()
    return model


def tune(s):
    """{what: [[tried, accuracy], ...]} for one seed; each new score is saved in OUT/seedN/tuning.json at once."""
    path, asked = common.run_dir(s) / "tuning.json", [common.recipe(s), *(evaluate.TRAINING[name][1] for name in PHASE1_OF)]
    known = common.cached(path, asked, dict)
    for name in PHASE1_OF:
        module, flags = evaluate.TRAINING[name]
        module.main([*common.where(s), "--name", name, *flags.split()])
    experts = decode.load(s, "router_sft")[1]
    base = common.load_model(common.run_dir(s) / "base.pt", tokenizer.FINGERPRINT, "", common.device(s.device))[0]
    items = {b: tasks.dataset(b, "validation", s.prompts, Random(f"validation {b} {s.seed}")) for b in tasks.BENCHMARKS}
    end, max_new = tokenizer.END, decode.MAX_NEW

    def note(what, tried, make):
        """Score what make() returns, a decoder from token-id prompts to answers, unless the score is known."""
        key = f"{what} {json.dumps(tried)}"
        if key not in known:
            decoder, shares = make(), []
            for b in tasks.BENCHMARKS:
                texts = [tokenizer.encoding.decode(ids) for ids in evaluate.in_batches(decoder, items[b])]
                shares.append(sum(map(tasks.check, items[b], texts)) / len(texts))
            known[key] = round(sum(shares) / len(shares), 4)
            common.write(path, json.dumps({"key": asked, "result": known}) + "\n")
        print(f"{key}: {known[key]:.3f}")
        out.setdefault(what, []).append([tried, known[key]])

    def trained(checkpoint, method, tried):
        router = train(s, checkpoint, tried)
        how = {"fine_tuned": {"use_expert": False}, "co_llm": {"use_router": False}}.get(method, {})
        ways = evaluate.traces(router, experts, **how)
        return lambda prompts: [decode.answer_ids(t) for t in ways(prompts)]

    out = {}
    for checkpoint, (method, candidates) in TRAINED.items():
        for tried in candidates:
            note(checkpoint, tried, lambda: trained(checkpoint, method, tried))
    for tried in REWARD:
        reward = functools.cache(lambda: train(s, "reward", tried))  # trained when the first score is missing
        note("sequence_selection", tried, lambda: lambda p: baselines.sequence_selection(experts, reward(), p, end, max_new))
        for look in LOOKAHEAD if tried["prefixes"] else []:  # Collab scores beginnings
            note("collab", tried | look, lambda: lambda p: baselines.collab(experts, reward(), p, end, max_new, **look))
    for what, candidates in MERGED.items():
        for tried in candidates:
            note(what, tried, lambda: functools.partial(generate, baselines.merge(base, experts, **tried), max_new=max_new, end=end))
    return out


def main(argv=None):
    runs, seeds = common.several(common.parser(Settings, __doc__), Settings, argv)
    results = [tune(s) for s in runs]
    if not seeds:
        return
    out = {}
    for what in results[0]:
        tried = [{"settings": t, "accuracy": [r[what][k][1] for r in results]} for k, (t, _) in enumerate(results[0][what])]
        out[what] = {"won": max(tried, key=lambda t: sum(t["accuracy"]))["settings"], "tried": tried}
    meta = {"seeds": seeds, "split": "validation", "prompts per benchmark": runs[0].prompts}
    common.write_family(Path(__file__).parent / "results" / "tuning.json", runs[0].family, out, meta)
    print("saved results/tuning.json")


if __name__ == "__main__":
    common.run(main)
