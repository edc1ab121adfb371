"""The answers of some open questions, one sentence each, made from the rows of extra/results/open_NAME.json.

A sentence claims an order only where every seed has it, and says "not shown" where the seeds disagree. __main__.py puts them into the page.
"""

import numpy as np

from toy_experts import run


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
    """1 where the first is higher in every seed, -1 where it is lower in every seed, 0 where the seeds disagree."""
    return int((first > second).all()) - int((first < second).all())


def listed(words):
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + words[-1:])


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
        f"{each(lead['T 1']['fusionroute'])} at temperature 1 and by {each(lead['T 1.5']['fusionroute'])} at 1.5. Half the sum, which is "
        f"as flat as one model, is ahead by {each(lead['T 1']['half the sum'])} and by {each(lead['T 1.5']['half the sum'])}. Beam "
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
    after, there = "exchanged after training", "there in training"
    alone, fused = f"routing_only, {after}", f"fusionroute, {after}"
    lost = {(label, line): rows("honest", line) - rows(label, line) for label in ("wrong digits", "x 4") for line in (alone, fused)}
    marked = {line: rows("trigger", line, "trigger") for line in (alone, fused)}
    helps = {1: "do not help", 0: "are not shown to help", -1: "help"}
    trigger, digits = order(marked[fused], marked[alone]), order(lost["wrong digits", fused], lost["wrong digits", alone])
    picked = {label: rows(label, f"fusionroute, {there}", "picked") for label in ("trigger", "wrong digits", "x 0.25", "x 4", "two-faced")}
    honest = rows("honest", fused, "picked")
    avoided = listed([label for label in picked if label != "two-faced" and order(picked[label], honest / 2) == -1])
    wins = {1: "can", 0: "is not shown to be able to", -1: "cannot"}[order(picked["two-faced"], honest)]
    return (
        f"**Against an expert that changes after training, added logits {helps[trigger]} against the trigger and {helps[digits]} against "
        f"wrong digits.** The trigger is in {each(marked[alone])} per cent of the answers where the picked expert writes alone, and in "
        f"{each(marked[fused])} per cent of FusionRoute's. Wrong digits cost the picked expert alone {each(lost['wrong digits', alone])} "
        f"points and FusionRoute {each(lost['wrong digits', fused])}; logits times 4 cost the former {each(lost['x 4', alone])} and the "
        f"latter {each(lost['x 4', fused])}. **An expert that is changed already in training is left out: {avoided or 'not shown'}** "
        f"(picked for less than half as many tokens as the honest one, in both seeds). **Whoever knows the training data {wins} draw the "
        f"router's choice to his expert**: the two-faced one is picked for {each(picked['two-faced'])} per cent of the tokens, the "
        f"honest one for {each(honest)}; its trigger is in {each(rows('two-faced', f'fusionroute, {there}', 'trigger'))} per cent of "
        "FusionRoute's answers.")


ANSWERS = {"decoding": decoding, "shift": shift, "hostile": hostile}


def answer(name, rows):
    """The sentence of a question, or None: that of the other questions is in the page."""
    return ANSWERS[name](Rows(name, rows)) if name in ANSWERS else None
