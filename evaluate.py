"""Every method of the paper, and what its readers ask for, on the five benchmarks and the general prompts: the paper's tables.

    python evaluate.py --seed 0                trains what is missing of one seed and evaluates every method on it
    python evaluate.py --seeds 0 1 2 3 4       all of them, then writes results/table1.json, differences.json, winrate.json, cost.json
    python report.py                           the README's tables and CLAIMS.md from these files

Methods (baselines.py explains each): math_expert, code_expert, instruct_expert, sequence_selection, collab, fine_tuned, task_arithmetic,
dare (both with the setting that won on validation; *_paper: with the paper's), routing_only, sft_only, fusionroute, and beyond the
paper uniform_average, co_llm, oracle_expert, fused_sft, fused_full.

An answer counts when it is right in content and in form. General prompts are judged by the checkers' graded score (tasks.grade:
correctness first, then form, then brevity) in the place of GPT-4o; equal scores are ties. Test prompts are split from all others by
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

import baselines
import common
import decode
import train_cdpo
import train_sft
from fusionroute import informative, score
from model import GPT, generate
from report import percent, table
from toy_experts import tasks, tokenizer
from toy_experts.train import EXPERTS

ROOT = Path(__file__).parent
BENCHES = tasks.BENCHMARKS + ["general"]
METHODS = ["math_expert", "code_expert", "instruct_expert", "sequence_selection", "collab", "fine_tuned", "task_arithmetic_paper",
           "task_arithmetic", "dare_paper", "dare", "routing_only", "sft_only", "fusionroute", "uniform_average", "co_llm",
           "oracle_expert", "fused_sft", "fused_full"]

# What is trained, in this order, and the settings that differ from the scripts' own. All were chosen by tune.py on validation prompts.
TRAINING = {
    "router_sft": (train_sft, ""),
    "router": (train_cdpo, ""),
    "fine_tuned_sft": (train_sft, "--loss plain"),
    "fine_tuned": (train_cdpo, "--loss plain --phase1 fine_tuned_sft --pairs_of router_sft"),
    "co_llm": (train_sft, "--loss co_llm"),
    "fused_sft": (train_sft, "--loss fused_own"),
    "fused_full": (train_cdpo, "--phase1 fused_sft"),
    "reward": (baselines, ""),
}
TASK_ARITHMETIC, DARE, LOOKAHEAD = {"scale": 0.3}, {"scale": 0.3, "drop": 0.5}, 8


@dataclass
class Settings:
    seed: int = 0          # selects the run
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    split: str = "test"    # test, or validation (which is what to tune on)
    prompts: int = 300     # prompts a benchmark
    general: int = 500     # general prompts

    def __post_init__(self):
        common.positive(self, "prompts", "general")
        common.one_of(self, "split", ("test", "validation"))


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
    """A decoder that gives Traces."""
    return lambda prompts: decode.fused_decode(router, experts, prompts, tokenizer.END, decode.MAX_NEW, **how)


def load_all(s):
    """name -> every model of a run, frozen, by the names of its checkpoints; "experts" the list of them."""
    folder, device = common.run_dir(s), common.device(s.device)
    models = {name: common.load_model(folder / f"{name}.pt", tokenizer.FINGERPRINT, "run python evaluate.py", device)[0]
              for name in ["base"] + EXPERTS}
    models["reward"] = common.load_model(folder / "reward.pt", tokenizer.FINGERPRINT, "run python baselines.py", device, router=True)[0]
    return models | {"experts": [models[e] for e in EXPERTS]} | {name: decode.load(s, name)[0] for name in TRAINING if name != "reward"}


def decoders(m):
    """method -> its decoder, from token-id prompts to answers without the end token; m as from load_all. (oracle_expert has none.)"""
    end, max_new, experts = tokenizer.END, decode.MAX_NEW, m["experts"]

    def fused(router, **how):
        return lambda prompts: [decode.answer_ids(t) for t in traces(m[router], experts, **how)(prompts)]

    def alone(model):
        return lambda prompts: generate(model, prompts, max_new, end)

    def merged(scale, drop=0.0):
        return alone(baselines.merge(m["base"], experts, scale, drop))

    return {
        "math_expert": alone(m["math"]), "code_expert": alone(m["code"]), "instruct_expert": alone(m["instruct"]),
        "sequence_selection": lambda prompts: baselines.sequence_selection(experts, m["reward"], prompts, end, max_new),
        "collab": lambda prompts: baselines.collab(experts, m["reward"], prompts, end, max_new, LOOKAHEAD),
        "fine_tuned": alone(m["fine_tuned"].lm),
        "task_arithmetic_paper": merged(1.0), "task_arithmetic": merged(**TASK_ARITHMETIC),
        "dare_paper": merged(1.0, 0.9), "dare": merged(**DARE),
        "routing_only": fused("router", use_router=False), "sft_only": fused("router_sft"), "fusionroute": fused("router"),
        "uniform_average": lambda prompts: baselines.uniform_average(experts, prompts, end, max_new),
        "co_llm": fused("co_llm", use_router=False),
        "fused_sft": fused("fused_sft"), "fused_full": fused("fused_full"),
    }


def routing(experts, items, answers):
    """Share of each expert among the answers' tokens (Traces): of all, and of those in S, where the experts' choices differ. On prompts
    across domains also of the words and of the rest (digits, signs) in S."""
    samples = [common.answer_only(tokenizer.encode_prompt(i.prompt), t.tokens) for i, t in zip(items, answers)]
    ids, mask, lengths = common.pack(samples)
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
    for name, (module, flags) in TRAINING.items():
        argv = ["--seed", str(s.seed), "--out", s.out, "--device", s.device, "--name", name, *flags.split()]
        module.main(argv)


def evaluate(s):
    """Everything about one seed: right or wrong for every method and prompt as strings of 0 and 1, grades on general prompts, routing."""
    models, clock = load_all(s), time.time()
    items = {b: tasks.dataset(b, s.split, s.general if b == "general" else s.prompts, Random(f"{s.split} {b} {s.seed}")) for b in BENCHES}
    right, grades, ways = {}, {}, decoders(models)
    bar = tqdm(total=len(ways) * len(BENCHES), desc=f"evaluating seed {s.seed}", mininterval=1.0)
    for method, decoder in ways.items():
        right[method] = {}
        for b in BENCHES:
            texts = [tokenizer.encoding.decode(ids) for ids in in_batches(decoder, items[b])]
            right[method][b] = "".join(str(int(tasks.check(item, text))) for item, text in zip(items[b], texts))
            if b == "general":
                grades[method] = [round(tasks.grade(item, text), 4) for item, text in zip(items[b], texts)]
            bar.update()
    bar.close()
    alone = [f"{e}_expert" for e in EXPERTS]  # the oracle takes the expert that does best on each prompt: a bound, not a method
    right["oracle_expert"] = {b: "".join(max(column) for column in zip(*(right[e][b] for e in alone))) for b in BENCHES}
    grades["oracle_expert"] = [max(column) for column in zip(*(grades[e] for e in alone))]
    routes = {b: routing(models["experts"], items[b], in_batches(traces(models["router"], models["experts"]), items[b])) for b in BENCHES}
    folder = common.run_dir(s)
    contents = {name: common.load(folder / f"{name}.pt", ("recipe", "seconds"), "") for name in ["base", *EXPERTS, *TRAINING]}
    seconds = {name: round(c["seconds"]) for name, c in contents.items()} | {"evaluation": round(time.time() - clock)}
    return {"meta": {"settings": common.recipe(s), "gap": contents["base"]["recipe"]["gap"],
                     "held_out": {b: tasks.held_out(b, contents["base"]["recipe"]["gap"], s.seed) for b in tasks.BENCHMARKS},
                     "seconds": seconds | {"total": sum(seconds.values())}, "made_from": made_from(s)},
            "right": right, "grades": grades, "routing": routes}


def made_from(s):
    """What a result hangs on besides its settings: the weights of every checkpoint, and the settings of what is not trained."""
    models = load_all(s)
    names = [name for name in models if name != "experts"]
    return common.fingerprints(names, [models[n] for n in names]) | {"untrained": [TASK_ARITHMETIC, DARE, LOOKAHEAD]}


def result(s):
    """evaluate(s), or what an earlier call saved of it in OUT/seedN/table1.json (another split or size: computed, saved there)."""
    train_missing(s)
    path = common.run_dir(s) / "table1.json"
    try:
        r = json.loads(path.read_text())
        if r["meta"]["settings"] == common.recipe(s) and r["meta"]["made_from"] == made_from(s) and set(r["right"]) == set(METHODS):
            return r
    except (OSError, ValueError, KeyError, TypeError):
        pass
    r = evaluate(s)
    common.write(path, json.dumps(r) + "\n")
    print(f"saved {path}")
    return r


# --- statistics ---------------------------------------------------------------------------------------------------------------------------


def average(r, method):
    """Mean accuracy over the five benchmarks."""
    return float(np.mean([accuracy(r, method, b) for b in tasks.BENCHMARKS]))


def accuracy(r, method, b):
    return r["right"][method][b].count("1") / len(r["right"][method][b])


def bootstrap(results, ours, other, rounds=20_000):
    """Difference of the averages of two methods, paired by prompt: mean, 95% interval, share of rounds at or below zero, and each seed's.

    Every round draws seeds with replacement and, within each drawn seed and benchmark, prompts with replacement: the interval holds for
    another seed and other prompts. A prompt's difference is -1, 0 or 1, so n drawn prompts are one multinomial draw of three counts.
    """
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(results), size=(rounds, len(results)))                        # (rounds, seeds)
    means = np.zeros((len(tasks.BENCHMARKS), *seeds.shape))                                # (benchmarks, rounds, seeds)
    for i, b in enumerate(tasks.BENCHMARKS):
        pairs = [[int(x) - int(y) for x, y in zip(r["right"][ours][b], r["right"][other][b])] for r in results]
        shares = np.array([[d.count(v) / len(d) for v in (-1, 0, 1)] for d in pairs])      # (seeds, 3)
        n = len(pairs[0])
        drawn = rng.multinomial(n, shares[seeds])                                          # (rounds, seeds, 3)
        means[i] = (drawn[..., 2] - drawn[..., 0]) / n
    total = means.mean((0, 2))                                                             # (rounds,)
    each = [average(r, ours) - average(r, other) for r in results]
    low, high = np.quantile(total, [0.025, 0.975])
    return {"mean": round(float(np.mean(each)), 4), "low": round(float(low), 4), "high": round(float(high), 4),
            "p": round(float((total <= 0).mean()), 5), "seeds": [round(x, 4) for x in each]}


def wins(r, ours, other):
    """(wins, ties, losses) of ours against other on the general prompts, by grade."""
    pairs = list(zip(r["grades"][ours], r["grades"][other]))
    return sum(x > y for x, y in pairs), sum(x == y for x, y in pairs), sum(x < y for x, y in pairs)


def win_rates(results):
    """Wins, ties and losses per seed of every method against fine_tuned, and of sft_only against fusionroute."""
    against = [(m, "fine_tuned") for m in METHODS if m != "fine_tuned"] + [("sft_only", "fusionroute")]
    out = {}
    for ours, other in against:
        w, t, l = map(list, zip(*(wins(r, ours, other) for r in results)))
        rate = [round((a + b / 2) / (a + b + c), 4) for a, b, c in zip(w, t, l)]
        out[ours if other == "fine_tuned" else f"{ours} against {other}"] = {"wins": w, "ties": t, "losses": l, "rate": rate}
    return out


# --- cost ---------------------------------------------------------------------------------------------------------------------------------


def cost(s, prompts=25):
    """Forward passes and seconds per generated token (the end token counts), one prompt at a time, all methods in turn on each prompt."""
    m = load_all(s)
    items = [i for b in tasks.BENCHMARKS for i in tasks.dataset(b, s.split, prompts // 5, Random(f"{s.split} {b} {s.seed}"))]
    ways, passes, out = decoders(m), {"router": 0, "expert": 0, "reward": 0, "merged": 0}, {}
    kinds = {id(m["reward"].lm): "reward", **{id(e): "expert" for e in m["experts"]},
             **{id(m[n].lm): "router" for n in TRAINING if n != "reward"}}

    def count(module, *_):
        passes[kinds.get(id(module), "merged")] += 1

    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: count(module) if isinstance(module, GPT) else None)
    for item in tqdm(items, desc="cost", mininterval=1.0):
        for method, decoder in ways.items():
            passes.update(dict.fromkeys(passes, 0))
            begun = time.perf_counter()
            tokens = len(decoder([tokenizer.encode_prompt(item.prompt)])[0]) + 1
            spent = time.perf_counter() - begun
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
    parser = common.parser(Settings, __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", metavar="INT", help="several seeds; writes the files in results/")
    parser.add_argument("--results", default=str(ROOT / "results"), metavar="DIR", help="where these go (default: %(default)s)")
    args = vars(parser.parse_args(argv))
    seeds, folder = args.pop("seeds"), Path(args.pop("results"))
    if seeds is not None and (len(set(seeds)) < len(seeds) or len(seeds) < 2):
        raise common.UserError(f"--seeds {' '.join(map(str, seeds))}: must be two or more different ones")
    runs = [Settings(**args | {"seed": seed}) for seed in seeds or [args["seed"]]]
    results = [result(s) for s in runs]
    show(results)
    if not seeds:
        return
    meta = {"seeds": seeds, "split": runs[0].split, "prompts per benchmark": runs[0].prompts, "general prompts": runs[0].general,
            "gap": results[0]["meta"]["gap"], "torch": torch.__version__.split("+")[0], "python": platform.python_version(),
            "machine": f"{os.cpu_count()} CPU cores", "run time in seconds": {s.seed: r["meta"]["seconds"] for s, r in zip(runs, results)},
            "settings": {name: flags or "as in the script" for name, (_, flags) in TRAINING.items()} | {
                "task_arithmetic": TASK_ARITHMETIC, "dare": DARE, "lookahead": LOOKAHEAD}}
    tables = {m: {b: [round(accuracy(r, m, b), 4) for r in results] for b in tasks.BENCHMARKS}
              | {"average": [round(average(r, m), 4) for r in results]} for m in METHODS}
    routes = {b: {part: {e: [r["routing"][b][part][e] for r in results] for e in EXPERTS} for part in results[0]["routing"][b] if part != "S_share"}
              | {"S_share": [r["routing"][b]["S_share"] for r in results]} for b in BENCHES}
    files = {"table1": {"llama": tables}, "routing": {"llama": routes}, "winrate": {"llama": win_rates(results)},
             "differences": {"llama": {m: bootstrap(results, "fusionroute", m) for m in METHODS if m != "fusionroute"}},
             "cost": {"llama": cost(runs[0])}}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        common.write(folder / f"{name}.json", json.dumps(content | {"meta": meta}, indent=1) + "\n")
    print(f"saved {', '.join(f'{name}.json' for name in files)} in {folder}")


if __name__ == "__main__":
    common.run(main)
