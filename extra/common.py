"""What the wings of extra/ share: flags for several seeds and both families, caches, generated pages."""

import dataclasses
import hashlib
import inspect
import json
import re
import sys
from pathlib import Path

import torch

from toy_experts.run import UserError, write

RESULTS = Path(__file__).parent / "results"  # all figures of the pages, as JSON
FAMILIES = ("llama", "gemma")                # architectures of the toy's models


def add_flags(p, cls, names):
    """Add one flag for each named field of the dataclass cls to an ArgumentParser, or to a group of one.

    A tuple takes several values, a bool none.
    """
    comments = dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", inspect.getsource(cls), re.M))
    for f in dataclasses.fields(cls):
        if f.name in names:
            kind = f.type if isinstance(f.type, type) else {"int": int, "float": float, "str": str, "tuple": tuple, "bool": bool}[f.type]
            text = comments[f.name].replace("%", "%%") + " (default: %(default)s)"
            how = {"type": str, "nargs": "+", "metavar": "NAME=DIR"} if kind is tuple else {"type": kind, "metavar": kind.__name__.upper()}
            how = {"action": "store_true"} if kind is bool else how
            p.add_argument(f"--{f.name}", default=f.default, help=text, **how)


def several(p, cls, argv, *others):
    """For scripts that run one seed or several. Adds --seeds to the parser p of cls; returns the values of the arguments named in
    others, one cls a seed, and the list of seeds, or None where only --seed is given."""
    p.add_argument("--seeds", type=int, nargs="+", metavar="INT", help="two seeds or more, instead of --seed; writes the files in results/")
    args = vars(p.parse_args(argv))
    seeds, others = args.pop("seeds"), [args.pop(name) for name in others]
    if seeds is not None and (len(set(seeds)) < len(seeds) or len(seeds) < 2):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: must be two or more, all different")
    return *others, [cls(**args | {"seed": seed}) for seed in seeds or [args["seed"]]], seeds


def one_of(s, name, values):
    """Raise UserError unless the field of the settings s is one of values."""
    if getattr(s, name) not in values:
        raise UserError(f"--{name} is {getattr(s, name)!r}, and must be one of {', '.join(map(str, values))}")


def file_stem(s, *names):
    """Raise UserError unless each named field of the settings s can name a checkpoint."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", getattr(s, name)) or getattr(s, name).startswith("."):
            raise UserError(f"--{name} is {getattr(s, name)!r}, and must be a file name without a folder: letters, digits, _ . -")


def where(s):
    """The flags that another script needs to work on the run of the settings s."""
    return ["--seed", str(s.seed), "--out", s.out, "--device", s.device, "--family", s.family]


def peak_memory():
    """The most memory that this process has had, in bytes; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cached(path, key, compute):
    """What an earlier call saved in the JSON file path under the same key (a JSON value), else compute() saved there."""
    key = json.loads(json.dumps(key))
    try:
        content = json.loads(path.read_text())
        if content["key"] == key:
            return content["result"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    content = {"key": key, "result": compute()}
    write(path, json.dumps(content) + "\n")
    print(f"saved {path}")
    return json.loads(json.dumps(content["result"]))


def write_family(path, family, content, meta):
    """Write a family's results and what they were made with into a JSON file of both families; the other's stay as they are."""
    try:
        both = json.loads(path.read_text())
    except FileNotFoundError:
        both = {}
    except ValueError as e:
        raise UserError(f"{path} is damaged ({e}): remove it first, and the other family's results must be made anew too") from e
    metas = both.pop("meta", {}) | {family: meta}
    write(path, json.dumps(both | {family: content, "meta": metas}, indent=1) + "\n")


def raw_bytes(tensor):
    """A tensor's bytes, of any dtype (numpy knows no bfloat16)."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def fingerprints(names, models):
    """name -> 16 hex digits that stand for a model's exact weights."""
    out = {}
    for name, model in zip(names, models):
        h = hashlib.sha256()
        for key, p in sorted(model.state_dict().items()):
            h.update(key.encode() + raw_bytes(p))
        out[name] = h.hexdigest()[:16]
    return out


def fill(text, blocks, command):
    """The text with what is between its generated markers replaced; blocks: name -> what `command` writes there."""
    for name, block in blocks.items():
        begin, end = f"<!-- begin: {name}, written by {command} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise UserError(f"the page must have the lines {begin} and {end} once each")
        text = text[:text.index(begin) + len(begin)] + "\n" + block + "\n" + text[text.index(end):]
    return text


def percent(x):
    """A share as a whole percentage; "-" for None: of no prompts at all."""
    return "-" if x is None else f"{100 * x:.0f}"


def table(rows):
    """Rows of strings, the head first, as the lines of a Markdown table that also reads well in a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0])] + [x.rjust(w) for x, w in zip(row[1:], widths[1:])]) + " |" for row in rows]
    rule = "|" + "-" * (widths[0] + 2) + "|" + "|".join("-" * (w + 1) + ":" for w in widths[1:]) + "|"
    return [lines[0], rule, *lines[1:]]
