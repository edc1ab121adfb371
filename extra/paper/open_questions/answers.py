"""The answers of the open questions, a few sentences each, made from the rows of extra/results/open_NAME.json.

A sentence claims an order only where every seed shows it by MARGIN or more, and says "not shown" otherwise. __main__.py puts them into the page.
"""

import numpy as np

from toy_experts import run

MARGIN = 0.02  # shares that differ by less may be chance: the standard error of 500 answers, most of them right, is about a point and a half


class Rows:
    """The rows of one question. rows(label, line) -> the column's figures, one a seed."""

    def __init__(self, name, rows):
        self.name, self.labels = name, list(dict.fromkeys(r["label"] for r in rows))
        self.rows = {(r["label"], r["line"]): r for r in rows}

    def __call__(self, label, line, column="average"):
        try:
            return np.array(self.rows[label, line][column])
        except KeyError as e:
            raise run.UserError(f"open_{self.name}.json has no {column} of {label}, {line}: "
                                f"run python -m extra.paper.open_questions.{self.name} --seeds 2 3") from e


def each(values):
    """Shares, one a seed -> "82 and 83"."""
    return " and ".join(f"{100 * v:.0f}" for v in values)


def order(first, second):
    """1 where the first is higher by MARGIN in every seed, -1 where it is lower by MARGIN in every seed, else 0."""
    return int((first - second >= MARGIN - 1e-9).all()) - int((second - first >= MARGIN - 1e-9).all())


def listed(words):
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + words[-1:])


def sides(values, than):
    """{label: shares, one a seed} against a share a seed, as text: which labels are above it in both seeds, below it, and neither."""
    signs = {label: order(v, than) for label, v in values.items()}
    parts = [words.format(listed(found)) for sign, words in ((1, "{} above"), (-1, "{} below"), (0, "no difference shown for {}"))
             if (found := [label for label in signs if signs[label] == sign])]
    return "; ".join(parts)


def points(values):
    """Differences, one a seed -> "-3 and +2" (points)."""
    return " and ".join(f"{round(100 * v):+d}" for v in values)


def experts(rows):
    one, many = [label for label in rows.labels if label.startswith("1 ")], ["2", "3", "5", "8"]
    best = {line: max(one, key=lambda label: rows(label, line).mean()) for line in ("fusionroute", "routing_only")}
    row = {line: [rows(label, line) for label in (best[line], *many)] for line in best}

    def steps(line, sign):
        """The steps along the row ("2 to 3") that go up (sign 1) or down (-1) in every seed."""
        found = [f"{a} to {b}" for k, (a, b) in enumerate(zip(["1", *many], many)) if order(row[line][k + 1], row[line][k]) == sign]
        return listed(found) if found else "none"

    fused, alone = (", ".join(f"{each(v)} with {n}" for v, n in zip(row[line], [best[line], *many])) for line in row)
    more = rows("5 + 3 useless", "fusionroute") - rows("5", "fusionroute")
    return (
        f"**More experts raise FusionRoute's accuracy in both seeds at the steps {steps('fusionroute', 1)}, and lower it at {steps('fusionroute', -1)}; "
        f"that of the picked expert alone rises at {steps('routing_only', 1)} and falls at {steps('routing_only', -1)}.** FusionRoute: "
        f"{fused}. The picked expert alone: {alone}. Three useless experts beside five change FusionRoute's figure by {points(more)} points.")


def weights(rows):
    lambdas, betas = ([label for label in rows.labels if label.startswith(word)] for word in ("lambda", "beta"))
    shares = [label for label in rows.labels if label not in (*lambdas, *betas)]

    groups = (("Lambda", lambdas, "lambda: fusionroute", "lambda 1/3"), ("Positions of L_expert", shares, "S: fusionroute", "S"),
              ("Beta", betas, "beta: fusionroute", "beta 0.1"))
    others = {name: {label: rows(label, line) for label in labels if label != usual} for name, labels, line, usual in groups}
    moves = [label for name, _, line, usual in groups for label, v in others[name].items() if order(v, rows(usual, line))]
    each_group = " ".join(f"{name}: {sides(others[name], rows(usual, line))}." for name, _, line, usual in groups)
    lost = {line: rows("lambda 1/3", f"lambda: {line}") - rows("lambda 0", f"lambda: {line}") for line in ("fusionroute", "routing_only")}
    return (
        f"**Of the other values of lambda, S and beta {f'only {listed(moves)}' if moves else 'none'} is shown to change FusionRoute's accuracy.** In "
        f"both seeds, against the usual values (lambda 1/3, S, beta 0.1). {each_group} Without L_expert (lambda 0) W stays zero and picks the math "
        f"expert everywhere: the picked expert alone loses {each(lost['routing_only'])} points, FusionRoute {each(lost['fusionroute'])}.")


def newcomer(rows):
    updates = ["joins, nothing trained", "new row of W", "all of W", "W and theta"]  # the cheapest first
    alone, others = (lambda label: rows(label, "routing_only", "code")), (lambda label: rows(label, "fusionroute", "others"))
    uses = [u for u in updates if (alone(u) >= alone("from scratch") - 0.05).all()]
    keeps = [u for u in updates if (others(u) >= others("before") - 0.02).all()]
    cheapest = next((u for u in uses if u in keeps), None)
    quoted = lambda labels: listed([f'"{label}"' for label in labels]) or "none"
    verdict = f"The cheapest update that uses the newcomer and forgets nothing: {cheapest}." if cheapest else (
        f"No update does both in both seeds: the newcomer is used after {quoted(uses)}, nothing is forgotten after {quoted(keeps)}.")
    after, kept = (", ".join(f"{each(of(u))} ({u})" for u in updates) for of in (alone, others))
    left = {label: rows(label, "fusionroute", "code") - rows("from scratch", "fusionroute", "code") for label in ("leaves, row dropped", "leaves, W trained")}
    return (
        f"**{verdict}** (Used: the picked expert alone is within 5 points of a training from scratch on the newcomer's benchmarks. Forgotten: "
        f"FusionRoute loses more than 2 points on the others.) On the newcomer's benchmarks the picked expert alone has {each(alone('before'))} "
        f"before, then {after}, and {each(alone('from scratch'))} from scratch. On the others FusionRoute has {each(others('before'))} before, "
        f"then {kept}. When the expert leaves, FusionRoute's figure on its benchmarks moves by {points(left['leaves, row dropped'])} points, and "
        f"after a training of W by {points(left['leaves, W trained'])}.")


def objectives(rows):
    value = {label: rows(label, "fusionroute") for label in rows.labels}
    others = {label: v for label, v in value.items() if label not in ("phase 1 only", "CDPO")}
    figures = ", ".join(f"{label} {each(v)}" for label, v in value.items())
    better = [label for label, v in others.items() if order(v, value["CDPO"]) == 1]
    return (
        f"**{listed(better) + ' did better than CDPO' if better else 'None of the others is shown to do better than CDPO'}.** Against CDPO, in "
        f"both seeds: {sides(others, value['CDPO'])}. Against phase 1 only: "
        f"{sides({'CDPO': value['CDPO']} | others, value['phase 1 only'])}. Averages: {figures}.")


def data(rows):
    usual, first = rows("as always", "both phases"), rows("as always", "phase 1 only")
    pairs = {label: rows(label, "both phases") for label in rows.labels if label != "as always" and not label.startswith("SFT")}
    sft = {label: rows(label, "phase 1 only") for label in rows.labels if label.startswith("SFT")}
    noise = {label: v for label, v in pairs.items() if "flipped" in label}
    shares = {label: v for label, v in pairs.items() if label not in noise}
    worth = [label for label, v in noise.items() if order(v, first) == 1]
    general = [rows(label, "both phases", "general") for label in ("as always", "pairs without general")]
    noisy, mixtures = (", ".join(f"{each(v)} with {label}" for label, v in group.items()) for group in (noise, sft))
    return (
        f"**With {worth[-1].replace(' flipped', '') if worth else 'none'} of the pairs flipped phase 2 is still above phase 1 alone in both seeds.** "
        f"Phase 1 alone has {each(first)}, both phases {each(usual)}, and {noisy}. Pairs of fewer kinds, against all pairs: {sides(shares, usual)}. "
        f"On general prompts all pairs give {each(general[0])}, pairs without general {each(general[1])}. "
        f"Other SFT data, against the usual, after phase 1: {sides(sft, first)} ({mixtures}).")


def router_size(rows):
    usual, *smaller = rows.labels
    value = {line: {label: rows(label, line) for label in rows.labels} for line in ("fusionroute", "routing_only")}
    cost = {label: f"{np.mean(rows(label, 'fusionroute', 'cost')):.2f}" for label in rows.labels}
    below = [label for label in smaller if order(value["fusionroute"][label], value["fusionroute"][usual]) == -1]
    ahead = [label for label in rows.labels if order(value["fusionroute"][label], value["routing_only"][label]) == 1]
    figures = ", ".join(f"{each(value['fusionroute'][label])} with {label} ({cost[label]})" for label in rows.labels)
    choice = ", ".join(each(v) for v in value["routing_only"].values())
    return (
        f"**In both seeds a smaller router is worse with {listed(below) or 'no size'}** (width x layers; the experts have {usual})**; its logits "
        f"still help with {listed(ahead) or 'no size'}** (FusionRoute above the choice alone). FusionRoute: {figures}; in brackets the parameters "
        f"that a fused token reads, over those of one expert. The choice alone, in the same order: {choice}.")


def mixed(rows):
    usual, *others = rows.labels
    value = {line: {label: rows(label, line) for label in rows.labels} for line in ("fusionroute", "best expert")}
    ahead = [label for label in rows.labels if order(value["fusionroute"][label], value["best expert"][label]) == 1]
    moved = {line: {label: points(v[label] - v[usual]) for label in others} for line, v in value.items()}
    figures = "; ".join(f"{label}: {moved['fusionroute'][label]} (the best expert {moved['best expert'][label]})" for label in others)
    return (
        f"**{'Logits of other sizes and of another family can be added, too' if len(ahead) == len(rows.labels) else 'Not every set adds up'}**: FusionRoute is "
        f"ahead of the best expert beside it, in both seeds, with {listed(ahead) or 'no set'}. Beside changed experts FusionRoute's figure moves by, in "
        f"points, a seed each: {figures}.")


def decoding(rows):
    part, lead = {}, {}
    for label in ("greedy", "T 1", "T 1.5"):
        part[label] = np.maximum(rows(label, "routing_only"), rows(label, "router"))
        lead[label] = {line: rows(label, line) - part[label] for line in ("fusionroute", "half the sum")}
    verdict = {1: "Yes", 0: "Not shown", -1: "No"}[min(order(rows(label, "fusionroute"), part[label]) for label in part)]
    left = {label: lead[label]["half the sum"] / lead[label]["fusionroute"] for label in ("T 1", "T 1.5")}
    sharp = verdict == "Yes" and order(left["T 1"], left["T 1.5"]) == 1
    beam = rows("beam of 4", "fusionroute") - rows("greedy", "fusionroute")
    same = (abs(beam) <= 0.02).all()
    return (
        f"**{verdict}{', but the hotter the sampling, the more of the lead is only a sharper distribution' * sharp}**: FusionRoute is "
        f"ahead of the better of its two parts by {each(lead['greedy']['fusionroute'])} points greedily, by "
        f"{each(lead['T 1']['fusionroute'])} at temperature 1 and by {each(lead['T 1.5']['fusionroute'])} at 1.5. The mean of both logits (`half the "
        f"sum`), which is as flat as one model, is ahead by {each(lead['T 1']['half the sum'])} at temperature 1, by "
        f"{each(lead['T 1.5']['half the sum'])} at 1.5. Beam "
        f"search {'is within two points of' if same else 'is not the same as'} greedy decoding.")


def shift(rows):
    shifts = [label for label in rows.labels if label != "as trained"]
    known = [label for label in shifts if label != "a sixth benchmark"]
    ahead = {line: listed([label for label in shifts if order(rows(label, "fusionroute"), rows(label, line)) == 1]) or "no shift"
             for line in ("routing_only", "best expert")}
    kept = {line: np.array([rows(label, line) / rows(label, line, "usual") for label in known])  # (shifts, seeds)
            for line in ("fusionroute", "routing_only", "best expert")}
    lost = {line: f"{100 * (1 - values.mean()):.0f}" for line, values in kept.items()}
    worse = [label for label, pick, best in zip(known, kept["routing_only"], kept["best expert"]) if order(pick, best) == -1]
    return (
        f"**All fall, and FusionRoute with them**: over new words, numbers and phrasings it loses {lost['fusionroute']} per cent of its "
        f"right answers, the picked expert alone {lost['routing_only']}, the best expert {lost['best expert']}. In both seeds added "
        f"logits are ahead of choosing alone under {ahead['routing_only']}, and ahead of the best expert under {ahead['best expert']}. "
        "The choice suffers too (the picked expert keeps less of its answers than the best one does, in both seeds) under "
        f"{listed(worse) or 'no shift'}. Of the sixth benchmark FusionRoute has {each(rows('a sixth benchmark', 'fusionroute'))} per "
        "cent right.")


def hostile(rows):
    after, there = "exchanged after phase 1", "there in phase 1"
    alone, fused = f"routing_only, {after}", f"fusionroute, {after}"
    lost = {(label, line): rows("honest", line) - rows(label, line) for label in ("wrong digits", "x 4") for line in (alone, fused)}
    marked = {line: rows("trigger", line, "trigger") for line in (alone, fused)}
    trigger, digits = order(marked[fused], marked[alone]), order(lost["wrong digits", fused], lost["wrong digits", alone])
    means = {1: "more", 0: "not shown to be less or more", -1: "less"}
    ahead = order(rows("wrong digits", fused), rows("wrong digits", alone)) == 1
    picked = {label: rows(label, f"fusionroute, {there}", "picked") for label in ("trigger", "wrong digits", "x 0.25", "x 4", "two-faced")}
    honest = rows("honest", fused, "picked")
    seldom = [label for label in picked if label != "two-faced" and order(picked[label], honest / 2) == -1]
    shares = ", ".join(f"{each(v)} ({label})" for label, v in picked.items() if label != "two-faced")
    wins = {1: "can", 0: "is not shown to be able to", -1: "cannot"}[order(picked["two-faced"], honest)]
    return (
        f"**Exchanged after phase 1: with added logits the trigger gets through {means[trigger]} often, and wrong digits cost "
        f"{'as much, as far as shown' if digits == 0 else means[digits]}.** The trigger is in {each(marked[alone])} per cent of the answers where the picked "
        f"expert writes alone, and in {each(marked[fused])} per cent of FusionRoute's. Wrong digits cost the picked expert alone "
        f"{each(lost['wrong digits', alone])} points and FusionRoute {each(lost['wrong digits', fused])}"
        f"{' (which stays ahead of it)' * ahead}; logits times 4 cost the former {each(lost['x 4', alone])} and the latter {each(lost['x 4', fused])}. "
        f"**A router that is trained beside the changed expert picks it seldom: {listed(seldom) if seldom else 'not shown'}** (for less than half as many "
        f"tokens as the honest one, in both seeds). It is picked for {shares} per cent of the tokens, the honest one for {each(honest)}. **Whoever knows "
        f"the training data {wins} draw the router's choice to his expert**: the two-faced one is picked for {each(picked['two-faced'])} per cent; its "
        f"trigger is in {each(rows('two-faced', f'fusionroute, {there}', 'trigger'))} per cent of FusionRoute's answers.")


ANSWERS = {"experts": experts, "weights": weights, "decoding": decoding, "shift": shift, "newcomer": newcomer, "hostile": hostile,
           "objectives": objectives, "data": data, "router_size": router_size, "mixed": mixed}


def answer(name, rows):
    """The sentence of a question, or None: that of the other questions is in the page."""
    return ANSWERS[name](Rows(name, rows)) if name in ANSWERS else None
