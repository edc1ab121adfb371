"""Every method of the paper, and what its readers ask for, on the five benchmarks and the general prompts: the paper's tables.

    python -m extra.paper.evaluate --seed 0             trains what is missing of one seed and evaluates every method on it
    python -m extra.paper.evaluate --seeds 2 3 4 5 6 7 8 9 10 11
                                                        ten seeds (five for the rows besides the headline ones), then writes table1.json,
                                                        differences.json, winrate.json, cost.json and routing.json in extra/results/
    python -m extra.paper.report                        the tables and CLAIMS.md from these files

Methods: see the table at the top of baselines.py.

An answer counts when it is right in content and in form. General prompts are judged by the checkers' graded score (tasks.grade:
correctness first, then form, then brevity) instead of GPT-4o; equal scores are ties. Test prompts are split from all others by
content, no setting was chosen on them (tune.py reads validation prompts), and a seed's results are kept in OUT/seedN/table1.json, so
that they are computed once.
"""

import functools
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
from extra.paper.train import TRAINING, Sft, changed, needed, train
from fusionroute import informative, score
from model import GPT, generate
from toy_experts import run, tasks, tokenizer
from toy_experts.data import answer_only, pack
from toy_experts.batch import MAX_NEW, decode_batch
from toy_experts.evaluate import percent, table
from toy_experts.train import EXPERTS

BENCHES = tasks.BENCHMARKS + ["general"]
ROWS = {  # method: the checkpoints that it decodes with, besides base and experts
    "fusionroute": ["router"], "sft_only": ["router_sft"], "routing_only": ["router"], "router": ["router"],
    "fusionroute_long": ["router_long"], "fine_tuned_long": ["fine_tuned_long"], "co_llm_self": ["co_llm_self"], "fused_sft": ["fused_sft"],
    "math_expert": [], "code_expert": [], "instruct_expert": [], "oracle_expert": [], "uniform_average": [],
    "router_mean": ["router"], "router_math": ["router"], "router_code": ["router"], "router_instruct": ["router"], "router_random": ["router"],
    "fine_tuned": ["fine_tuned"], "sft_long": ["router_sft_long"], "fine_tuned_sft_long": ["fine_tuned_sft_long"],
    "two_fine_tuned": ["fine_tuned_sft_long", "fine_tuned_sft_math"],
    # until here: HEADLINE
    "generalist": ["generalist"], "double": ["double"], "sft_all": ["sft_all"], "fusionroute_all": ["router_all"],
    "co_llm": ["co_llm"], "fused_full": ["fused_full"],
    "sequence_selection": ["reward"], "collab": ["reward"], "selection_lm": ["fine_tuned_long"], "collab_lm": ["fine_tuned_long"],
    "task_arithmetic_paper": [], "task_arithmetic": [], "dare_paper": [], "dare": [],
}
METHODS = list(ROWS)
HEADLINE = METHODS[:METHODS.index("generalist")]  # measured on every seed; the others on the first of them (--rest)

# Chosen by tune.py on validation prompts, as the settings in train.TRAINING were.
TASK_ARITHMETIC, DARE, LOOKAHEAD = {"scale": 0.5}, {"scale": 0.5, "drop": 0.1}, {"lookahead": 64}
JUDGE = {"mean": False}  # not tuned: whether the better judge's likelihood is per token


@dataclass
class Settings:
    seed: int = 0          # selects the run
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    family: str = "llama"  # architecture of the toy's models: llama or gemma (Gemma-2)
    split: str = "test"    # test, or validation (which is what to tune on)
    prompts: int = 300     # prompts a benchmark
    general: int = 500     # general prompts, on which win rates are measured
    rest: int = 5          # on how many of the seeds the rows besides the headline ones are measured
    timed: int = 25        # of the benchmarks' prompts, how many results/cost.json is measured on

    def __post_init__(self):
        run.positive(self, "prompts", "general", "timed")
        run.positive(self, "rest")
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


def texts(decoder, items):
    """What the decoder answers to each item, as text."""
    return [tokenizer.encoding.decode(ids) for ids in in_batches(decoder, items)]


def drawn(split, seed, prompts, general):
    """benchmark -> its prompts of a split; "general" is one of them."""
    return {b: tasks.dataset(b, split, general if b == "general" else prompts, Random(f"{split} {b} {seed}")) for b in BENCHES}


def traces(router, experts, **how):
    """A decoder that gives Traces. how: as in toy_experts.batch.METHODS."""
    return lambda prompts: decode_batch(router, experts, prompts, MAX_NEW, **how)


def answering(router, experts, **how):
    """The same without the rest of the Trace: a decoder from token-id prompts to answers without the end token."""
    decoder = traces(router, experts, **how)
    return lambda prompts: [t.answer() for t in decoder(prompts)]


def load_all(s, methods):
    """name -> base, experts and the checkpoints of the methods, frozen, by their files' names; "experts": the list of them."""
    directory, device = models.folder(s), run.device(s.device)
    hint = "run python -m extra.paper.evaluate" + models.flags(s)
    m = {name: models.load_model(directory / f"{name}.pt", hint, device)[0] for name in ["base"] + EXPERTS}
    m["experts"] = [m[e] for e in EXPERTS]
    for name in dict.fromkeys(name for method in methods for name in ROWS[method]):
        added = name not in ("reward", "double")  # these are never added to an expert's logits, and need not fit
        load = models.load_router(s, name) if added else models.load_model(directory / f"{name}.pt", hint, device, router=True)
        m[name] = load[0]
    return m


def decoders(m, methods):
    """method -> its decoder, from token-id prompts to answers without the end token; m as from load_all. (oracle_expert has none.)"""
    end, max_new, experts = tokenizer.END, MAX_NEW, m["experts"]

    def fused(router, itself=False, **how):
        return lambda prompts: answering(m[router], experts + [m[router].lm] * itself, **how)(prompts)

    def alone(name):
        return lambda prompts: generate(getattr(m[name], "lm", m[name]), prompts, max_new, end)

    def together(rule, *names):
        return lambda prompts: baselines.all_read([m[n] for n in names], prompts, end, max_new, rule)

    def selected(by, judge, **how):
        return lambda prompts: by(experts, m[judge] if judge == "reward" else m[judge].lm, prompts, end, max_new, **how)

    def merged(scale, drop=0.0):
        model = functools.cache(lambda: baselines.merge(m["base"], experts, scale, drop))
        return lambda prompts: generate(model(), prompts, max_new, end)

    ways = {
        "math_expert": alone("math"), "code_expert": alone("code"), "instruct_expert": alone("instruct"),
        "uniform_average": together(baselines.product, *EXPERTS),
        "fusionroute": fused("router"), "sft_only": fused("router_sft"), "routing_only": fused("router", use_router=False),
        "router": alone("router"), "fine_tuned": alone("fine_tuned"),
        "fusionroute_long": fused("router_long"), "sft_long": fused("router_sft_long"),
        "fine_tuned_long": alone("fine_tuned_long"), "fine_tuned_sft_long": alone("fine_tuned_sft_long"), "generalist": alone("generalist"),
        "double": alone("double"), "two_fine_tuned": together(baselines.product, "fine_tuned_sft_long", "fine_tuned_sft_math"),
        "router_mean": together(baselines.plus_mean, "router", *EXPERTS), "router_random": together(baselines.plus_random(0), "router", *EXPERTS),
        "router_math": fused("router", only=0), "router_code": fused("router", only=1), "router_instruct": fused("router", only=2),
        "co_llm": fused("co_llm", use_router=False), "co_llm_self": fused("co_llm_self", itself=True, use_router=False),
        "fused_sft": fused("fused_sft"), "fused_full": fused("fused_full"), "fusionroute_all": fused("router_all"), "sft_all": fused("sft_all"),
        "sequence_selection": selected(baselines.sequence_selection, "reward"), "collab": selected(baselines.collab, "reward", **LOOKAHEAD),
        "selection_lm": selected(baselines.sequence_selection, "fine_tuned_long", **JUDGE),
        "collab_lm": selected(baselines.collab, "fine_tuned_long", **LOOKAHEAD, **JUDGE),
        "task_arithmetic_paper": merged(1.0), "task_arithmetic": merged(**TASK_ARITHMETIC), "dare_paper": merged(1.0, 0.9), "dare": merged(**DARE),
    }
    return {method: ways[method] for method in methods if method != "oracle_expert"}


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


def trained_for(methods):
    """The checkpoints that the methods need, with those that they start from, in the order of TRAINING."""
    wanted = {name for method in methods for checkpoint in ROWS[method] for name in needed(checkpoint)}
    return [name for name in TRAINING if name in wanted]


def train_missing(s, methods):
    models.ensure(s)
    for name in trained_for(methods):
        train(s, name)


def evaluate(s, methods):
    """Everything about one seed: right or wrong for every method and prompt as strings of 0 and 1, grades on general prompts, routing.

    A method's answers are kept in OUT/seedN/table1.json, for as long as its settings and checkpoints stay.
    """
    path, m, clock = models.folder(s) / "table1.json", load_all(s, methods), time.time()
    asked = {k: v for k, v in run.recipe(s).items() if k not in ("timed", "family", "rest")}
    known = cached(path, asked, lambda: {"right": {}, "grades": {}, "routing": {}, "from": {}, "seconds": {}})
    items, gap = drawn(s.split, s.seed, s.prompts, s.general), models.gap(s)
    held = {b: tasks.held_out(b, gap, s.seed) for b in tasks.BENCHMARKS}
    right, grades, ways, made_from = known["right"], known["grades"], decoders(m, methods), sources(m, methods)
    missing = [method for method in ways if known["from"].get(method) != made_from[method]]
    bar = tqdm(total=len(missing) * len(BENCHES), desc=f"evaluating seed {s.seed}", mininterval=1.0, disable=not missing)
    for method in missing:
        row = {}
        for b in BENCHES:
            said = texts(ways[method], items[b])
            row[b] = "".join(str(int(tasks.check(item, text))) for item, text in zip(items[b], said))
            if b == "general":
                grades[method] = [round(tasks.grade(item, text), 4) for item, text in zip(items[b], said)]
            bar.update()
        right[method] = row
        if method == "fusionroute":
            answers = traces(m["router"], m["experts"])
            known["routing"] = {b: routing(m["experts"], items[b], in_batches(answers, items[b])) for b in BENCHES}
        known["from"][method], known["seconds"][method], clock = made_from[method], time.time() - clock, time.time()
        run.write(path, json.dumps({"key": asked, "result": known}) + "\n")
    bar.close()
    alone = [f"{e}_expert" for e in EXPERTS]  # the oracle takes the expert that does best on each prompt: a bound, not a method
    right["oracle_expert"] = {b: "".join(max(column) for column in zip(*(right[e][b] for e in alone))) for b in BENCHES}
    grades["oracle_expert"] = [max(column) for column in zip(*(grades[e] for e in alone))]
    if missing:
        run.write(path, json.dumps({"key": asked, "result": known}) + "\n")
        print(f"saved {path}")
    names, training = ["base", *EXPERTS, *trained_for(methods)], tasks.mixed("train", Sft.samples, Random(f"sft {s.seed}"))
    seconds = {name: round(run.load(models.folder(s) / f"{name}.pt", ("seconds",), "")["seconds"]) for name in names}
    seconds["evaluation"] = round(sum(known["seconds"].get(method, 0) for method in methods))
    return known | {"covered": {b: "".join(str(int(i.skill not in held[b])) for i in items[b]) for b in tasks.BENCHMARKS},
                    "keys": {b: [i.key for i in items[b]] for b in BENCHES},
                    "neighbours": {b: neighbours(items[b], training) for b in BENCHES},
                    "meta": {"gap": gap, "held_out": held, "seconds": seconds | {"total": sum(seconds.values())}}}


def neighbours(items, training):
    """The share of items whose prompt differs in at most one token from the prompt of a training item."""
    def holes(item):
        ids = tokenizer.encode_prompt(item.prompt)
        return {(k, *ids[:k], *ids[k + 1:]) for k in range(len(ids))}

    known = set().union(*map(holes, training))
    return float(np.mean([bool(holes(item) & known) for item in items]))


def space(b, split, draws=20_000):
    """How many different problems of a benchmark's split so many random draws find: a lower bound of how many there are."""
    rng = Random(0)
    return len({tasks.draw(b, split, rng).key for _ in range(draws)})


def sources(m, methods):
    """method -> what its answers depend on besides the settings: the weights of its checkpoints, and the settings of what is not trained."""
    names = [name for name in m if name != "experts"]
    prints = fingerprints(names, [m[n] for n in names])
    shared = [prints[name] for name in ["base", *EXPERTS]] + [TASK_ARITHMETIC, DARE, LOOKAHEAD, JUDGE]
    return {method: json.loads(json.dumps([prints[name] for name in ROWS[method]] + shared)) for method in methods}


def result(s, methods=METHODS):
    """evaluate(s, methods), after training what is missing."""
    train_missing(s, methods)
    return evaluate(s, methods)


# --- statistics ---------------------------------------------------------------------------------------------------------------------------


def average(r, method):
    """Mean accuracy over the five benchmarks."""
    return float(np.mean([accuracy(r, method, b) for b in tasks.BENCHMARKS]))


def accuracy(r, method, b):
    return r["right"][method][b].count("1") / len(r["right"][method][b])


def share(r, method, covered):
    """Mean accuracy over those prompts of the benchmarks whose sub-skill some expert was trained on (covered "1"), or none was ("0")."""
    per = [[x == "1" for x, c in zip(r["right"][method][b], r["covered"][b]) if c == covered] for b in tasks.BENCHMARKS]
    return float(np.mean([np.mean(values) for values in per if values]))


def interval(seeds):
    """The mean of one number a seed, its 95% interval by Student's t, and the two-sided p of a mean of zero.

    The seed is the unit: an interval is about another seed, with other data, other held-out sub-skills and other test prompts. A bootstrap
    over five seeds is too narrow, and test prompts of one seed are not independent (they share a model, and some are equal).
    """
    n, mean = len(seeds), float(np.mean(seeds))
    error = float(np.std(seeds, ddof=1)) / n**0.5
    margin = student_t(n - 1)[0] * error
    p = student_t(n - 1, abs(mean) / error)[1] if error else float(mean == 0)
    return {"mean": round(mean, 4), "low": round(mean - margin, 4), "high": round(mean + margin, 4), "p": float(f"{p:.2g}"),
            "seeds": [round(float(x), 4) for x in seeds]}


def student_t(df, t=0.0):
    """Student's t with df degrees of freedom: its 97.5% quantile, and the probability outside of -t .. t."""
    x, area = half_of_t(df)
    return float(np.interp(0.475, area, x)), float(1 - 2 * np.interp(t, x, area))


@functools.cache
def half_of_t(df):
    """Points x from 0 into the far tail, and the probability of Student's t between 0 and each: the density, summed."""
    x = np.sinh(np.linspace(0, 25, 50_001))                             # fine near zero, and far into the tail
    density = (1 + x * x / df) ** (-(df + 1) / 2)
    area = np.concatenate([[0], np.cumsum(np.diff(x) * (density[1:] + density[:-1]) / 2)])
    return x, area / (2 * area[-1])                                      # a half in all


def holm(p):
    """The p-values of several comparisons, corrected for their number (Holm 1979): the smallest times their number, the next times one
    less, and so on, each at least as large as those before it."""
    out, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        out[i] = highest
    return out


def difference(results, ours, other, benches=tasks.BENCHMARKS):
    """Accuracy of one method minus another's on the same prompts, mean over benchmarks, on the seeds that have both; see interval."""
    both = [r for r in results if ours in r["right"] and other in r["right"]]
    return interval([np.mean([accuracy(r, ours, b) - accuracy(r, other, b) for b in benches]) for r in both])


def wins(results, ours, other):
    """Wins, ties and losses per seed of ours against other on the general prompts, by grade; the win rate with ties half."""
    both = [r for r in results if ours in r["grades"] and other in r["grades"]]
    signs = [[(x > y) - (x < y) for x, y in zip(r["grades"][ours], r["grades"][other])] for r in both]
    rate = [(1 + np.mean(s)) / 2 for s in signs]
    half = interval([x - 0.5 for x in rate])                             # p: of a rate of one half
    shifted = {k: round(half[k] + 0.5, 4) for k in ("mean", "low", "high")}
    return {name: [s.count(v) for s in signs] for name, v in (("wins", 1), ("ties", 0), ("losses", -1))} | {
        "rate": shifted | {"p": half["p"], "seeds": [round(float(x), 4) for x in rate]}}


# What the paper says of two methods (report.py), besides FusionRoute's difference to every other one.
PAIRS = [("co_llm_self", "sft_only"), ("collab", "sequence_selection"), ("task_arithmetic_paper", "dare_paper"), ("sequence_selection", "fine_tuned"),
         ("fused_sft", "sft_only"), ("fused_full", "fused_sft"), ("fine_tuned_long", "fine_tuned_sft_long"), ("sft_all", "sft_only"), ("selection_lm", "sequence_selection"), ("collab_lm", "collab")]


# --- cost ---------------------------------------------------------------------------------------------------------------------------------


def cost(s):
    """Forward passes and seconds per generated token (the end token counts), one prompt at a time, all methods in turn on each prompt."""
    m = load_all(s, METHODS)
    items = tasks.mixed(s.split, s.timed, Random(f"{s.split} cost {s.seed}"), tasks.BENCHMARKS)
    ways, passes, out = decoders(m, METHODS), {"router": 0, "expert": 0, "reward": 0, "merged": 0}, {}
    kinds = {id(m["reward"].lm): "reward", **{id(e): "expert" for e in m["experts"]},
             **{id(m[n].lm): "router" for n in TRAINING if n in m and n != "reward"}}

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
    rows = [["method", *(b.removeprefix("toy-") for b in tasks.BENCHMARKS), "average", "general", "seeds"]]
    there = {method: [r for r in results if method in r["right"]] for method in METHODS}
    for method in sorted((m for m in METHODS if there[m]), key=lambda m: -np.mean([average(r, m) for r in there[m]])):
        cells = [np.mean([accuracy(r, method, b) for r in there[method]]) for b in BENCHES]
        cells.insert(-1, np.mean([average(r, method) for r in there[method]]))
        rows.append([method, *map(percent, cells), str(len(there[method]))])
    print("\n".join(table(rows)))


def main(argv=None):
    parser = run.parser(Settings, __doc__)
    parser.add_argument("--results", default=str(RESULTS), metavar="DIR", help="where these go (default: extra/results)")
    folder, runs, seeds = several(parser, Settings, argv, "results")
    folder = Path(folder)
    if seeds and not 2 <= runs[0].rest <= len(seeds):
        raise run.UserError(f"--rest is {runs[0].rest}, and must be from 2 to the number of seeds, {len(seeds)}")
    results = [result(s, METHODS if not seeds or k < s.rest else HEADLINE) for k, s in enumerate(runs)]
    if not seeds:
        return show(results)
    show(results)
    meta = {"seeds": seeds, "seeds of the other rows": seeds[:runs[0].rest], "split": runs[0].split,
            "prompts per benchmark": runs[0].prompts, "general prompts": runs[0].general,
            "gap": results[0]["meta"]["gap"], "torch": torch.__version__.split("+")[0], "python": platform.python_version(),
            "machine": f"{os.cpu_count()} CPU cores", "threads": torch.get_num_threads(),
            "distinct problems": {b: [len(set(r["keys"][b])) for r in results] for b in BENCHES},
            "problems found in 20,000 draws": {b: space(b, runs[0].split) for b in BENCHES},
            "share with a neighbour in the SFT data": {b: [round(r["neighbours"][b], 4) for r in results] for b in BENCHES},
            "distinct problems of all seeds": {b: len({key for r in results for key in r["keys"][b]}) for b in BENCHES},
            "run time in seconds": {s.seed: r["meta"]["seconds"] for s, r in zip(runs, results)},
            "settings": {name: changed(spec) for name, spec in TRAINING.items()} | {
                "task_arithmetic": TASK_ARITHMETIC, "dare": DARE, "collab": LOOKAHEAD, "selection_lm": JUDGE, "collab_lm": LOOKAHEAD | JUDGE}}

    def row(method, of):
        return [round(of(r), 4) for r in results if method in r["right"]]

    tables = {m: {b: row(m, lambda r: accuracy(r, m, b)) for b in BENCHES} | {"average": row(m, lambda r: average(r, m))}
              | {name: row(m, lambda r: share(r, m, c)) for name, c in (("covered", "1"), ("uncovered", "0"))} for m in METHODS}
    routes = {b: {part: {e: [r["routing"][b][part][e] for r in results] for e in EXPERTS} for part in share if part != "S_share"}
              | {"S_share": [r["routing"][b]["S_share"] for r in results]} for b, share in results[0]["routing"].items()}
    differences = {f"{ours} - {m}": difference(results, ours, m) for ours in ("fusionroute", "fusionroute_long") for m in METHODS if m != ours}
    differences |= {f"{a} - {b}": difference(results, a, b) for a, b in PAIRS}
    differences |= {f"{ours} - {m}, {b}": difference(results, ours, m, [b]) for b in tasks.BENCHMARKS for ours in ("fusionroute", "fusionroute_long")
                    for m in ("fine_tuned_long", "routing_only", *(f"{e}_expert" for e in EXPERTS if b in tasks.DOMAINS[e]))}
    rates = {m: wins(results, m, "fine_tuned_long") for m in METHODS if m != "fine_tuned_long"}
    files = {"table1": tables, "routing": routes, "differences": differences, "cost": cost(runs[0]),
             "winrate": rates | {"sft_only against fusionroute": wins(results, "sft_only", "fusionroute")}}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_family(folder / f"{name}.json", runs[0].family, content, meta)
    print(f"saved {', '.join(f'{name}.json' for name in files)} in {folder}")


if __name__ == "__main__":
    run.run(main)
