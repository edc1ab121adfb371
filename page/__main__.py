"""Build the page: one file with the trained toy in it, which a browser opens without a server.

    python -m page                     page/index.html, from the weights in toy_experts/weights/
    python -m page --seed 1            out/seed1/page.html, from a run of your own
    python -m page --seed 1 --out DIR  the same from DIR/seed1/

Weights are stored as half-precision numbers (base64), which the page turns into float32.
"""

import argparse
import base64
import json
import os
import pickle
import sys
import zlib
from pathlib import Path
from random import Random

import torch

from toy_experts import tasks, tokenizer

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent / "toy_experts" / "weights"
SCRIPTS = "engine theory view chart choosing training tour main".split()
EXPERTS = ["math", "code", "instruct"]  # the order of W's rows
LAYER = "attn_norm wq wk wv wo ff_norm w_gate w_up w_down".split()
CONFIG = "vocab_size d_model n_layer n_head n_kv_head head_dim d_ff max_len rope_theta norm_eps"
POINTS = 100  # of each training curve: the means over as many equal stretches of the steps
PAIRS = 3     # preference pairs that the page shows


class UserError(Exception):
    """Something that the user can put right: shown as one line, exit status 2."""


def names(config, is_router):
    """The tensors in the order in which engine.js reads them."""
    layers = [f"blocks.{i}.{name}.weight" for i in range(config["n_layer"]) for name in LAYER]
    lm = ["embed.weight", *layers, "norm.weight"]  # the head shares the embedding's weights
    return [f"lm.{name}" for name in lm] + ["W.weight"] if is_router else lm


def read_checkpoint(path, hint):
    """The dict in a checkpoint, its config reduced to what the page knows. UserError if damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        config = {key: content["config"][key] for key in CONFIG.split()}
        vocabulary, tensors = content["vocabulary"], content["model"]
        present = [key for key in names(config, "W.weight" in tensors) if key in tensors]
    except FileNotFoundError as e:
        raise UserError(f"there is no {path}: {hint}") from e
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError,
            pickle.UnpicklingError) as e:
        raise UserError(f"{path} is damaged or no checkpoint of the toy: {hint}") from e
    missing = set(names(config, "W.weight" in tensors)) - set(present)
    if missing:
        raise UserError(f"{path} lacks the tensor {min(missing)}: {hint}")
    if vocabulary != tokenizer.FINGERPRINT:
        raise UserError(f"{path} was trained with another vocabulary than toy_experts/vocab.txt: {hint}")
    return content | {"config": config}


def pack(path, content, is_router):
    """{base64, crc} of a model's weights as half-precision numbers, low byte first."""
    tensors = [content["model"][name] for name in names(content["config"], is_router)]
    flat = torch.cat([t.flatten() for t in tensors]).half()
    if not flat.isfinite().all():
        raise UserError(f"{path} has weights that no half-precision number can hold")
    data = flat.numpy().astype("<f2").tobytes()
    return {"base64": base64.b64encode(data).decode(), "crc": zlib.crc32(data)}


def read_lines(path, hint):
    """The objects of a .jsonl file. UserError when it is missing or damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as e:
        raise UserError(f"there is no {path}: {hint}") from e
    except (OSError, ValueError) as e:
        raise UserError(f"{path} is not lines of JSON: {hint}") from e
    if not rows or not all(isinstance(row, dict) and "step" in row for row in rows):
        raise UserError(f"{path} has lines that are no step of a training: {hint}")
    return rows


def curves(rows):
    """{"step": [...], name: [...], ...} of a log's rows, thinned to POINTS means of equal stretches."""
    size = max(1, -(-len(rows) // POINTS))
    chunks = [rows[i:i + size] for i in range(0, len(rows), size)]
    keys = [key for key, value in rows[0].items() if isinstance(value, (int, float))]
    return {key: [round(sum(row[key] for row in c) / len(c), 4) for c in chunks] for key in keys}


NEW_NAMES = {"reward_w": "reward_chosen", "reward_l": "reward_rejected"}  # of older logs


def training(folder, hint):
    """The curves of both phases: {"sft": {...}, "mix_sft": {...}, "mix_pair": {...}}."""
    phase2 = [{NEW_NAMES.get(key, key): value for key, value in row.items()}
              for row in read_lines(folder / "router.log.jsonl", hint)]
    kinds = {kind: [row for row in phase2 if row.get("kind") == kind] for kind in ("sft", "pair")}
    if not all(kinds.values()):
        raise UserError(f"{folder / 'router.log.jsonl'} lacks steps of kind sft or pair: {hint}")
    return {"sft": curves(read_lines(folder / "router_sft.log.jsonl", hint)),
            "mix_sft": curves(kinds["sft"]), "mix_pair": curves(kinds["pair"])}


def preference_pairs(folder, hint):
    """Up to PAIRS preference pairs of different kinds, {prompt, chosen, rejected}.

    pair.json beside the shipped weights, or the first prompts of different openings in a run's file.
    """
    single, files = folder / "pair.json", sorted(folder.glob("pairs-*.jsonl"))
    if not single.exists() and not files:
        raise UserError(f"there is neither {single} nor a file of pairs beside it: {hint}")
    path = single if single.exists() else max(files, key=lambda file: file.stat().st_mtime)
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path == single else [json.loads(x) for x in text.splitlines()]
        found = found if isinstance(found, list) else [found]
        pairs = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in found]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is not made of {{prompt, chosen, rejected}}: {hint}") from e
    kinds = {}
    for pair in pairs:
        kinds.setdefault(pair["prompt"].split(" ")[0], pair)
    return pairs if path == single else list(kinds.values())[:PAIRS]


def examples(seed, gap):
    """A test prompt for each sub-skill: [{bench, skill, covered, prompt, answer}].

    covered: whether the experts were trained on the sub-skill; null for general prompts.
    """
    rows = []
    for bench in [*tasks.BENCHMARKS, "general"]:
        kinds = [k for k in tasks.SKILLS[bench] if k not in tasks.BENCHMARKS]
        for skill in kinds:
            item = tasks.draw(bench, "test", Random(f"page {bench} {skill}"), [skill])
            covered = None if bench == "general" else skill not in tasks.held_out(bench, gap, seed)
            rows.append({"bench": bench, "skill": skill, "covered": covered,
                         "prompt": item.prompt, "answer": item.answer})
    return rows


def collect(folder, seed, hint):
    """All that the page is given: config, words, weights, examples, curves, pairs."""
    models, config, gap = {}, None, 0.25
    for name in [*EXPERTS, "router_sft", "router"]:
        path = folder / f"{name}.pt"
        content, is_router = read_checkpoint(path, hint), name not in EXPERTS
        if ("W.weight" in content["model"]) != is_router:
            raise UserError(f"{path} holds {'no' if is_router else 'a'} router: {hint}")
        if config not in (None, content["config"]):
            raise UserError(f"{path} has another shape than math.pt: {hint}")
        config = content["config"]
        routes = list(content.get("experts") or EXPERTS)
        if is_router and routes != EXPERTS:
            raise UserError(f"{path} routes among {', '.join(routes)}, not {', '.join(EXPERTS)}")
        gap = content.get("recipe", {}).get("gap", gap)
        models[name] = pack(path, content, is_router)
    words = [json.loads(line) for line in tokenizer.VOCAB_FILE.read_text().splitlines()]
    return {"seed": seed, "config": config, "words": words, "models": models,
            "examples": examples(seed, gap), "curves": training(folder, hint),
            "pairs": preference_pairs(folder, hint)}


def build(data):
    """The page's text."""
    def read(name):
        return (HERE / name).read_text(encoding="utf-8")

    page = read("template.html")
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no </script> in it
    parts = {"style": read("style.css"), "scripts": "\n".join(read(f"{name}.js") for name in SCRIPTS), "data": content}
    for name, text in parts.items():
        before, after = page.split(f"{{{{ {name} }}}}")
        page = before + text + after
    return page


def write(path, text):
    """Whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(beside, path)
    except OSError as e:
        beside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {e.strerror}") from e


class Parser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print its usage over several lines first
        raise UserError(f"{message} (see python -m page --help)")


def main(argv=None):
    parser = Parser(prog="python -m page", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="build the page of a run of your own, OUT/seedN")
    parser.add_argument("--out", help="where its runs are kept (default: out)")
    args = parser.parse_args(argv)
    if args.seed is None and args.out is None:
        folder, seed, path = SHIPPED, 0, HERE / "index.html"
        hint = "make it with: python -m toy_experts.weights"
    else:
        seed = 0 if args.seed is None else args.seed
        out = "out" if args.out is None else args.out
        folder = Path(out) / f"seed{seed}"
        path = folder / "page.html"
        hint = f"make it with: python train_sft.py --seed {seed} --out {out}, then train_cdpo.py"
    page = build(collect(folder, seed, hint))
    write(path, page)
    print(f"saved {path} ({len(page.encode()) / 1e6:.1f} MB): open it in a browser")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
