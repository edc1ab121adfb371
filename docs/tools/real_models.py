"""Fills the marked places of docs/real-models.md and docs/speed.md from extra/results.

    python -m docs.tools.real_models     after extra.real.smollm2 or extra.real.speed has been run

A key is a path into smollm2.json or speed.json, such as full/prompts/average; a share whose key
ends in % is written as a percentage. The tables are built here.
"""

import json
from pathlib import Path

from docs.tools.pages import fill, percent, table
from toy_experts import script, tasks

DOCS = Path(__file__).parents[1]
PAGES = DOCS / "real-models.md", DOCS / "speed.md"
RESULTS = DOCS.parent / "extra" / "results"
NAMES = {
    "fusionroute": "**FusionRoute**",
    "sft_only": "phase 1 only",
    "routing_only": "routing only",
    "router": "the router alone",
    "math": "math expert",
    "code": "code expert",
    "instruct": "instruct expert",
    "smollm2": "SmolLM2 as it comes",
}
KINDS = {"full": "all weights", "lora": "LoRA"}
MODELS = {"trained": "the laptop's", "same weights": "same weights"}


def accuracy(results):
    runs = [(k, name) for k, name in KINDS.items() if k in results]
    groups = ("average", "covered", "uncovered")
    rows = [["per cent right", *(f"{name}: {g}" for _, name in runs for g in groups)]]
    best = sorted(NAMES, key=lambda m: -results["full"]["accuracy"][m]["average"])
    for method in best:
        cells = [percent(results[k]["accuracy"][method][g]) for k, _ in runs for g in groups]
        rows.append([NAMES[method], *cells])
    return "\n".join(table(rows))


def routing(results):
    """math/code/instruct, per cent of the tokens."""
    runs = [(results[k]["routing"], name) for k, name in KINDS.items() if k in results]
    rows = [["/".join(tasks.DOMAINS), *(name for _, name in runs)]]
    for bench in tasks.BENCHMARKS:
        cells = ["/".join(percent(shares[bench][e]) for e in tasks.DOMAINS) for shares, _ in runs]
        rows.append([bench, *cells])
    return "\n".join(table(rows))


def took(results):
    """CPU minutes and peak memory of the steps."""
    runs = [(results[k]["took"], name) for k, name in KINDS.items() if k in results]
    rows = [["CPU minutes, GB", *(name for _, name in runs)]]
    experts = [f"{e} expert" for e in tasks.DOMAINS]
    for row in (experts, ["phase 1"], ["pairs"], ["phase 2"], ["one answer"], ["evaluation"]):
        cells = []
        for steps, _ in runs:
            minutes = sum(steps[step]["cpu_minutes"] for step in row)
            peak = max(steps[step]["peak_gb"] for step in row)
            cells.append(f"{minutes:.1f}, {peak:.1f}")
        rows.append(["experts" if row == experts else row[0], *cells])
    return "\n".join(table(rows))


def ratio(x):
    return f"{x['median']:.2f} ({x['low']:.2f} to {x['high']:.2f})"


def decoding(results):
    found = results["decoding"]
    rows = [["over one model's generate", *(f"{MODELS[m]}" for m in MODELS), "passes a token"]]
    for way in found["trained"]["ways"]:
        cells = [ratio(found[m]["ways"][way]["over_one_model"]) for m in MODELS]
        passes = found["trained"]["ways"][way]["passes"]
        said = f"{passes['router']:.2f} + {passes['expert']:.2f}" if passes["router"] else "1"
        rows.append([way, *cells, said])
    return "\n".join(table(rows))


def training(results):
    names = {"sft": "phase 1, TRL's SFTTrainer", "dpo": "CDPO, TRL's DPOTrainer"}
    rows = [["a step", "ours, seconds", "TRL's, seconds", "TRL's over ours"]]
    for kind, name in names.items():
        found = results["training"][kind]
        seconds = [ratio(found["seconds"][side]) for side in ("ours", "TRL")]
        rows.append([name, *seconds, ratio(found["trl_over_ours"])])
    return "\n".join(table(rows))


TABLES = {"real-models.md": (accuracy, routing, took), "speed.md": (decoding, training)}


def filled(page):
    """The text of a page, every marked place written anew."""
    tables = {f.__name__: f for f in TABLES[page.name]}
    results = {
        name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("smollm2", "speed")
    }
    results = results["smollm2"] | results["speed"]

    def value(key):
        if key in tables:
            return tables[key](results)
        found = results
        for part in key.removesuffix("%").split("/"):
            found = found[part]
        return percent(found) if key.endswith("%") else str(found)

    return fill(page.read_text(encoding="utf-8"), value)


def main(argv=None):
    script.Parser(description=__doc__).parse_args(argv)
    for page in PAGES:
        script.write(page, filled(page))
        print(f"filled {page}")


if __name__ == "__main__":
    script.run(main)
