"""Publishes the ground floor's table (toy_experts/evaluate.py) with its spread over seeds, and an answer that shows its routing.

    for seed in 0 1 2; do bash run.sh --seed $seed; done     trains and evaluates three runs
    python -m extra.paper.quickstart                         writes extra/results/quickstart.json
    python -m extra.paper.report                             then the pages

The table is that of the run --seed, from its evaluate.json, or computed where that is missing or of other weights. The spread is over
all runs under OUT that have an evaluate.json with the same settings.
"""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import decode
from extra.common import RESULTS
from toy_experts import evaluate, run
from toy_experts.batch import METHODS
from toy_experts.train import load_router

EXAMPLE = "Zoe has 12 cakes. She buys 5 more. Then she doubles the number. How many cakes are there now?"


@dataclass
class Settings:
    seed: int = 0          # the run whose table is published
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    split: str = "test"    # test, or validation (the split to tune on)
    prompts: int = 200     # prompts a benchmark

    __post_init__ = evaluate.Settings.__post_init__


def saved(path, settings, made_from=None):
    """The result in a file; None if there is none, none that can be read, or one of other settings or weights."""
    try:
        r = json.loads(path.read_text())
        fits = r["meta"]["settings"] == settings and made_from in (None, r["meta"]["made_from"])
        return r if fits and set(r["accuracy"]) == set(METHODS) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def spread_over_seeds(s):
    """{seed: {method: average}} of all runs under OUT that have a result with these settings."""
    seeds = {}
    for path in sorted(Path(s.out).glob("seed*/evaluate.json")):
        seed = path.parent.name.removeprefix("seed")
        if r := saved(path, run.recipe(s) | {"seed": int(seed) if seed.isdigit() else None}):
            seeds[seed] = {m: row["average"] for m, row in r["accuracy"].items()}
    return seeds


def example(router, experts):
    """EXAMPLE as decode.py shows it where there are no colours."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        decode.respond(EXAMPLE, router, experts, decode.Settings(), as_json=False)
    return f"$ python decode.py \"{EXAMPLE}\"\n{out.getvalue().rstrip()}"


def main(argv=None):
    p = run.parser(Settings, __doc__)
    p.add_argument("--results", default=str(RESULTS), metavar="DIR", help="where quickstart.json goes (default: extra/results)")
    args = vars(p.parse_args(argv))
    results, s = Path(args.pop("results")), Settings(**args)
    folder, hint = run.run_dir(s), f"run bash run.sh{run.flags(s)}"
    router, experts, _ = load_router(folder, "router", run.device(s.device), hint)
    router_sft, _, _ = load_router(folder, "router_sft", run.device(s.device), hint)
    made_from = {"router": run.fingerprint(router), "router_sft": run.fingerprint(router_sft)}
    result = saved(folder / "evaluate.json", run.recipe(s), made_from)
    if result is None:
        result = evaluate.evaluate(s, folder)
        run.write(folder / "evaluate.json", json.dumps(result, indent=1) + "\n")
    seeds = spread_over_seeds(s)
    if len(seeds) < 2:
        raise run.UserError(f"the spread needs two runs or more under {s.out}, and there is one: run bash run.sh --seed 1, or another")
    result |= {"example": example(router, experts), "seeds": seeds}
    results.mkdir(parents=True, exist_ok=True)
    run.write(results / "quickstart.json", json.dumps(result, indent=1) + "\n")
    print(f"{evaluate.report(result)}\n\nsaved {results / 'quickstart.json'}")


if __name__ == "__main__":
    run.run(main)
