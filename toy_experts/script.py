"""What every script needs around the lesson: flags, errors, run folders, checkpoints.

A run is a folder OUT/seedN. Its files are written whole or not at all, and reading a checkpoint
never executes code from it.
"""

import argparse
import dataclasses
import errno
import hashlib
import inspect
import json
import os
import re
import shlex
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

from fusionroute import Router
from model import GPT, GPTConfig
from toy_experts import tokenizer

EXPERTS = ["math", "code", "instruct"]  # the order of w, everywhere

WEIGHTS = Path(__file__).parent / "weights"  # a trained run that comes with the code


class UserError(Exception):
    """Something that the user can put right. `run` shows it as one line, with exit status 2."""


def run(main):
    """Call a script's main(). A UserError or a failed system call becomes one line on stderr."""
    for name in ("stdin", "stdout", "stderr"):  # a stream that the caller has closed
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):  # characters that the terminal cannot show
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (UserError, OSError) as e:
        end_bars(e)
        where = f": {e.filename}" if isinstance(e, OSError) and e.filename else ""
        text = " ".join(str(e.strerror if isinstance(e, OSError) else e).split())
        print(f"error: {text}{where}"[:1000], file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # printing itself may be what failed
        sys.exit(2)
    except KeyboardInterrupt as e:
        end_bars(e)
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def end_bars(e):
    """Close the progress bars whose loops the exception left: its message gets its own line."""
    while e:
        traceback.clear_frames(e.__traceback__)  # a bar closes when nothing refers to it any more
        e = e.__cause__ or e.__context__


# --- flags: one dataclass a script, each field a flag, the comment beside it the help ------------


class Parser(argparse.ArgumentParser):
    def __init__(self, **settings):
        spec = sys.modules["__main__"].__spec__  # of `python -m PACKAGE.SCRIPT`
        name = f"-m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(
            prog=f"python {name}", formatter_class=form, allow_abbrev=False, **settings
        )

    def error(self, message):
        quotes = re.match("unrecognized arguments: [^-]", message) and any(
            a.dest == "prompt" for a in self._actions
        )
        hint = " (put the prompt in quotes)" if quotes else ""
        raise UserError(f"{message}{hint} (see {self.prog} --help)")

    def parse_args(self, args=None, namespace=None):
        found = super().parse_args(args, namespace)
        for name, value in vars(found).items():  # many shells leave the ~ of --out=~/runs as it is
            if isinstance(value, str) and name != "prompt":
                setattr(found, name, os.path.expanduser(value))
        return found


def parser(cls, doc):
    """An ArgumentParser with a flag for each field of the dataclass cls. `prompt` has no --."""
    p = Parser(description=(doc or "").strip())  # `python -OO` has no docstrings
    code = "".join(inspect.getsource(c) for c in cls.mro()[:-1])
    comments = dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", code, re.M))
    kinds = {bool: {"action": "store_true"}, list: {"nargs": "+", "action": "extend"}}
    for f in dataclasses.fields(cls):
        default = f"{f.default:g}" if f.type is float else f.default
        default = "none" if default in ("", (), None) else default
        how = {"help": f"{comments[f.name].replace('%', '%%')} (default: {default})"}
        how["default"] = argparse.SUPPRESS
        if f.name == "prompt":
            p.add_argument("prompt", nargs="?", **how)
        else:
            how |= kinds.get(f.type, {"type": f.type, "metavar": f.type.__name__.upper()})
            p.add_argument(f"--{f.name}", **how)
    return p


def settings(cls, doc, argv=None):
    """An instance of the dataclass cls from the command line (argv, default sys.argv[1:])."""
    return cls(**vars(parser(cls, doc).parse_args(argv)))


def positive(s, *names, or_zero=False):
    """UserError unless each named field of the settings s is a finite number above zero."""
    least = 0 if or_zero else 1
    for name in names:
        value = getattr(s, name)
        if isinstance(value, int):
            ok, right = least <= value < 2**31, f"from {least} to {2**31 - 1}"
        else:
            ok = 0 < value < float("inf") or or_zero and value == 0
            right = "a finite number " + ("of zero or more" if or_zero else "above zero")
        if not ok:
            raise UserError(f"--{name} is {value}, and must be {right}")


def one_of(s, name, values):
    """UserError unless the field `name` of the settings s is one of values."""
    if getattr(s, name) not in values:
        given, names = getattr(s, name), ", ".join(map(str, values))
        raise UserError(f"--{name} is {given!r}, and must be one of {names}")


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


def each_line(respond, echo):
    """Call respond(line) for each line that is typed, until an empty one, or of a file on stdin.

    echo: print a file's lines before their answers. One bad line does not end the others.
    """
    typed, failed = sys.stdin.isatty(), False
    sys.stdin.reconfigure(errors="replace")
    while True:
        if typed:
            print("prompt> ", end="", file=sys.stderr, flush=True)  # stdout may be a file
        try:
            line = input("").removeprefix("\ufeff").rstrip("\r")  # of a file made on Windows
        except EOFError:
            break
        if not line.strip():
            if typed:
                break
            continue  # in a file, a blank line only separates
        if echo and not typed:
            print(f"prompt> {line}")
        try:
            respond(line)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            failed = not typed
    if failed:
        sys.stdout.flush()
        sys.exit(2)


# --- run folders ---------------------------------------------------------------------------------


def run_dir(s):
    """The folder of a run: OUT/seedN."""
    if not 0 <= s.seed < 2**31:
        raise UserError(f"--seed is {s.seed}, and must be from 0 to {2**31 - 1}")
    return Path(s.out) / f"seed{s.seed}"


def flags(s):
    """The flags that make another command work on the same run, " --seed 9"; no defaults."""
    seed = f" --seed {s.seed}" if s.seed else ""
    return seed + (f" {shlex.quote(f'--out={s.out}')}" if s.out != "out" else "")


def one_thread():
    """Use one thread, unless OMP_NUM_THREADS says otherwise.

    The models are tiny, so two threads mostly wait for each other. Beside other work they are
    several times slower than one.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def prepare(s):
    """What each training does first: make the run's folder, choose the device, set the seed."""
    folder, dev = run_dir(s), device(s.device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob("*.tmp"):  # what a killed run left of a file: see `write`
            if time.time() - rest.stat().st_mtime > 60:  # a younger one may be another run's
                rest.unlink(missing_ok=True)
        probe = folder / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as e:
        raise UserError(f"--out {s.out}: cannot write in {folder} ({e.strerror})") from e
    one_thread()
    torch.manual_seed(s.seed)
    # AdamW's moments of rarely seen tokens become denormal numbers, which slow a CPU down.
    torch.set_flush_denormal(True)
    return folder, dev


# --- files ---------------------------------------------------------------------------------------


def write(path, data):
    """Write text, or what data(file) writes, into a file beside path, then rename that to path."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as f:
            data(f) if callable(data) else f.write(data.encode())
            f.flush()
            os.fsync(f.fileno())  # a full disk shows here at the latest
        os.replace(beside, path)
    except BaseException as e:
        beside.unlink(missing_ok=True)
        cause = e if isinstance(e, OSError) else e.__context__  # torch.save: RuntimeError
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path} ({cause.strerror}); the old file is unchanged") from e


def load(path, keys, hint):
    """The dict in a checkpoint that has `keys`. UserError if it is missing, damaged or foreign.

    hint: the command that makes the file.
    """
    if not Path(path).exists():
        raise UserError(f"there is no {path}: {hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign files, then refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged or foreign file can fail in any way
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # EINVAL: the file is cut short
            raise UserError(f"cannot read {path} ({e.strerror})") from e
        raise UserError(f"{path} is truncated or not a checkpoint; remove it, then {hint}") from e
    missing = [k for k in keys if not isinstance(content, dict) or k not in content]
    if missing:
        raise UserError(
            f"{path} is not a checkpoint of this project (it has no "
            f"{', '.join(missing)}); remove it, then {hint}"
        )
    return content


def read_lines(path, hint, keys):
    """The objects of a .jsonl file, each with `keys`. UserError when it is missing or damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [{key: row[key] for key in keys} | row for row in rows]
    except FileNotFoundError as e:
        raise UserError(f"there is no {path}: {hint}") from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is not lines of JSON with {', '.join(keys)}: {hint}") from e
    if not rows:
        raise UserError(f"{path} is empty: {hint}")
    return rows


def check_same(path, saved, asked, remove="that file"):
    """UserError unless a file's settings (a dict) have the asked values."""
    for name in asked:
        if saved.get(name) != asked[name]:
            raise UserError(
                f"{path} was made with {name} = {saved.get(name)}, but {asked[name]} "
                f"is asked: use another --out, or remove {remove} to train anew"
            )


def recipe(s):
    """The settings that decide a result: all but where it runs, and where things are kept."""
    elsewhere = ("out", "device", "experts")
    return {k: v for k, v in dataclasses.asdict(s).items() if k not in elsewhere}


def fingerprint(model):
    """16 hex digits that stand for a model's exact weights."""
    h = hashlib.sha256()
    for key, p in sorted(model.state_dict().items()):
        h.update(key.encode() + p.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


def save_model(path, model, recipe, seconds, experts=None):
    """Save a GPT, or a Router with its experts' fingerprints (name -> hex).

    recipe: the settings that made it. seconds: how long its training took.
    """
    lm = model if experts is None else model.lm
    content = {
        "config": dataclasses.asdict(lm.config),
        "vocabulary": tokenizer.FINGERPRINT,
        "recipe": recipe,
        "seconds": seconds,
        "experts": experts or {},
        "model": model.state_dict(),
    }
    write(path, lambda f: torch.save(content, f))
    print(f"saved {path}")


def save_router(folder, name, router, experts, recipe, seconds, log):
    """Save a trained router as NAME.pt, and what its training logged as NAME.log.jsonl."""
    if not all(p.isfinite().all() for p in router.parameters()):
        raise UserError("the weights are not finite: the training has diverged; lower --lr")
    names = dict(zip(EXPERTS, map(fingerprint, experts)))
    save_model(folder / f"{name}.pt", router, recipe, seconds, names)
    write(folder / f"{name}.log.jsonl", "".join(json.dumps(record) + "\n" for record in log))


def gpt_of(config):
    """An untrained GPT with the config of a checkpoint (a dict)."""
    return GPT(GPTConfig(**config))


def load_model(path, hint, device="cpu", router=False, build=gpt_of):
    """The frozen GPT (or Router) in a checkpoint, and the checkpoint's dict without its weights."""
    keys = ("config", "vocabulary", "recipe", "seconds", "experts", "model")
    content = load(path, keys, hint)
    if content["vocabulary"] != tokenizer.FINGERPRINT:
        raise UserError(
            f"{path} was made with another vocabulary ({content['vocabulary']}) than this one "
            f"({tokenizer.FINGERPRINT}): use another --out, or remove it, then {hint}"
        )
    if bool(content["experts"]) != router:
        raise UserError(f"{path} is {'not ' if router else ''}a router: remove it, then {hint}")
    try:
        model = build(content["config"])
        model = Router(model, len(content["experts"])) if router else model
        model.load_state_dict(content.pop("model"))
    except (TypeError, RuntimeError, AttributeError, ValueError, ZeroDivisionError) as e:
        raise UserError(
            f"{path}: its weights do not fit its settings ({str(e)[:120]}); remove it, then {hint}"
        ) from e
    return model.to(device).eval().requires_grad_(False), content


def load_router(folder, name, device, hint):
    """The router NAME.pt in a folder, frozen, its experts, and the router's checkpoint.

    UserError unless they belong together: W's rows are about these experts' exact weights.
    """
    one_thread()
    experts = [load_model(folder / f"{e}.pt", hint, device)[0] for e in EXPERTS]
    path = folder / f"{name}.pt"
    router, content = load_model(path, hint, device, router=True)
    for e, expert in zip(EXPERTS, experts):
        if expert.config != router.lm.config:
            raise UserError(
                f"{e}.pt and {name}.pt in {folder} are models of different sizes or vocabularies: "
                "their logits cannot be added"
            )
    if list(content["experts"]) != EXPERTS:
        raise UserError(
            f"{path} routes among {', '.join(map(str, content['experts']))}, not among "
            f"{', '.join(EXPERTS)}"
        )
    check_same(path, content["experts"], dict(zip(EXPERTS, map(fingerprint, experts))))
    return router, experts, content


def load_router_or_shipped(s, name):
    """load_router of the run that the settings s select, or of the shipped run if there is none."""
    folder = run_dir(s)
    if not flags(s) and not (folder / f"{name}.pt").exists():
        note = f"(there is no {folder}/{name}.pt yet: this is the one in toy_experts/weights)"
        print(note, file=sys.stderr)
        folder = WEIGHTS
    hint = f"run python train_sft.py{flags(s)}, then python train_cdpo.py{flags(s)}"
    return load_router(folder, name, device(s.device), hint)


def is_there(folder, name, recipe):
    """Whether the router NAME.pt has been trained already; then a line says so.

    UserError if it was trained with another recipe or for other experts.
    """
    path = folder / f"{name}.pt"
    if not path.exists():
        return False
    saved = load_router(folder, name, "cpu", "run this command again")[2]["recipe"]
    check_same(path, saved, recipe)
    print(f"{path} is there already; remove it to see its training again")
    return True
