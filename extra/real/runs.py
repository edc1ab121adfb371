"""What both trainers need around their loops: flags, a run's folder, the experts' scores, updates.

OUT/seedN/NAME appears whole or not at all. Beside it, while it is made: NAME.work, with what is
half-written, and NAME.state, from which a killed run goes on. OUT/seedN/scores keeps the scores.
"""

import argparse
import dataclasses
import inspect
import json
import math
import os
import re
import shutil
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import peft
import torch
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from filelock import FileLock, Timeout
from tqdm import tqdm
from xxhash import xxh3_64

from extra.real import data
from extra.real.loading import (
    Unusable,
    adapter_config,
    check_finite,
    load,
    load_tokenizer,
    note,
    same,
    shared_tokens,
)
from toy_experts import script
from toy_experts.data import schedule
from toy_experts.progress import EVERY, means
from toy_experts.script import UserError


@dataclasses.dataclass
class Settings:
    seed: int = 0  # selects the run, and the order of the samples
    out: str = "own"  # runs are kept in OUT/seedN/
    device: str = "auto"  # auto or cpu
    experts: list = ()  # NAME=DIR NAME=DIR ...: the experts, in the order of W's rows
    data: str = ""  # SFT samples: FILE, or what `datasets` knows by name (forms: data.py)
    ignore: list = ()  # fields of the samples, or of a config.json, that change nothing
    max_len: int = 2048  # samples of more tokens, prompt and answer together, are left out
    epochs: int = 1  # passes over the samples, in phase 2 over the pairs
    batch: int = 16  # samples, or pairs, a step, of all processes together
    lr: float = 1e-5  # peak learning rate of theta_LM
    lr_w: float = 1e-5  # peak learning rate of W
    lam: float = 1 / 3  # lambda of Eq. (2), the weight of the routing loss
    dtype: str = "float32"  # of frozen models: the experts, and the base under an adapter
    bits: int = 0  # 4 or 8: experts quantised by bitsandbytes
    bf16: bool = False  # the router computes in bfloat16; its weights stay float32
    save_every: int = 100  # steps between saved states

    def __post_init__(self):
        script.positive(self, "epochs", "batch", "lr", "lr_w", "save_every", "max_len")
        script.positive(self, "lam", or_zero=True)
        script.one_of(self, "device", ("auto", "cpu"))
        script.one_of(self, "dtype", ("float32", "bfloat16", "float16"))
        script.one_of(self, "bits", (0, 4, 8))
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(
                f"--name is {self.name!r}, and must be a file name: letters, digits, _.-"
            )
        self.experts = named(self.experts)


def named(items):
    """["math=DIR", ...] -> {"math": DIR}. An item may hold several: zsh splits no $experts."""
    out = {}
    for item in [x for given in items for x in re.split(r"\s+(?=[\w-]+=)", given.strip())]:
        name, _, path = item.partition("=")
        if not path or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or name == "router":
            raise UserError(f"--experts {item[:100]}: must be NAME=DIR, and not named router")
        if name in out:
            raise UserError(f"--experts: the name {name} is there twice")
        out[name] = same(path)
    return out


def settings(cls, doc, argv=None):
    """An instance of the dataclass cls from the command line. A list takes several values."""
    form = argparse.RawDescriptionHelpFormatter
    p = script.Parser(description=doc.strip(), formatter_class=form)
    code = "".join(inspect.getsource(c) for c in cls.mro()[-2::-1])
    comments = dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", code, re.M))
    for f in dataclasses.fields(cls):
        how = {"help": comments[f.name].replace("%", "%%"), "default": argparse.SUPPRESS}
        if f.name == "prompt":
            p.add_argument("prompt", nargs="?", **how)
        elif f.type is bool:
            p.add_argument(f"--{f.name}", action="store_true", **how)
        elif f.type is list:
            p.add_argument(f"--{f.name}", nargs="+", action="extend", metavar="X", **how)
        else:
            how["help"] += f" (default: {f.default or 'none'})"
            p.add_argument(f"--{f.name}", type=f.type, metavar=f.type.__name__.upper(), **how)
    return cls(**vars(p.parse_args(argv)))


def run(main):
    """script.run, for what loading.py refuses too. Libraries say less on the terminal."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def checked():
        try:
            main()
        except Unusable as e:
            raise UserError(str(e)) from e

    script.run(checked)


# --- models --------------------------------------------------------------------------------------


def how_to_load(s, device):
    """What from_pretrained gets for a frozen model."""
    how = {"dtype": getattr(torch, s.dtype), "device_map": {"": device}}
    bits = {4: {"load_in_4bit": True}, 8: {"load_in_8bit": True}}.get(s.bits)
    return how | ({"quantization_config": transformers.BitsAndBytesConfig(**bits)} if bits else {})


def content(path):
    """Hex digits that stand for the bytes of a file, or of a model's weights and settings."""
    path, key = Path(path), xxh3_64()
    if not path.exists():
        return str(path)  # a name on the Hub
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if len(files) == 1 or file.name.endswith((".safetensors", ".bin", "config.json")):
            with open(file, "rb") as f:
                while block := f.read(1 << 24):
                    key.update(block)
    adapter = adapter_config(path) if path.is_dir() else None
    return key.hexdigest() + (content(adapter.base_model_name_or_path) if adapter else "")


def shared(router, experts):
    """The router's tokenizer, and how many of its tokens all models have. Notes what differs."""
    tokenizer = load_tokenizer(router)
    others = {name: load_tokenizer(path) for name, path in experts.items()}
    size, end = shared_tokens({"the router": tokenizer} | others), data.Encoder(tokenizer).end
    for name, other in others.items():
        if other.chat_template != tokenizer.chat_template:
            note(f"{name} has another chat template than the router, which is taken for all")
        if (theirs := data.Encoder(other).end) != end:
            note(f"{name} ends an answer with token {theirs}, the router with {end}, taken for all")
    return tokenizer, size


def with_adapter(lm, r):
    """A language model with a new LoRA adapter of rank r, which changes nothing yet."""
    how = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(lm, peft.LoraConfig(r=r, lora_alpha=2 * r, **how))


def let_end(model):
    """The token that ends an answer in training ends it in generate(), too."""
    end = data.Encoder(model.tokenizer).end
    for config in (model.generation_config, model.router.generation_config):
        ends = (
            config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        )
        config.eos_token_id = sorted({*ends, end} - {None})


# --- a run ---------------------------------------------------------------------------------------


class Run:
    """One training: its processes, its folder, and what it finds there from an earlier start."""

    def __init__(self, s):
        self.s, self.folder = s, script.run_dir(s)
        self.path, self.work, self.state = (
            self.folder / f"{s.name}{end}" for end in ("", ".work", ".state")
        )
        kinds = [
            DistributedDataParallelKwargs(find_unused_parameters=True),  # pairs do not use W
            InitProcessGroupKwargs(timeout=timedelta(days=7)),  # others wait for scores
        ]
        precision = "bf16" if s.bf16 else None
        self.acc = Accelerator(
            cpu=s.device == "cpu", mixed_precision=precision, kwargs_handlers=kinds
        )
        self.device, self.main = self.acc.device, self.acc.is_main_process
        if self.acc.num_processes > 1 and self.main:
            note(f"{self.acc.num_processes} processes share each batch")
        torch.manual_seed(s.seed)

    def recipe(self, **made_from):
        """What the result depends on: the settings, and the content of what is read."""
        nowhere = ("out", "device", "save_every", "name", "phase1", "init", "experts")
        chosen = {k: v for k, v in dataclasses.asdict(self.s).items() if k not in nowhere}
        files = {k: content(chosen.pop(k)) for k in ("data", "pairs") if k in chosen}
        experts = {name: content(path) for name, path in self.s.experts.items()}
        self.made_from = {**chosen, **files, "experts": experts, **made_from}
        return self.made_from

    @contextmanager
    def alone(self):
        """No other run makes NAME meanwhile; what a killed one left half-written is removed."""
        lock = FileLock(self.folder / f".{self.s.name}.lock", timeout=0)
        if self.main:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire()
            except Timeout as e:
                raise UserError(f"another run makes {self.path}: wait, or use another --out") from e
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir()
        self.acc.wait_for_everyone()
        try:
            yield
            self.acc.wait_for_everyone()
        finally:
            if self.main:
                shutil.rmtree(self.work, ignore_errors=True)
                lock.release()

    def is_there(self):
        """Whether NAME is there already. UserError if it, or a saved state, has another recipe."""
        for path in [p for p in (self.path, *self.states()) if p.exists()]:
            if not (path / "recipe.json").exists():
                raise UserError(
                    f"{path} is there, and no run of this kind made it: use another --name"
                )
            saved = json.loads((path / "recipe.json").read_text())
            script.check_same(path, saved, self.made_from, f"{self.path} and {self.state}")
        if self.path.exists():
            note(f"{self.path} is there already; remove it to train anew")
            if self.main:  # left by a run that was killed at its very end
                shutil.rmtree(self.state, ignore_errors=True)
        return self.path.exists()

    def states(self):
        return sorted(self.state.glob("step*"))

    def jobs(self, samples, size):
        """What `scores` gets for the experts: their logits of the first `size` tokens."""
        how = how_to_load(self.s, self.device)
        for name, path in self.s.experts.items():
            made_from = [self.made_from["experts"][name], self.s.dtype, self.s.bits, size]
            yield (
                samples,
                lambda p=path: logits_of(load(p, self.s.ignore, **how), size),
                made_from,
                name,
            )

    def scores(self, jobs):
        """data.scores of each job, (samples, load_logits, made_from, name); one model in memory.

        The processes take the jobs in turn.
        """
        rank, n = self.acc.process_index, self.acc.num_processes
        half, kept = self.work / f"scores{rank}.arrow", self.folder / "scores"
        for job in jobs[rank::n]:
            data.scores(*job, kept, half)
        self.acc.wait_for_everyone()
        return [data.scores(*job, kept, half) for job in jobs]

    # --- the loop's two ends, and what each step ends with ---------------------------------------

    def begin(self, model, steps):
        """The model as accelerate spreads it over the processes; self.log: the steps so far."""
        lm = [p for p in model.router.parameters() if p.requires_grad]
        groups = [{"params": lm, "lr": self.s.lr}]
        if self.s.experts:
            groups.append({"params": model.W.parameters(), "lr": self.s.lr_w})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule(step, steps, warmup=20)
        )
        self.model, self.optimizer = self.acc.prepare(model, optimizer)
        self.acc.register_for_checkpointing(self.scheduler)
        self.log = []
        if states := self.states():
            self.acc.load_state(states[-1])
            self.log = json.loads((states[-1] / "log.json").read_text())
        return self.model

    def share(self, rows):
        """This process's part of a batch. If it has none, a row that does not count."""
        mine = rows[self.acc.process_index :: self.acc.num_processes]
        self.counts = len(mine) > 0
        return mine if self.counts else rows[:1]

    def update(self, loss, terms, count, kind):
        """A step of the optimizer. loss is a mean over count tokens, or pairs, of this process."""
        weight = torch.as_tensor(count * self.counts, dtype=torch.float32, device=self.device)
        whole = self.acc.reduce(weight)
        self.optimizer.zero_grad()
        self.acc.backward(loss * weight * self.acc.num_processes / whole)
        self.acc.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.note(loss, terms, weight, kind)
        if len(self.log) % self.s.save_every == 0:
            self.save_state()

    def note(self, loss, terms, weight, kind):
        """Log a step: means over all processes. Prints the first, then means of many."""
        routing = {f"route_{n}": x for n, x in zip(self.s.experts, terms.get("routing", []))}
        values = {"loss": loss} | {k: v for k, v in terms.items() if k != "routing"} | routing
        in_S = weight * terms.get("informative", 0)  # `routing` are shares of these
        pairs = [(v * (w := in_S if k in routing else weight), w) for k, v in values.items()]
        total = self.acc.reduce(
            torch.tensor([[float(x) for x in p] for p in pairs]).to(self.device)
        )
        numbers = (total[:, 0] / total[:, 1].clamp(min=1e-9)).tolist()
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"the loss is {numbers[0]}: the training has diverged; lower --lr")
        kinds = {record["kind"] for record in self.log}
        record = {k: round(x, 5) for k, x in zip(values, numbers)}
        self.log.append({"step": len(self.log), "kind": kind} | record)
        if self.main and kind not in kinds:
            tqdm.write(means(self.log[-1:], kind))
        if self.main and len(self.log) % EVERY == 0:
            for each in sorted(kinds | {kind}):
                tqdm.write(means(self.log[-EVERY:], each))

    def save_state(self):
        half, old = self.work / "state", self.states()
        self.acc.save_state(half)
        self.acc.wait_for_everyone()
        if self.main:
            (half / "log.json").write_text(json.dumps(self.log))
            (half / "recipe.json").write_text(json.dumps(self.made_from))
            self.state.mkdir(exist_ok=True)
            os.replace(half, self.state / f"step{len(self.log):09d}")
            for path in old:
                shutil.rmtree(path)

    def save(self):
        """Put the trained model into OUT/seedN/NAME, all at once, and forget the saved states."""
        state, model = self.acc.get_state_dict(self.model), self.acc.unwrap_model(self.model)
        if not self.main:
            return
        half = self.work / "model"
        check_finite("the trained model", state.items())
        (model.save_pretrained if self.s.experts else model.save_router)(half, state_dict=state)
        (half / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in self.log))
        (half / "recipe.json").write_text(json.dumps(self.made_from, indent=1))
        os.replace(half, self.path)
        shutil.rmtree(self.state, ignore_errors=True)
        print(f"saved {self.path}")


def logits_of(model, size):
    """A function ids (b, T) -> logits (b, T, size), on the model's device."""
    return lambda ids: model(input_ids=ids.to(model.device)).logits[..., :size].float()
