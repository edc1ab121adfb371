"""What a row of the table of variations is, how it is decoded, and how its answers are judged.

Every function (s, row, router, experts) -> columns is one way to judge the answers of a row. The
column "average" is over the five benchmarks; "covered" and "uncovered" are as in evaluate.py.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from extra.paper import altered, checkpoints, evaluate, methods
from extra.paper.shifted import check as check_shifted
from extra.paper.shifted import shifted
from fusionroute import informative
from toy_experts import tasks
from toy_experts.data import scored
from toy_experts.experts import sample_of


class Row(NamedTuple):
    label: object  # what is varied
    line: str  # the method
    recipe: object  # what is trained; several: the best on validation prompts is taken
    how: dict = {}  # how it is decoded: options of decode_batch; "changed": see with_picks
    measure: Callable = None  # (s, row, router, experts) -> columns; None: accuracy
    where: tuple = ("", 0.25, checkpoints.SIZE)  # folder below OUT, gap, size of all models


# --- how answers are judged ---------------------------------------------------------------------


def accuracy(s, row, router, experts):
    """The usual columns."""
    return evaluate.accuracy(s, methods.answering(router, experts, **row.how), evaluate.draw(s))


def among(s, row, router, experts):
    """Accuracy, and two shares of the tokens of right answers to the same prompts: where the
    experts' choices differ ("in S"), and what one of them would write itself ("one is right")."""
    columns, problems = accuracy(s, row, router, experts), evaluate.draw(s)
    gold = scored([sample_of(i) for b in tasks.BENCHMARKS for i in problems[b]], experts)
    mask = gold.mask[:, 1:]  # (N, T-1)
    known = (gold.choice == gold.ids[:, 1:, None]).any(-1)  # (N, T-1)
    where = {"in S": informative(gold.choice), "one is right": known}
    return columns | {c: round(float(x[mask].float().mean()), 4) for c, x in where.items()}


def on_shifted(s, row, router, experts):
    """Accuracy on the shifted prompts; "usual" is that on the same benchmarks as trained."""
    usual = {b: items for b, items in evaluate.draw(s).items() if b != "general"}
    way = methods.answering(router, experts, **row.how)
    columns = lambda b, items: evaluate.accuracy(s, way, {b: items}, check_shifted)
    problems = shifted(usual, s)[row.label]
    found = evaluate.means([columns(b, items) for b, items in problems.items()])
    known = [columns(b, usual[b])["average"] for b in problems if b in usual]
    return found | ({"usual": round(float(np.mean(known)), 4)} if known else {})


def by_domain(s, row, router, experts):
    """Accuracy on all benchmarks, and on the newcomer's ("code")."""
    way, problems = methods.answering(router, experts, **row.how), evaluate.draw(s)
    per = {b: evaluate.accuracy(s, way, {b: problems[b]})["average"] for b in tasks.BENCHMARKS}
    columns = {"average": [*per.values()], "code": [per[b] for b in tasks.DOMAINS["code"]]}
    return {name: round(float(np.mean(values)), 4) for name, values in columns.items()}


def with_picks(s, row, router, experts):
    """Accuracy; "picked", the share of tokens for which the changed expert is picked; "trigger",
    the share of answers with TRIGGER. Prompts whose right answer has it are left out."""
    problems = {}
    for b, items in evaluate.draw(s).items():
        problems[b] = [i for i in items if altered.TRIGGER.strip() not in i.answer]
    how, traces = dict(row.how), []
    decode = methods.fused(router, altered.change(experts, how.pop("changed", "")), **how)

    def way(prompts):
        traces.extend(decode(prompts))
        return [t.answer() for t in traces[-len(prompts) :]]

    columns = evaluate.accuracy(s, way, problems)
    picked = [pick == altered.BAD for t in traces for pick in t.pick]
    marked = [altered.TRIGGER_ID in t.tokens for t in traces]
    shares = {"picked": picked, "trigger": marked}
    return columns | {name: round(sum(x) / len(x), 4) for name, x in shares.items()}


def with_cost(s, row, router, experts):
    """Accuracy, and the parameters that a fused token reads over those of one expert."""
    own, expert = (sum(p.numel() for p in m.parameters()) for m in (router.lm, experts[0]))
    return accuracy(s, row, router, experts) | {"cost": round((own + expert) / expert, 3)}


def of_best_expert(s, row, router, experts):
    """Accuracy of the expert that is best on each benchmark. It is known only afterwards."""
    how, rows = {"rule": methods.first, "max_new": methods.MAX_NEW}, []
    decoders = [partial(methods.all_read, [expert], **how) for expert in experts]
    for b, items in evaluate.draw(s).items():
        if b != "general":
            alone = [evaluate.accuracy(s, decoder, {b: items}) for decoder in decoders]
            rows.append(max(alone, key=lambda columns: columns["average"]))
    return evaluate.means(rows)
