"""The small table: FusionRoute and its own limits on the five benchmarks and the general prompts.

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


@dataclass
class Settings:
    seed: int = 0  # selects the run
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "auto"  # auto, cuda, mps or cpu
    split: str = "test"  # test, or validation (the split to tune on)
    prompts: int = 200  # prompts a benchmark

    def __post_init__(self):
        script.positive(self, "prompts")
        if self.split not in ("test", "validation"):
            raise script.UserError(f"--split is {self.split!r}, and must be test or validation")


def routing(experts, items, traces):
    """The share of each expert in the answers' tokens: of all of them, and of those in S."""
    samples = [
        answer_only(tokenizer.encode_prompt(i.prompt), t.tokens) for i, t in zip(items, traces)
    ]
    ids, mask, lengths = pack(samples)
    choice = score(experts, ids, lengths)[1]  # (N, T-1, n)
    S = informative(choice)[mask[:, 1:]].tolist()  # one bool for each token of the answers
    picks = [p for t in traces for p in t.pick]
    inside = [p for p, s in zip(picks, S) if s]

    def share(picks):
        return {
            name: round(picks.count(i) / max(1, len(picks)), 4) for i, name in enumerate(EXPERTS)
        }

    return {"all": share(picks), "S": share(inside), "S_share": round(len(inside) / len(picks), 4)}


def evaluate(s, folder):
    """Everything that the table shows, as a dict, for the run in a folder."""
    device = script.device(s.device)
    hint = f"run bash run.sh{script.flags(s)}"
    router, experts, last = load_router(folder, "router", device, hint)
    router_sft, _, first = load_router(folder, "router_sft", device, hint)
    contents = {
        name: script.load(folder / f"{name}.pt", ("recipe", "seconds"), hint)
        for name in ["base"] + EXPERTS
        if (folder / f"{name}.pt").exists()
    }
    contents |= {"router_sft": first, "router": last}
    benches, gap = tasks.BENCHMARKS + ["general"], contents["math"]["recipe"]["gap"]
    held = {b: tasks.held_out(b, gap, s.seed) for b in benches}
    result = {
        "meta": {"settings": script.recipe(s), "gap": gap, "held_out": held},
        "accuracy": {},
        "covered": {},
        "uncovered": {},
        "general_grade": {},
        "routing": {},
    }
    drawn = {
        b: tasks.dataset(b, s.split, s.prompts, Random(f"{s.split} {b} {s.seed}")) for b in benches
    }
    clock, bar = time.time(), tqdm(total=len(METHODS) * len(benches), desc="evaluating")
    for method, how in METHODS.items():
        rows = {"accuracy": {}, "covered": {}, "uncovered": {}}
        for b in benches:
            items = drawn[b]
            traces = answers(router_sft if method == "sft_only" else router, experts, items, **how)
            texts = [t.text() for t in traces]
            right = [judge.check(item, text) for item, text in zip(items, texts)]
            groups = {
                "accuracy": right,
                "covered": [r for r, i in zip(right, items) if i.skill not in held[b]],
                "uncovered": [r for r, i in zip(right, items) if i.skill in held[b]],
            }
            for name, values in groups.items():
                if values:
                    rows[name][b] = round(sum(values) / len(values), 4)
            if b == "general":
                grade = sum(map(judge.grade, items, texts)) / len(texts)
                result["general_grade"][method] = round(grade, 4)
            if method == "fusionroute":
                result["routing"][b] = routing(experts, items, traces)
            bar.update()
        for name, row in rows.items():
            if all(b in row for b in tasks.BENCHMARKS):
                row["average"] = round(sum(row[b] for b in tasks.BENCHMARKS) / 5, 4)
            result[name][method] = row
    bar.close()
    seconds = {name: round(c["seconds"]) for name, c in contents.items()}
    seconds["evaluation"] = round(time.time() - clock)
    result["meta"] |= {
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{os.cpu_count()} CPU cores",
        "seconds": seconds | {"total": sum(seconds.values())},
        "made_from": {
            "router": script.fingerprint(router),
            "router_sft": script.fingerprint(router_sft),
        },
    }
    return result


def report(r):
    """What a result of `evaluate` says, as text."""
    meta, short = r["meta"], {b: b.removeprefix("toy-") for b in r["routing"]}
    seconds = meta["seconds"]
    rows = [
        ["method", *map(short.get, tasks.BENCHMARKS), "average", "covered", "uncovered", "general"]
    ]
    for method, row in sorted(r["accuracy"].items(), key=lambda kv: -kv[1]["average"]):
        groups = [r[group][method].get("average") for group in ("covered", "uncovered")]
        cells = [row[b] for b in tasks.BENCHMARKS] + [row["average"], *groups, row["general"]]
        rows.append([method, *map(percent, cells)])
    picks = [["answers to", *EXPERTS, *(f"{e} in S" for e in EXPERTS), "in S"]]
    for b, share in r["routing"].items():
        cells = [share[part][e] for part in ("all", "S") for e in EXPERTS] + [share["S_share"]]
        picks.append([short[b], *map(percent, cells)])
    held = "; ".join(f"{short[b]}: {', '.join(meta['held_out'][b])}" for b in tasks.BENCHMARKS)
    trained = sum(seconds.get(name, 0) for name in ["base"] + EXPERTS)
    asked = meta["settings"]
    return "\n".join(
        [
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
            f"Seconds on {meta['machine']}: base and experts {trained}, phase 1 "
            f"{seconds['router_sft']}, pairs and phase 2 {seconds['router']}, evaluation "
            f"{seconds['evaluation']}.",
        ]
    )


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    folder = script.run_dir(s)
    result, path = evaluate(s, folder), folder / "evaluate.json"
    script.write(path, json.dumps(result, indent=1) + "\n")
    print(f"{report(result)}\n\nsaved {path}")


if __name__ == "__main__":
    script.run(main)
