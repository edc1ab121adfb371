"""All generated figures of the pages, from the JSON files in extra/results/ alone.

    python -m extra.paper.report    writes the short table of README.md, the tables of extra/paper/README.md, extra/paper/CLAIMS.md and
                                    extra/results/README.md (the ablations); a test fails when they differ from what this would write

Verdicts are computed, never typed: a claim about a difference is "reproduced" or "reversed" when its p over seeds, corrected for the
number of such claims on the page (Holm), is below 0.05, and "not shown" otherwise; where one side is a model that answers nothing, it "says
nothing". Claims that need no interval say how they are decided.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from extra.common import FAMILIES, RESULTS, fill
from extra.paper.evaluate import holm, interval
from extra.paper.train import Sft
from toy_experts import run, tasks
from toy_experts.evaluate import percent, table

PAPER_WING = Path(__file__).parent
ROOT = PAPER_WING.parent.parent
THIS = "python -m extra.paper.report"
BENCHES = ["toy-gsm8k", "toy-math500", "toy-mbpp", "toy-humaneval", "toy-ifeval"]
COMMAND = {"llama": "python -m extra.paper.evaluate --seeds {seeds}",
           "gemma": "python -m extra.paper.evaluate --family gemma --prompts 150 --general 250 --seeds {seeds}"}
SOURCE = {"llama": "Table 1, Llama-3 8B", "gemma": "Table 2, Gemma-2 2B"}
PAPER = {"llama": {  # the paper's tables, per cent: GSM8K, MATH500, MBPP, HumanEval, IFEval, average
    "math_expert": (86, 36, 23, 37, 31, 42.6), "code_expert": (52, 15, 34, 66, 48, 43.0), "instruct_expert": (74, 27, 36, 52, 67, 51.2),
    "sequence_selection": (76, 31, 21, 45, 50, 46.6), "collab": (82, 32, 28, 54, 55, 50.2), "fine_tuned": (75, 26, 36, 58, 72, 53.6),
    "dare_paper": (75, 28, 23, 26, 32, 36.8), "task_arithmetic_paper": (82, 32, 24, 39, 35, 42.4),
    "routing_only": (82, 32, 26, 56, 65, 52.2), "fusionroute": (82, 33, 36, 63, 69, 56.6),
}, "gemma": {
    "math_expert": (67, 27, 22, 36, 47, 39.8), "code_expert": (39, 16, 27, 41, 52, 35.0), "instruct_expert": (19, 8, 23, 34, 61, 29.0),
    "sequence_selection": (62, 24, 27, 37, 54, 40.8), "collab": (52, 22, 26, 35, 45, 36.0), "fine_tuned": (54, 17, 24, 34, 68, 39.4),
    "dare_paper": (36, 10, 14, 16, 36, 22.4), "task_arithmetic_paper": (43, 15, 14, 28, 34, 26.8),
    "routing_only": (62, 23, 23, 33, 51, 38.4), "fusionroute": (65, 22, 25, 40, 61, 42.6),
}}
NAMES = {
    "math_expert": "math expert", "code_expert": "code expert", "instruct_expert": "instruction expert",
    "sequence_selection": "Sequence Selection", "collab": "Collab", "fine_tuned": "Fine-tuned Model",
    "task_arithmetic_paper": "TaskArithmetic, scale 1", "task_arithmetic": "TaskArithmetic, tuned", "dare_paper": "DARE, p 0.9, scale 1",
    "dare": "DARE, tuned", "routing_only": "routing only", "sft_only": "phase 1 only", "fusionroute": "**FusionRoute**",
    "router": "router",
    "uniform_average": "product of experts (no router)", "co_llm": "Co-LLM-style routing", "co_llm_self": "Co-LLM-style, or the router itself",
    "oracle_expert": "oracle expert (a bound)",
    "fused_sft": "through the fusion, phase 1", "fused_full": "through the fusion, both",
    "fusionroute_long": "FusionRoute, tuned budget", "sft_long": "phase 1 only, tuned budget",
    "fine_tuned_long": "Fine-tuned Model, tuned budget", "fine_tuned_sft_long": "its phase 1 only", "generalist": "generalist (a bound)",
    "double": "one model of twice the size", "two_fine_tuned": "sum of two fine-tuned models",
    "fusionroute_all": "L_expert everywhere, both", "sft_all": "L_expert everywhere, phase 1", "router_mean": "router + mean of experts",
    "router_math": "router + math expert", "router_code": "router + code expert", "router_instruct": "router + instruction expert",
    "router_random": "router + random expert in S", "selection_lm": "Sequence Selection, better judge", "collab_lm": "Collab, better judge",
}


# --- Markdown -----------------------------------------------------------------------------------------------------------------------------


def spread(values):
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def signed(d, points=True):
    """A mean with its interval, in percentage points."""
    sign = "+" if points else ""
    return f"{100 * d['mean']:{sign}.1f} [{100 * d['low']:{sign}.1f}, {100 * d['high']:{sign}.1f}]"


def command(r, family):
    """What makes the tables of a family."""
    meta = r["table1"]["meta"][family]
    others = len(meta.get("seeds of the other rows", meta["seeds"]))
    return COMMAND[family].format(seeds=" ".join(map(str, meta["seeds"]))) + f" --rest {others}" * (others < len(meta["seeds"]))


def load():
    """name -> the content of results/name.json, for every file that this page is made from."""
    names = ["table1", "differences", "winrate", "routing", "cost", "tuning", "bench", "quickstart", "delta"] + [
        f"ablation_{n}" for n in ABLATIONS]
    try:
        r = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}
    except (OSError, ValueError) as e:
        raise run.UserError(f"extra/results/ is not complete ({e}): run {' and '.join(COMMAND.values())} (with the seeds), python -m extra.paper.tune "
                            "--seeds 0 1, python -m extra.paper.quickstart, python -m extra.paper.bench, and the ablations") from e
    for family in FAMILIES:
        if family not in r["table1"]:
            raise run.UserError(f"extra/results/table1.json has no {family}: run {COMMAND[family]}")
    return r


# --- the README's short table -------------------------------------------------------------------------------------------------------------

SHORT = ["fusionroute", "sft_only", "routing_only", "router", "math_expert", "code_expert", "instruct_expert", "fusionroute_long",
         "fine_tuned_long", "two_fine_tuned", "generalist"]


def short_table(r):
    """FusionRoute, its own limits, the experts, the Fine-tuned Model, and every method that is above FusionRoute over all seeds."""
    ours, differences, meta = r["table1"]["llama"], r["differences"]["llama"], r["table1"]["meta"]["llama"]
    above = [m for m in ours if len(ours[m]["average"]) == len(meta["seeds"]) and mean(ours[m]["average"]) > mean(ours["fusionroute"]["average"])]
    averages = {m: ours[m]["average"] for m in dict.fromkeys([*above, *SHORT])}
    few = {m: "*" for m in averages if len(averages[m]) < len(meta["seeds"])}
    rows = [["method", "average", "FusionRoute minus it"]]
    for method in sorted(averages, key=lambda m: -mean(averages[m])):
        d = differences.get(f"fusionroute - {method}")
        rows.append([NAMES[method] + few.get(method, ""), spread(averages[method]), signed(d) if d else ""])
    tuned = [signed(differences[f"fusionroute_long - {m}"]) for m in ("fine_tuned_long", "two_fine_tuned")]
    stars = f" (* {len(meta['seeds of the other rows'])} of them.)" if few else ""
    passes = meta["settings"]["router_sft_long"]["epochs"], meta["settings"]["fine_tuned_sft_long"]["epochs"]
    return "\n".join([
        f"Per cent right, average of five benchmarks: mean ± standard deviation over {len(meta['seeds'])} seeds, "
        f"{meta['prompts per benchmark']} test prompts a benchmark; leads in points with a 95% interval over seeds (Student's t).{stars} Tuned budget: "
        f"{passes[0]} passes over the data for FusionRoute and {passes[1]} for the Fine-tuned Model, instead of {Sft.epochs}.", "", *table(rows), "",
        f"With tuned budgets FusionRoute leads by {tuned[0]} over the Fine-tuned Model, by {tuned[1]} over the sum of two."])


def lead(r, epochs):
    """Of phase 1: the passes of each, and FusionRoute's lead over the Fine-tuned Model in points for each tuning seed. epochs None: each one's best."""
    best = {}
    for what in BUDGETS:
        tried = [t for t in r["tuning"]["llama"][what]["tried"] if epochs in (None, t["settings"]["epochs"])]
        best[what] = max(tried, key=lambda t: mean(t["accuracy"]))
    return ({what: t["settings"]["epochs"] for what, t in best.items()},
            [100 * (a - b) for a, b in zip(*(best[what]["accuracy"] for what in BUDGETS))])


def times(r):
    """How long `bash run.sh` takes."""
    meta = r["quickstart"]["meta"]
    s = meta["seconds"]
    trained = sum(s[name] for name in ("base", "math", "code", "instruct"))
    return (f"On {meta['machine']} the first takes about {s['total'] / 60:.0f} minutes after the installation: {trained} seconds for base and "
            f"experts, {s['router_sft']} for phase 1, {s['router']} for phase 2, {s['evaluation']} for the table.")


# --- the tables of extra/paper/README.md --------------------------------------------------------------------------------------------------


def commands(r):
    """The commands of this folder with their run times on two cores, one seed after the other."""
    meta = {family: r["table1"]["meta"][family] for family in FAMILIES}
    rows = [["command", "minutes", "writes"]]
    for family in FAMILIES:
        rows.append([f"`{command(r, family)}`", sum(t["total"] for t in meta[family]["run time in seconds"].values()),
                     "table1, differences, winrate, cost, routing"])
    for name in ABLATIONS:
        m = r[f"ablation_{name}"]["meta"]
        seeds = " ".join(map(str, m["seeds"]))
        rows.append([f"`python -m extra.paper.ablate {name} --seeds {seeds}`", sum(m["run time in seconds"].values()), f"ablation_{name}"])
    rows[1:] = [[line, f"{seconds / 60:.0f}", files] for line, seconds, files in rows[1:]]
    rows.append(["`python -m extra.paper.bench`", f"{r['bench']['meta']['seconds'] / 60:.0f}", "bench, docs/speed.md"])
    tuned = " ".join(map(str, r["tuning"]["meta"]["llama"]["seeds"]))
    rows += [[f"`python -m extra.paper.tune --seeds {tuned}`", "not measured", "tuning"],
             ["`python -m extra.paper.quickstart`", "after `bash run.sh`", "quickstart"], [f"`{THIS}`", "0", "the pages"]]
    return "\n".join(table(rows))


def quick_table(r):
    """The table of toy_experts.evaluate for one seed, with the spread of the averages over several."""
    quick = r["quickstart"]
    meta, short = quick["meta"], {b: b.removeprefix("toy-") for b in quick["routing"]}
    rows = [["method", *map(short.get, BENCHES), "average", "covered", "uncovered", "general", f"average, seeds {', '.join(quick['seeds'])}"]]
    for method, row in sorted(quick["accuracy"].items(), key=lambda kv: -kv[1]["average"]):
        groups = [quick[group][method].get("average") for group in ("covered", "uncovered")]
        rows.append([method, *map(percent, [row[b] for b in BENCHES] + [row["average"], *groups, row["general"]]),
                     spread([averages[method] for averages in quick["seeds"].values()])])
    own = "; ".join(f"{e} " + ", ".join(f"{percent(quick['covered'][e].get(b))} ({short[b]})" for b in benches)
                    for e, benches in tasks.DOMAINS.items())
    held = "; ".join(f"{short[b]}: {', '.join(meta['held_out'][b])}" for b in BENCHES)
    picks = [["answers to", *tasks.DOMAINS, *(f"{e} in S" for e in tasks.DOMAINS), "in S"]]
    for b, share in quick["routing"].items():
        picks.append([short[b], *(percent(share[part][e]) for part in ("all", "S") for e in tasks.DOMAINS), percent(share["S_share"])])
    seconds = meta["seconds"]
    return "\n".join([
        f"Seed {meta['settings']['seed']}, {meta['settings']['prompts']} {meta['settings']['split']} prompts per benchmark, per cent right in "
        "content and form. `average`: of the five benchmarks. Each has eight sub-skills (kinds of problem): `covered` is the average over those "
        "that the experts were trained on, `uncovered` over the others. `general`: problems of all these, half of them with one expert's "
        "content asked for in another's form.", "", *table(rows), "",
        f"No expert was trained on {percent(meta['gap'])}% of the sub-skills ({held}). On the others, each expert in its own domain: {own}.", "",
        "The share of each expert in FusionRoute's tokens, of all tokens and of those in S. (Outside S all experts have the same likeliest "
        "token: the pick is not trained there. For routing alone it does not matter there; for the sum it can, a little.)", "", *table(picks), "",
        f"Seconds on {meta['machine']}: base and experts {sum(seconds[x] for x in ['base', *tasks.DOMAINS])}, phase 1 {seconds['router_sft']}, "
        f"pairs and phase 2 {seconds['router']}, evaluation {seconds['evaluation']}; {seconds['total']} in all."])


def main_table(r, family):
    ours, differences, meta = r["table1"][family], r["differences"][family], r["table1"]["meta"][family]
    groups = [g for g in ("covered", "uncovered") if all(g in row for row in ours.values())]
    counts = {len(row["average"]) for row in ours.values()}
    rows = [["method", *(b.removeprefix("toy-") for b in BENCHES), "average ± sd", *groups, "FusionRoute minus it", "paper", *["seeds"] * (len(counts) > 1)]]
    for method in sorted(ours, key=lambda m: -mean(ours[m]["average"])):
        d = differences.get(f"fusionroute - {method}")
        rows.append([NAMES[method], *(f"{100 * mean(ours[method][b]):.0f}" for b in BENCHES), spread(ours[method]["average"]),
                     *(f"{100 * mean(ours[method][g]):.0f}" for g in groups), signed(d) if d else "",
                     f"{PAPER[family][method][-1]:.1f}" if method in PAPER[family] else "", *[str(len(ours[method]["average"]))] * (len(counts) > 1)])
    seconds = [t["total"] for t in meta["run time in seconds"].values()]
    kinds = " covered, uncovered: the same over the sub-skills that the experts were trained on, and the others." if groups else ""
    return "\n".join([
        f"Per cent right in content and form, mean over seeds {', '.join(map(str, meta['seeds']))}; {meta['prompts per benchmark']} test "
        "prompts per benchmark and seed; ± standard deviation over the seeds; FusionRoute's lead in points with its 95% interval over seeds "
        f"(Student's t, on the same prompts).{kinds} `paper`: average of {SOURCE[family]}.", "", *table(rows), "", *repeats(meta),
        f"Training and evaluation took {min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes per seed on {meta['machine']}"
        + (", one thread a run, two runs side by side." if meta["threads"] == 1 else ".")])


def repeats(meta):
    """How many problems the test prompts are, and how near they are to training."""
    if "distinct problems" not in meta:
        return []
    rows = [["benchmark", "problems found in 20,000 draws", f"distinct among {meta['prompts per benchmark']}", "over all seeds", "one token from an SFT prompt, %"]]
    for b in BENCHES:
        rows.append([b.removeprefix("toy-"), str(meta["problems found in 20,000 draws"][b]), f"{mean(meta['distinct problems'][b]):.0f}",
                     str(meta["distinct problems of all seeds"][b]), f"{100 * mean(meta['share with a neighbour in the SFT data'][b]):.0f}"])
    return ["Test prompts are different texts, but some are the same problem in other words, and some are one token away from a training prompt:", "", *table(rows), ""]


def rival(r, family):
    """The Fine-tuned Model that win rates are against: the one with its own best budget, where it was measured."""
    return "fine_tuned_long" if "fine_tuned_long" in r["table1"][family] else "fine_tuned"


def win_table(r, family):
    rates = r["winrate"][family]
    rows = [["method", "wins", "ties", "losses", "win rate, %", "95% interval"]]
    for method in sorted((m for m in rates if m in NAMES), key=lambda m: -rates[m]["rate"]["mean"]):
        w = rates[method]
        rows.append([NAMES[method], *(str(sum(w[k])) for k in ("wins", "ties", "losses")), f"{100 * w['rate']['mean']:.1f}",
                     f"[{100 * w['rate']['low']:.1f}, {100 * w['rate']['high']:.1f}]"])
    head = rates["sft_only against fusionroute"]["rate"]
    return "\n".join([
        f"Against the {NAMES[rival(r, family)]} on {r['winrate']['meta'][family]['general prompts']} general prompts per seed, judged by the checker's "
        "graded score (correctness first, then format, then brevity) instead of GPT-4o; equal scores are ties, and count half. Intervals over seeds "
        "(Student's t).", "",
        *table(rows), "", f"Phase 1 only against FusionRoute: {signed(head, False)} per cent."])


def cost_table(r, family):
    rows = [["method", "passes per token", "of these router", "expert", "reward model", "time over one expert's"]]
    cost = r["cost"][family]
    for method in sorted(cost, key=lambda m: cost[m]["passes_per_token"]):
        c = cost[method]
        rows.append([NAMES[method], f"{c['passes_per_token']:.2f}", *(f"{c[k]:.2f}" if k in c else "" for k in ("router", "expert", "reward")),
                     f"{c['over_one_expert']:.2f}"])
    return "\n".join(["Model passes and time per generated token, one prompt at a time, all methods in turn on the same test prompts in one "
                      "run (sorted by passes).", "", *table(rows)])


def budgets(r):
    """Accuracy on validation prompts against passes over the SFT samples, for phase 1 of FusionRoute and of the Fine-tuned Model."""
    tuned, meta = r["tuning"]["llama"], r["tuning"]["meta"]["llama"]
    epochs = sorted({t["settings"]["epochs"] for what in BUDGETS for t in tuned[what]["tried"]})
    rows = [["phase 1 of, learning rate", *(f"{e} passes" for e in epochs)]]
    for what, name in BUDGETS.items():
        for lr in dict.fromkeys(t["settings"]["lr"] for t in tuned[what]["tried"]):
            cell = {t["settings"]["epochs"]: t["accuracy"] for t in tuned[what]["tried"] if t["settings"]["lr"] == lr}
            rows.append([f"{name}, {lr:g}", *(f"{100 * mean(cell[e]):.1f} ({', '.join(f'{100 * x:.0f}' for x in cell[e])})" if e in cell else "" for e in epochs)])
    seeds = ", ".join(map(str, meta["seeds"]))
    won, points = lead(r, None)
    return "\n".join([f"Average of the benchmarks on validation prompts, per cent: mean over the tuning seeds {seeds} (each of them).", "", *table(rows), "",
                      f"The best budget of each: {won['router_sft_long']} passes for FusionRoute, {won['fine_tuned_sft_long']} for the "
                      f"Fine-tuned Model. Then FusionRoute's phase 1 leads by {mean(points):.1f} points ({', '.join(f'{x:.1f}' for x in points)})."])


BUDGETS = {"router_sft_long": "FusionRoute", "fine_tuned_sft_long": "Fine-tuned Model"}


def delta_table(r):
    """How much the best expert loses at prefixes of right answers (Assumption 4.2), and Eq. (1) beside it."""
    meta = r["delta"]["meta"]
    rows = [["right answers to", "whose loss", "largest (Delta)", "mean", "tokens above 1/2, %", "answers with such a token, %", "sum over an answer"]]
    for group, both in r["delta"]["groups"].items():
        for who, v in both.items():
            rows.append([group, who, f"{mean(v['Delta']):.2f}", f"{mean(v['mean']):.3f}", f"{100 * mean(v['above_half']):.1f}",
                         f"{100 * mean(v['answers_above_half']):.0f}", f"{mean(v['sum']):.2f}"])
    seeds = ", ".join(map(str, meta["seeds"]))
    return "\n".join([f"`python -m extra.paper.delta --seeds {seeds.replace(',', '')}`: mean over seeds {seeds}, {meta['prompts per benchmark']} test prompts "
                      "per benchmark. `best expert`: at each token the expert that gives the right one the highest probability; `fused`: Eq. (1).", "",
                      *table(rows)])


def ablation_table(r, name):
    columns = {"average": "average ± sd", "uncovered": "uncovered", "general": "general", "win_rate": "win rate"}
    content = r[f"ablation_{name}"]
    there = [c for c in columns if any(c in v for row in content["rows"] for v in row["methods"].values())]
    rows = [[name, *(columns[c] for c in there)]]
    for row in content["rows"]:
        for method, v in row["methods"].items():
            rows.append([f"{row['label']}, {NAMES[method].strip('*')}"] + [
                "-" if c not in v else spread(v[c]) if c == "average" else f"{100 * mean(v[c]):.1f}" for c in there])
    seeds = ", ".join(map(str, content["meta"]["seeds"]))
    return "\n".join([f"`python -m extra.paper.ablate {name} --seeds {seeds.replace(',', '')}`: seeds {seeds}, "
                      f"{content['meta']['prompts per benchmark']} test prompts per benchmark.", "", *table(rows), "",
                      f"![{name}](ablation_{name}.svg)"])


def blocks(r):
    """page -> {block: text}; extra.common.fill puts them between their markers."""
    return {ROOT / "README.md": {"times": times(r), "table": short_table(r)},
            PAPER_WING / "README.md": {"commands": commands(r), "quickstart": quick_table(r), "table1": main_table(r, "llama"),
                                      "winrate": win_table(r, "llama"), "cost": cost_table(r, "llama"), "gemma": gemma_tables(r),
                                      "delta": delta_table(r), "budgets": budgets(r)}}


def gemma_tables(r):
    """The main table of the second family, and its win rates and costs in a line each."""
    rates, cost = r["winrate"]["gemma"], r["cost"]["gemma"]
    rate = {m: f"{NAMES[m].strip('*')} {signed(rates[m]['rate'], False)}" for m in ("fusionroute", "sft_only", "co_llm_self")}
    times = [f"{NAMES[m].strip('*')} {cost[m]['over_one_expert']:.2f}" for m in ("fusionroute", "sequence_selection", "collab")]
    return "\n".join([main_table(r, "gemma"), "", f"Win rates against the {NAMES[rival(r, 'gemma')]}, per cent: {'; '.join(rate.values())}. Phase 1 only "
                      f"against FusionRoute: {signed(rates['sft_only against fusionroute']['rate'], False)}. Time per token over one expert's: "
                      f"{', '.join(times)}."])


ABLATIONS = {
    "coverage": "The share of sub-skills that no expert has. At 0 choosing among experts is enough, and the router's own logits add nothing on the "
                "benchmarks; every sub-skill that is missing is lost to routing only, whereas FusionRoute keeps most of those that the router's "
                "data has (Assumption 4.2 of the paper, seen from both sides). Its lead over the fine-tuned model shrinks as experts know less.",
    "data": "How many SFT samples the router and the fine-tuned model are trained on; phase 2 is unchanged. FusionRoute borrows what the experts "
            "know; the fine-tuned model must learn everything from these samples. With few samples it learns little; with the most it is level "
            "with FusionRoute on the general prompts, and its accuracy is close.",
    "routing": "Phase 1 with other rules for L_expert (variants.py has each in a few lines). routing only shows what the rule is for; "
               "phase 1 only adds the router's logits. The paper's restriction to S makes no difference to routing only, and phase 1 fares better "
               "without it. Raw weights fail, as their loss has no lower bound. co_llm trains no language model for "
               "fusing; co_llm_self may pick the router itself as well.",
    "preference": "Phase 2 with other losses (variants.PAIR_LOSSES) and other sources of y_l (variants.SOURCES), after the same phase 1. "
                  "\"SFT on y_w instead\" takes as many steps on the same prompts without any y_l. The bias, the paper's novelty, makes no difference "
                  "that can be seen here, nor does the policy that DPO is applied to. What counts is that y_l is a mistake that a model makes. "
                  "The two fine-tuned rows differ in more than their pairs: the first has the rate tuned for it, the second phase 2's default.",
    "budget": "Passes over the SFT samples in phase 1, for FusionRoute and for the fine-tuned model: four as on the ground floor, and what was best for each on "
              "validation prompts (tune.py). The generalist is one model that was trained on the data of all experts, for as many steps as all of them "
              "together, then on the SFT samples: the paper's premise denies it these data, so it is a bound and not a rival.",
    "scale": "Width and layers of base, experts and router alike, everything else as always; settings were tuned at the largest size only, which may "
             "be what the small fine-tuned models suffer from.",
}


def ablations_page(r):
    parts = [f"## {name}\n\n{text}\n\n{ablation_table(r, name)}" for name, text in ABLATIONS.items()]
    return "\n\n".join(["# Ablations\n\nWritten by `python -m extra.paper.report` from the JSON files beside it; a test fails when they differ. Average: of the five "
                        "benchmarks, per cent, ± standard deviation over seeds. uncovered: of the sub-skills that no expert has. win rate: on the "
                        "general prompts against the fine-tuned model of the same row. Dots and ticks in the plots are single seeds.", *parts]) + "\n"


# --- CLAIMS.md ----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Claim:
    claim: str
    paper: str
    ours: str
    verdict: str     # "" where it follows from d
    source: str      # the file in results/, without .json
    why: str = ""    # where it does not hold: the reason, as far as known
    d: dict = None   # the interval around the difference that the claim says is above `zero`, with its p
    zero: float = 0.0


def settle(found):
    """Fill in the verdicts that follow from intervals. Their p-values are corrected together for their number."""
    tested = [c for c in found if not c.verdict]
    for c, p in zip(tested, holm([c.d["p"] for c in tested])):
        c.verdict = "not shown" if p >= 0.05 else "reproduced" if c.d["mean"] > c.zero else "reversed"
    for c in found:
        c.why = "" if c.verdict in ("reproduced", "finding") else c.why
    return found


def opposite(d):
    """The interval around the difference the other way round."""
    return d | {"mean": -d["mean"], "low": -d["high"], "high": -d["low"], "seeds": [-x for x in d["seeds"]]}


def gap(family, a, b, column=-1):
    x, y = PAPER[family][a][column], PAPER[family][b][column]
    return f"{x:g} against {y:g} ({x - y:+.1f})"


def claims(r, family):
    ours, d, rates = r["table1"][family], r["differences"][family], r["winrate"][family]
    routes, cost, paper, out = r["routing"][family], r["cost"][family], PAPER[family], []
    tuned = "fusionroute_long" in ours

    def between(a, b, column=None):
        """The interval around a's average (or one benchmark's accuracy) minus b's."""
        suffix = "" if column is None else f", {BENCHES[column]}"
        return d[f"{a} - {b}{suffix}"] if f"{a} - {b}{suffix}" in d else opposite(d[f"{b} - {a}{suffix}"])

    def shared(a, b, column="average"):
        """The figures of two methods on the seeds that have both: the first ones."""
        return [list(x) for x in zip(*zip(ours[a][column], ours[b][column]))]

    def both(x, y):
        seeds = len(r["table1"]["meta"][family]["seeds"])
        return f"{spread(x)} against {spread(y)}" + f" ({len(x)} seeds)" * (len(x) < seeds)

    def compare(text, a, b, said, why="", column=None):
        """The claim that a is above b. Where either answers next to nothing, the comparison says nothing."""
        numbers = shared(a, b, "average" if column is None else BENCHES[column])
        broken, few = min(map(mean, numbers)) < 0.02, REASONS["few"] * (len(numbers[0]) < len(r["table1"]["meta"][family]["seeds"]))
        out.append(Claim(text, said, f"{both(*numbers)}: {signed(between(a, b, column))}",
                         "says nothing" if broken else "", "differences", REASONS["broken"] if broken else why or few, between(a, b, column)))

    for m in ("math_expert", "code_expert", "instruct_expert", "sequence_selection", "collab", "fine_tuned", "dare_paper", "task_arithmetic_paper"):
        compare(f"FusionRoute's average is above that of: {NAMES[m]}", "fusionroute", m, gap(family, "fusionroute", m))
    if tuned:
        compare("the same with each method's own best budget: the Fine-tuned Model", "fusionroute_long", "fine_tuned_long",
                gap(family, "fusionroute", "fine_tuned"))
        for m in ("selection_lm", "collab_lm"):
            compare(f"the same with a better judge: {NAMES[m]}", "fusionroute", m, "(a reward model in the paper)")
    for m in ("task_arithmetic", "dare"):
        compare(f"the same with the merging tuned on validation: {NAMES[m]}", "fusionroute", m, "(untuned in the paper)")
    compare("complementary logits raise the average (FusionRoute against routing only)", "fusionroute", "routing_only",
            gap(family, "fusionroute", "routing_only"))
    if "covered" in ours["fusionroute"]:
        out.append(Claim("where they do: FusionRoute minus routing only, on sub-skills that experts have, and on the others", "(not said)",
                         "; ".join(f"{g} {100 * (mean(ours['fusionroute'][g]) - mean(ours['routing_only'][g])):+.1f}" for g in ("covered", "uncovered"))
                         + (f". Fine-tuned Model: uncovered {100 * mean(ours['fine_tuned_long']['uncovered']):.1f} against FusionRoute's "
                            f"{100 * mean(ours['fusionroute_long']['uncovered']):.1f}" if tuned else ""), "finding", "table1"))
    if f"fusionroute - routing_only, {BENCHES[0]}" in d:
        gains = [between("fusionroute", "routing_only", column)["seeds"] for column in range(5)]
        more = interval([(gains[2][k] + gains[3][k] + gains[4][k]) / 3 - (gains[0][k] + gains[1][k]) / 2 for k in range(len(gains[0]))])
        out.append(Claim("complementary logits help above all in coding and in following instructions (their gain there minus their gain in mathematics)",
                         "said of Table 1", signed(more), "", "differences", REASONS["coding"], more))
    for column, b in enumerate(BENCHES):
        expert = next(f"{e}_expert" for e in ("math", "code", "instruct") if f"fusionroute - {e}_expert, {b}" in d)
        up = paper["fusionroute"][column] - paper[expert][column]
        a, c = ("fusionroute", expert) if up > 0 else (expert, "fusionroute")
        text = "FusionRoute is above its specialist" if up > 0 else "the specialist stays ahead of FusionRoute"
        compare(f"{b}: {text}", a, c, gap(family, a, c, column), REASONS["specialist"], column)
        if not up:  # a tie has no direction, and cannot be reversed
            x = out[-1]
            level = x.d["low"] <= 0 <= x.d["high"]
            x.claim, x.verdict = f"{b}: the specialist and FusionRoute are level", "reproduced" if level else "not shown"
    fine = rival(r, family)
    compare("toy-ifeval: the Fine-tuned Model stays ahead of FusionRoute", fine, "fusionroute_long" if tuned else "fusionroute",
            gap(family, "fine_tuned", "fusionroute", 4), REASONS["ifeval"], 4)
    for a, b, why in (("collab", "sequence_selection", "collab"), ("fine_tuned", "sequence_selection", "selection"),
                      ("task_arithmetic_paper", "dare_paper", "merging")):
        a, b = sorted((a, b), key=lambda m: -paper[m][-1])  # the two families differ in some of these orders
        compare(f"{NAMES[a]} is better than {NAMES[b]}", a, b, gap(family, a, b), REASONS[why])

    head = "fusionroute_long" if tuned else "fusionroute"
    x = rates[head]["rate"]
    best = max((m for m in paper if m not in ("fusionroute", "fine_tuned")), key=lambda m: rates[m]["rate"]["mean"])
    out.append(Claim("FusionRoute wins more than half against the Fine-tuned Model on general prompts", "above 50% (Figure 3)",
                     f"{signed(x, False)} %", "", "winrate", REASONS["wins"], x, 0.5))
    others, above = rates[best]["rate"]["mean"], [NAMES[m] for m in rates if m in NAMES and m not in (head, "fusionroute") and rates[m]["rate"]["mean"] > x["mean"]]
    out.append(Claim("and its win rate is the highest of all methods that the paper compares", "highest (Figure 3)",
                     f"{100 * x['mean']:.1f} % against {100 * others:.1f} % ({NAMES[best]}) and the Fine-tuned Model's own 50 %"
                     + (f"; above it, not in the paper: {', '.join(above)}" if above else ""),
                     "reversed" if x["mean"] < others else "", "winrate", REASONS["wins"], x, 0.5))
    low = rates["sft_only against fusionroute"]["rate"]
    low = {"mean": 1 - low["mean"], "low": 1 - low["high"], "high": 1 - low["low"], "p": low["p"]}
    out.append(Claim("without CDPO (phase 1 only) the win rate falls clearly", "falls (Figure 4)",
                     f"{100 * rates['fusionroute']['rate']['mean']:.1f} % to {100 * rates['sft_only']['rate']['mean']:.1f} %; head to head FusionRoute wins "
                     f"{signed(low, False)} %", "", "winrate", "", low, 0.5))
    compare("CDPO raises the accuracy too", "fusionroute", "sft_only", "(no figure)")
    if tuned:
        compare("and with the tuned budget", "fusionroute_long", "sft_long", "(no figure)")
        compare("L_expert on S alone is better than on all positions (after phase 1)", "sft_only", "sft_all", "said of Eq. (2)")
    if family == "llama":  # the ablations are of this family
        out += ablated(r)

    for b in ("toy-mbpp", "toy-humaneval"):
        x = routes[b]["S"]["code"]
        out.append(Claim(f"most tokens of a coding answer come from the code expert ({b}, inside S)", "Figure with a coding answer",
                         f"{spread(x)} %", "reproduced" if min(x) > 0.5 else "reversed" if max(x) < 0.5 else "not shown", "routing"))
    words, rest = routes["general"]["cross words"]["instruct"], routes["general"]["cross rest"]["instruct"]
    more = [a > b for a, b in zip(words, rest)]
    out.append(Claim("on mixed prompts connective words come from the instruction expert (its share of the words, and of digits and signs, in S)",
                     "shown in an example", f"{spread(words)} % of the words, {spread(rest)} % of the rest",
                     "reproduced" if all(more) and min(words) > 0.5 else "reversed" if not any(more) else "not shown", "routing", REASONS["words"]))
    for m in ("sequence_selection", "collab"):
        out.append(Claim(f"FusionRoute costs less per token than {NAMES[m]}", "claimed, no figure",
                         f"{cost['fusionroute']['over_one_expert']:.2f} against {cost[m]['over_one_expert']:.2f} times one expert's time; "
                         f"{cost['fusionroute']['passes_per_token']:.2f} against {cost[m]['passes_per_token']:.2f} passes",
                         "reproduced" if cost["fusionroute"]["over_one_expert"] < cost[m]["over_one_expert"] else "reversed", "cost"))
    if family == "llama":  # what bench.py measures
        toy, large = r["bench"]["decode"]["toy"], r["bench"]["decode"]["large"]
        out.append(Claim("not in the paper: block decoding writes the same tokens in fewer passes (docs/speed.md)", "",
                         f"{toy['router_passes']:.2f} router and {toy['expert_passes']:.2f} expert passes per token instead of 1 and 1; "
                         f"{toy['block_over_expert']:.2f} of the speed of one expert alone, {large['block_over_expert']:.2f} with models of "
                         f"{large['parameters'] / 1e6:.0f} million parameters", "finding", "bench"))
    extra = [("one model of twice the size, about the same arithmetic a token, trained as the tuned Fine-tuned Model", "double"),
             ("the sum of two fine-tuned models, which costs as much a token, each trained so", "two_fine_tuned"),
             ("training through the fusion, no preference pairs", "fused_sft"), ("the same, then CDPO", "fused_full"),
             ("Co-LLM with the router itself among the choices, no logits added, no preference pairs", "co_llm_self"),
             ("L_expert at all positions instead of S, both phases", "fusionroute_all"), ("one generalist on the experts' own data (a bound)", "generalist"),
             ("the router added to the mean of all experts, no choice", "router_mean"), ("in S a random expert instead of the choice", "router_random")]
    for text, m in extra:
        if m in ours:
            beside = "fusionroute_long" if m in ("double", "two_fine_tuned") else "fusionroute"  # of the same budget
            won = [100 * mean(x) for x in zip(*zip(rates[m]["rate"]["seeds"], rates[beside]["rate"]["seeds"]))]
            rate = f"; win rate over the {NAMES[fine]} {won[0]:.1f} % against {won[1]:.1f} %"
            out.append(Claim(f"not in the paper: {text}, against {NAMES[beside].strip('*')}", "",
                             f"{both(*shared(m, beside))}: {signed(between(m, beside))}{rate}", "finding", "differences"))
    return settle(out)


def ablated(r):
    """The claims that ablations decide: each a difference between two of their rows, seed by seed."""
    def averages(name, label, method):
        return next(row for row in r[f"ablation_{name}"]["rows"] if row["label"] == label)["methods"][method]["average"]

    out = []
    for text, paper, name, a, b in (
            ("mixing SFT batches into phase 2 is needed", "said of Algorithm 1", "preference", ("CDPO", "fusionroute"), ("no SFT batches", "fusionroute")),
            ("the bias makes CDPO better than plain DPO of the router", "said of Eq. (3)", "preference", ("CDPO", "fusionroute"), ("bias off", "fusionroute")),
            ("not in the paper: pairs of the models' own mistakes are better than corrupted right answers", "", "preference",
             ("CDPO", "fusionroute"), ("y_l corrupted", "fusionroute"))):
        x, y = averages(name, *a), averages(name, *b)
        d = interval([p - q for p, q in zip(x, y)])
        out.append(Claim(text, paper, f"{spread(x)} against {spread(y)}: {signed(d)}, {len(x)} seeds", "", f"ablation_{name}", REASONS["few"], d))
    rows = r["ablation_scale"]["rows"]
    lead = [[a - b for a, b in zip(row["methods"]["fusionroute"]["average"], row["methods"]["fine_tuned"]["average"])] for row in rows]
    grows = [all(a < b for a, b in zip(per, per[1:])) for per in zip(*lead)]
    falls = [all(a > b for a, b in zip(per, per[1:])) for per in zip(*lead)]
    tables = ", ".join(f"{PAPER[f]['fusionroute'][-1] - PAPER[f]['fine_tuned'][-1]:+.1f} ({SOURCE[f].split(', ')[1]})" for f in FAMILIES)
    out.append(Claim("the lead over the Fine-tuned Model grows with model size", f"said in the text; its own tables have {tables}",
                     ", ".join(f"{100 * mean(per):+.1f} ({row['label']})" for per, row in zip(lead, rows)),
                     "reproduced" if all(grows) else "reversed" if all(falls) else "not shown", "ablation_scale", REASONS["scale"]))
    return out


REASONS = {
    "specialist": "The coverage gap: the specialist lacks a quarter of its own benchmark's sub-skills, and the router learns them; MergeBench's "
                  "experts have no such hole on purpose.",
    "ifeval": "The two are level here: which of them is ahead changes with the seed.",
    "collab": "Collab asks the reward model about continuations of text that no single model would have written. On validation it got better with "
              "every longer look-ahead (extra/results/tuning.json), that is, the nearer it came to judging whole answers, as Sequence Selection does.",
    "selection": "The router's data has what no expert knows, and the fine-tuned model learns it; Sequence Selection stays below the oracle expert.",
    "wins": "Half of the general prompts ask for a form that no expert has for the content; there the Fine-tuned Model is about as good.",
    "broken": "One of the two answers nothing right: at toy scale the paper's setting destroys the merged model.",
    "coding": "Here the logits give what no expert has, and that is a quarter of every benchmark alike.",
    "few": "So few seeds can show little.",
    "merging": "Full fine-tuning at toy scale moves weights so far that adding three task vectors at scale 1 destroys the model either way.",
    "scale": "Both models profit from size, and at toy scale FusionRoute comes near the ceiling.",
    "words": "In templates the connective words are as much the math expert's as the instruction expert's: both were trained on them.",
}


def claims_table(r, family, found):
    meta = r["table1"]["meta"][family]
    commands = {f"ablation_{name}": (f"python -m extra.paper.ablate {name} --seeds " + " ".join(map(str, r[f"ablation_{name}"]["meta"]["seeds"])),
                                     sum(r[f"ablation_{name}"]["meta"]["run time in seconds"].values())) for name in ABLATIONS}
    commands["bench"] = "python -m extra.paper.bench", r["bench"]["meta"]["seconds"]
    every = command(r, family), sum(t["total"] for t in meta["run time in seconds"].values())
    rows = [["claim", "paper", "ours", "verdict", "command", "run time", "JSON"]]
    for c in found:
        line, seconds = commands.get(c.source, every)
        rows.append([c.claim, c.paper, c.ours, c.verdict + (f". {c.why}" if c.why else ""), f"`{line}`", f"{seconds / 60:.0f} min",
                     f"[{c.source}](../results/{c.source}.json)"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def counts(found):
    verdicts = [c.verdict for c in found]
    return ", ".join(f"{verdicts.count(v)} {v}" for v in ("reproduced", "not shown", "reversed", "says nothing") if v in verdicts) + \
        f"; {verdicts.count('finding')} findings besides"


def claims_page(r):
    meta, found = r["table1"]["meta"]["llama"], {family: claims(r, family) for family in FAMILIES}
    parts = [[f"## {SOURCE[family]}: {counts(found[family])}", "", *claims_table(r, family, found[family]), ""] for family in FAMILIES]
    return "\n".join([
        "# Claims", "",
        "Every empirical statement of the paper beside what this repository measures, for both of its families. Written by `python -m extra.paper.report` "
        "from the JSON files; a test fails when they differ. The paper's figures are of its tables, ours those of the toy: orders and signs can be "
        "compared, sizes cannot. Accuracies in per cent, mean ± standard deviation over seeds "
        f"{', '.join(map(str, meta['seeds']))}; differences in points, on the same prompts, with a 95% interval over seeds (Student's t: the seed is "
        "the unit, because each has its own models, its own gap and its own prompts). "
        "A claim about a difference is \"reproduced\" or \"reversed\" where its p, corrected for the number of such claims about a family (Holm), is below "
        "0.05, so an interval that leaves out zero may not be enough; \"not shown\": neither; \"says nothing\": one side is a model that answers nothing. "
        "Without an interval: ranks and costs are decided by the mean, shares of tokens and model size only where all seeds agree. A tie in "
        "the paper has no direction: it is \"reproduced\" where our interval includes zero, and \"not shown\" elsewhere. "
        f"A run time is that of the whole command, one seed after the other, on {meta['machine']}"
        f"{'; a run uses one thread, so that two fit side by side' if meta['threads'] == 1 else ''}. The theory's statements have "
        "a ledger of their own in [theory/](../../theory/README.md).", "", *(line for part in parts for line in part)])


def pages(r):
    """path -> what the whole page must say."""
    filled = {path: fill(path.read_text(), texts, THIS) for path, texts in blocks(r).items()}
    return filled | {PAPER_WING / "CLAIMS.md": claims_page(r), RESULTS / "README.md": ablations_page(r)}


def main(argv=None):
    run.Parser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    for path, text in pages(load()).items():
        run.write(path, text)
        print(f"saved {path.relative_to(ROOT)}")


if __name__ == "__main__":
    run.run(main)
