"""All generated figures of the pages, from the JSON files in extra/results/ alone.

    python -m extra.paper.report    writes the short table of README.md, the tables of extra/paper/README.md, extra/paper/CLAIMS.md and
                                    extra/results/README.md (the ablations); a test fails when they differ from what this would write

Verdicts are computed, never typed: a claim is "reproduced" when the whole 95% interval lies on its side, "reversed" when the whole
interval lies on the other, and "not shown" otherwise. Claims that need no interval say how they are decided.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from extra.common import FAMILIES, RESULTS, fill
from toy_experts import run, tasks
from toy_experts.evaluate import percent, table

PAPER_WING = Path(__file__).parent
ROOT = PAPER_WING.parent.parent
THIS = "python -m extra.paper.report"
BENCHES = ["toy-gsm8k", "toy-math500", "toy-mbpp", "toy-humaneval", "toy-ifeval"]
COMMAND = {"llama": "python -m extra.paper.evaluate --seeds 0 1 2 3 4",
           "gemma": "python -m extra.paper.evaluate --family gemma --prompts 150 --general 250 --seeds 0 1 2 3 4"}
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
}


# --- Markdown -----------------------------------------------------------------------------------------------------------------------------


def spread(values):
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def signed(d, points=True):
    """A mean with its interval, in percentage points."""
    sign = "+" if points else ""
    return f"{100 * d['mean']:{sign}.1f} [{100 * d['low']:{sign}.1f}, {100 * d['high']:{sign}.1f}]"


def load():
    """name -> the content of results/name.json, for every file that this page is made from."""
    names = ["table1", "differences", "winrate", "routing", "cost", "tuning", "bench", "quickstart"] + [
        f"ablation_{n}" for n in ("coverage", "data", "routing", "preference", "scale")]
    try:
        r = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}
    except (OSError, ValueError) as e:
        raise run.UserError(f"extra/results/ is not complete ({e}): run {' and '.join(COMMAND.values())}, python -m extra.paper.tune "
                            "--seeds 0 1, python -m extra.paper.quickstart, python -m extra.paper.bench, and the ablations") from e
    for family in FAMILIES:
        if family not in r["table1"]:
            raise run.UserError(f"extra/results/table1.json has no {family}: run {COMMAND[family]}")
    return r


# --- the README's short table -------------------------------------------------------------------------------------------------------------

SHORT = ["fusionroute", "sft_only", "routing_only", "router", "math_expert", "code_expert", "instruct_expert", "fine_tuned"]


def short_table(r):
    """FusionRoute, its own limits, the experts, the Fine-tuned Model, and every method that is above FusionRoute."""
    ours, differences = r["table1"]["llama"], r["differences"]["llama"]
    above = [m for m in ours if mean(ours[m]["average"]) > mean(ours["fusionroute"]["average"])]
    averages = {m: ours[m]["average"] for m in [*above, *SHORT] if m in ours}
    meta, note, quick = r["table1"]["meta"]["llama"], "", r["quickstart"]
    if "router" not in ours:  # a table from before it had this row
        averages["router"] = [row["router"] for row in quick["seeds"].values()]
        note = f" (* Measured apart: {len(quick['seeds'])} seeds, {quick['meta']['settings']['prompts']} prompts.)"
    rows = [["method", "average", "FusionRoute minus it"]]
    for method in sorted(averages, key=lambda m: -mean(averages[m])):
        marker, d = "*" if method not in ours else "", differences.get(f"fusionroute - {method}")
        rows.append([NAMES[method] + marker, spread(averages[method]) + marker, signed(d) if d else ""])
    return "\n".join([
        f"Per cent right, average of five benchmarks: mean ± standard deviation over {len(meta['seeds'])} seeds, "
        f"{meta['prompts per benchmark']} test prompts a benchmark; the lead in points with a 95% interval.{note}", "", *table(rows)])


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
        rows.append([f"`{COMMAND[family]}`", sum(t["total"] for t in meta[family]["run time in seconds"].values()),
                     "table1, differences, winrate, cost, routing"])
    for name in ABLATIONS:
        m = r[f"ablation_{name}"]["meta"]
        seeds = " ".join(map(str, m["seeds"]))
        rows.append([f"`python -m extra.paper.ablate {name} --seeds {seeds}`", sum(m["run time in seconds"].values()), f"ablation_{name}"])
    rows[1:] = [[command, f"{seconds / 60:.0f}", files] for command, seconds, files in rows[1:]]
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
        "The share of each expert in FusionRoute's tokens, of all tokens and of those in S. (Outside S all experts agree, so the pick does not "
        "matter and is not trained.)", "", *table(picks), "",
        f"Seconds on {meta['machine']}: base and experts {sum(seconds[x] for x in ['base', *tasks.DOMAINS])}, phase 1 {seconds['router_sft']}, "
        f"pairs and phase 2 {seconds['router']}, evaluation {seconds['evaluation']}; {seconds['total']} in all."])


def main_table(r, family):
    ours, differences = r["table1"][family], r["differences"][family]
    rows = [["method", *(b.removeprefix("toy-") for b in BENCHES), "average ± sd", "FusionRoute minus it", "paper"]]
    for method in sorted(ours, key=lambda m: -mean(ours[m]["average"])):
        d = differences.get(f"fusionroute - {method}")
        rows.append([NAMES[method], *(f"{100 * mean(ours[method][b]):.0f}" for b in BENCHES), spread(ours[method]["average"]),
                     signed(d) if d else "", f"{PAPER[family][method][-1]:.1f}" if method in PAPER[family] else ""])
    meta = r["table1"]["meta"][family]
    seconds = [t["total"] for t in meta["run time in seconds"].values()]
    return "\n".join([
        f"Per cent right in content and form, mean over seeds {', '.join(map(str, meta['seeds']))}; {meta['prompts per benchmark']} test "
        "prompts per benchmark and seed; ± standard deviation over the seeds; FusionRoute's lead in points with its 95% interval (bootstrap "
        f"over seeds and prompts, paired). `paper`: average of {SOURCE[family]}.", "", *table(rows), "",
        f"Training and evaluation took {min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes per seed on {meta['machine']}"
        + (", one thread a run, two runs side by side." if meta["threads"] == 1 else ".")])


def win_table(r, family):
    rates = r["winrate"][family]
    rows = [["method", "wins", "ties", "losses", "win rate, %", "95% interval"]]
    for method in sorted((m for m in rates if m in NAMES), key=lambda m: -rates[m]["rate"]["mean"]):
        w = rates[method]
        rows.append([NAMES[method], *(str(sum(w[k])) for k in ("wins", "ties", "losses")), f"{100 * w['rate']['mean']:.1f}",
                     f"[{100 * w['rate']['low']:.1f}, {100 * w['rate']['high']:.1f}]"])
    head = rates["sft_only against fusionroute"]["rate"]
    return "\n".join([
        f"Against the Fine-tuned Model on {r['winrate']['meta'][family]['general prompts']} general prompts per seed, judged by the checker's "
        "graded score (correctness first, then format, then brevity) instead of GPT-4o; equal scores are ties, and count half.", "",
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
            PAPER_WING / "README.md": {"commands": commands(r), "quickstart": quick_table(r), "table1": main_table(r, "llama"), "winrate": win_table(r, "llama"), "cost": cost_table(r, "llama"), "gemma": gemma_tables(r)}}


def gemma_tables(r):
    """The main table of the second family, and its win rates and costs in a line each."""
    rates, cost = r["winrate"]["gemma"], r["cost"]["gemma"]
    rate = {m: f"{NAMES[m].strip('*')} {signed(rates[m]['rate'], False)}" for m in ("fusionroute", "sft_only", "co_llm_self")}
    times = [f"{NAMES[m].strip('*')} {cost[m]['over_one_expert']:.2f}" for m in ("fusionroute", "sequence_selection", "collab")]
    return "\n".join([main_table(r, "gemma"), "", f"Win rates against the Fine-tuned Model, per cent: {'; '.join(rate.values())}. Phase 1 only "
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
    verdict: str
    source: str      # the file in results/, without .json
    why: str = ""    # where it does not hold: the reason, as far as known


def verdict(d, zero=0.0):
    """From an interval around a difference that the claim says is above zero."""
    return "reproduced" if d["low"] > zero else "reversed" if d["high"] < zero else "not shown"


def gap(family, a, b, column=-1):
    x, y = PAPER[family][a][column], PAPER[family][b][column]
    return f"{x:g} against {y:g} ({x - y:+.1f})"


def claims(r, family):
    ours, d, rates = r["table1"][family], r["differences"][family], r["winrate"][family]
    routes, cost, paper, out = r["routing"][family], r["cost"][family], PAPER[family], []

    def compare(text, a, b, source="differences", why="", column=None):
        key = f"{a} - {b}" + ("" if column is None else f", {BENCHES[column]}")
        flip = key not in d
        x = d[key] if not flip else d[f"{b} - {a}" + ("" if column is None else f", {BENCHES[column]}")]
        x = x if not flip else {"mean": -x["mean"], "low": -x["high"], "high": -x["low"]}
        v = verdict(x)
        numbers = ours[a]["average" if column is None else BENCHES[column]], ours[b]["average" if column is None else BENCHES[column]]
        out.append(Claim(text, gap(family, a, b, -1 if column is None else column),
                         f"{spread(numbers[0])} against {spread(numbers[1])}: {signed(x)}", v, source, why if v != "reproduced" else ""))

    for m in ("math_expert", "code_expert", "instruct_expert", "sequence_selection", "collab", "fine_tuned", "dare_paper",
              "task_arithmetic_paper"):
        compare(f"FusionRoute's average is above that of: {NAMES[m]}", "fusionroute", m)
    for m in ("task_arithmetic", "dare"):
        x = d[f"fusionroute - {m}"]
        out.append(Claim(f"the same with the merging tuned on validation: {NAMES[m]}", "(untuned in the paper)",
                         f"{spread(ours['fusionroute']['average'])} against {spread(ours[m]['average'])}: {signed(x)}", verdict(x), "differences"))
    compare("complementary logits raise the average (FusionRoute against routing only)", "fusionroute", "routing_only")
    for column, b in enumerate(BENCHES):
        expert = next(f"{e}_expert" for e in ("math", "code", "instruct") if f"fusionroute - {e}_expert, {b}" in d)
        up = paper["fusionroute"][column] - paper[expert][column]
        a, c = ("fusionroute", expert) if up > 0 else (expert, "fusionroute")
        compare(f"{b}: {'FusionRoute is above its specialist' if up > 0 else 'the specialist stays ahead of FusionRoute'}", a, c,
                column=column, why=REASONS["specialist"])
        if not up:  # a tie has no direction, and cannot be reversed
            x = d[f"fusionroute - {expert}, {b}"]
            level = x["low"] <= 0 <= x["high"]
            out[-1].claim, out[-1].verdict = f"{b}: the specialist and FusionRoute are level", "reproduced" if level else "not shown"
            out[-1].why = "" if level else REASONS["specialist"]
    compare("toy-ifeval: the Fine-tuned Model stays ahead of FusionRoute", "fine_tuned", "fusionroute", column=4, why=REASONS["ifeval"])
    for a, b, why in (("collab", "sequence_selection", "collab"), ("fine_tuned", "sequence_selection", "selection"),
                      ("task_arithmetic_paper", "dare_paper", "merging")):
        a, b = sorted((a, b), key=lambda m: -paper[m][-1])  # the two families differ in some of these orders
        compare(f"{NAMES[a]} is better than {NAMES[b]}", a, b, why=REASONS[why])

    x = rates["fusionroute"]["rate"]
    rivals = [m for m in paper if m not in ("fusionroute", "fine_tuned")]
    best = max(rivals, key=lambda m: rates[m]["rate"]["mean"])
    out.append(Claim("FusionRoute wins more than half against the Fine-tuned Model on general prompts", "above 50% (Figure 3)",
                     f"{signed(x, False)} %", verdict(x, 0.5), "winrate", "" if verdict(x, 0.5) == "reproduced" else REASONS["wins"]))
    others = rates[best]["rate"]["mean"]
    first = "reversed" if x["mean"] < others else "reproduced" if x["mean"] > 0.5 else verdict(x, 0.5)
    out.append(Claim("and its win rate is the highest of all methods compared", "highest (Figure 3)",
                     f"{100 * x['mean']:.1f} % against {100 * others:.1f} % ({NAMES[best]}) and the Fine-tuned Model's own 50 %",
                     first, "winrate", REASONS["first"] if others < x["mean"] <= 0.5 else ""))
    head = rates["sft_only against fusionroute"]["rate"]
    low = {"mean": 1 - head["mean"], "low": 1 - head["high"], "high": 1 - head["low"]}
    out.append(Claim("without CDPO (phase 1 only) the win rate falls clearly", "falls (Figure 4)",
                     f"{100 * x['mean']:.1f} % to {100 * rates['sft_only']['rate']['mean']:.1f} %; head to head FusionRoute wins {signed(low, False)} %",
                     verdict(low, 0.5), "winrate"))
    x = d["fusionroute - sft_only"]
    out.append(Claim("CDPO raises the accuracy too", "(no figure)", signed(x), verdict(x), "differences"))

    rows = r["ablation_scale"]["rows"] if family == "llama" else []  # there is no such ablation of the other
    lead = [[a - b for a, b in zip(row["methods"]["fusionroute"]["average"], row["methods"]["fine_tuned"]["average"])] for row in rows]
    grows = [all(a < b for a, b in zip(per, per[1:])) for per in zip(*lead)]
    falls = [all(a > b for a, b in zip(per, per[1:])) for per in zip(*lead)]
    if rows:
        out.append(Claim("the lead over the Fine-tuned Model grows with model size", "larger for 8B than for 2B",
                         ", ".join(f"{100 * mean(per):+.1f} ({row['label']})" for per, row in zip(lead, rows)),
                         "reproduced" if all(grows) else "reversed" if all(falls) else "not shown", "ablation_scale",
                         "" if all(grows) else REASONS["scale"]))

    for b in ("toy-mbpp", "toy-humaneval"):
        x = routes[b]["S"]["code"]
        out.append(Claim(f"most tokens of a coding answer come from the code expert ({b}, inside S)", "Figure with a coding answer",
                         f"{spread(x)} %", "reproduced" if min(x) > 0.5 else "reversed" if max(x) < 0.5 else "not shown", "routing"))
    words, rest = routes["general"]["cross words"]["instruct"], routes["general"]["cross rest"]["instruct"]
    more = [a > b for a, b in zip(words, rest)]
    out.append(Claim("on mixed prompts connective words come from the instruction expert (its share of the words, and of digits and signs, in S)",
                     "shown in an example", f"{spread(words)} % of the words, {spread(rest)} % of the rest",
                     "reproduced" if all(more) and min(words) > 0.5 else "reversed" if not any(more) else "not shown", "routing",
                     "" if all(more) and min(words) > 0.5 else REASONS["words"]))
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
    for text, m in (("training through the fusion, no preference pairs", "fused_sft"), ("the same, then CDPO", "fused_full"),
                    ("Co-LLM with the router itself among the choices, no logits added, no preference pairs", "co_llm_self")):
        x = d[f"fusionroute - {m}"]
        x = {"mean": -x["mean"], "low": -x["high"], "high": -x["low"]}
        out.append(Claim(f"not in the paper: {text}, against FusionRoute", "", f"{spread(ours[m]['average'])} against "
                         f"{spread(ours['fusionroute']['average'])}: {signed(x)}; win rate over the Fine-tuned Model "
                         f"{100 * rates[m]['rate']['mean']:.1f} % against {100 * rates['fusionroute']['rate']['mean']:.1f} %", "finding", "differences"))
    return out


REASONS = {
    "specialist": "The coverage gap: the specialist lacks a quarter of its own benchmark's sub-skills, and the router learns them; MergeBench's "
                  "experts have no such hole on purpose.",
    "ifeval": "The two are level here: which of them is ahead changes with the seed.",
    "collab": "Collab asks the reward model about continuations of text that no single model would have written. On validation it got better with "
              "every longer look-ahead (extra/results/tuning.json), that is, the nearer it came to judging whole answers, as Sequence Selection does.",
    "selection": "The router's data has what no expert knows, and the fine-tuned model learns it; Sequence Selection stays below the oracle expert.",
    "wins": "The Fine-tuned Model is stronger in this family, and half of the general prompts ask for a form that no expert has for the content.",
    "first": "The other methods are all below it, but not the Fine-tuned Model, which against itself has 50 %.",
    "merging": "Full fine-tuning at toy scale moves weights so far that adding three task vectors at scale 1 destroys the model either way.",
    "scale": "Both models profit from size, and at toy scale FusionRoute comes near the ceiling.",
    "words": "In templates the connective words are as much the math expert's as the instruction expert's: both were trained on them.",
}


def claims_table(r, family, found):
    meta, scale = r["table1"]["meta"][family], r["ablation_scale"]["meta"]
    command = "python -m extra.paper.ablate scale --seeds " + " ".join(map(str, scale["seeds"]))
    commands = {"ablation_scale": (command, sum(scale["run time in seconds"].values())),
                "bench": ("python -m extra.paper.bench", r["bench"]["meta"]["seconds"])}
    every = COMMAND[family], sum(t["total"] for t in meta["run time in seconds"].values())
    rows = [["claim", "paper", "ours", "verdict", "command", "run time", "JSON"]]
    for c in found:
        command, seconds = commands.get(c.source, every)
        rows.append([c.claim, c.paper, c.ours, c.verdict + (f". {c.why}" if c.why else ""), f"`{command}`", f"{seconds / 60:.0f} min",
                     f"[{c.source}](../results/{c.source}.json)"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def counts(found):
    verdicts = [c.verdict for c in found]
    return ", ".join(f"{verdicts.count(v)} {v}" for v in ("reproduced", "not shown", "reversed")) + \
        f"; {verdicts.count('finding')} findings beyond it"


def claims_page(r):
    meta, found = r["table1"]["meta"]["llama"], {family: claims(r, family) for family in FAMILIES}
    parts = [[f"## {SOURCE[family]}: {counts(found[family])}", "", *claims_table(r, family, found[family]), ""] for family in FAMILIES]
    return "\n".join([
        "# Claims", "",
        "Every empirical statement of the paper beside what this repository measures, for both of its families. Written by `python -m extra.paper.report` "
        "from the JSON files; a test fails when they differ. The paper's figures are of its tables, ours those of the toy: orders and signs can be "
        "compared, sizes cannot. Accuracies in per cent, mean ± standard deviation over seeds "
        f"{', '.join(map(str, meta['seeds']))}; differences in points with a 95% interval (bootstrap over seeds and prompts, paired). "
        "\"reproduced\": the whole interval is on the claim's side; \"reversed\": the whole interval is on the other; \"not shown\": neither. "
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
