"""All generated figures of the pages, from the JSON files in extra/results/ alone.

    python -m extra.paper.report    writes the short table of README.md, the tables of extra/paper/README.md, extra/paper/CLAIMS.md and
                                    extra/results/README.md (the ablations); a test fails when they differ from what this would write

published.py holds the paper's own figures, claims.py the ledger with its verdicts.
"""

import argparse
from statistics import mean

from extra.common import FAMILIES, RESULTS, fill
from extra.paper.claims import claims_page, opposite
from extra.paper.evaluate import interval
from extra.paper.published import ABLATIONS, BENCHES, NAMES, PAPER, PAPER_WING, ROOT, SOURCE, THIS, command, load, rival, signed, spread
from extra.paper.train import Sft
from toy_experts import run, tasks
from toy_experts.evaluate import percent, table

# --- the README's short table -------------------------------------------------------------------------------------------------------------

SHORT = ["fusionroute", "sft_only", "routing_only", "router", "math_expert", "code_expert", "instruct_expert", "fusionroute_long",
         "fine_tuned", "fine_tuned_long", "sft_long", "two_fine_tuned", "generalist"]
LONG = {"fusionroute_long", "sft_long", "fine_tuned_long", "two_fine_tuned"}  # rows with the tuned budget


def short_table(r):
    """FusionRoute, its own limits, the experts, the Fine-tuned Model, and every method that is above FusionRoute over all seeds.

    A block for each budget, in which each row is compared with that block's FusionRoute: four passes, or the tuned ones.
    """
    ours, differences, meta = r["table1"]["llama"], r["differences"]["llama"], r["table1"]["meta"]["llama"]
    above = [m for m in ours if len(ours[m]["average"]) == len(meta["seeds"]) and mean(ours[m]["average"]) > mean(ours["fusionroute"]["average"])]
    shown = sorted(dict.fromkeys([*above, *SHORT]), key=lambda m: -mean(ours[m]["average"]))
    few = [m for m in shown if len(ours[m]["average"]) < len(meta["seeds"])]
    rows = [["method", "average", "general", "FusionRoute minus it"]]
    for head, epochs in (("fusionroute", Sft.epochs), ("fusionroute_long", meta["settings"]["router_sft_long"]["epochs"])):
        block = [m for m in shown if (m in LONG) == (head in LONG)]
        rows.append([f"*{epochs} passes over the SFT samples:*", "", "", ""])
        for method in block:
            d = differences.get(f"{head} - {method}")
            rows.append([NAMES["fusionroute" if method == head else method].removesuffix(", tuned budget") + "*" * (method in few), spread(ours[method]["average"]),
                         f"{100 * mean(ours[method]['general']):.0f}", signed(d) if d else ""])
    first = len(ours[few[0]]["average"]) if few else 0
    stars = f" *: {first} seeds; FusionRoute has {100 * mean(ours['fusionroute']['average'][:first]):.1f} on these." if few else ""
    return "\n".join([
        f"Per cent right on {meta['prompts per benchmark']} test prompts a benchmark: average of five, mean ± standard deviation over {len(meta['seeds'])} seeds; and on "
        f"general prompts. {meta['settings']['router_sft_long']['epochs']} passes were best for FusionRoute on validation. Last column: the block's FusionRoute minus the row, with a "
        f"95% interval over seeds (Student's t).{stars}", "", *table(rows), "", phase2_worth(r)])


def phase2_worth(r):
    """What phase 2, its bias and the set S are worth, in one sentence each."""
    d, ours = r["differences"]["llama"], r["table1"]["llama"]
    general = interval([a - b for a, b in zip(ours["fusionroute_long"]["general"], ours["sft_long"]["general"])])
    rows = {row["label"]: row["methods"]["fusionroute"]["average"] for row in r["ablation_preference"]["rows"] if "fusionroute" in row["methods"]}
    bias = interval([a - b for a, b in zip(rows["CDPO"], rows["bias off"])])
    everywhere = d["fusionroute - fusionroute_all"]
    passes = r["table1"]["meta"]["llama"]["settings"]["router_sft_long"]["epochs"]
    return (f"Phase 2 adds {signed(d['fusionroute - sft_only'])} to the average after {Sft.epochs} passes, {signed(d['fusionroute_long - sft_long'])} after "
            f"{passes} (there {signed(general)} on general prompts). Its bias is worth {signed(bias)} ({len(bias['seeds'])} seeds). "
            f"With L_expert at all positions, not only S, FusionRoute gains "
            f"{signed(opposite(everywhere))} ({Sft.epochs} passes, {len(everywhere['seeds'])} seeds).")


def lead(r):
    """Of phase 1 with each one's best budget: the passes of each, and FusionRoute's lead over the Fine-tuned Model in points for each tuning seed."""
    best = {what: max(r["tuning"]["llama"][what]["tried"], key=lambda t: mean(t["accuracy"])) for what in BUDGETS}
    return ({what: t["settings"]["epochs"] for what, t in best.items()},
            [100 * (a - b) for a, b in zip(*(best[what]["accuracy"] for what in BUDGETS))])


def times(r):
    """How long `bash run.sh` takes."""
    meta = r["quickstart"]["meta"]
    s = meta["seconds"]
    trained = sum(s[name] for name in ("base", "math", "code", "instruct"))
    return (f"On {meta['machine']} the first takes about {s['total'] / 60:.0f} minutes after the installation; base model and experts take {trained} "
            f"seconds of it, phase 1 {s['router_sft']}, phase 2 {s['router']}.")


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
        f"Settings were chosen on other prompts of seeds 0 and 1. Seed {meta['settings']['seed']}, {meta['settings']['prompts']} {meta['settings']['split']} prompts per benchmark, per cent right in "
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
        "prompts per benchmark and seed; ± standard deviation over the seeds; the lead of FusionRoute (four passes) in points with its 95% interval over seeds "
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
    what_else = {"co_llm_self_long": NAMES["co_llm_self"], "fused_sft_long": NAMES["fused_sft"], "generalist_long": NAMES["generalist"]}
    epochs = sorted({t["settings"]["epochs"] for what in BUDGETS for t in tuned[what]["tried"]})
    rows = [["phase 1 of, learning rate", *(f"{e} passes" for e in epochs)]]
    for what, name in (BUDGETS | what_else).items():
        for lr in dict.fromkeys(t["settings"]["lr"] for t in tuned[what]["tried"]):
            cell = {t["settings"]["epochs"]: t["accuracy"] for t in tuned[what]["tried"] if t["settings"]["lr"] == lr}
            rows.append([f"{name}, {lr:g}", *(f"{100 * mean(cell[e]):.1f} ({', '.join(f'{100 * x:.0f}' for x in cell[e])})" if e in cell else "" for e in epochs)])
    seeds, budget = ", ".join(map(str, meta["seeds"])), r["ablation_budget"]
    *_, tuned_row, more = budget["rows"]
    said = lambda row, m="fine_tuned": " and ".join(f"{100 * x:.1f}" for x in row["methods"][m]["average"])
    won, points = lead(r)
    return "\n".join([f"Average of the benchmarks on validation prompts, per cent: mean over the tuning seeds {seeds} (each of them).", "", *table(rows), "",
                      f"The best budget of those tried: {won['router_sft_long']} passes for FusionRoute, {won['fine_tuned_sft_long']} for the "
                      f"Fine-tuned Model (the most passes and the lowest rate tried). Then FusionRoute's phase 1 leads by {mean(points):.1f} points ({', '.join(f'{x:.1f}' for x in points)}). With "
                      f"{more['label']} the Fine-tuned Model has {said(more)} on the test prompts of seeds {', '.join(map(str, budget['meta']['seeds']))}, instead of "
                      f"{said(tuned_row)}; FusionRoute {said(tuned_row, 'fusionroute')}."])


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


def ablations_page(r):
    parts = [f"## {name}\n\n{text}\n\n{ablation_table(r, name)}" for name, text in ABLATIONS.items()]
    return "\n\n".join(["# Ablations\n\nWritten by `python -m extra.paper.report` from the JSON files beside it; a test fails when they differ. Average: of the five "
                        "benchmarks, per cent, ± standard deviation over seeds. uncovered: of the sub-skills that no expert has. win rate: on the "
                        "general prompts against the fine-tuned model of the same row. Dots and ticks in the plots are single seeds.", *parts]) + "\n"


# --- the pages --------------------------------------------------------------------------------------------------------------------------


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
