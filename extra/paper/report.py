"""Fills docs/results.md and README.md from extra/results/*.json, and draws the plots beside them.

    python -m extra.paper.report

People write the pages. Each figure in them stands in a marked place, `<!--=KIND;ROW;...-->`. KIND
is a function below. A ROW is FILE:LABEL or FILE:LABEL@LINE (without @: the line "fusionroute"). A
row has columns, and a column has one number a seed; where no column is named it is "average". So
`<!--=lead;llama:fusionroute;llama:router;general-->` is how far FusionRoute is ahead of the router
alone on general prompts, with its interval over seeds.

Verdicts are words in marked places too. "reproduced" or "reversed": the interval's p is below 0.05
after a correction for the number of verdicts about the same family (Holm). Otherwise "not shown".
When new figures change a verdict, the test of the page fails until somebody reads the page again.
"""

import json
import re
from pathlib import Path
from statistics import mean, stdev

from docs.tools.pages import fill
from extra.paper.checkpoints import FAMILIES, RESULTS
from extra.paper.plot import draw
from extra.paper.stats import exact_interval, holm
from toy_experts import script

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs/results.md", ROOT / "README.md", ROOT / "docs/README.zh.md")
PLOTTED = ("co_llm_self", "fused_sft", "fusionroute", "sft_only", "fine_tuned", "routing_only")
PLOTTED += ("router",)  # the rows of spread.json without the experts, which are far below
EXPERTS = [f"{e}_expert" for e in script.EXPERTS]
CODING, MATHS = ("toy-mbpp", "toy-humaneval", "toy-ifeval"), ("toy-gsm8k", "toy-math500")
MARGIN = 0.02  # two rows have an order where every seed shows it by this much

# --- the rows -----------------------------------------------------------------------------------


def load(folder=RESULTS):
    """{file: {"LABEL@LINE": {column: [a number a seed]}}}; some files are split or merged."""
    files = {}
    for path in sorted(folder.glob("*.json")):
        try:
            files[path.stem] = json.loads(path.read_text())
        except ValueError as e:
            raise script.UserError(f"{path} is not JSON ({e}): restore it with git") from e
    rows = {}
    for name, content in files.items():
        if name.startswith(("ablation_", "open_")):
            rows[name] = {at(str(r["label"]), r["line"]): r for r in content["rows"]}
    try:
        rows |= {family: of_family(files, family) for family in FAMILIES}
        rows["seed 0"] = files["quickstart"]["methods"]
        rows["minutes"] = minutes(files)
        near = files["table1"]["meta"]["llama"]["share with a neighbour in the SFT data"]
        rows["near"] = {bench: {"average": shares} for bench, shares in near.items()}
        groups = files["delta"]["groups"].items()
        rows["delta"] = {at(group, who): v for group, both in groups for who, v in both.items()}
        rows["spread"] = files["spread"]["explained"]
        rows["spread, without"] = files["spread"]["explained without the lowest seed"]
        sizes = rows["ablation_scale"]
        for size in [row for row in sizes if "@" not in row]:
            pairs = zip(sizes[size]["average"], sizes[f"{size}@fine_tuned"]["average"])
            sizes[size]["over fine_tuned"] = [x - y for x, y in pairs]
    except KeyError as e:
        raise script.UserError(f"{folder} lacks {e}: restore its JSON files with git") from e
    return rows


def at(label, line):
    return label if line == "fusionroute" else f"{label}@{line}"


def apart(row):
    label, _, line = row.partition("@")
    return label, line or "fusionroute"


def of_family(files, family):
    """table1.json, with the columns of winrate.json, cost.json and routing.json beside its own.

    The rows of spread.json go on with its seeds: other rows have the first ones of all seeds.
    """
    rows, first = {}, files["table1"][family]
    further = files["spread"]["rows"] if family == "llama" else {}
    for method, columns in first.items():
        its = further.get(method, {})
        columns = {c: shares + its.get(c, []) for c, shares in columns.items()}
        a_seed = zip(*(columns[b] for b in CODING + MATHS))
        more = [mean(x[: len(CODING)]) - mean(x[len(CODING) :]) for x in a_seed]
        rows[method] = columns | {"coding minus maths": more}
    for method, won in files["winrate"][family].items():
        rows.setdefault(method, {})["win"] = won
    for method, time in files["cost"][family].items():
        rows[method]["time"] = [time]
    for bench, parts in files["routing"][family].items():
        rows |= {f"{bench}, {part}": share for part, share in parts.items()}
    ours = rows["fusionroute"]["average"]
    parts = {"four seeds": ours[:4], "ten": ours[:10], "further": ours[10:]}
    rows |= {f"fusionroute, {name}": {"average": part} for name, part in parts.items()}
    seeds = len(first["fusionroute"]["average"])
    rows["half"] = dict.fromkeys(("win", "code", "instruct"), [0.5] * seeds)
    return rows


def minutes(files):
    """Of each command that writes a file: all its seeds, one after the other."""
    spent = {}
    for name, content in files.items():
        if name.startswith(("ablation_", "open_")):
            spent[name] = sum(content["meta"]["run time in seconds"].values())
    for family, meta in files["table1"]["meta"].items():
        spent[family] = sum(meta["run time in seconds"].values())
    spent["open"] = sum(seconds for name, seconds in spent.items() if name.startswith("open_"))
    spent["run.sh"] = files["quickstart"]["meta"]["seconds"]["total"]
    spent["delta"] = files["delta"]["meta"]["seconds"]
    spent["spread"] = sum(files["spread"]["meta"]["run time in seconds"].values())
    return {name: {"average": [seconds / 60]} for name, seconds in spent.items()}


# --- the kinds of figures: each is a function of the rows and of what its place names -----------


def numbers(rows, row, column="average"):
    """The numbers of one column, one a seed. row: "FILE:LABEL@LINE"."""
    file, _, name = row.partition(":")
    return rows[file][name][column]


def differences(rows, first, second, column="average"):
    """First minus second, on the seeds that both have: a row of few seeds has the first ones."""
    pairs = zip(numbers(rows, first, column), numbers(rows, second, column))
    return [x - y for x, y in pairs]


def share(rows, row, column="average"):
    return f"{100 * mean(numbers(rows, row, column)):.1f}"


def spread(rows, row, column="average"):
    """Mean and standard deviation over the seeds."""
    values = numbers(rows, row, column)
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def each(rows, row, column="average"):
    """Two seeds, one by one."""
    return " and ".join(f"{100 * x:.0f}" for x in numbers(rows, row, column))


def number(rows, row, column="average", digits="2"):
    return f"{mean(numbers(rows, row, column)):.{digits}f}"


def cells(rows, row, head):
    """Of a row of the main table: seeds, average, its groups, and the leads of `head` over it."""
    file, _, name = row.partition(":")
    columns, averages = rows[file][name], numbers(rows, row)
    groups = ("covered", "uncovered", "general")
    shown = [f"{100 * mean(columns[g]):.0f}" if g in columns else "" for g in groups]
    leads = ["", ""] if row == head else [lead(rows, head, row, c) for c in ("average", "general")]
    return " | ".join([str(len(averages)), spread(rows, row), *shown, *leads])


def all_seeds(rows, row, head):
    """The same of a headline row, with on how many seeds `head` is ahead, without their number."""
    _, average, *shown, its_lead, general_lead = cells(rows, row, head).split(" | ")
    ahead = "" if row == head else str(sum(d > 0 for d in differences(rows, head, row)))
    return " | ".join([average, *shown, its_lead, ahead, general_lead])


def brief(rows, row, head):
    """The same for the README: average, its range, uncovered, general, and the lead on average."""
    _, average, _, uncovered, general, its_lead, _ = cells(rows, row, head).split(" | ")
    low, high = (f"{100 * f(numbers(rows, row)):.1f}" for f in (min, max))
    return " | ".join([average, f"{low}–{high}", uncovered, general, its_lead])


def seed_0(rows, method):
    """A row of the table that `bash run.sh` prints, with the averages of the next two seeds."""
    row = rows["seed 0"][method]
    columns = [*MATHS, *CODING, "average", "covered", "uncovered", "general"]
    others = ", ".join(f"{100 * x:.0f}" for x in row["seeds"][1:])
    return " | ".join([*(f"{100 * row[c][0]:.0f}" for c in columns), others])


def lead(rows, first, second, column="average", digits="1"):
    """The mean difference in points, with its 95% interval over seeds."""
    d = exact_interval(differences(rows, first, second, column))
    middle, low, high = (f"{100 * d[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{middle} [{low}, {high}]"


def points(rows, first, second, column="average"):
    """The difference of each of two seeds, in points."""
    return " and ".join(f"{round(100 * d):+d}" for d in differences(rows, first, second, column))


def order(rows, first, second, column="average"):
    """Whether the first row is higher or lower, by MARGIN or more in every seed."""
    d = [round(x, 6) for x in differences(rows, first, second, column)]
    if min(d) >= MARGIN:
        return "higher"
    return "lower" if max(d) <= -MARGIN else "no difference shown"


def differ(rows, file, line, usual, column="average"):
    """The labels of a line that have an order with the usual one, or "none"."""
    found = []
    for row, columns in rows[file].items():
        label, its_line = apart(row)
        if its_line == line and label != usual and column in columns:
            word = order(rows, f"{file}:{row}", f"{file}:{at(usual, line)}", column)
            found += [f"{label} ({word})"] * (word != "no difference shown")
    return ", ".join(found) or "none"


def always(rows, first, *others):
    """The verdict of a claim without an interval: each row above the next one in every seed."""
    *others, column = others
    chain = [numbers(rows, row, column) for row in (first, *others)]
    pairs = [(x, y) for above, below in zip(chain, chain[1:]) for x, y in zip(above, below)]
    if all(x > y for x, y in pairs):
        return "reproduced"
    return "reversed" if all(x < y for x, y in pairs) else "not shown"


def level(rows, first, second, column="average"):
    """The verdict of a tie in the paper: it has no direction."""
    d = exact_interval(differences(rows, first, second, column))
    return "reproduced" if d["low"] <= 0 <= d["high"] else "not shown"


KINDS = (share, spread, each, number, cells, all_seeds, brief, seed_0)
KINDS += (lead, points, order, differ, always, level)
FIGURES = {kind.__name__: kind for kind in KINDS}


def below_every_expert(rows, row):
    """Whether a row of the main tables is worse than all experts: a broken model."""
    file, _, name = row.partition(":")
    lowest = min(mean(rows[file][e]["average"]) for e in EXPERTS) if file in FAMILIES else 0
    return mean(rows[file][name].get("average", [1])) < lowest  # "half" has no average


def verdicts(rows, page):
    """{place: word} for each `verdict;FIRST;SECOND;column` of the page: is the first above?"""
    words = {}
    places = list(dict.fromkeys(re.findall(r"<!--=(verdict;.*?)-->", page)))
    tested = {"llama": {}, "gemma": {}}  # ablations are of the first family
    for place in places:
        _, first, second, *column = place.split(";")
        if below_every_expert(rows, first) or below_every_expert(rows, second):
            words[place] = "says nothing"
        else:
            family = "gemma" if first.startswith("gemma") else "llama"
            tested[family][place] = exact_interval(differences(rows, first, second, *column))
    for family in tested.values():
        for (place, d), p in zip(family.items(), holm([d["p"] for d in family.values()])):
            side = "reproduced" if d["mean"] > 0 else "reversed"
            words[place] = side if p < 0.05 else "not shown"
    return words


# --- the pages ----------------------------------------------------------------------------------


def values(rows, page):
    """place -> what stands there; None for a place that another tool fills."""
    words = verdicts(rows, page)

    def value(place):
        kind, *named = place.split(";")
        try:
            if kind in FIGURES:
                return FIGURES[kind](rows, *named)
            return words.get(place)
        except (KeyError, TypeError) as e:
            raise script.UserError(f"the marked place {place} names what there is not: {e}") from e

    return value


def plots(rows):
    """path -> SVG text: all seeds of the headline rows, each ablation, each open question."""
    seeds = []
    for m in PLOTTED:
        averages = rows["llama"][m]["average"]
        seeds += [(m, "seeds 2 to 11", averages[:10]), (m, "further seeds", averages[10:])]
    out = {RESULTS / "spread.svg": draw(seeds, "Accuracy in per cent: every seed")}
    for name, there in rows.items():
        if name.startswith(("ablation_", "open_")):
            shown = [(*apart(row), columns["average"]) for row, columns in there.items()]
            out[RESULTS / f"{name}.svg"] = draw(shown, f"Accuracy in per cent: {name}")
    return out


def current(rows):
    """path -> what each page and each plot must say."""
    texts = {path: path.read_text(encoding="utf-8") for path in PAGES}
    return {path: fill(text, values(rows, text)) for path, text in texts.items()} | plots(rows)


def main(argv=None):
    script.Parser(description=__doc__).parse_args(argv)
    for path, text in current(load()).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            script.write(path, text)
            print(f"saved: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    script.run(main)
