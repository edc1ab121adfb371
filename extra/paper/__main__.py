"""Computes the figures of extra/results: trains what is missing, decodes, grades, writes the JSON.

    python -m extra.paper open_data --seed 2       one seed, kept in OUT/seed2/open_data.json
    python -m extra.paper open_data --seeds 2 3    two seeds or more; writes extra/results too

NAME is what the JSON file is called. table1 writes winrate, cost and routing as well;
its published figures have --prompts 300 --general 500 and --rest 4. What is finished is kept, so a
killed run continues, and seeds can be spread over processes: one --seed N each, then --seeds.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from extra.paper import checkpoints, delta, lesson, rows, spread, table, tune
from extra.paper.variations import VARIATIONS
from toy_experts import script


def each(one_seed):
    return lambda runs: [one_seed(s) for s in runs]


COMMANDS = {  # name: (several settings -> a result each, (settings, results) -> files, meta)
    "table1": (table.several_seeds, table.files),
    "spread": (spread.several_seeds, spread.files),
    "tuning": (each(tune.one_seed), tune.files),
    "delta": (each(delta.one_seed), delta.files),
    "quickstart": (each(lesson.one_seed), lesson.files),
}
for name in VARIATIONS:
    COMMANDS[name] = each(partial(rows.one_seed, name)), partial(rows.files, name)


def write_family(path, family, content, meta):
    """Make a family's part of a file of both families new; the other's stays as it is."""
    try:
        both = json.loads(path.read_text())
    except FileNotFoundError:
        both = {}
    except ValueError as e:
        more = "remove it; the other family's figures must then be made anew too"
        raise script.UserError(f"{path} is damaged ({e}): {more}") from e
    metas = both.pop("meta", {}) | {family: meta}
    script.write(path, json.dumps(both | {family: content, "meta": metas}, indent=1) + "\n")


def main(argv=None):
    parser = script.parser(checkpoints.Settings, __doc__)
    parser.add_argument("name", choices=COMMANDS, metavar="NAME", help=", ".join(COMMANDS))
    parser.add_argument("--seeds", type=int, nargs="+", metavar="INT", help="instead of --seed")
    where = {"default": checkpoints.RESULTS, "type": Path, "metavar": "DIR"}
    parser.add_argument("--results", **where, help="where the files go (default: extra/results)")
    args = vars(parser.parse_args(argv))
    name, seeds, folder = (args.pop(key) for key in ("name", "seeds", "results"))
    s = checkpoints.Settings(**args)
    if seeds is not None and (len(set(seeds)) < len(seeds) or len(seeds) < 2):
        given = " ".join(map(str, seeds))
        raise script.UserError(f"--seeds {given}: must be two or more, all different")
    runs = [replace(s, seed=seed) for seed in seeds or [s.seed]]
    compute, files = COMMANDS[name]
    results = compute(runs)
    if not seeds:
        return
    contents, meta = files(runs, results)
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in contents.items():
        if name in ("table1", "tuning"):
            write_family(folder / f"{stem}.json", s.family, content, meta)
        else:
            tag = "" if s.family == "llama" else f"_{s.family}"
            text = json.dumps(content | {"meta": meta}, indent=1)
            script.write(folder / f"{stem}{tag}.json", text + "\n")
    print(f"saved {', '.join(f'{stem}.json' for stem in contents)} in {folder}")


if __name__ == "__main__":
    script.run(main)
