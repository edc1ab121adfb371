"""The small table: FusionRoute and its parts alone on the five benchmarks and the general prompts.

    python -m toy_experts.evaluate     the table of OUT/seed0, after both trainings

Test prompts are split from all others by their content (tasks.py); nothing was tuned on them. An
answer counts when it is right in content and in form. "covered" are the prompts whose sub-skill
the experts were trained on, "uncovered" the others. The paper's other methods, more seeds and
intervals are in extra/paper.
"""

import json
import os
import platform
import time
from dataclasses import dataclass
from random import Random

import torch
from tqdm import tqdm

from decode import METHODS
from docs.tools.pages import percent, table
from fusionroute import informative, score
from toy_experts import judge, script, tasks, tokenizer
from toy_experts.data import answer_only, pack
from toy_experts.decode_batch import answers
from toy_experts.script import EXPERTS, load_router

BENCHES = [*tasks.BENCHMARKS, "general"]


@dataclass
class Settings:
    seed: int = 0  # selects the run
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "auto"  # auto, cuda, mps or cpu
    split: str = "test"  # test, or validation (the split to tune on)
    prompts: int = 200  # prompts a benchmark

    def __post_init__(self):
        script.positive(self, "prompts")
        script.one_of(self, "split", ["test", "validation"])


def mean(values):
    """The mean, rounded for the JSON file; None of no values."""
    return round(sum(values) / len(values), 4) if values else None


def shares(right, items, held_out):
    """The share of right answers to all items, to covered and to uncovered ones; None of none.

    right: a bool for each item. held_out: the sub-skills that no expert was trained on.
    """
    uncovered = [item.skill in held_out for item in items]
    return {
        "all": mean(right),
        "covered": mean([r for r, u in zip(right, uncovered) if not u]),
        "uncovered": mean([r for r, u in zip(right, uncovered) if u]),
    }


def average(rows):
    """The mean over the five benchmarks of the shares of each group; None where one has none."""
    groups = {
        group: [rows[b][group] for b in tasks.BENCHMARKS]
        for group in ("all", "covered", "uncovered")
    }
    return {group: None if None in x else mean(x) for group, x in groups.items()}


def tokens_in_S(experts, items, traces):
    """Whether the experts disagree, a bool for each token of all answers."""
    samples = [
        answer_only(tokenizer.encode_prompt(item.prompt), trace.tokens)
        for item, trace in zip(items, traces)
    ]
    ids, mask, lengths = pack(samples)
    _, choice = score(experts, ids, lengths)  # (N, T-1, n)
    return informative(choice)[mask[:, 1:]].tolist()


def routing(experts, items, traces):
    """The share of each expert in the answers' tokens: of all of them, and of those in S."""
    in_S = tokens_in_S(experts, items, traces)
    picks = [pick for trace in traces for pick in trace.pick]
    picks_in_S = [pick for pick, inside in zip(picks, in_S) if inside]

    def of_each(picks):
        return {e: round(picks.count(i) / max(1, len(picks)), 4) for i, e in enumerate(EXPERTS)}

    return {"all": of_each(picks), "S": of_each(picks_in_S), "S_share": mean(in_S)}


def evaluate(s, folder):
    """Everything that the table shows, as a dict, for the run in a folder."""
    begun, device = time.time(), script.device(s.device)
    hint = f"run bash run.sh{script.flags(s)}"
    router, experts, last = load_router(folder, "router", device, hint)
    router_sft, _, first = load_router(folder, "router_sft", device, hint)
    phase1 = {"phase1": script.fingerprint(router_sft)}
    script.check_same(folder / "router.pt", last["recipe"], phase1)
    frozen = {
        name: script.load(folder / f"{name}.pt", ("recipe", "seconds"), hint)
        for name in ["base"] + EXPERTS
        if (folder / f"{name}.pt").exists()  # the shipped weights have no base
    }
    gap = frozen["math"]["recipe"]["gap"]
    held_out = {b: tasks.held_out(b, gap, s.seed) for b in BENCHES}
    items = {
        b: tasks.dataset(b, s.split, s.prompts, Random(f"{s.split} {b} {s.seed}")) for b in BENCHES
    }
    methods, picks = {}, {}
    bar = tqdm(total=len(METHODS) * len(BENCHES), desc="evaluating")
    for method, how in METHODS.items():
        model, rows = router_sft if method == "sft_only" else router, {}
        for b in BENCHES:
            traces = answers(model, experts, items[b], **how)
            right = [judge.check(item, trace.text()) for item, trace in zip(items[b], traces)]
            rows[b] = shares(right, items[b], held_out[b])
            if method == "fusionroute":
                picks[b] = routing(experts, items[b], traces)
            bar.update()
        methods[method] = rows | {"average": average(rows)}
    bar.close()
    seconds = {
        "base": frozen["base"]["seconds"] if "base" in frozen else 0,
        "experts": max(frozen[e]["seconds"] for e in EXPERTS),  # they trained side by side
        "router_sft": first["seconds"],
        "router": last["seconds"],
        "evaluation": time.time() - begun,
    }
    gpu = device.type == "cuda"
    meta = {
        "settings": script.recipe(s),
        "gap": gap,
        "held_out": held_out,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} CPU cores",
        "seconds": {stage: round(x) for stage, x in seconds.items()},
        "router": script.fingerprint(router),
        "router_sft": phase1["phase1"],
    }
    return {"meta": meta, "methods": methods, "routing": picks}


def report(result):
    """What a result of `evaluate` says, as text."""
    meta, short = result["meta"], {b: b.removeprefix("toy-") for b in BENCHES}
    asked, seconds = meta["settings"], meta["seconds"]
    head = [*map(short.get, tasks.BENCHMARKS), "average", "covered", "uncovered", "general"]
    rows = [["method", *head]]
    best_first = sorted(result["methods"].items(), key=lambda kv: -kv[1]["average"]["all"])
    for method, row in best_first:
        cells = [row[b]["all"] for b in tasks.BENCHMARKS]
        cells += [*row["average"].values(), row["general"]["all"]]
        rows.append([method, *map(percent, cells)])
    picks = [["answers to", *EXPERTS, *(f"{e} in S" for e in EXPERTS), "in S"]]
    for b, share in result["routing"].items():
        cells = [*share["all"].values(), *share["S"].values(), share["S_share"]]
        picks.append([short[b], *map(percent, cells)])
    held = "; ".join(f"{short[b]}: {', '.join(meta['held_out'][b])}" for b in tasks.BENCHMARKS)
    lines = [
        f"Seed {asked['seed']}, {asked['prompts']} {asked['split']} prompts per benchmark, per "
        "cent right in content and form.",
        "",
        *table(rows),
        "",
        f"No expert was trained on {percent(meta['gap'])}% of the sub-skills ({held}).",
        "",
        "The share of each expert in FusionRoute's tokens, of all tokens and of those in S:",
        "",
        *table(picks),
        "",
        f"Seconds on {meta['machine']}: base {seconds['base']}, experts {seconds['experts']}, "
        f"phase 1 {seconds['router_sft']}, pairs and phase 2 {seconds['router']}, evaluation "
        f"{seconds['evaluation']}.",
    ]
    return "\n".join(lines)


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    folder = script.run_dir(s)
    result, path = evaluate(s, folder), folder / "evaluate.json"
    print(report(result))
    script.write(path, json.dumps(result, indent=1) + "\n")
    print(f"\nsaved {path}")


if __name__ == "__main__":
    script.run(main)
