"""The ledger: every empirical statement of the paper beside what extra/results/ has, and its verdict. report.py writes it to CLAIMS.md.

Verdicts are computed, never typed: a claim about a difference is "reproduced" or "reversed" when its p over seeds, corrected for the
number of such claims on the page (Holm), is below 0.05, and "not shown" otherwise; where one side is a model that answers nothing, it "says
nothing". Claims that need no interval say how they are decided.
"""

from dataclasses import dataclass
from statistics import mean

from extra.common import FAMILIES
from extra.paper.evaluate import holm, interval
from extra.paper.published import ABLATIONS, BENCHES, NAMES, PAPER, SOURCE, command, rival, signed, spread


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

    @property
    def own(self):
        """Whether it is a variation that the paper does not have. These are counted apart."""
        return not self.paper or self.paper.startswith("(")


def settle(found):
    """Fill in the verdicts that follow from intervals. Their p-values are corrected together for their number."""
    tested = [c for c in found if not c.verdict]
    for c, p in zip(tested, holm([c.d["p"] for c in tested])):
        c.verdict = "not shown" if p >= 0.05 else "reproduced" if c.d["mean"] > c.zero else "reversed"
    for c in found:
        if not c.verdict.startswith("as "):
            continue
        above = next(x for x in found if x.claim == c.verdict[3:])  # a rank that needs this claim first
        c.verdict, c.why = above.verdict, above.why
    for c in found:
        if c.verdict in ("reproduced", "finding") or c.verdict == "reversed" and c.why == REASONS["few"]:
            c.why = ""
        if c in tested and c.verdict == "not shown" and c.d["p"] < 0.05:
            c.why = " ".join(filter(None, [c.why, "Alone it would be: the correction for the number of claims decides."]))
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
        compare("the same with each method's best budget of those tried: the Fine-tuned Model", "fusionroute_long", "fine_tuned_long",
                "(no figure)")
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
        compare(f"{b}: {text}", a, c, gap(family, a, c, column), "" if up > 0 else REASONS["specialist"], column)
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
                     f"{signed(x, False)} %", "", "winrate", "", x, 0.5))
    others, above = rates[best]["rate"]["mean"], [NAMES[m] for m in rates if m in NAMES and m not in (head, "fusionroute") and rates[m]["rate"]["mean"] > x["mean"]]
    out.append(Claim("and its win rate is the highest of all methods that the paper compares", "highest (Figure 3)",
                     f"{100 * x['mean']:.1f} % against {100 * others:.1f} % ({NAMES[best]}) and the Fine-tuned Model's own 50 %"
                     + (f"; above it, not in the paper: {', '.join(above)}" if above else ""),
                     "reversed" if x["mean"] < others else f"as {out[-1].claim}", "winrate"))
    low = rates["sft_only against fusionroute"]["rate"]
    low = {"mean": 1 - low["mean"], "low": 1 - low["high"], "high": 1 - low["low"], "p": low["p"]}
    out.append(Claim("without CDPO (phase 1 only) the win rate falls clearly", "falls (Figure 4)",
                     f"{100 * rates['fusionroute']['rate']['mean']:.1f} % to {100 * rates['sft_only']['rate']['mean']:.1f} %; head to head FusionRoute wins "
                     f"{signed(low, False)} %", "", "winrate", "", low, 0.5))
    compare("CDPO raises the accuracy too", "fusionroute", "sft_only", "(no figure)")
    if tuned:
        compare("and with the tuned budget", "fusionroute_long", "sft_long", "(no figure)")
        compare("L_expert on S alone is better than on all positions (after both phases)", "fusionroute", "fusionroute_all", "said of Eq. (2)")
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
    extra = [("one model of twice the size, about the same arithmetic a token, with the settings of the tuned Fine-tuned Model, not tuned itself", "double"),
             ("the sum of two fine-tuned models, which costs as much a token, each trained so", "two_fine_tuned"),
             ("training through the fusion, no preference pairs", "fused_sft"), ("the same, then CDPO", "fused_full"),
             ("Co-LLM with the router itself among the choices, no logits added, no preference pairs", "co_llm_self"),
             ("one generalist on the experts' own data (a bound)", "generalist"),
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
        small = max(abs(d["low"]), abs(d["high"])) < 0.01
        out.append(Claim(text, paper, f"{spread(x)} against {spread(y)}: {signed(d)}, {len(x)} seeds", "", f"ablation_{name}",
                         REASONS["small" if small else "few"], d))
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
    "broken": "One of the two answers nothing right: at toy scale the paper's setting destroys the merged model.",
    "coding": "Here the logits give what no expert has, and that is a quarter of every benchmark alike.",
    "few": "So few seeds can show little.",
    "small": "If there is a difference, it is less than a point here.",
    "merging": "Full fine-tuning at toy scale moves weights so far that adding three task vectors at scale 1 destroys the model either way.",
    "scale": "Both models profit from size, and at toy scale FusionRoute comes near the ceiling.",
    "words": "In templates the connective words are as much the math expert's as the instruction expert's: both were trained on them.",
}


def claims_table(r, family, found):
    """The ledger of one family. Most claims are of its tables, whose command stands above; the others name their own."""
    meta = r["table1"]["meta"][family]
    others = {f"ablation_{name}": (f"python -m extra.paper.ablate {name} --seeds " + " ".join(map(str, r[f"ablation_{name}"]["meta"]["seeds"])),
                                   sum(r[f"ablation_{name}"]["meta"]["run time in seconds"].values())) for name in ABLATIONS}
    others["bench"] = "python -m extra.paper.bench", r["bench"]["meta"]["seconds"]
    rows = [["claim", "paper", "ours", "verdict", "from"]]
    for c in found:
        own = f"; `{others[c.source][0]}`, {others[c.source][1] / 60:.0f} min" if c.source in others else ""
        rows.append([c.claim, c.paper, c.ours, c.verdict + (f". {c.why}" if c.why else ""), f"[{c.source}](../results/{c.source}.json){own}"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    minutes = sum(t["total"] for t in meta["run time in seconds"].values()) / 60
    return [f"By `{command(r, family)}`, {minutes:.0f} min, where the last column names no other command.", "",
            lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def counts(found):
    verdicts, own = ([c.verdict for c in found if c.own == which] for which in (False, True))
    said = lambda of: ", ".join(f"{of.count(v)} {v}" for v in ("reproduced", "not shown", "reversed", "says nothing") if v in of)
    return f"{said(verdicts)}; of variations of our own {said(own)}; {(verdicts + own).count('finding')} findings besides"


def claims_page(r):
    meta, found = r["table1"]["meta"]["llama"], {family: claims(r, family) for family in FAMILIES}
    parts = [[f"## {SOURCE[family]}: {counts(found[family])}", "", *claims_table(r, family, found[family]), ""] for family in FAMILIES]
    return "\n".join([
        "# Claims", "",
        "Every empirical statement of the paper beside what this repository measures, for both of its families. Written by `python -m extra.paper.report` "
        "from the JSON files; a test fails when they differ. The paper's figures are of its tables, ours those of the toy: orders and signs can be "
        "compared, sizes cannot. Where the column `paper` is in brackets, the claim is a variation of our own, and counted apart. Accuracies in per "
        "cent, mean ± standard deviation over the seeds of the command above the table (of Gemma-2's, 0 and 1 are also the seeds on which the settings were "
        f"chosen, with models of the other family); differences in points, on the same prompts, with a 95% interval over seeds (Student's t: the seed is "
        "the unit, because each has its own models, its own gap and its own prompts). "
        "A claim about a difference is \"reproduced\" or \"reversed\" where its p, corrected for the number of such claims about a family (Holm), is below "
        "0.05, so an interval that leaves out zero may not be enough; a claim that needs another one first takes its verdict; \"not shown\": neither; \"says nothing\": one side is a model that answers nothing. "
        "Without an interval: ranks and costs are decided by the mean, shares of tokens and model size only where all seeds agree. A tie in "
        "the paper has no direction: it is \"reproduced\" where our interval includes zero, and \"not shown\" elsewhere. "
        f"A run time is that of the whole command, one seed after the other, on {meta['machine']}"
        f"{'; a run uses one thread, so that two fit side by side' if meta['threads'] == 1 else ''}. The theory's statements have "
        "a ledger of their own in [theory/](../../theory/README.md).", "", *(line for part in parts for line in part)])
