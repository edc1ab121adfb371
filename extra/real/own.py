"""Models and data of your own: what train_sft, train_cdpo and decode need around their loops.

    python -m extra.real.train_sft  --init DIR --data math.jsonl --name math      plain fine-tuning: makes an expert, own/seed0/math
    python -m extra.real.train_sft  --init DIR --experts math=DIR code=DIR instruct=DIR --data train.jsonl
    python -m extra.real.train_cdpo --experts math=DIR code=DIR instruct=DIR --pairs pairs.jsonl --data train.jsonl
    python -m extra.real.decode "PROMPT" --router own/seed0/router --experts math=DIR code=DIR instruct=DIR

DIR: a Llama or Gemma-2 in the format of Hugging Face (pretrained.py). The files: data.py. The experts' scores: scores.py. The router
trains in float32: in bfloat16 a weight of 0.02 has no neighbour closer than 1e-4, and steps of 1e-5 would be rounded away. (--bf16
computes in bfloat16 and keeps float32 weights.) OUT/seedN/NAME/ is then the router: its language model as a directory of the same format,
and W in fusionroute.pt. Under torchrun several processes share all of this: parallel.py.

All prompts are written in the chat template of --init, and all answers end with its end token.
"""

import argparse
import dataclasses
import hashlib
import json
import re
import shlex
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from extra.common import add_flags, one_of, peak_memory, raw_bytes
from extra.gpt import Router
from extra.real import parallel, pretrained
from extra.real.data import is_regular, read_bytes, read_samples
from extra.real.pretrained_tokenizer import Tokenizer, agree, different
from extra.real.scores import scores
from toy_experts import run
from toy_experts.data import Data, pack
from toy_experts.run import UserError, load, write


@dataclass
class Flags:
    init: str = ""           # DIR: the model that the router starts from; in the paper, the instruction expert
    experts: tuple = ()      # NAME=DIR NAME=DIR ...: the experts, in the order of W's rows
    data: str = ""           # FILE: SFT samples, a {"prompt", "completion"} a line
    pairs: str = ""          # FILE: preference pairs, a {"prompt", "chosen", "rejected"} a line
    router: str = ""         # DIR: a trained router, OUT/seedN/NAME
    dtype: str = "float32"   # of the frozen models in memory; bfloat16 halves what they take
    bf16: bool = False       # the router computes in bfloat16, its weights stay float32: faster, and half the activations, on most GPUs
    max_len: int = 2048      # samples of more tokens, prompt and answer together, are left out
    max_new: int = 256       # longest answer, in tokens


OUT = "own"                                                   # the default of --out
NEEDED = ("init", "experts", "data", "pairs", "router")       # flags without which a script that has them cannot run
TAKEN = ("router", "fusionroute", "routing_only", "reference")  # decode's methods and pi_ref's scores: no expert has such a name
FILE, KEYS = "fusionroute.pt", ("vocabulary", "recipe", "seconds", "experts", "W")


# --- the command line -------------------------------------------------------------------------------------------------------------------


def parser(cls, doc, *names):
    """A parser with a flag for each field of the dataclass cls, and for the fields `names` of Flags."""
    p = run.Parser(description=doc.strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(p, cls, [f.name for f in dataclasses.fields(cls)])
    add_flags(p.add_argument_group("models and data"), Flags, names)
    return p


def parse(p, cls, argv, names, *others):
    """The values of the arguments named in others, an instance of cls, and Flags, from the command line of a `parser`."""
    args = vars(p.parse_args(argv))
    flags = Flags(**{name: args.pop(name) for name in names})
    others = [args.pop(name) for name in others]
    s = cls(**args)
    # phase 1 without experts is plain fine-tuning
    needed = [name for name in names if name in NEEDED and not (name == "experts" and "init" in names)]
    for name in needed:
        if not getattr(flags, name):
            raise UserError(f"--{name} is missing: {p.prog} needs --{', --'.join(needed)}")
    run.positive(flags, "max_len", "max_new")
    one_of(flags, "dtype", pretrained.DTYPES)
    return *others, s, flags


def settings(cls, doc, argv, *names):
    """A training script's settings, and the Setup of its other flags."""
    s, flags = parse(parser(cls, doc, *names), cls, argv, names)
    return s, Setup(flags, run.device(s.device), run.run_dir(s) / getattr(s, "phase1", ""), flags_of(s), s.fsdp)


def flags_of(s):
    """The flags of another command that works on the same run, " --seed 9"; defaults are left out."""
    return (f" --seed {s.seed}" if s.seed else "") + (f" --out {shlex.quote(s.out)}" if s.out != OUT else "")


def named(items):
    """["math=DIR", ...] -> {"math": Path}. UserError for what is not of this form, or named twice."""
    out = {}
    for item in items:
        name, sign, directory = item.partition("=")
        if not sign or not directory or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
            raise UserError(f"--experts {item[:100]}: must be NAME=DIR, the name of letters, digits, _ and - (put a prompt before it)")
        if name in out or name in TAKEN:
            raise UserError(f"--experts {item}: the name {name} is taken")
        out[name] = Path(directory)
    return out


# --- models -----------------------------------------------------------------------------------------------------------------------------


def fingerprint(directory):
    """16 hex digits for a model: its config, and of every tensor the name, the shape, the type and the first eight rows.

    Fine-tuning changes nearly every row, so this tells models apart, in a second; to read 16 GB each time would take minutes.
    """
    where = pretrained.where_tensors_are(Path(directory))
    h = hashlib.sha256(json.dumps(dataclasses.asdict(pretrained.read_config(directory))).encode())
    for name, (_, shape, kind, _) in sorted(where.items(), key=lambda item: item[0]):
        h.update(json.dumps([name, list(shape), str(kind)]).encode() + raw_bytes(pretrained.read_tensor(where, name, rows=8)))
    return h.hexdigest()[:16]


class Setup:
    """The models, the tokenizer and the data that the flags name, checked against each other before anything long begins.

    flags: Flags; device: a torch.device; phase1: the directory of the router to start from where neither --init nor --router names one;
    same_run: flags_of its run, for messages.
    """

    def __init__(self, flags, device, phase1=None, same_run="", fsdp=False):
        self.flags, self.device, self.fsdp = flags, device, fsdp
        self.directories = named(flags.experts)
        self.names, self.max_new = list(self.directories), flags.max_new
        directories = [("--init", flags.init), *(("--experts", path) for path in self.directories.values())]
        for flag, path in directories:  # before anything is read, or a package asked for
            if path and not Path(path).is_dir():
                raise UserError(f"there is no directory {path} ({flag})")
        for flag, path in ("--data", flags.data), ("--pairs", flags.pairs):
            if path and (Path(path).is_dir() or not Path(path).exists()):
                raise UserError(f"there is no file {path} ({flag})")
            if path and not is_regular(path) and parallel.torchrun():
                raise UserError(f"{flag} {path} is no regular file, and can be read once only: not by several processes")
        self.content = {name: read_bytes(path) for name in ("data", "pairs") if (path := getattr(flags, name))}  # read once: may be pipes
        self.hashes = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in self.content.items()}
        if not self.names:
            print("no --experts: plain fine-tuning, without a router")
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # W has a row for each expert: none
        self.first = Path(flags.init or flags.router or phase1)  # the router, or what it starts from
        if not flags.init:
            command = "python -m extra.real.train_sft --init DIR"
            if not flags.router:
                command += f" --experts {shlex.join(flags.experts)} --data {shlex.quote(flags.data)}{same_run}"
            self.left = self.read(self.first / FILE, f"phase 1 makes it: {command} (DIR: what the router starts from)")
        self.tokenizer = Tokenizer(self.first)
        tokenizers = {"the router": self.tokenizer, **{name: Tokenizer(path) for name, path in self.directories.items()}}
        self.size = agree(tokenizers)
        self.unshared = set().union(*(different(self.tokenizer, t, self.size) for t in tokenizers.values()))  # special, in no sample
        for name, other in tokenizers.items():
            if flags.init and other.END != self.tokenizer.END:
                print(f"note: {name} ends an answer with token {other.END}, the router with {self.tokenizer.END}, which is taken for all")
        self.encode_prompt, self.ends = self.tokenizer.encode_prompt, [i for i in self.tokenizer.ends if i < self.size]
        self.max_len = min(pretrained.read_config(d).max_len for d in [self.first, *self.directories.values()])
        self.fingerprints = {name: fingerprint(path) for name, path in self.directories.items()}
        if not flags.init:
            self.check_experts()

    def check_experts(self):
        """UserError unless the experts are those that the router was trained with."""
        theirs = self.left["experts"]
        if list(theirs) != self.names:
            raise UserError(f"{self.first} routes among {', '.join(map(str, theirs))}, in this order, not {', '.join(self.names)}")
        for name in self.names:
            if theirs[name] != self.fingerprints[name]:
                raise UserError(f"{self.directories[name]} is not the model that {self.first} was trained with as {name}")

    def recipe(self, s):
        """What a result depends on: the settings, but not where it runs, where it goes and how often it is saved; and what was read."""
        nowhere = ("out", "device", "save_every", "name", "phase1", "fsdp")
        chosen = {k: v for k, v in dataclasses.asdict(s).items() if k not in nowhere}
        start = hashlib.sha256(fingerprint(self.first).encode() + (b"" if self.flags.init else raw_bytes(self.left["W"])))
        return chosen | self.hashes | {"dtype": self.flags.dtype + self.flags.bf16 * ", bf16", "experts": self.fingerprints,
                                 "max_len": min(self.flags.max_len, self.max_len), "start": start.hexdigest()[:16]}

    # data: samples and the experts' scores on them

    def samples(self, name, *sides):
        """The samples of the file --data or --pairs (name)."""
        forbidden = lambda i: i >= self.size or i in self.unshared
        return read_samples(getattr(self.flags, name), self.content.pop(name), sides, self.tokenizer, forbidden,
                            min(self.flags.max_len, self.max_len))

    def scored(self, folder, samples):
        """(ids, learn) samples -> Data, one expert in memory at a time."""
        ids, mask, lengths = pack(samples)
        nothing = torch.zeros(*ids[:, 1:].shape, 0)                                                          # (N, T-1, 0)
        columns = [scores(folder, name, [self.fingerprints[name], self.flags.dtype, self.size], lambda: self.load(path, self.flags.dtype),
                          ids, lengths) for name, path in self.directories.items()]                          # (N, T-1) twice, n times
        logp, choice = (torch.stack(column, -1) for column in zip(*columns)) if columns else (nothing, nothing)  # (N, T-1, n) each
        return Data(ids, mask, lengths, logp, choice)

    def reference(self, folder, router, data):
        """log pi_ref(y | x) of each answer, (N,): of the router's language model as phase 1 left it."""
        made_from = [fingerprint(self.first) + self.flags.bf16 * " bf16", self.size]
        logp, _ = scores(folder, "reference", made_from, lambda: router.lm, data.ids, data.lengths)          # (N, T-1)
        return (logp * data.mask[:, 1:]).sum(-1)

    # models

    def load(self, directory, dtype="float32", device=None):
        return pretrained.load(directory, device or self.device, dtype, self.size)

    def first_router(self):
        """The Router that phase 1 starts with: --init, and W = 0."""
        lm = self.load(self.first, device="cpu" if self.fsdp else None)  # parallel.spread then brings a part to each GPU
        return Router(self.computing(lm), len(self.names))

    def phase1_router(self, dtype="float32"):
        """The Router in the directory self.first, frozen; W is float32 always."""
        lm = self.load(self.first, dtype)
        if self.left["W"].size(1) != lm.config.d_model:
            raise UserError(f"{self.first / FILE}: W reads {self.left['W'].size(1)} numbers, and the model's width is {lm.config.d_model}")
        router = Router(self.computing(lm), len(self.names))
        router.W.weight.data = self.left["W"].float()
        return router.to(self.device).eval().requires_grad_(False)

    def computing(self, lm):
        """The router's language model with --bf16, or as it is. Phase 2's pi_ref computes as pi_theta does: both start equal."""
        if self.flags.bf16:
            lm.forward = torch.autocast(self.device.type, torch.bfloat16)(lm.forward)
        return lm

    def models(self):
        """The Router and the list of experts, all in memory; each reads as many tokens as the one that reads fewest."""
        router = self.phase1_router(self.flags.dtype)
        experts = [self.load(path, self.flags.dtype).requires_grad_(False) for path in self.directories.values()]
        for name, model in {"the router": router.lm, **dict(zip(self.names, experts))}.items():
            model.config.max_len = self.max_len
            logits, _ = model(torch.tensor([self.encode_prompt("x")[:self.max_len]], device=self.device))
            if not logits.isfinite().all():
                raise UserError(f"{name} ({self.directories.get(name, self.first)}) gives logits that are no numbers: its weights are "
                                f"damaged, or --dtype {self.flags.dtype} is too small for it")
        return router, experts

    # the router's directory

    def read(self, path, hint):
        """The dict in a fusionroute.pt. UserError when it is none, or of another tokenizer."""
        content = load(path, KEYS, hint)
        W, experts = content["W"], content["experts"]
        if not (isinstance(W, torch.Tensor) and W.dim() == 2 and isinstance(experts, dict) and len(W) == len(experts)):
            raise UserError(f"{path} is damaged: W does not fit the experts' names; remove it, then {hint}")
        pretrained.check_numbers(f"{path}: W", W)
        if content["vocabulary"] != Tokenizer(path.parent).FINGERPRINT:
            raise UserError(f"{path.parent} has another tokenizer than the one that its router was trained with")
        return content

    def save(self, path, router, recipe, seconds):
        """The language model and its tokenizer as a directory, then W and the experts' names as its last file."""
        for name, p in router.named_parameters():
            pretrained.check_numbers(f"the trained router's {name}", p.detach())
        pretrained.save(router.lm, path.parent, self.tokenizer)
        content = {"vocabulary": self.tokenizer.FINGERPRINT, "recipe": recipe, "seconds": seconds, "experts": self.fingerprints,
                   "W": router.W.weight.detach().cpu(), "memory": peak_memory(), "cpu": time.process_time()}
        write(path, lambda f: torch.save(content, f))
        print(f"saved {path.parent}")

    def pieces(self, ids):
        """The text of each token, "" where it holds only a part of a character: the last of these then brings all of it."""
        out, said = [], ""
        for t in range(1, len(ids) + 1):
            text = self.tokenizer.decode(ids[:t])
            whole = t == len(ids) or not text.endswith("\ufffd")
            out.append(text[len(said):] if whole else "")
            said = text if whole else said
        return out
