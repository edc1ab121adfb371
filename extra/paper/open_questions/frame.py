"""What the pages of this folder share: prompts, judging, a cache of finished cells, the command line, JSON and plot.

A page has a docstring (the question, what is varied, what is held fixed, departures) and

    measure(s, cell)    one seed: calls cell(label, line, compute) for each of its rows; compute() -> judged(...)

and ends with `run.run(lambda: frame.main("decoding", measure, __doc__, x_label))`. Its command is `python -m extra.paper.open_questions.decoding
--seeds 2 3`; what it found goes to extra/results/open_decoding.json and .svg, and `python -m extra.paper.open_questions` puts the tables
into docs/open-questions.md.
"""

import json
import time
from copy import deepcopy

import numpy as np

import train_sft
from extra import models
from extra.common import RESULTS, cached, several, table
from extra.paper import evaluate, train
from extra.paper.ablate import Settings, as_svg, canvas
from fusionroute import Router
from toy_experts import run, tasks
from toy_experts.train import EXPERTS

COLUMNS = ("average", "covered", "uncovered", "general")


fused = evaluate.answering  # a decoder from token-id prompts to answers: of router and experts; options as in toy_experts.batch.METHODS


def items(s, split="test"):
    """benchmark -> its prompts, as extra.paper.evaluate draws them; "general" is one of them."""
    return evaluate.drawn(split, s.seed, s.prompts, s.prompts)


def judged(s, decoder, problems=None, check=tasks.check):
    """The share of right answers: over the five benchmarks, their covered and uncovered sub-skills, and the general prompts."""
    problems = problems or items(s)
    gap = models.gap(s)
    rows = {name: [] for name in COLUMNS}
    for b, drawn in problems.items():
        right = [check(item, text) for item, text in zip(drawn, evaluate.texts(decoder, drawn))]
        if b == "general":
            rows["general"].append(np.mean(right))
            continue
        held = tasks.held_out(b, gap, s.seed) if b in tasks.SKILLS else []
        rows["average"].append(np.mean(right))
        for name, is_held in (("covered", False), ("uncovered", True)):
            part = [r for r, item in zip(right, drawn) if (item.skill in held) == is_held]
            rows[name] += [np.mean(part)] if part and b in tasks.SKILLS else []
    return {name: round(float(np.mean(values)), 4) for name, values in rows.items() if values}


def best_expert(s, router, experts, b, drawn, check=tasks.check):
    """judged, on the prompts `drawn` of the benchmark b, of the expert that is best on it alone. (It is known only afterwards.)"""
    alone = [judged(s, fused(router, experts, use_router=False, only=i), {b: drawn}, check) for i in range(len(experts))]
    return max(alone, key=lambda row: row["average"])


def sft_data(s, experts):
    """train_sft.py's samples, scored by these experts."""
    return train.phase1_data(s.seed, train_sft.Settings.samples, experts)


def phase1(s, experts, sft, start=None):
    """train_sft.py's main on the samples sft: a router beside these experts. start: what it is a copy of; the instruction expert."""
    start = start or experts[EXPERTS.index("instruct")]
    router = Router(deepcopy(start), len(experts)).to(start.embed.weight.device).requires_grad_(True)
    train_sft.train(train_sft.Settings(seed=s.seed), router, sft)
    return router.requires_grad_(False)


def rows_of(s, name, measure):
    """The rows of one seed, [{"label", "line", **judged}]. Each is kept in OUT/seedN/open-NAME.json as soon as it is there."""
    run.prepare(models.place(s))
    path, clock = models.folder(s) / f"open-{name}.json", time.time()
    experts, router = models.load_experts(s, ""), models.load_router(s, "router")[0]
    key, out = [run.recipe(s), *map(run.fingerprint, [*experts, router])], []
    known = cached(path, key, dict)

    def cell(label, line, compute):
        at = json.dumps([label, line])
        if at not in known:
            begun = time.process_time()  # not the clock: other programs' time, or a pause, is not this cell's
            known[at] = compute() | {"seconds": round(time.process_time() - begun, 1)}
            run.write(path, json.dumps({"key": key, "result": known}) + "\n")
        out.append({"label": label, "line": line} | known[at])
        print(f"seed {s.seed}, {label}, {line}: " + "  ".join(f"{k} {v:.3f}" for k, v in known[at].items() if k != "seconds"), flush=True)

    measure(s, cell)
    print(f"{len(out)} rows of seed {s.seed} in {time.time() - clock:.0f} s, kept in {path}")
    return out


def plot(name, rows, x_label, y="average"):
    """The picture of a question, as SVG text: one line for each `line`, mean and every seed. None without matplotlib."""
    if not (drawing := canvas(name)):
        return None
    figure, axis = drawing
    labels, lines = list(dict.fromkeys(r["label"] for r in rows)), list(dict.fromkeys(r["line"] for r in rows))
    for colour, line in zip(("#D55E00", "#0072B2", "#E69F00", "#666666", "#009E73", "#CC79A7", "#56B4E9"), lines):
        there = [(labels.index(r["label"]), [100 * v for v in r[y]]) for r in rows if r["line"] == line]
        axis.plot([k for k, _ in there], [np.mean(v) for _, v in there], "o-", color=colour, label=line)
        axis.plot([k for k, v in there for _ in v], [x for _, v in there for x in v], ".", color=colour, alpha=0.5)
    axis.set(xticks=range(len(labels)), xlabel=x_label, ylabel=f"{y}, % right")
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(len(str(x)) for x in labels) * len(labels) > 80 else {}
    axis.set_xticklabels(labels, **slanted)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4 if max(map(len, lines)) < 25 else 2)
    return as_svg(figure)


def merged(results):
    """The rows of several seeds as one list: each figure becomes a list, one entry a seed."""
    return [{"label": first["label"], "line": first["line"]} | {k: [r[i][k] for r in results] for k in first if k not in ("label", "line", "seconds")}
            for i, first in enumerate(results[0])]


def as_table(rows):
    """The rows of a question as lines of Markdown: mean over the seeds, per cent, with the seeds' averages in brackets."""
    columns = list(dict.fromkeys(c for r in rows for c in r if c not in ("label", "line")))

    def entry(values, column):
        if column in ("beta", "cost"):  # no shares
            return ", ".join(f"{v:g}" for v in dict.fromkeys(values))
        each = f" ({', '.join(f'{100 * v:.0f}' for v in values)})" if column == columns[0] else ""
        return f"{100 * np.mean(values):.1f}{each}"

    lines = [[str(r["label"]), r["line"], *(entry(r[c], c) if c in r else "-" for c in columns)] for r in rows]
    return "\n".join(table([["", "method", *columns], *lines]))


def main(name, measure, doc, x_label, argv=None, **more):
    """A page's command. more: what else goes into the JSON's meta."""
    runs, seeds = several(run.parser(Settings, doc), Settings, argv)
    begun, results = time.time(), []
    for s in runs:
        results.append(rows_of(s, name, measure))
    print(as_table(merged(results)))
    if seeds:
        meta = {"seeds": seeds, "split": "test", "prompts per benchmark": runs[0].prompts, "x": x_label, **more,
                "run time in seconds": {s.seed: round(sum(r["seconds"] for r in rows)) for s, rows in zip(runs, results)}}
        run.write(RESULTS / f"open_{name}.json", json.dumps({"rows": merged(results), "meta": meta}, indent=1) + "\n")
        if picture := plot(name, merged(results), x_label):
            run.write(RESULTS / f"open_{name}.svg", picture)
        print(f"saved open_{name}.json{' and .svg' if picture else ''} in extra/results/ after {time.time() - begun:.0f} s")
