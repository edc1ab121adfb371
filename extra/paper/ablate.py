"""The ablations that the paper's argument needs. Each is a list of settings of the scripts, one JSON file and one plot.

    python -m extra.paper.ablate coverage        share of sub-skills that no expert has: when is choosing among experts enough? (Assumption 4.2)
    python -m extra.paper.ablate data            size of the router's SFT set: where does a fine-tuned model catch up?
    python -m extra.paper.ablate routing         the set S against all positions, and the readings of log pi_agg
    python -m extra.paper.ablate preference      CDPO's bias, its gradient, DPO of the fused policy, no preference; where y_l comes from
    python -m extra.paper.ablate scale           size of router and experts: does the gain grow with it?
    python -m extra.paper.ablate budget          four passes over the SFT samples, and each method's own best budget

Trains what is missing (experts with another gap or size in OUT/gap0, OUT/d48, ...), evaluates on test prompts, writes
extra/results/ablation_NAME.json and .svg (with matplotlib). --seed N computes one seed only, and keeps it, so that seeds can be spread
over processes.
"""

import io
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from extra.common import RESULTS, cached, several
from extra import models
from extra.paper import evaluate
from extra.models import SIZE
from extra.paper.train import TRAINING, Cdpo, Sft, needed, train
from toy_experts import run, tasks
from toy_experts import train as toy
from toy_experts.evaluate import table


@dataclass
class Settings:
    seed: int = 0          # selects the run
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    family: str = "llama"  # architecture of the toy's models: llama or gemma (Gemma-2)
    prompts: int = 100     # test prompts a benchmark, and general ones

    def __post_init__(self):
        run.positive(self, "prompts")


@dataclass
class Cell:
    label: object        # what the plot shows
    methods: dict        # method -> (checkpoint, decode_batch's options)
    trained: list        # (checkpoint, recipe), in order
    place: str = ""      # folder below OUT, for other experts than the default ones
    gap: float = toy.Settings.gap
    size: tuple = SIZE


ONLY_EXPERT, ONLY_ROUTER = {"use_router": False}, {"use_expert": False}


def compared(tag="", **sft):
    """The methods and trainings of FusionRoute, routing only, phase 1 only and the fine-tuned model. sft: settings of phase 1."""
    first, last, tuned_first, tuned = (name + tag for name in ("router_sft", "router", "fine_tuned_sft", "fine_tuned"))
    trained = [(first, replace(TRAINING["router_sft"], **sft)),
               (last, replace(TRAINING["router"], phase1=first)),
               (tuned_first, replace(TRAINING["fine_tuned_sft"], **sft)),
               (tuned, replace(TRAINING["fine_tuned"], phase1=tuned_first, pairs_of=first))]
    return {"fusionroute": (last, {}), "routing_only": (last, ONLY_EXPERT), "sft_only": (first, {}),
            "fine_tuned": (tuned, ONLY_ROUTER)}, trained


def coverage():
    places = {0: "gap0", 0.1: "gap0.1", 0.25: "", 0.5: "gap0.5"}
    return [Cell(round(8 * gap) / 8, *compared(), place, gap) for gap, place in places.items()]  # of 8 sub-skills, 10% is 1


def data():
    return [Cell(n, *(compared() if n == Sft.samples else compared(f"_{n}", samples=n))) for n in (600, 2400, 4800)]


def routing():
    cells = []
    for loss in ("paper", "all", "raw", "renormalised", "mixture", "best", "co_llm", "co_llm_self"):
        name = {"paper": "router_sft"}.get(loss, loss if loss in TRAINING else f"router_sft_{loss}")
        methods = {"routing_only": (name, ONLY_EXPERT), "sft_only": (name, {})}
        if loss.startswith("co_llm"):
            del methods["sft_only"]  # it is not made to be fused
        cells.append(Cell(loss, methods, [(name, Sft(loss=loss))]))
    return cells


def preference():
    cells = [Cell("phase 1 only", {"fusionroute": ("router_sft", {})}, [("router_sft", Sft())])]
    settings = {"CDPO": {}, "bias off": {"loss": "plain"}, "gradient through the bias": {"loss": "gradient"},
                "DPO of the fused policy": {"loss": "fused"}, "SFT on y_w instead": {"loss": "sft"}, "no SFT batches": {"mix": 0},
                # Experts alone and corruption give a pair for more prompts than the fused model's own mistakes: fewer prompts make up for it.
                "y_l from experts": {"rejected": "experts", "prompts": 700}, "y_l corrupted": {"rejected": "corrupted", "prompts": 550}}
    for label, changes in settings.items():
        name = "router" + "".join(f"_{key}_{value}" for key, value in changes.items())
        cells.append(Cell(label, {"fusionroute": (name, {})}, [("router_sft", Sft()), (name, Cdpo(**changes))]))
    methods, trained = compared()
    cells.append(Cell("fine-tuned, the same pairs", {"fine_tuned": methods["fine_tuned"]}, trained))
    own = Cdpo(loss="plain", phase1="fine_tuned_sft", rejected="router")
    cells.append(Cell("fine-tuned, its own mistakes", {"fine_tuned": ("fine_tuned_own", ONLY_ROUTER)}, trained[2:3] + [("fine_tuned_own", own)]))
    return cells


def scale():
    sizes = {(48, 2): "d48", (72, 3): "d72", (96, 3): ""}
    return [Cell(f"{size[0]} x {size[1]}", *compared(), place, size=size) for size, place in sizes.items()]


def budget():
    """Four passes over the SFT samples, as on the ground floor, and what tune.py found best for each method."""
    ways = {"fusionroute": ("router", {}), "routing_only": ("router", ONLY_EXPERT), "sft_only": ("router_sft", {}), "fine_tuned": ("fine_tuned", ONLY_ROUTER),
            "co_llm_self": ("co_llm_self", ONLY_EXPERT), "fused_sft": ("fused_sft", {}), "generalist": ("generalist", ONLY_ROUTER)}
    cells = []
    for label, tag in ((f"{Sft.epochs} passes", ""), ("tuned budget", "_long")):
        methods = {method: (name + tag, how) for method, (name, how) in ways.items()}
        names = dict.fromkeys(n for name, _ in methods.values() for n in needed(name))
        cells.append(Cell(label, methods, [(name, TRAINING[name]) for name in names]))
    # The Fine-tuned Model's best budget has the most passes that tune.py tried: here it gets twice as many. (Its DPO moves nothing, and is left out.)
    more = "fine_tuned_sft_32", replace(TRAINING["fine_tuned_sft_long"], epochs=32)
    return [*cells, Cell("32 passes", {"fine_tuned": (more[0], ONLY_ROUTER)}, [more])]


ABLATIONS = {"coverage": coverage, "data": data, "routing": routing, "preference": preference, "scale": scale, "budget": budget}


def measure(s, cell):
    """One cell, one seed: {method: {"average", "uncovered", "general", and "win_rate" against fine_tuned if it is there}}, the models'
    size, and the seconds that each checkpoint took to train and the whole to evaluate."""
    here = models.Settings(s.seed, str(Path(s.out) / cell.place), s.device, s.family)
    models.ensure(here, cell.gap, cell.size)
    for name, spec in cell.trained:
        train(here, name, spec)
    names = ["base", *toy.EXPERTS, *(name for name, _ in cell.trained)]
    seconds = {cell.place + name: run.load(models.folder(here) / f"{name}.pt", ("seconds",), "")["seconds"] for name in names}
    clock = time.time()
    items = evaluate.drawn("test", s.seed, s.prompts, s.prompts)
    held = {b: tasks.held_out(b, cell.gap, s.seed) for b in tasks.BENCHMARKS}
    rows, grades = {}, {}
    for method, (checkpoint, how) in cell.methods.items():
        router, experts, _ = models.load_router(here, checkpoint)
        decoder = evaluate.traces(router, experts, **how)
        right = {}
        for b in evaluate.BENCHES:
            texts = [trace.text() for trace in evaluate.in_batches(decoder, items[b])]
            right[b] = [tasks.check(item, text) for item, text in zip(items[b], texts)]
            if b == "general":
                grades[method] = [tasks.grade(item, text) for item, text in zip(items[b], texts)]
        missing = [r for b in tasks.BENCHMARKS for r, i in zip(right[b], items[b]) if i.skill in held[b]]
        rows[method] = {"average": float(np.mean([np.mean(right[b]) for b in tasks.BENCHMARKS])), "general": float(np.mean(right["general"]))}
        rows[method] |= {"uncovered": float(np.mean(missing))} if missing else {}
    for method, values in grades.items():
        if method != "fine_tuned" and "fine_tuned" in grades:
            rows[method]["win_rate"] = float(np.mean([(x > y) + (x == y) / 2 for x, y in zip(values, grades["fine_tuned"])]))
    return {"methods": {m: {k: round(v, 4) for k, v in r.items()} for m, r in rows.items()},
            "parameters": sum(p.numel() for p in experts[0].parameters()),
            "seconds": seconds | {f"evaluation of {cell.label}": time.time() - clock}}


def result(s, name):
    """{label: measure} of one ablation and seed, as kept in OUT/seedN/ablation-NAME.json or computed."""
    cells = ABLATIONS[name]()
    asked = [run.recipe(s), [vars(c) | {"trained": [(checkpoint, asdict(spec)) for checkpoint, spec in c.trained]} for c in cells]]
    run.prepare(models.place(s))
    return cached(models.folder(s) / f"ablation-{name}.json", asked,
                  lambda: {str(c.label): measure(s, c) for c in tqdm(cells, desc=name)})


def canvas(name):
    """A figure with one axis in the style of all plots, as SVG the same every time; None, and a line that says why, without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return print("the plot is left out: it needs matplotlib (pip install matplotlib)")
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": name, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
    return plt.subplots(figsize=(7.5, 3.4), layout="constrained")


def as_svg(figure):
    """The text of a figure from canvas, which is closed."""
    import matplotlib.pyplot as plt

    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def plot(name, rows):
    """The picture of an ablation, as SVG text: a line or a group of bars for each method, mean and every seed. None without matplotlib."""
    if not (drawing := canvas(name)):
        return None
    figure, axis = drawing
    methods = list(dict.fromkeys(m for r in rows for m in r["methods"]))
    for i, method in enumerate(methods):
        colour = dict(zip(METHODS, ("#D55E00", "#0072B2", "#E69F00", "#666666", "#009E73", "#CC79A7", "#56B4E9")))[method]
        there = [(k, r["methods"][method]["average"]) for k, r in enumerate(rows) if method in r["methods"]]
        means = [100 * np.mean(v) for _, v in there]
        if name in ("routing", "preference"):
            height = 0.8 / (len(methods) if name == "routing" else 1)
            at = [k + (i * height - 0.2 if name == "routing" else 0) for k, _ in there]
            axis.barh(at, means, height * 0.9, color=colour, label=method)
            axis.plot([100 * x for _, v in there for x in v], [a for a, (_, v) in zip(at, there) for _ in v], "k|", markersize=5)
        else:
            at = [k for k, _ in there]
            axis.plot(at, means, "o-", color=colour, label=method)
            axis.plot([a for a, (_, v) in zip(at, there) for _ in v], [100 * x for _, v in there for x in v], ".", color=colour, alpha=0.5)
    if name in ("routing", "preference"):
        axis.set(yticks=range(len(rows)), yticklabels=[r["label"] for r in rows], xlabel="average accuracy, %")
        axis.invert_yaxis()
    else:
        axis.set(xticks=range(len(rows)), xticklabels=[r["label"] for r in rows], xlabel=X_LABELS[name], ylabel="average accuracy, %")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return as_svg(figure)


METHODS = ["fusionroute", "routing_only", "sft_only", "fine_tuned", "generalist", "co_llm_self", "fused_sft"]
X_LABELS = {"coverage": "share of sub-skills that no expert has", "data": "SFT samples of the router", "budget": "passes over the SFT samples",
            "scale": "width x layers of every model"}


def main(argv=None):
    parser = run.parser(Settings, __doc__)
    parser.add_argument("name", choices=ABLATIONS, help="which ablation")
    name, runs, seeds = several(parser, Settings, argv, "name")
    results = [result(s, name) for s in runs]
    rows = []
    for label, first in results[0].items():
        methods = {m: {k: [r[label]["methods"][m][k] for r in results] for k in v} for m, v in first["methods"].items()}
        rows.append({"label": label, "parameters": first["parameters"], "methods": methods})
    print("\n".join(table([[name, "method", "average", "uncovered", "general", "win rate"], *(
        [r["label"], m] + ["-" if k not in v else f"{100 * np.mean(v[k]):.1f}" for k in ("average", "uncovered", "general", "win_rate")]
        for r in rows for m, v in r["methods"].items())])))
    if seeds:
        seconds = [{k: v for cell in r.values() for k, v in cell["seconds"].items()} for r in results]  # what cells share counts once
        meta = {"seeds": seeds, "run time in seconds": {seed: round(sum(t.values())) for seed, t in zip(seeds, seconds)},
                "split": "test", "prompts per benchmark": runs[0].prompts, "win_rate": "against fine_tuned beside it, ties half"}
        stem = f"ablation_{name}" + ("" if runs[0].family == "llama" else f"_{runs[0].family}")
        run.write(RESULTS / f"{stem}.json", json.dumps({"rows": rows, "meta": meta}, indent=1) + "\n")
        if picture := plot(name, rows):
            run.write(RESULTS / f"{stem}.svg", picture)
        print(f"saved {stem}.json{' and .svg' if picture else ''} in extra/results/")


if __name__ == "__main__":
    run.run(main)
