"""First results: FusionRoute and its own limits on the five benchmarks and the general prompts of one run, in one table.

    python quickstart.py              the table of OUT/seed0, from its quickstart.json if that is there
    python quickstart.py --publish    computes it anew, writes results/quickstart.json and the README's first table and example, with
                                      the spread over all seeds that have been evaluated under OUT

The paper's other methods, more prompts and seeds, and statistics: evaluate.py. Test prompts are split from all others by content
(toy_experts/tasks.py), and nothing was tuned on them. An answer counts when it is right in content and in form. "covered" are the
prompts whose sub-skill the experts were trained on.
"""

import contextlib
import io
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import mean, stdev

import torch
from tqdm import tqdm

import common
import decode
from evaluate import in_batches, routing
from evaluate import traces as decode_as
from report import fill, percent, table
from toy_experts import tasks, tokenizer
from toy_experts.train import EXPERTS


@dataclass
class Settings:
    seed: int = 0          # selects the run
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    family: str = "llama"  # architecture of the toy's models: llama or gemma (Gemma-2)
    split: str = "test"    # test, or validation (which is what to tune on)
    prompts: int = 200     # prompts a benchmark

    def __post_init__(self):
        common.positive(self, "prompts")
        common.one_of(self, "split", ("test", "validation"))


def answers(router, experts, items, method):
    """The greedy answers (token ids) of a method to the items, in their order, and the Trace of each."""
    traces = in_batches(decode_as(router, experts, **decode.options(method)), items)
    return [decode.answer_ids(t) for t in traces], traces


def evaluate(s, router, router_sft, experts):
    """Everything that quickstart.json holds, for one run and its models."""
    folder = common.run_dir(s)
    names = ["base"] + EXPERTS + ["router_sft", "router"]
    checkpoints = {name: common.load(folder / f"{name}.pt", ("recipe", "seconds"), "run bash run.sh" + common.flags(s)) for name in names}
    gap = checkpoints["base"]["recipe"]["gap"]
    benches = tasks.BENCHMARKS + ["general"]
    items = {b: tasks.dataset(b, s.split, s.prompts, Random(f"{s.split} {b} {s.seed}")) for b in benches}
    held = {b: tasks.held_out(b, gap, s.seed) for b in benches}
    result = {"meta": {"settings": common.recipe(s), "gap": gap, "held_out": held}, "accuracy": {}, "covered": {}, "uncovered": {},
              "general_grade": {}, "routing": {}}
    clock, bar = time.time(), tqdm(total=len(decode.METHODS) * len(benches), desc="evaluating", mininterval=1.0)
    for method in decode.METHODS:
        table = {"accuracy": {}, "covered": {}, "uncovered": {}}
        for b in benches:
            ids, traces = answers(router_sft if method == "sft_only" else router, experts, items[b], method)
            texts = [tokenizer.encoding.decode(x) for x in ids]
            right = [tasks.check(item, text) for item, text in zip(items[b], texts)]
            groups = {"accuracy": right, "covered": [r for r, i in zip(right, items[b]) if i.skill not in held[b]],
                      "uncovered": [r for r, i in zip(right, items[b]) if i.skill in held[b]]}
            for name, values in groups.items():
                if values:
                    table[name][b] = round(sum(values) / len(values), 4)
            if b == "general":
                result["general_grade"][method] = round(sum(map(tasks.grade, items[b], texts)) / len(texts), 4)
            if method == "fusionroute":
                result["routing"][b] = routing(experts, items[b], traces)
            bar.update()
        for name, row in table.items():
            if all(b in row for b in tasks.BENCHMARKS):
                row["average"] = round(sum(row[b] for b in tasks.BENCHMARKS) / len(tasks.BENCHMARKS), 4)
            result[name][method] = row
    bar.close()
    seconds = {name: round(c["seconds"]) for name, c in checkpoints.items()} | {"evaluation": round(time.time() - clock)}
    device = torch.cuda.get_device_name() if common.device(s.device).type == "cuda" else f"{os.cpu_count()} CPU cores"
    result["meta"] |= {"torch": torch.__version__.split("+")[0], "python": platform.python_version(), "machine": device}
    result["meta"]["seconds"] = seconds | {"total": sum(seconds.values())}
    return result


# --- showing and publishing -----------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent
EXAMPLE = "Zoe has 12 cakes. She buys 5 more. Then she doubles the number. How many cakes are there now?"


def report(r):
    """What a result says, as Markdown."""
    meta, seconds, short = r["meta"], r["meta"]["seconds"], {b: b.removeprefix("toy-") for b in r["routing"]}
    seeds = r.get("seeds", {})
    accuracy = [["method", *map(short.get, tasks.BENCHMARKS), "average", "covered", "uncovered", "general"]]
    if seeds:
        accuracy[0].append(f"average, seeds {', '.join(seeds)}")
    for method, row in sorted(r["accuracy"].items(), key=lambda kv: -kv[1]["average"]):
        groups = [r[group][method].get("average") for group in ("covered", "uncovered")]
        cells = [row[b] for b in tasks.BENCHMARKS] + [row["average"], *groups, row["general"]]
        accuracy.append([method, *map(percent, cells)])
        if seeds:
            spread = [100 * averages[method] for averages in seeds.values()]
            accuracy[-1].append(f"{mean(spread):.1f} ± {stdev(spread):.1f}")
    routing = [["answers to", *(f"{e}" for e in EXPERTS), *(f"{e} in S" for e in EXPERTS), "in S"]]
    for b, share in r["routing"].items():
        routing.append([short[b], *(percent(share[part][e]) for part in ("all", "S") for e in EXPERTS), percent(share["S_share"])])
    own = "; ".join(f"{e} " + ", ".join(f"{percent(r['covered'][e].get(b))} ({short[b]})" for b in tasks.DOMAINS[e]) for e in EXPERTS)
    held = "; ".join(f"{short[b]}: {', '.join(meta['held_out'][b])}" for b in tasks.BENCHMARKS)
    return "\n".join([
        f"Seed {meta['settings']['seed']}, {meta['settings']['prompts']} {meta['settings']['split']} prompts per benchmark, per cent right in "
        "content and form. `average`: of the five benchmarks. Each has eight sub-skills (kinds of problem): `covered` is the average over those "
        "that the experts were trained on, `uncovered` over those kept from them. `general`: problems of all these, half of them with one "
        "expert's content asked for in another's form.", "", *table(accuracy), "",
        f"{percent(meta['gap'])}% of the sub-skills are kept from every expert on purpose ({held}). On the others, each expert in its own "
        f"domain: {own}.", "",
        "Who writes: the share of each expert in FusionRoute's tokens, of all tokens and of those in S (where the experts differ; it is "
        "only there that the choice matters and is trained).", "", *table(routing), "",
        f"Seconds on {meta['machine']}: base and experts {sum(seconds[x] for x in ['base'] + EXPERTS)}, phase 1 {seconds['router_sft']}, "
        f"pairs and phase 2 {seconds['router']}, evaluation {seconds['evaluation']}; {seconds['total']} in all. The installation comes on "
        "top."])


def blocks(result):
    """What --publish writes between the README's markers."""
    return {"quickstart": report(result), "example": f"```\n{result['example']}\n```"}


def example(router, experts):
    """EXAMPLE as decode.py shows it where there are no colours."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        decode.respond(EXAMPLE, router, experts, "fusionroute", as_json=False)
    return f"$ python decode.py \"{EXAMPLE}\"\n{out.getvalue().rstrip()}"


def saved(path, settings, made_from=None):
    """The result in a file, or None where there is none, none that can be read, or one of other settings or checkpoints."""
    try:
        r = json.loads(path.read_text())
        fits = r["meta"]["settings"] == settings and made_from in (None, r["meta"]["made_from"])
        return r if fits and set(r["accuracy"]) == set(decode.METHODS) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def all_seeds(s):
    """{seed: {method: average}} of all the runs under OUT that have a result with these settings, if there are several."""
    seeds = {}
    for path in sorted(Path(s.out).glob("seed*/quickstart.json")):
        seed = path.parent.name.removeprefix("seed")
        if r := saved(path, common.recipe(s) | {"seed": int(seed) if seed.isdigit() else None}):
            seeds[seed] = {m: row["average"] for m, row in r["accuracy"].items()}
    return seeds if len(seeds) > 1 else {}


def main(argv=None):
    parser = common.parser(Settings, __doc__)
    parser.add_argument("--publish", action="store_true", help="compute anew; write results/quickstart.json and the README's figures")
    args = vars(parser.parse_args(argv))
    publish = args.pop("publish")
    s = Settings(**args)
    if publish and s.family != "llama":
        raise common.UserError(f"--family {s.family} cannot be published: the README's first table and example are those of llama")
    folder = common.run_dir(s)
    (router, experts), (router_sft, _) = decode.load(s, "router"), decode.load(s, "router_sft")
    made_from = common.fingerprints(["router", "router_sft"], [router, router_sft])
    asked, cache = common.recipe(s), folder / "quickstart.json"
    result = None if publish else saved(cache, asked, made_from)
    if result is None:
        result = evaluate(s, router, router_sft, experts)
        result["meta"]["made_from"], result["example"] = made_from, example(router, experts)
        common.write(cache, json.dumps(result, indent=1) + "\n")
        print(f"saved {cache}")
    print(report(result))
    if publish:
        result["seeds"] = all_seeds(s)
        common.write(ROOT / "README.md", fill((ROOT / "README.md").read_text(), blocks(result), "python quickstart.py --publish"))
        common.write(ROOT / "results" / "quickstart.json", json.dumps(result, indent=1) + "\n")
        print("\nsaved results/quickstart.json and README.md")


if __name__ == "__main__":
    common.run(main)
