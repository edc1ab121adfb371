"""Every method of the paper, and what its readers ask for, on the five benchmarks and the general prompts: the paper's tables.

    python -m extra.paper.evaluate --seed 0             trains what is missing of one seed and evaluates every method on it
    python -m extra.paper.evaluate --seeds 0 1 2 3 4    five seeds, then writes table1.json, differences.json, winrate.json, cost.json
                                                        and routing.json in extra/results/
    python -m extra.paper.report                        the tables and CLAIMS.md from these files

Methods: see the table at the top of baselines.py.

An answer counts when it is right in content and in form. General prompts are judged by the checkers' graded score (tasks.grade:
correctness first, then form, then brevity) instead of GPT-4o; equal scores are ties. Test prompts are split from all others by
content, no setting was chosen on them (tune.py reads validation prompts), and a seed's results are kept in OUT/seedN/table1.json, so
that they are computed once.
"""

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from tqdm import tqdm

from extra import gpt
from extra.common import RESULTS, cached, fingerprints, one_of, several, write_family
from extra import models
from extra.paper import baselines
from extra.paper.train import TRAINING, changed, train
from fusionroute import informative, score
from model import GPT, generate
from toy_experts import run, tasks, tokenizer
from toy_experts.data import answer_only, pack
from toy_experts.batch import MAX_NEW, decode_batch
from toy_experts.evaluate import percent, table
from toy_experts.train import EXPERTS

BENCHES = tasks.BENCHMARKS + ["general"]
METHODS = ["math_expert", "code_expert", "instruct_expert", "sequence_selection", "collab", "fine_tuned", "task_arithmetic_paper",
           "task_arithmetic", "dare_paper", "dare", "routing_only", "sft_only", "fusionroute", "router", "uniform_average",
           "co_llm", "co_llm_self", "oracle_expert", "fused_sft", "fused_full"]

# Chosen by tune.py on validation prompts, as the settings in train.TRAINING were.
TASK_ARITHMETIC, DARE, LOOKAHEAD = {"scale": 0.5}, {"scale": 0.5, "drop": 0.1}, {"lookahead": 64}


@dataclass
class Settings:
    seed: int = 0          # selects the run
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    family: str = "llama"  # architecture of the toy's models: llama or gemma (Gemma-2)
    split: str = "test"    # test, or validation (which is what to tune on)
    prompts: int = 300     # prompts a benchmark
    general: int = 500     # general prompts, on which win rates are measured
    timed: int = 25        # of the benchmarks' prompts, how many results/cost.json is measured on

    def __post_init__(self):
        run.positive(self, "prompts", "general", "timed")
        one_of(self, "split", ("test", "validation"))


# --- answers ------------------------------------------------------------------------------------------------------------------------------


def in_batches(decoder, items, size=128):
    """What decoder(prompts as token ids) says of each item, in their order."""
    out = [None] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))  # similar lengths together
    for start in range(0, len(order), size):
        rows = order[start:start + size]
        for i, answer in zip(rows, decoder([tokenizer.encode_prompt(items[i].prompt) for i in rows])):
            out[i] = answer
    return out


def traces(router, experts, **how):
    """A decoder that gives Traces. how: as in toy_experts.batch.METHODS."""
    return lambda prompts: decode_batch(router, experts, prompts, MAX_NEW, **how)


def load_all(s):
    """name -> every model of a run, frozen, by the names of its checkpoints; "experts" the list of them."""
    directory, device = models.folder(s), run.device(s.device)
    hint = "run python -m extra.paper.evaluate" + models.flags(s)
    m = {name: models.load_model(directory / f"{name}.pt", hint, device)[0] for name in ["base"] + EXPERTS}
    m["reward"] = models.load_model(directory / "reward.pt", hint, device, router=True)[0]
    return m | {"experts": [m[e] for e in EXPERTS]} | {name: models.load_router(s, name)[0] for name in TRAINING if name != "reward"}


def decoders(m):
    """method -> its decoder, from token-id prompts to answers without the end token; m as from load_all. (oracle_expert has none.)"""
    end, max_new, experts = tokenizer.END, MAX_NEW, m["experts"]

    def fused(router, experts=experts, **how):
        return lambda prompts: [t.answer() for t in traces(m[router], experts, **how)(prompts)]

    def alone(model):
        return lambda prompts: generate(model, prompts, max_new, end)

    def merged(scale, drop=0.0):
        return alone(baselines.merge(m["base"], experts, scale, drop))

    return {
        "math_expert": alone(m["math"]), "code_expert": alone(m["code"]), "instruct_expert": alone(m["instruct"]),
        "sequence_selection": lambda prompts: baselines.sequence_selection(experts, m["reward"], prompts, end, max_new),
        "collab": lambda prompts: baselines.collab(experts, m["reward"], prompts, end, max_new, **LOOKAHEAD),
        "fine_tuned": alone(m["fine_tuned"].lm),
        "task_arithmetic_paper": merged(1.0), "task_arithmetic": merged(**TASK_ARITHMETIC),
        "dare_paper": merged(1.0, 0.9), "dare": merged(**DARE),
        "routing_only": fused("router", use_router=False), "sft_only": fused("router_sft"), "fusionroute": fused("router"),
        "router": alone(m["router"].lm),
        "uniform_average": lambda prompts: baselines.uniform_average(experts, prompts, end, max_new),
        "co_llm": fused("co_llm", use_router=False),
        "co_llm_self": fused("co_llm_self", experts + [m["co_llm_self"].lm], use_router=False),
        "fused_sft": fused("fused_sft"), "fused_full": fused("fused_full"),
    }


def routing(experts, items, answers):
    """Share of each expert among the answers' tokens (Traces): of all, and of those in S, where the experts' choices differ. On prompts
    across domains also of the words and of the rest (digits, signs) in S."""
    samples = [answer_only(tokenizer.encode_prompt(i.prompt), t.tokens) for i, t in zip(items, answers)]
    ids, mask, lengths = pack(samples)
    choice = score(experts, ids, lengths)[1]                       # (N, T-1, n)
    S = informative(choice)[mask[:, 1:]].tolist()                  # one bool per generated token
    picks = [p for t in answers for p in t.pick]
    inside = [p for p, s in zip(picks, S) if s]

    def share(picks):
        return {name: round(picks.count(i) / max(1, len(picks)), 4) for i, name in enumerate(EXPERTS)}

    word = [tokenizer.encoding.decode([x]).strip().isalpha() for t in answers for x in t.tokens]
    cross = [i.skill.startswith("math-") for i, t in zip(items, answers) for _ in t.tokens]
    extra = {name: share([p for p, s, w, c in zip(picks, S, word, cross) if s and c and w == is_word])
             for name, is_word in (("cross words", True), ("cross rest", False))} if any(cross) else {}
    return {"all": share(picks), "S": share(inside), "S_share": round(len(inside) / len(picks), 4)} | extra


def train_missing(s):
    models.ensure(s)
    for name in TRAINING:
        train(s, name)


def evaluate(s):
    """Everything about one seed: right or wrong for every method and prompt as strings of 0 and 1, grades on general prompts, routing.

    Answers are kept method by method in OUT/seedN/table1.json, for as long as their settings and checkpoints stay.
    """
    path, loaded, clock = models.folder(s) / "table1.json", load_all(s), time.time()
    asked = [{k: v for k, v in run.recipe(s).items() if k not in ("timed", "family")}, made_from(loaded)]
    known = cached(path, asked, lambda: {"right": {}, "grades": {}, "routing": {}, "seconds": 0})
    items = {b: tasks.dataset(b, s.split, s.general if b == "general" else s.prompts, Random(f"{s.split} {b} {s.seed}")) for b in BENCHES}
    right, grades, ways = known["right"], known["grades"], decoders(loaded)
    if missing := [method for method in ways if method not in right]:
        bar = tqdm(total=len(missing) * len(BENCHES), desc=f"evaluating seed {s.seed}", mininterval=1.0)
        for method in missing:
            row = {}
            for b in BENCHES:
                texts = [tokenizer.encoding.decode(ids) for ids in in_batches(ways[method], items[b])]
                row[b] = "".join(str(int(tasks.check(item, text))) for item, text in zip(items[b], texts))
                if b == "general":
                    grades[method] = [round(tasks.grade(item, text), 4) for item, text in zip(items[b], texts)]
                bar.update()
            right[method] = row
        bar.close()
        alone = [f"{e}_expert" for e in EXPERTS]  # the oracle takes the expert that does best on each prompt: a bound, not a method
        right["oracle_expert"] = {b: "".join(max(column) for column in zip(*(right[e][b] for e in alone))) for b in BENCHES}
        grades["oracle_expert"] = [max(column) for column in zip(*(grades[e] for e in alone))]
        answers = traces(loaded["router"], loaded["experts"])
        known["routing"] = {b: routing(loaded["experts"], items[b], in_batches(answers, items[b])) for b in BENCHES}
        known["seconds"] += time.time() - clock
        run.write(path, json.dumps({"key": asked, "result": known}) + "\n")
        print(f"saved {path}")
    contents = {name: run.load(models.folder(s) / f"{name}.pt", ("recipe", "seconds"), "") for name in ["base", *EXPERTS, *TRAINING]}
    seconds = {name: round(c["seconds"]) for name, c in contents.items()} | {"evaluation": round(known["seconds"])}
    gap = contents["base"]["recipe"]["gap"]
    return known | {"meta": {"gap": gap, "held_out": {b: tasks.held_out(b, gap, s.seed) for b in tasks.BENCHMARKS},
                             "seconds": seconds | {"total": sum(seconds.values())}}}


def made_from(loaded):
    """What a result depends on besides its settings: the weights of every checkpoint, and the settings of what is not trained."""
    names = [name for name in loaded if name != "experts"]
    return fingerprints(names, [loaded[n] for n in names]) | {"untrained": [TASK_ARITHMETIC, DARE, LOOKAHEAD]}


def result(s):
    """evaluate(s), after training what is missing."""
    train_missing(s)
    return evaluate(s)


# --- statistics ---------------------------------------------------------------------------------------------------------------------------


def average(r, method):
    """Mean accuracy over the five benchmarks."""
    return float(np.mean([accuracy(r, method, b) for b in tasks.BENCHMARKS]))


def accuracy(r, method, b):
    return r["right"][method][b].count("1") / len(r["right"][method][b])


def interval(outcomes, rounds=20_000):
    """The mean of paired outcomes and its 95% interval, by bootstrap over seeds and prompts.

    outcomes: per benchmark and seed a list of -1, 0 or 1, one a prompt. Every round draws seeds with replacement, and within each drawn
    seed and benchmark prompts with replacement: the interval is about another seed and other prompts. n prompts drawn from values of
    three kinds are one multinomial draw of three counts. p: the share of rounds on the other side of zero, twice (two-sided).
    """
    rng, seeds = np.random.default_rng(0), len(outcomes[0])
    drawn = rng.integers(seeds, size=(rounds, seeds))                                      # (rounds, seeds)
    total = np.zeros(rounds)
    for per_seed in outcomes:
        n = len(per_seed[0])
        shares = np.array([[o.count(v) / n for v in (-1, 0, 1)] for o in per_seed])        # (seeds, 3)
        counts = rng.multinomial(n, shares[drawn])                                         # (rounds, seeds, 3)
        total += ((counts[..., 2] - counts[..., 0]) / n).mean(1) / len(outcomes)
    each = np.mean([[sum(o) / len(o) for o in per_seed] for per_seed in outcomes], 0)      # (seeds,)
    low, high = np.quantile(total, [0.025, 0.975])
    other_side = min(1.0, 2 * min((total <= 0).mean(), (total >= 0).mean()))
    return {"mean": round(float(each.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4),
            "p": round(float(other_side), 4), "seeds": [round(float(x), 4) for x in each]}


def difference(results, ours, other, benches=tasks.BENCHMARKS):
    """Accuracy of one method minus another's, mean over benchmarks, paired by prompt; see interval."""
    return interval([[[int(x) - int(y) for x, y in zip(r["right"][ours][b], r["right"][other][b])] for r in results] for b in benches])


def wins(results, ours, other):
    """Wins, ties and losses per seed of ours against other on the general prompts, by grade; the win rate with ties half."""
    signs = [[(x > y) - (x < y) for x, y in zip(r["grades"][ours], r["grades"][other])] for r in results]
    margin = interval([signs])
    rate = {k: round((1 + margin[k]) / 2, 4) for k in ("mean", "low", "high")}
    return {name: [s.count(v) for s in signs] for name, v in (("wins", 1), ("ties", 0), ("losses", -1))} | {
        "rate": rate | {"p": margin["p"], "seeds": [round((1 + m) / 2, 4) for m in margin["seeds"]]}}


# What the paper says of two methods (report.py), besides FusionRoute's difference to every other one.
PAIRS = [("co_llm_self", "sft_only"), ("collab", "sequence_selection"), ("task_arithmetic_paper", "dare_paper"), ("sequence_selection", "fine_tuned"),
         ("fused_sft", "sft_only"), ("fused_full", "fused_sft")]


# --- cost ---------------------------------------------------------------------------------------------------------------------------------


def cost(s):
    """Forward passes and seconds per generated token (the end token counts), one prompt at a time, all methods in turn on each prompt."""
    m = load_all(s)
    items = tasks.mixed(s.split, s.timed, Random(f"{s.split} cost {s.seed}"), tasks.BENCHMARKS)
    ways, passes, out = decoders(m), {"router": 0, "expert": 0, "reward": 0, "merged": 0}, {}
    kinds = {id(m["reward"].lm): "reward", **{id(e): "expert" for e in m["experts"]},
             **{id(m[n].lm): "router" for n in TRAINING if n != "reward"}}

    def count(module, *_):
        passes[kinds.get(id(module), "merged")] += 1

    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: count(module) if isinstance(module, (GPT, gpt.GPT)) else None)
    for item in tqdm(items, desc="cost", mininterval=1.0):
        for method, decoder in ways.items():
            passes.update(dict.fromkeys(passes, 0))
            begun = time.perf_counter()
            tokens = len(decoder([tokenizer.encode_prompt(item.prompt)])[0])
            spent = time.perf_counter() - begun
            tokens += tokens < MAX_NEW  # the end token, if it came
            row = out.setdefault(method, {"tokens": 0, "seconds": 0.0, **dict.fromkeys(passes, 0)})
            for name, value in {"tokens": tokens, "seconds": spent, **passes}.items():
                row[name] += value
    hook.remove()
    per = {k: {"passes_per_token": round(sum(v[p] for p in passes) / v["tokens"], 4), "seconds_per_token": v["seconds"] / v["tokens"],
               **{p: round(v[p] / v["tokens"], 4) for p in passes if v[p]}} for k, v in out.items()}
    one = np.median([per[f"{e}_expert"]["seconds_per_token"] for e in EXPERTS])
    return {k: v | {"seconds_per_token": round(v["seconds_per_token"], 6), "over_one_expert": round(v["seconds_per_token"] / one, 3)}
            for k, v in per.items()}


# --- main -----------------------------------------------------------------------------------------------------------------------------------


def show(results):
    rows = [["method", *(b.removeprefix("toy-") for b in tasks.BENCHMARKS), "average", "general"]]
    for method in sorted(METHODS, key=lambda m: -np.mean([average(r, m) for r in results])):
        cells = [np.mean([accuracy(r, method, b) for r in results]) for b in BENCHES]
        cells.insert(-1, np.mean([average(r, method) for r in results]))
        rows.append([method, *map(percent, cells)])
    print("\n".join(table(rows)))


def main(argv=None):
    parser = run.parser(Settings, __doc__)
    parser.add_argument("--results", default=str(RESULTS), metavar="DIR", help="where these go (default: extra/results)")
    folder, runs, seeds = several(parser, Settings, argv, "results")
    folder = Path(folder)
    results = [result(s) for s in runs]
    show(results)
    if not seeds:
        return
    meta = {"seeds": seeds, "split": runs[0].split, "prompts per benchmark": runs[0].prompts, "general prompts": runs[0].general,
            "gap": results[0]["meta"]["gap"], "torch": torch.__version__.split("+")[0], "python": platform.python_version(),
            "machine": f"{os.cpu_count()} CPU cores", "threads": torch.get_num_threads(),
            "run time in seconds": {s.seed: r["meta"]["seconds"] for s, r in zip(runs, results)},
            "settings": {name: changed(spec) for name, spec in TRAINING.items()} | {
                "task_arithmetic": TASK_ARITHMETIC, "dare": DARE, "collab": LOOKAHEAD}}
    tables = {m: {b: [round(accuracy(r, m, b), 4) for r in results] for b in tasks.BENCHMARKS}
              | {"average": [round(average(r, m), 4) for r in results]} for m in METHODS}
    routes = {b: {part: {e: [r["routing"][b][part][e] for r in results] for e in EXPERTS} for part in share if part != "S_share"}
              | {"S_share": [r["routing"][b]["S_share"] for r in results]} for b, share in results[0]["routing"].items()}
    others = [m for m in METHODS if m != "fusionroute"]
    differences = {f"fusionroute - {m}": difference(results, "fusionroute", m) for m in others}
    differences |= {f"{a} - {b}": difference(results, a, b) for a, b in PAIRS}
    differences |= {f"fusionroute - {m}, {b}": difference(results, "fusionroute", m, [b]) for b in tasks.BENCHMARKS
                    for m in ("fine_tuned", *(f"{e}_expert" for e in EXPERTS if b in tasks.DOMAINS[e]))}
    rates = {m: wins(results, m, "fine_tuned") for m in METHODS if m != "fine_tuned"}
    files = {"table1": tables, "routing": routes, "differences": differences, "cost": cost(runs[0]),
             "winrate": rates | {"sft_only against fusionroute": wins(results, "sft_only", "fusionroute")}}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_family(folder / f"{name}.json", runs[0].family, content, meta)
    print(f"saved {', '.join(f'{name}.json' for name in files)} in {folder}")


if __name__ == "__main__":
    run.run(main)
