"""Models and data of your own: what train_sft.py, train_cdpo.py and decode.py do with --experts in the place of the toy.

    python train_sft.py  --init DIR --data math.jsonl --name math      plain fine-tuning: makes an expert, own/seed0/math
    python train_sft.py  --init DIR --experts math=DIR code=DIR instruct=DIR --data train.jsonl
    python train_cdpo.py --experts math=DIR code=DIR instruct=DIR --pairs pairs.jsonl --data train.jsonl
    python decode.py "PROMPT" --router own/seed0/router --experts math=DIR code=DIR instruct=DIR

DIR: a Llama or Gemma-2 in the format of Hugging Face (pretrained.py). train.jsonl has a {"prompt", "completion"} a line, pairs.jsonl a
{"prompt", "chosen", "rejected"}. Both losses read the experts as two numbers a token, so each expert is loaded alone, scores all samples
and goes; the scores lie in OUT/seedN/scores/, a file for every few hundred samples, and what is there is never computed again. Then the
router trains with no expert in memory, in float32: in bfloat16 a weight of 0.02 has no neighbour closer than 1e-4, and steps of 1e-5
would be rounded away. (--bf16 computes in bfloat16 and keeps such weights.) OUT/seedN/NAME/ is then the router: its language model as a
directory of the same format, and W in fusionroute.pt. Under torchrun all of this is shared by several processes: parallel.py.

All prompts are written in the chat template of --init, and all answers end with its end token. With --experts, defaults are the
paper's where the toy has its own: DEFAULTS.
"""

import hashlib
import json
import re
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import common
import parallel
import pretrained
from common import UserError
from fusionroute import Router, score
from pretrained_tokenizer import Tokenizer, agree


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


REQUIRED = ("init", "experts", "data", "pairs", "router")  # those that a script has; any of them leaves the toy behind
DEFAULTS = {"out": "own", "epochs": 1, "lr": 1e-5, "lr_w": 1e-5}
TOY_ONLY = ("family", "gap", "samples", "prompts", "tries", "temperature", "rejected", "pairs_of")  # settings of the toy's experts and data
CHUNK = 256  # samples a file of scores
FILE, KEYS = "fusionroute.pt", ("vocabulary", "recipe", "seconds", "experts", "W")


# --- the command line -------------------------------------------------------------------------------------------------------------------


def settings(cls, doc, argv, *names):
    """A script's settings, and the World of the flags in names; None in its place without such flags: the toy."""
    s, flags = parse(common.parser(cls, doc), cls, argv, names)
    return s, flags and World(s, flags)


def parse(p, cls, argv, names, *others):
    """For a parser p of cls: adds Flags' fields in names. Returns the values of the arguments named in others, a cls, Flags or None."""
    common.add_flags(p.add_argument_group("models and data of your own"), Flags, names)
    args, asked = vars(p.parse_args(argv)), [name for name in names if name in REQUIRED]
    needed = [name for name in asked if not (name == "experts" and "init" in asked)]  # phase 1 without experts is plain fine-tuning
    given = [name for name in names if args[name] != getattr(Flags, name)]
    if any(name in asked for name in given):
        p.set_defaults(**{name: value for name, value in DEFAULTS.items() if name in args and name in cls.__dataclass_fields__})
        args = vars(p.parse_args(argv))
    elif given:
        raise UserError(f"--{given[0]} is for models of your own: it needs --{' and --'.join(needed)} too")
    flags = Flags(**{name: args.pop(name) for name in names})
    others = [args.pop(name) for name in others]
    s = cls(**args)
    if not given:
        return *others, s, None
    for name in needed:
        if name not in given:
            raise UserError(f"--{name} is missing: models of your own need --{', --'.join(needed)}")
    for name in TOY_ONLY:
        if name in args and args[name] != getattr(cls, name):
            raise UserError(f"--{name} is about the toy's own experts and data: it means nothing with --experts")
    common.positive(flags, "max_len", "max_new")
    common.one_of(flags, "dtype", pretrained.DTYPES)
    return *others, s, flags


def named(items, not_these=()):
    """["math=DIR", ...] -> {"math": Path}. UserError for what is not of this form, or named twice."""
    out = {}
    for item in items:
        name, sign, directory = item.partition("=")
        if not sign or not directory or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
            raise UserError(f"--experts {item[:100]}: must be NAME=DIR, the name of letters, digits, _ and - (a prompt stands before it)")
        if name in out or name in not_these:
            raise UserError(f"--experts {item}: the name {name} is taken")
        out[name] = Path(directory)
    return out


# --- samples ----------------------------------------------------------------------------------------------------------------------------


def read_samples(path, sides, tokenizer, size, max_len):
    """The samples of a JSONL file, one for each of `sides` (names of the answers' fields) of a line, and how many lines were left out.

    A sample is (ids, learn) as from common.answer_only. Lines that are empty, too long or would end twice are left out as a whole,
    counted and named on the terminal; a line of another form is a UserError.
    """
    samples, left_out, end = [], {}, tokenizer.encoding.id_to_token(tokenizer.END)
    *lines, last = read_bytes(path).split(b"\n")
    lines += [last] if last else []
    for number, line in enumerate(lines, 1):
        texts = fields(path, number, line, ("prompt", *sides)) if line.strip() else [""]
        if not all(text.strip() for text in texts):
            left_out.setdefault("empty", []).append(number)
            continue
        prompt, answers = tokenizer.encode_prompt(texts[0]), [tokenizer.encode_answer(text) for text in texts[1:]]
        if max(sum(answers, prompt)) >= size:
            raise UserError(f"{path}, line {number}: the chat template of the router uses a token that not all experts have")
        if any(end in text for text in texts[1:]):
            left_out.setdefault(f"with {end!r} in the answer, where it stands behind every answer anyway", []).append(number)
        elif len(answers) > 1 and answers[0] == answers[1]:
            left_out.setdefault("with equal answers", []).append(number)
        elif len(prompt) + max(map(len, answers)) > max_len:
            left_out.setdefault(f"of more than {max_len} tokens", []).append(number)
        else:
            samples += [common.answer_only(prompt, answer) for answer in answers]
    count = sum(map(len, left_out.values()))
    report = "; ".join(f"{len(numbers)} {why} (line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:20]))}"
                       f"{', ...' if len(numbers) > 20 else ''})" for why, numbers in left_out.items())
    if not samples:
        raise UserError(f"{path} has no sample that can be used{': ' * bool(report)}{report}")
    if count:
        print(f"{path}: {count} of {len(lines)} lines left out: {report}")
    return samples


def fields(path, number, line, names):
    """The texts of these fields in a line of JSON. UserError names the line."""
    try:
        content = json.loads(line)
        texts = [content[name] for name in names]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
        "".join(texts).encode()  # half a character, written as an escape, has no bytes
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{path}, line {number}: must be a JSON object with the texts {', '.join(names)}") from e
    return texts


def read_bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path} ({e.strerror})") from e


# --- models -----------------------------------------------------------------------------------------------------------------------------


def fingerprint(directory):
    """16 hex digits for a model: its config, and of every tensor the name, the shape, the type and the first eight rows.

    Fine-tuning changes nearly every row, so this tells models apart, in a second; to read 16 GB each time would take minutes.
    """
    where = pretrained.where_tensors_are(Path(directory))
    h = hashlib.sha256(json.dumps(asdict(pretrained.read_config(directory))).encode())
    for name, (_, shape, kind) in sorted(where.items(), key=lambda item: item[0]):
        h.update(json.dumps([name, list(shape), str(kind)]).encode() + common.raw_bytes(pretrained.read_tensor(where, name, rows=8)))
    return h.hexdigest()[:16]


class World:
    """What toy_experts/world.py is for the toy: what training starts from, samples, the experts' scores, checkpoints."""

    suffix = f"/{FILE}"  # the last file that is written: where it is, the router beside it is complete

    def __init__(self, s, flags):
        from baselines import READ_EXPERTS  # not at the top: it imports decode.py, which imports this file
        if getattr(s, "loss", "paper") in READ_EXPERTS | {"co_llm_self"}:
            raise UserError(f"--loss {s.loss} needs more of the experts than their scores: only the toy has it")
        self.flags = flags
        # names that decode.py's methods and pi_ref's scores have
        self.directories = named(flags.experts, not_these=("router", "fusionroute", "routing_only", "sft_only", "reference"))
        self.names, self.max_new = list(self.directories), flags.max_new
        directories = [("--init", flags.init), *(("--experts", path) for path in self.directories.values())]
        for flag, path in directories:  # before anything is read, or a package asked for
            if path and not Path(path).is_dir():
                raise UserError(f"there is no directory {path} ({flag})")
        for flag, path in ("--data", flags.data), ("--pairs", flags.pairs):
            if path and (Path(path).is_dir() or not Path(path).exists()):
                raise UserError(f"there is no file {path} ({flag})")
        if not self.names:
            if s.loss != "paper":
                raise UserError(f"--loss {s.loss} is about experts: without --experts there is plain fine-tuning only")
            print("no --experts: plain fine-tuning, without a router")
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # W has a row for each expert: none
        self.first = Path(flags.init or flags.router or common.run_dir(s) / s.phase1)  # the router, or what it starts from
        if not flags.init:
            from_init = f" --init DIR ...{common.flags(s, DEFAULTS['out'])}" * (not flags.router)
            self.left = self.read(self.first / FILE, f"run python train_sft.py{from_init}")
        self.tokenizer = Tokenizer(self.first)
        tokenizers = {"the router": self.tokenizer, **{name: Tokenizer(path) for name, path in self.directories.items()}}
        self.size = agree(tokenizers)
        for name, other in tokenizers.items():
            if flags.init and other.END != self.tokenizer.END:
                print(f"note: {name} ends an answer with token {other.END}, the router with {self.tokenizer.END}, which is taken for all")
        self.encode_prompt, self.ends = self.tokenizer.encode_prompt, [i for i in self.tokenizer.ends if i < self.size]
        self.max_len = min(pretrained.read_config(d).max_len for d in [self.first, *self.directories.values()])
        self.fingerprints = {name: fingerprint(path) for name, path in self.directories.items()}
        if not flags.init:
            self.check_experts()
        self.device, self.fsdp = common.device(s.device), getattr(s, "fsdp", False)

    def check_experts(self):
        """UserError unless the experts are those that the router was trained with."""
        theirs = self.left["experts"]
        if list(theirs) != self.names:
            raise UserError(f"{self.first} routes among {', '.join(map(str, theirs))}, in this order, not {', '.join(self.names)}")
        for name in self.names:
            if theirs[name] != self.fingerprints[name]:
                raise UserError(f"{self.directories[name]} is not the model that {self.first} was trained with as {name}")

    def load(self, directory, dtype="float32"):
        return pretrained.load(directory, self.device, dtype, self.size)

    def recipe(self, s):
        """What a result depends on: the settings but for the toy's, and what was read."""
        files = {name: hashlib.sha256(read_bytes(getattr(self.flags, name))).hexdigest()[:16]
                 for name in ("data", "pairs") if getattr(self.flags, name)}
        ours = {k: v for k, v in common.recipe(s).items() if k not in TOY_ONLY}
        start = hashlib.sha256(fingerprint(self.first).encode() + (b"" if self.flags.init else common.raw_bytes(self.left["W"])))
        dtype = self.flags.dtype + self.flags.bf16 * ", bf16"
        return ours | files | {"dtype": dtype, "max_len": min(self.flags.max_len, self.max_len), "experts": self.fingerprints,
                               "start": start.hexdigest()[:16]}

    def start(self, s):
        return self.recipe(s)

    def first_router(self):
        device = "cpu" if self.fsdp else self.device  # parallel.spread then brings a part to each GPU
        return self.computing(pretrained.load(self.first, device, "float32", self.size))

    def computing(self, lm):
        """The router's language model with --bf16, or as it is. Phase 2's pi_ref computes as pi_theta does: both start equal."""
        if self.flags.bf16:
            lm.forward = torch.autocast(self.device.type, torch.bfloat16)(lm.forward)
        return lm

    def go_on(self, s):
        return self.left["recipe"], self.recipe(s)

    def sft(self, recipe):
        return self.samples(self.flags.data, "completion")

    def pairs(self, s, folder, recipe):
        return self.samples(self.flags.pairs, "chosen", "rejected")

    def samples(self, path, *sides):
        return read_samples(path, sides, self.tokenizer, self.size, min(self.flags.max_len, self.max_len))

    def scored(self, folder, samples):
        """Samples packed, with the experts' scores on them, one expert in memory at a time. Returns what common.scored does."""
        ids, mask, lengths = common.pack(samples)
        if not self.directories:
            nothing = torch.zeros(*ids[:, 1:].shape, 0)                                                      # (N, T-1, 0)
            return ids, mask, lengths, nothing, nothing
        dtype, columns = self.flags.dtype, []
        for name, path in self.directories.items():
            made_from = [self.fingerprints[name], dtype]
            columns.append(self.score_one(folder, name, made_from, lambda: self.load(path, dtype), ids, lengths))  # (N, T-1) twice
        logp, choice = (torch.stack(column, -1) for column in zip(*columns))  # (N, T-1, n) each
        return ids, mask, lengths, logp, choice

    def reference(self, folder, router, ids, lengths):
        """log pi_ref of every next token, (N, T-1): of the router's language model as phase 1 left it."""
        made_from = fingerprint(self.first) + self.flags.bf16 * " bf16"
        return self.score_one(folder, "reference", made_from, lambda: router.lm, ids, lengths)[0]

    def score_one(self, folder, name, made_from, load, ids, lengths):
        """One model's scores (fusionroute.score), in files of CHUNK samples: what is there is not computed again, and load() not called.

        made_from: what the scores depend on besides the samples; a file's name holds its hash. Returns logp and choice, (N, T-1) each.
        """
        logp, choice, model = torch.zeros(ids[:, 1:].shape), torch.zeros(ids[:, 1:].shape, dtype=torch.int32), None
        folder = folder / "scores"
        folder.mkdir(exist_ok=True)
        files = []
        for rows in lengths.argsort(stable=True).split(CHUNK):
            T = int(lengths[rows].max())
            x, key = ids[rows, :T], json.dumps([made_from, self.size, lengths[rows].tolist()])               # (b, T)
            files.append((rows, x, folder / f"{name}-{hashlib.sha256(common.raw_bytes(x) + key.encode()).hexdigest()[:16]}.pt"))
        for rows, x, path in tqdm(parallel.turns(files), desc=f"scores of {name}", mininterval=1.0):
            if not path.exists():
                model = model or load()
                common.save(path, dict(zip(("logp", "choice"), score([model], x, lengths[rows]))))
        parallel.wait()
        for rows, x, path in files:
            content = common.load(path, ("logp", "choice"), "start again")
            for whole, part in (logp, content["logp"]), (choice, content["choice"]):
                if getattr(part, "shape", None) != (len(rows), x.size(1) - 1, 1):
                    raise UserError(f"{path} holds other scores than these; remove it, then start again")
                whole[rows, :x.size(1) - 1] = part[..., 0]
        return logp, choice

    def read(self, path, hint):
        """The dict in a fusionroute.pt. UserError when it is none, or of another tokenizer."""
        content = common.load(path, KEYS, hint)
        W, experts = content["W"], content["experts"]
        if not (isinstance(W, torch.Tensor) and W.dim() == 2 and isinstance(experts, dict) and len(W) == len(experts)):
            raise UserError(f"{path} is damaged: W does not fit the experts' names; remove it, then {hint}")
        if content["vocabulary"] != Tokenizer(path.parent).FINGERPRINT:
            raise UserError(f"{path.parent} has another tokenizer than the one that its router was trained with")
        return content

    def recipe_of(self, path, hint):
        return self.read(path, hint)["recipe"]

    def phase1_router(self, dtype="float32"):
        """The Router in the directory self.first, frozen; W is float32 always."""
        lm = self.load(self.first, dtype)
        if self.left["W"].size(1) != lm.config.d_model:
            raise UserError(f"{self.first / FILE}: W reads {self.left['W'].size(1)} numbers, and the model's width is {lm.config.d_model}")
        router = Router(self.computing(lm), len(self.names))
        router.W.weight.data = self.left["W"].float()
        return router.to(self.device).eval().requires_grad_(False)

    def save(self, path, router, recipe, seconds, experts):
        """The language model and its tokenizer as a directory, then W and the experts' names as its last file."""
        pretrained.save(path.parent, router.lm, self.tokenizer)
        common.save(path, {"vocabulary": self.tokenizer.FINGERPRINT, "recipe": recipe, "seconds": seconds, "experts": experts,
                           "W": router.W.weight.detach().cpu(), "memory": common.peak_memory(), "cpu": time.process_time()})
        print(f"saved {path.parent}")

    # what decode.py needs besides

    def models(self):
        """The Router and the list of experts, all in memory; each reads as many tokens as the one that reads fewest."""
        router = self.phase1_router(self.flags.dtype)
        experts = [self.load(path, self.flags.dtype).requires_grad_(False) for path in self.directories.values()]
        for model in [router.lm, *experts]:
            model.config.max_len = self.max_len
        return router, experts

    def pieces(self, ids):
        """The text of each token, "" where it holds only a part of a character: the last of these then brings all of it."""
        out, said = [], ""
        for t in range(1, len(ids) + 1):
            text = self.tokenizer.decode(ids[:t])
            whole = t == len(ids) or not text.endswith("\ufffd")
            out.append(text[len(said):] if whole else "")
            said = text if whole else said
        return out
