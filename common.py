"""The plumbing that every script shares, kept out of the lesson: settings, files that are whole or absent, batches, errors."""

import argparse
import dataclasses
import errno
import hashlib
import inspect
import json
import os
import pickle
import re
import shlex
import sys
import traceback
import warnings
from pathlib import Path

import torch

from fusionroute import Router, score
from model import GPT, GPTConfig


class UserError(Exception):
    """Something that the user can put right. `run` shows it as one line and exits with status 2."""


def run(main, before=""):
    """Call a script's main(). A UserError or a failing system call becomes one line on stderr, behind `before`, and exit status 2."""
    for name in ("stdin", "stdout", "stderr"):  # a stream that the caller has closed
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal cannot show is no reason to stop
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`: the reader has gone; the status says so as the shell's own tools do
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (UserError, OSError) as e:
        end_bars(e)
        where = f": {e.filename}" if isinstance(e, OSError) and e.filename else ""
        print(f"{before}error: {' '.join(str(e.strerror if isinstance(e, OSError) else e).split())}{where}"[:1000], file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing more can be printed where printing has just failed
        sys.exit(2)
    except KeyboardInterrupt as e:
        end_bars(e)
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def end_bars(e):
    """End the line of each progress bar whose loop the exception e has left: what is said of e starts a line of its own."""
    while e:
        traceback.clear_frames(e.__traceback__)  # a bar closes when nothing holds it any more
        e = e.__cause__ or e.__context__


# --- settings: one dataclass a script, every field a flag, the comment beside the field its help -----------------------------------


class Parser(argparse.ArgumentParser):
    def __init__(self, **settings):
        spec = sys.modules["__main__"].__spec__  # of python -m PACKAGE.SCRIPT; None for python SCRIPT.py
        super().__init__(prog=f"python -m {spec.name}" if spec else f"python {Path(sys.argv[0]).name}", **settings)

    def error(self, message):  # argparse would print its usage over several lines first
        if re.match("unrecognized arguments: [^-]", message) and any(a.dest == "prompt" for a in self._actions):
            message += " (put the prompt in quotes)"
        raise UserError(f"{message} (see {self.prog} --help)")


def parser(cls, doc):
    """An ArgumentParser with one flag for each field of the dataclass cls."""
    p = Parser(description=doc.strip(), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_flags(p, cls, [f.name for f in dataclasses.fields(cls)])
    return p


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


def settings(cls, doc, argv=None):
    """An instance of the dataclass cls from the command line (argv, default sys.argv[1:])."""
    return cls(**vars(parser(cls, doc).parse_args(argv)))


def several(p, cls, argv, *others):
    """For scripts that run one seed or several. Adds --seeds to the parser p of cls; returns the values of the arguments named in
    others, one cls a seed, and the list of seeds, or None where only --seed is given."""
    p.add_argument("--seeds", type=int, nargs="+", metavar="INT", help="two seeds or more, instead of --seed; writes the files in results/")
    args = vars(p.parse_args(argv))
    seeds, others = args.pop("seeds"), [args.pop(name) for name in others]
    if seeds is not None and (len(set(seeds)) < len(seeds) or len(seeds) < 2):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: must be two or more, all different")
    return *others, [cls(**args | {"seed": seed}) for seed in seeds or [args["seed"]]], seeds


def positive(s, *names, or_zero=False):
    """Raise UserError unless each named field of the settings s is a finite number above zero (or zero, if or_zero)."""
    least = 0 if or_zero else 1
    for name in names:
        value = getattr(s, name)
        if isinstance(value, int):
            ok, right = least <= value < 2**31, f"at least {least}" if value < least else f"below {2**31}"
        else:
            ok = 0 < value < float("inf") or or_zero and value == 0
            right = "a finite number " + ("of zero or more" if or_zero else "above zero")
        if not ok:
            raise UserError(f"--{name} is {value}, and must be {right}")


def one_of(s, name, values):
    """Raise UserError unless the field of the settings s is one of values."""
    if getattr(s, name) not in values:
        raise UserError(f"--{name} is {getattr(s, name)!r}, and must be one of {', '.join(values)}")


def file_stem(s, *names):
    """Raise UserError unless each named field of the settings s can name a checkpoint."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", getattr(s, name)) or getattr(s, name).startswith("."):
            raise UserError(f"--{name} is {getattr(s, name)!r}, and must be a file name without a folder: letters, digits, _ . -")


def device(name):
    """The torch.device for --device auto|cuda|mps|cpu."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(d for d in has if has[d])
    if name not in has:
        raise UserError(f"--device is {name!r}, and must be auto, cuda, mps or cpu")
    if not has[name]:
        raise UserError(f"--device {name}: this machine has none; use --device auto")
    return torch.device(name)


FAMILIES = ("llama", "gemma")


def run_dir(s):
    """The folder of one run, OUT/seedN, or OUT/gemma/seedN: runs of different seeds or families never share files. Checks both."""
    one_of(s, "family", FAMILIES)
    if not 0 <= s.seed < 2**31:
        raise UserError(f"--seed is {s.seed}, and must be from 0 to {2**31 - 1}")
    return Path(s.out) / (s.family if s.family != "llama" else "") / f"seed{s.seed}"


def where(s):
    """The flags that another script needs to work on the run of the settings s."""
    return ["--seed", str(s.seed), "--out", s.out, "--device", s.device, "--family", s.family]


def flags(s, out="out"):
    """What a command in a message needs behind it to mean the run of the settings s, " --seed 9"; defaults (out: of --out) unsaid."""
    usual = {"seed": 0, "out": out, "family": FAMILIES[0]}
    return "".join(f" --{name} {shlex.quote(str(getattr(s, name)))}" for name in usual if getattr(s, name) != usual[name])


def prepare(s):
    """What every training script does first: the run's folder (made if need be, and writable) and the device."""
    folder, dev = run_dir(s), device(s.device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another machine's process may have the same number
    except OSError as e:
        raise UserError(f"--out {s.out}: cannot write in {folder} ({e.strerror})") from e
    torch.manual_seed(s.seed)
    # AdamW's moments of rarely seen embedding rows decay into denormal numbers, which slow a CPU several times.
    torch.set_flush_denormal(True)
    return folder, dev


def peak_memory():
    """The most memory that this process has had, in bytes; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- files: written whole or not at all, read without executing anything --------------------------------------------------------------


def write(path, data):
    """Write text, bytes or what data(file) writes to path by way of a file beside it: readers see the old content or the new."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as f:
            data(f) if callable(data) else f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())  # a full disk shows here at the latest
        os.replace(beside, path)
    except BaseException as e:
        beside.unlink(missing_ok=True)
        cause = e if isinstance(e, OSError) else e.__context__  # torch.save says RuntimeError where the disk is full
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path} ({cause.strerror}); what was there before is unchanged") from e


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


def save(path, content):
    """torch.save in the manner of `write`."""
    write(path, lambda f: torch.save(content, f))


def load(path, keys, hint):
    """The dict in a checkpoint, with at least `keys`. Only tensors and plain values are read (weights_only).

    Raises UserError when the file is missing (`hint` says what makes it), truncated, or no checkpoint of this project.
    """
    if not Path(path).exists():
        raise UserError(f"there is no {path}: {hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a foreign file may make torch warn before it refuses; our own line says enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError,
            AssertionError) as e:
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # EINVAL: torch looked for what a whole file would have there
            raise UserError(f"cannot read {path} ({e.strerror})") from e
        raise UserError(f"{path} is truncated or not a checkpoint; remove it, then {hint}") from e
    missing = [k for k in keys if not isinstance(content, dict) or k not in content]
    if missing:
        raise UserError(f"{path} is not a checkpoint of this project (it has no {', '.join(missing)}); remove it, then {hint}")
    return content


def check_same(path, saved, asked, remove="that file"):
    """Raise UserError unless the saved settings (a dict) have the asked values; remove: what all was made with them, and must go."""
    for name in asked:
        if saved.get(name) != asked.get(name):
            raise UserError(f"{path} was made with {name} = {saved.get(name)}, and {asked.get(name)} is asked: "
                            f"use another --out, or remove {remove} to train anew")


def recipe(s):
    """The settings that decide a result: all but where it runs, where it goes (the family is a part of that) and how often it is saved."""
    nowhere = ("out", "device", "family", "save_every", "name", "phase1", "pairs_of", "fsdp")
    return {k: v for k, v in dataclasses.asdict(s).items() if k not in nowhere}


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


def save_model(path, model, vocabulary, recipe, seconds, experts=None):
    """A GPT, or a Router with the fingerprints of its experts (name -> hex), as a checkpoint; seconds: what training took."""
    config = (model if experts is None else model.lm).config
    save(path, {"config": dataclasses.asdict(config), "vocabulary": vocabulary, "recipe": recipe, "seconds": seconds,
                "experts": experts or {}, "model": model.state_dict()})
    print(f"saved {path}")


def load_model(path, vocabulary, hint, device="cpu", router=False):
    """The frozen GPT (or Router, with router=True) in a checkpoint, and the checkpoint's dict without the weights.

    UserError when it is missing, unreadable, the other kind, made with another vocabulary, or does not fit its own settings.
    """
    content = load(path, ("config", "vocabulary", "recipe", "seconds", "experts", "model"), hint)
    if content["vocabulary"] != vocabulary:
        raise UserError(f"{path} was made with another vocabulary ({content['vocabulary']}) than this project's ({vocabulary}): "
                        f"use another --out, or remove it, then {hint}")
    if bool(content["experts"]) != router:
        raise UserError(f"{path} is {'not ' if router else ''}a router: remove it, then {hint}")
    try:
        config = GPTConfig(**content["config"])
        for f in dataclasses.fields(config):
            if type(getattr(config, f.name)) is not type(f.default):
                raise TypeError(f"{f.name} is {getattr(config, f.name)!r}")
        model = GPT(config)
        model = Router(model, len(content["experts"])) if router else model
        model.load_state_dict(content.pop("model"))
    except (TypeError, RuntimeError, AttributeError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{path}: its weights do not fit its settings ({str(e)[:120]}); remove it, then {hint}") from e
    return model.to(device).eval().requires_grad_(False), content


def write_log(path, log):
    write(path, "".join(json.dumps(record) + "\n" for record in log))


# --- samples and batches ------------------------------------------------------------------------------------------------------------------


def answer_only(prompt, answer):
    """A sample in which only the answer is learned: (ids, learn), learn True on the tokens that the loss counts."""
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def pack(samples):
    """(ids, learn) samples -> ids (N, T) padded with zeros, mask (N, T) True on the tokens to learn, lengths (N,).

    >>> ids, mask, lengths = pack([answer_only([7, 8], [9]), answer_only([5], [6])])
    >>> ids.tolist(), mask.int().tolist()
    ([[7, 8, 9], [5, 6, 0]], [[0, 0, 1], [0, 1, 0]])
    """
    lengths = torch.tensor([len(ids) for ids, _ in samples])             # (N,)
    ids = torch.zeros(len(samples), int(lengths.max()), dtype=torch.long)    # (N, T)
    mask = torch.zeros_like(ids, dtype=torch.bool)                       # (N, T)
    for i, (x, learn) in enumerate(samples):
        ids[i, :len(x)] = torch.tensor(x)
        mask[i, :len(x)] = torch.tensor(learn)
    return ids, mask, lengths


def scored(folder, samples, fingerprints, experts):
    """Samples packed, with the experts' scores on them (fusionroute.score): computed once per data set and kept in `folder`.

    fingerprints: name -> hex of the experts. Returns ids (N, T), mask (N, T), lengths (N,), logp and choice (N, T-1, n).
    """
    ids, mask, lengths = pack(samples)
    name = hashlib.sha256(ids.numpy().tobytes() + json.dumps([lengths.tolist(), fingerprints]).encode()).hexdigest()[:8]
    path = folder / f"scores-{name}.pt"
    if not path.exists():
        save(path, dict(zip(("logp", "choice"), score(experts, ids, lengths))))
    content = load(path, ("logp", "choice"), "start again")
    return ids, mask, lengths, content["logp"], content["choice"]


def batches(lengths, size, seed):
    """All samples once, as a list of index tensors of at most `size`, in random order; lengths (N,).

    A batch holds samples of similar length (sorted within pools of 16 batches), so that little of it is padding.
    """
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=g)
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(16 * size)]
    out = [b for pool in pools for b in pool.split(size)]
    return [out[i] for i in torch.randperm(len(out), generator=g)]


def update(loss, model, optimizer, factor):
    """One step of the optimizer: every group at its "peak" learning rate times factor, gradients clipped to norm 1.

    UserError when the loss is no number any more: a diverged run must not be saved as a finished one.
    """
    if not loss.isfinite():
        raise UserError(f"the loss is {loss.item()}: training has diverged; lower the learning rate")
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    optimizer.zero_grad(set_to_none=True)  # None, not zero: a parameter without a gradient (W on pairs) must not move at all
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def schedule(step, steps, warmup):
    """Learning-rate factor: linear warm-up, then cosine to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    t = torch.tensor((step - warmup) / max(1, steps - warmup))
    return float(0.1 + 0.9 * 0.5 * (1 + torch.cos(torch.pi * t)))
