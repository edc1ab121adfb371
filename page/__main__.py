"""Build the page: one file with the trained toy in it, which a browser opens without a server.

    python -m page                       page/index.html, from the weights in toy_experts/weights/
    python -m page --seed 1              out/seed1/page.html, from a run of your own
    python -m page --seed 1 --out DIR    the same from DIR/seed1/

Weights are stored as half-precision numbers in base64; the page turns them into float32.
"""

import base64
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from random import Random
from types import SimpleNamespace

import torch

from toy_experts import script, tasks, tokenizer
from toy_experts.script import EXPERTS, WEIGHTS

HERE = Path(__file__).parent
SCRIPTS = "engine theory view stage answer chart choosing training tour main".split()
LAYER = "attn_norm wq wk wv wo ff_norm w_gate w_up w_down".split()
POINTS = 40  # of a training curve: the means over as many equal stretches of the steps
PROMPT = (
    "Tom has 21 eggs. He loses 3 of them. Then he gives 7 away. How many eggs are there now? "
    "Finish with the word done."
)  # shows that expert and router need each other: see tour.js
PAIRS = 3  # preference pairs that the page shows, at most


def names(config):
    """A GPT's tensors in the order in which engine.js reads them. The head shares embed.weight."""
    layers = [f"blocks.{i}.{name}.weight" for i in range(config.n_layer) for name in LAYER]
    return ["embed.weight", *layers, "norm.weight"]


def pack(path, tensors):
    """{base64, crc} of a list of tensors as half-precision numbers, low byte first."""
    flat = torch.cat([t.detach().flatten() for t in tensors]).half()
    if not flat.isfinite().all():
        raise script.UserError(f"{path} has weights that no half-precision number can hold")
    data = flat.numpy().astype("<f2").tobytes()
    return {"base64": base64.b64encode(data).decode(), "crc": zlib.crc32(data)}


def models(folder, hint):
    """The five models of a run, packed, by name; their config; the coverage gap of the experts."""
    router, experts, _ = script.load_router(folder, "router", "cpu", hint)
    router_sft, _, _ = script.load_router(folder, "router_sft", "cpu", hint)
    all_five = dict(zip(EXPERTS, experts)) | {"router_sft": router_sft, "router": router}
    packed = {}
    for name, model in all_five.items():
        lm, W = (model, []) if name in EXPERTS else (model.lm, [model.W.weight])
        state = lm.state_dict()
        tensors = [state[key] for key in names(lm.config)] + W
        packed[name] = pack(folder / f"{name}.pt", tensors)
    gap = script.load(folder / "math.pt", ("recipe",), hint)["recipe"]["gap"]
    return packed, asdict(router.lm.config), gap


def curve(rows):
    """{"step": [...], name: [...], ...}: the rows of a log thinned to POINTS means."""
    size = -(-len(rows) // POINTS)
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    keys = [key for key, value in rows[0].items() if isinstance(value, (int, float))]
    return {key: [round(sum(row[key] for row in c) / len(c), 4) for c in chunks] for key in keys}


def curves(folder, hint):
    """The curves of both phases: sft (phase 1), and pair (the steps of phase 2 with pairs)."""
    phase1 = script.read_lines(
        folder / "router_sft.log.jsonl", hint, ["step", "loss_lm", "loss_expert"]
    )
    phase2 = script.read_lines(folder / "router.log.jsonl", hint, ["step", "kind"])
    pair_steps = [row for row in phase2 if row["kind"] == "pair"]
    return {"sft": curve(phase1), "pair": curve(pair_steps)}


def preference_pairs(folder, hint):
    """Up to PAIRS preference pairs {prompt, chosen, rejected} whose prompts begin differently.

    From page/pairs.jsonl for the shipped weights, otherwise from the run's own pairs.
    """
    path = HERE / "pairs.jsonl" if folder == WEIGHTS else folder / "pairs.jsonl"
    pairs = script.read_lines(path, hint, ["prompt", "chosen", "rejected"])
    kinds = {}
    for pair in pairs:
        kinds.setdefault(pair["prompt"].split(" ")[0], pair)
    return list(kinds.values())[:PAIRS]


def examples(seed, gap):
    """A test prompt of each sub-skill, and PROMPT: [{bench, skill, covered, prompt, answer}].

    covered: whether the experts were trained on the sub-skill; None for general prompts.
    """
    keys, rows = ("bench", "skill", "covered", "prompt", "answer"), []
    for bench in [*tasks.BENCHMARKS, "general"]:
        for skill in [s for s in tasks.SKILLS[bench] if s not in tasks.BENCHMARKS]:
            item = tasks.draw(bench, "test", Random(f"page {bench} {skill}"), [skill])
            covered = None if bench == "general" else skill not in tasks.held_out(bench, gap, seed)
            rows.append((bench, skill, covered, item.prompt, item.answer))
    answer = "After losing, 21 - 3 = 18. After losing, 18 - 7 = 11. The answer is 11.\ndone"
    rows.append(("general", "only the sum is right", None, PROMPT, answer))
    return [dict(zip(keys, row)) for row in rows]


def collect(folder, seed, hint):
    """All that the page is given: config, words, weights, examples, curves, pairs."""
    packed, config, gap = models(folder, hint)
    words = [json.loads(line) for line in tokenizer.VOCAB_FILE.read_text("utf-8").splitlines()]
    return {
        "config": config,
        "words": words,
        "models": packed,
        "examples": examples(seed, gap),
        "curves": curves(folder, hint),
        "pairs": preference_pairs(folder, hint),
    }


def build(data):
    """The page's text."""

    def read(name):
        return (HERE / name).read_text(encoding="utf-8")

    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no </script> in it
    scripts = "\n".join(read(f"{name}.js") for name in SCRIPTS)
    page = read("template.html")
    for name, text in (("style", read("style.css")), ("scripts", scripts), ("data", content)):
        before, after = page.split(f"{{{{ {name} }}}}")
        page = before + text + after
    return page


def main(argv=None):
    parser = script.Parser(description=__doc__)
    parser.add_argument("--seed", type=int, help="the run OUT/seedN, not the shipped weights")
    parser.add_argument("--out", help="where runs are kept (default: out)")
    args = parser.parse_args(argv)
    if args.seed is None and args.out is None:
        folder, seed, path = WEIGHTS, 0, HERE / "index.html"
        hint = "run python -m docs.tools.shipped_weights"
    else:
        s = SimpleNamespace(seed=args.seed or 0, out="out" if args.out is None else args.out)
        folder, seed, flags = script.run_dir(s), s.seed, script.flags(s)
        path = folder / "page.html"
        hint = f"run python train_sft.py{flags}, then python train_cdpo.py{flags}"
    page = build(collect(folder, seed, hint))
    script.write(path, page)
    print(f"saved {path} ({len(page.encode()) / 1e6:.1f} MB): open it in a browser")


if __name__ == "__main__":
    script.run(main)
