"""What every script needs around the lesson: flags, errors, run folders, checkpoints, logs.

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
import pickle
import re
import sys
import traceback
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from fusionroute import Router
from model import GPT, GPTConfig
from toy_experts import tokenizer


WEIGHTS = Path(__file__).parent / "weights"  # a trained run that comes with the code


class UserError(Exception):
    """Something that the user can put right. `run` shows it as one line, with exit status 2."""


def run(main):
    """Call a script's main(). A UserError or a failed system call becomes one line on stderr."""
    for name in ("stdin", "stdout", "stderr"):  # a stream that the caller has closed
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):     # characters that the terminal cannot show
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:                     # `... | head`: the reader has gone
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
        super().__init__(prog=f"python {name}", allow_abbrev=False, **settings)

    def error(self, message):
        quotes = re.match("unrecognized arguments: [^-]", message) and any(
            a.dest == "prompt" for a in self._actions)
        hint = " (put the prompt in quotes)" if quotes else ""
        raise UserError(f"{message}{hint} (see {self.prog} --help)")


def parser(cls, doc):
    """An ArgumentParser with a flag for each field of the dataclass cls."""
    p = Parser(description=doc.strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    comments = dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", inspect.getsource(cls), re.M))
    for f in dataclasses.fields(cls):
        text = comments[f.name].replace("%", "%%") + " (default: %(default)s)"
        p.add_argument(f"--{f.name}", type=f.type, default=f.default, help=text,
                       metavar=f.type.__name__.upper())
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


# --- run folders ---------------------------------------------------------------------------------


def run_dir(s):
    """The folder of a run: OUT/seedN."""
    if not 0 <= s.seed < 2**31:
        raise UserError(f"--seed is {s.seed}, and must be from 0 to {2**31 - 1}")
    return Path(s.out) / f"seed{s.seed}"


def flags(s):
    """The flags that make another command work on the same run, " --seed 9"; no defaults."""
    out = s.out if re.fullmatch(r"[\w./-]+", s.out) else repr(s.out)
    return (f" --seed {s.seed}" if s.seed else "") + (f" --out {out}" if s.out != "out" else "")


def prepare(s):
    """What each training does first: make the run's folder, choose the device, set the seed."""
    folder, dev = run_dir(s), device(s.device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as e:
        raise UserError(f"--out {s.out}: cannot write in {folder} ({e.strerror})") from e
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
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError,
            IndexError, AttributeError, TypeError, AssertionError) as e:
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # EINVAL: the file is cut short
            raise UserError(f"cannot read {path} ({e.strerror})") from e
        raise UserError(f"{path} is truncated or not a checkpoint; remove it, then {hint}") from e
    missing = [k for k in keys if not isinstance(content, dict) or k not in content]
    if missing:
        raise UserError(f"{path} is not a checkpoint of this project (it has no "
                        f"{', '.join(missing)}); remove it, then {hint}")
    return content


def check_same(path, saved, asked, remove="that file"):
    """UserError unless a file's settings (a dict) have the asked values."""
    for name in asked:
        if saved.get(name) != asked[name]:
            raise UserError(f"{path} was made with {name} = {saved.get(name)}, but {asked[name]} "
                            f"is asked: use another --out, or remove {remove} to train anew")


def recipe(s):
    """The settings that decide a result: all but where it runs and where it is kept."""
    return {k: v for k, v in dataclasses.asdict(s).items() if k not in ("out", "device")}


def fingerprint(model):
    """16 hex digits that stand for a model's exact weights."""
    h = hashlib.sha256()
    for key, p in sorted(model.state_dict().items()):
        h.update(key.encode() + p.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


def save_model(path, model, recipe, seconds, experts=None):
    """Save a GPT, or a Router with its experts' fingerprints (name -> hex).

    seconds: how long the training took.
    """
    lm = model if experts is None else model.lm
    content = {"config": dataclasses.asdict(lm.config), "vocabulary": tokenizer.FINGERPRINT,
               "recipe": recipe, "seconds": seconds, "experts": experts or {},
               "model": model.state_dict()}
    write(path, lambda f: torch.save(content, f))
    print(f"saved {path}")


def load_model(path, hint, device="cpu", router=False):
    """The frozen GPT (or Router) in a checkpoint, and the checkpoint's dict without its weights."""
    keys = ("config", "vocabulary", "recipe", "seconds", "experts", "model")
    content = load(path, keys, hint)
    if content["vocabulary"] != tokenizer.FINGERPRINT:
        raise UserError(f"{path} was made with another vocabulary ({content['vocabulary']}) than "
                        f"this one ({tokenizer.FINGERPRINT}): use another --out, or remove it, "
                        f"then {hint}")
    if bool(content["experts"]) != router:
        raise UserError(f"{path} is {'not ' if router else ''}a router: remove it, then {hint}")
    try:
        model = GPT(GPTConfig(**content["config"]))
        model = Router(model, len(content["experts"])) if router else model
        model.load_state_dict(content.pop("model"))
    except (TypeError, RuntimeError, AttributeError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{path}: its weights do not fit its settings ({str(e)[:120]}); remove it, "
                        f"then {hint}") from e
    return model.to(device).eval().requires_grad_(False), content


class Log(list):
    """What each training step reported. Prints the first step, then the means of every 50 steps.

    names: of the experts, for the list "routing" in what sft_loss returns.
    """

    def __init__(self, names):
        super().__init__()
        self.names, self.kinds = names, set()

    def add(self, loss, terms, kind="sft"):
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()}: the training has diverged; lower --lr")
        routing = {f"route_{n}": x for n, x in zip(self.names, terms.get("routing", []))}
        values = {"loss": loss} | {k: v for k, v in terms.items() if k != "routing"} | routing
        values = {k: round(v.detach().item(), 5) for k, v in values.items()}
        self.append({"step": len(self), "kind": kind} | values)
        if kind not in self.kinds:
            self.kinds.add(kind)
            tqdm.write(means(self[-1:], kind))
        if len(self) % EVERY == 0:
            for kind in sorted(self.kinds):
                tqdm.write(means(self[-EVERY:], kind))

    def save(self, path):
        write(path, "".join(json.dumps(record) + "\n" for record in self))


EVERY = 50  # steps between two printed lines


def means(records, kind):
    """One line: the last step, and the mean of each term over the records of one kind."""
    step, records = records[-1]["step"] + 1, [r for r in records if r["kind"] == kind]
    terms = [k for k in records[0] if k not in ("step", "kind")] if records else []
    texts = [f"{k} {sum(r[k] for r in records) / len(records):.3f}" for k in terms]
    return f"step {step:4d} {kind:4s}  {'  '.join(texts)}"


def expect(name, kinds):
    """Print how the run in toy_experts/weights ended: what to expect of a training like it."""
    try:
        lines = (WEIGHTS / f"{name}.log.jsonl").read_text().splitlines()[-EVERY:]
        records = [json.loads(line) for line in lines]
        print("expect at the end, if all flags are the defaults (other seeds differ a little):")
        print("\n".join(means(records, kind) for kind in kinds))
    except (OSError, ValueError, KeyError, IndexError):  # no figures then: they are only a help
        pass
