"""The lesson's own table (toy_experts/evaluate.py) for several seeds: quickstart.json.

    for seed in 0 1 2; do bash run.sh --seed $seed; done     trains and evaluates three runs
    python -m extra.paper quickstart --seeds 0 1 2 --prompts 200

The table is that of the first seed; of the others the file has the averages.
"""

from extra.paper import checkpoints
from toy_experts import evaluate, script

BENCHES = evaluate.BENCHES


def one_seed(s):
    """What toy_experts.evaluate says of a run, kept in OUT/seedN/quickstart.json."""
    folder = script.run_dir(checkpoints.place(s))
    settings = evaluate.Settings(s.seed, s.out, s.device, prompts=s.prompts)
    router = checkpoints.load(s, "router", router=True)[0]
    kept = checkpoints.keep(folder / "quickstart.json", script.recipe(settings))
    return kept(script.fingerprint(router), lambda: evaluate.evaluate(settings, folder))


def files(runs, results):
    """file -> its content, from the results of several seeds; and what these were made with."""
    first = results[0]
    content = {"routing": first["routing"]}
    for group in ("all", "covered", "uncovered"):
        column = "accuracy" if group == "all" else group
        content[column] = {}
        for method, rows in first["methods"].items():
            there = {b: rows[b][group] for b in [*BENCHES, "average"]}
            content[column][method] = {b: x for b, x in there.items() if x is not None}
    averages = lambda r: {m: rows["average"]["all"] for m, rows in r["methods"].items()}
    content["seeds"] = {str(s.seed): averages(r) for s, r in zip(runs, results)}
    seconds = first["meta"]["seconds"]
    return {"quickstart": content}, first["meta"] | {
        "seconds": seconds | {"total": sum(seconds.values())}
    }
