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
    hot, greedy = "T 1.5", "greedy"
    best_part = {label: np.maximum(rows(label, "routing_only"), rows(label, "router")) for label in (hot, greedy)}
    full, half = (order(rows(hot, line), best_part[hot]) for line in ("fusionroute", "half the sum"))
    verdict = {1: "Yes", 0: "Not shown", -1: "No"}[full]
    reason = {1: "and not by sharpness alone", 0: "but whether by more than sharpness is not shown", -1: "but by sharpness alone"}[half]
    beam = rows("beam of 4", "fusionroute") - rows(greedy, "fusionroute")
    same = (abs(beam) <= 0.02).all()
    return (
        f"**{verdict}, {reason}**: at temperature 1.5 FusionRoute has {each(rows(hot, 'fusionroute'))} per cent, the better of its two "
        f"parts alone {each(best_part[hot])}, and half the sum, which is as flat as one model, {each(rows(hot, 'half the sum'))}. "
        f"Greedily FusionRoute has {each(rows(greedy, 'fusionroute'))}, the better part {each(best_part[greedy])}. Beam search "
        f"{'is within two points of' if same else 'is not the same as'} greedy decoding ({each(rows('beam of 4', 'fusionroute'))}).")


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

    def both(label, column):
        return ", ".join(f"{each(rows(label, f'{line}, {after}', column))} {how}"
                         for line, how in (("routing_only", "without added logits"), ("fusionroute", "with them")))

    protect = {1: "do not protect", 0: "are not shown to protect", -1: "protect in part"}[
        order(rows("trigger", f"fusionroute, {after}", "trigger"), rows("trigger", f"routing_only, {after}", "trigger"))]
    picked = {label: rows(label, f"fusionroute, {there}", "picked") for label in ("trigger", "wrong digits", "two-faced")}
    honest = rows("honest", f"fusionroute, {after}", "picked")
    avoided = listed([label for label in ("trigger", "wrong digits") if order(picked[label], honest / 2) == -1])
    wins = {1: "can", 0: "is not shown to be able to", -1: "cannot"}[order(picked["two-faced"], honest)]
    return (
        f"**Against an expert that changes after training, added logits {protect}.** Per cent of the answers that have the trigger: "
        f"{both('trigger', 'trigger')}. Per cent right with wrong digits: {both('wrong digits', 'average')}; beside the honest expert: "
        f"{both('honest', 'average')}. **Routing protects from an expert that is bad already in training: {avoided or 'not shown'}.** Of "
        f"all tokens the router then picks it for {each(picked['trigger'])} per cent (trigger) and {each(picked['wrong digits'])} per "
        f"cent (wrong digits), and the honest one for {each(honest)}. **Whoever knows the training data {wins} draw the router's choice "
        f"to his expert**: the two-faced one is picked for {each(picked['two-faced'])} per cent of the tokens, and its trigger is in "
        f"{each(rows('two-faced', f'fusionroute, {there}', 'trigger'))} per cent of FusionRoute's answers.")


ANSWERS = {"decoding": decoding, "shift": shift, "hostile": hostile}


def answer(name, rows):
    """The sentence of a question, or None: that of the other questions is in the page."""
    return ANSWERS[name](Rows(name, rows)) if name in ANSWERS else None
