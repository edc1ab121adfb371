"""The lesson's own table (toy_experts/evaluate.py) for several seeds: quickstart.json.

    for seed in 0 1 2; do bash run.sh --seed $seed; done     trains and evaluates three runs
    python -m extra.paper quickstart --seeds 0 1 2 --prompts 200

The table is that of the first seed; of the others the file has the averages.
"""

from extra.paper import checkpoints
from toy_experts import evaluate, script


def one_seed(s):
    """What toy_experts.evaluate says of a run, kept in OUT/seedN/quickstart.json."""
    folder = script.run_dir(checkpoints.place(s))
    settings = evaluate.Settings(s.seed, s.out, s.device, prompts=s.prompts)
    router = checkpoints.load(s, "router", router=True)[0]
    kept = checkpoints.keep(folder / "quickstart.json", script.recipe(settings))
    return kept(script.fingerprint(router), lambda: evaluate.evaluate(settings, folder))


def files(runs, results):
    """file -> its content, from the results of several seeds; and what these were made with."""
    first, methods = results[0], {}
    for method, rows in first["methods"].items():
        row = {b: [rows[b]["all"]] for b in [*evaluate.BENCHES, "average"]}
        row |= {group: [rows["average"][group]] for group in ("covered", "uncovered")}
        seeds = [r["methods"][method]["average"]["all"] for r in results]
        methods[method] = row | {"seeds": seeds}
    seconds = first["meta"]["seconds"]
    return {"quickstart": {"methods": methods}}, first["meta"] | {
        "seconds": seconds | {"total": sum(seconds.values())}
    }
