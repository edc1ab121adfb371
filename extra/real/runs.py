"""What both trainers need around their loops: flags, a run's folder, the experts' scores, updates.

OUT/seedN/NAME appears whole or not at all. Beside it, while it is made: NAME.work, with what is
half-written, and NAME.state, from which a killed run goes on. OUT/seedN/scores keeps the scores.
"""

import dataclasses
import json
import os
import re
import shutil
import warnings
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from filelock import FileLock, Timeout
from tqdm import tqdm
from xxhash import xxh3_64

from extra.real import data
from extra.real.loading import Unusable, adapter_config, check_finite, load, longest, note, same
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
    fuse: str = "tokens"  # tokens; bytes or spans, alike here: experts with other tokenizers
    ignore: list = ()  # fields of the samples, or of a config.json, that change nothing
    max_len: int = 2048  # samples of more tokens, prompt and answer together, are left out
    epochs: int = 1  # passes over the samples, in phase 2 over the pairs
    batch: int = 16  # samples, or pairs, a step, of all processes together
    lr: float = 1e-5  # peak learning rate of theta_LM
    lr_w: float = 1e-5  # peak learning rate of W
    lam: float = 1 / 3  # lambda of Eq. (2), the weight of the routing loss
    dtype: str = "float32"  # of frozen models: the experts, and the base under an adapter
    bf16: bool = False  # the router computes in bfloat16; its weights stay float32
    save_every: int = 100  # steps between saved states

    def __post_init__(self):
        script.positive(self, "epochs", "batch", "lr", "lr_w", "save_every", "max_len")
        script.positive(self, "lam", or_zero=True)
        script.one_of(self, "device", ("auto", "cpu"))
        script.one_of(self, "fuse", ("tokens", "bytes", "spans"))
        script.one_of(self, "dtype", ("float32", "bfloat16", "float16"))
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(f"--name {self.name!r} must be a file name of letters, digits, _.-")
        self.experts, self.ignore = named(self.experts), [*self.ignore]


def named(items):
    """["math=DIR", ...] -> {"math": DIR}. An item may hold several: zsh splits no $experts."""
    out = {}
    for item in [x for given in items for x in re.split(r"\s+(?=[\w-]+=)", given.strip())]:
        name, _, path = item.partition("=")
        if not path or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or name in ("router", *out):
            right = "NAME=DIR, NAME of letters, digits, _-, each NAME once, none router"
            raise UserError(f"--experts {item[:100]}: must be {right}")
        out[name] = same(os.path.expanduser(path))
    return out


def run(main):
    """script.run, for what loading.py refuses too. Libraries say less on the terminal."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, which peft meets
    warnings.filterwarnings("ignore", "Initializing zero-element")  # W without experts

    def checked():
        try:
            main()
        except Unusable as e:
            raise UserError(str(e)) from e

    script.run(checked)


def content(path):
    """Hex digits that stand for a file, or for a model's weights, settings and tokenizer."""
    path, key = Path(path), xxh3_64()
    if not path.exists():
        return str(path)  # a name on the Hub
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if len(files) == 1 or file.name.endswith((".safetensors", ".bin", ".json", ".jinja")):
            with open(file, "rb") as f:
                while block := f.read(1 << 24):
                    key.update(block)
    adapter = adapter_config(path) if path.is_dir() else None
    return key.hexdigest() + (content(adapter.base_model_name_or_path) if adapter else "")


class Run:
    """One training: its processes, its folder, and what it finds there from an earlier start."""

    def __init__(self, s, **start):
        """start: a name for the model that is trained further, and its path."""
        self.s, self.folder = s, script.run_dir(s)
        self.path, self.work = self.folder / s.name, self.folder / f"{s.name}.work"
        self.state = self.folder / f"{s.name}.state"
        several = [
            DistributedDataParallelKwargs(find_unused_parameters=True),  # pairs do not use W
            InitProcessGroupKwargs(timeout=timedelta(days=7)),  # one waits for another's scores
        ]
        how = {"cpu": s.device == "cpu", "mixed_precision": "bf16" if s.bf16 else None}
        self.acc = Accelerator(kwargs_handlers=several, **how)
        self.device, self.main = self.acc.device, self.acc.is_main_process
        n = self.acc.num_processes
        if n > 1 or "ACCELERATE_MIXED_PRECISION" in os.environ:  # on CPUs accelerate may start one
            note(f"{n} process{'es share' * (n > 1) or ' has'} each batch")
        torch.manual_seed(s.seed)
        # What the result depends on: the settings, and the content of what is read.
        nowhere = ("out", "device", "save_every", "name", *start)
        self.recipe = {k: v for k, v in dataclasses.asdict(s).items() if k not in nowhere}
        for name, path in [*start.items(), ("data", s.data), ("pairs", getattr(s, "pairs", None))]:
            if path:
                self.recipe[name] = content(path)
        self.recipe["experts"] = {name: content(path) for name, path in s.experts.items()}

    @contextmanager
    def alone(self):
        """No other run makes NAME meanwhile; what a killed one left half-written is removed."""
        lock = FileLock(self.folder / f".{self.s.name}.lock", timeout=0)
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
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
                raise UserError(f"{path} is there, and no run made it: use another --name")
            saved = json.loads((path / "recipe.json").read_text())
            script.check_same(path, saved, self.recipe, f"{self.path} and {self.state}")
        if not self.path.exists():
            return False
        note(f"{self.path} is there already; remove it to train anew")
        if self.main:
            shutil.rmtree(self.state, ignore_errors=True)  # of a run that was killed at its end
        return True

    def states(self):
        return sorted(self.state.glob("step*"))

    # --- scores ----------------------------------------------------------------------------------

    def expert(self, path, T):
        """The model in path. UserError unless it reads samples of T tokens."""
        how = {"dtype": getattr(torch, self.s.dtype), "device_map": {"": self.device}}
        model = load(path, self.s.ignore, **how)
        if T > longest(model):
            raise UserError(f"{path} reads {longest(model)} tokens at most, and a sample has {T}")
        return model

    def jobs(self, samples, size):
        """What `scores` gets for the experts: their logits of the first `size` tokens."""

        def logits_of(path):
            model = self.expert(path, max(map(len, samples["ids"])))
            return lambda ids: model(input_ids=ids.to(model.device)).logits[..., :size].float()

        for name, path in self.s.experts.items():
            made_from = [self.recipe["experts"][name], self.s.dtype, size]
            yield samples, lambda path=path: logits_of(path), made_from, name

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

    # --- the loop: what comes before it, what each step ends with, what comes after --------------

    def begin(self, model, steps):
        """The model as accelerate spreads it over the processes. self.log has the steps so far."""
        groups = [{"params": model.router.parameters(), "lr": self.s.lr}]
        groups += [{"params": model.W.parameters(), "lr": self.s.lr_w}] * bool(self.s.experts)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule(step, steps, warmup=20)
        )
        self.model, self.optimizer = self.acc.prepare(model, optimizer)
        self.acc.register_for_checkpointing(self.scheduler)
        self.log, self.printed, self.steps = [], set(), steps
        if states := self.states():
            self.acc.load_state(states[-1])
            self.log = json.loads((states[-1] / "log.json").read_text())
            if self.main:
                note(f"{self.path}: going on after step {len(self.log)} of {steps}")
        return self.model

    def share(self, rows):
        """This process's part of a batch. If it has none, a row that does not count."""
        mine = rows[self.acc.process_index :: self.acc.num_processes]
        self.counts = len(mine) > 0
        return mine if self.counts else rows[:1]

    def update(self, loss, terms, count, kind):
        """A step of the optimizer. loss is a mean over count tokens, or pairs, of this process."""
        count = torch.as_tensor(count * self.counts, dtype=torch.float32, device=self.device)
        weight = count / self.acc.reduce(count)  # this process's part of the whole batch
        self.optimizer.zero_grad()  # to None, not 0: pairs must not move W at all
        self.acc.backward(loss * weight * self.acc.num_processes)
        self.acc.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()

        routing = {f"route_{n}": x for n, x in zip(self.s.experts, terms.pop("routing", []))}
        values = {"loss": loss} | terms | routing
        means_ = self.acc.reduce(torch.stack([v.detach() * weight for v in values.values()]))
        if not means_.isfinite().all():
            raise UserError(f"the loss is {means_[0]}: the training has diverged; lower --lr")
        terms = dict(zip(values, (round(x, 5) for x in means_.tolist())))
        self.log.append({"step": len(self.log), "kind": kind} | terms)
        done = len(self.log)
        if done % EVERY == 0 or done == self.steps:  # the steps since the last line
            shown = self.log[-((done - 1) % EVERY + 1) :]
            kinds = {r["kind"] for r in shown}
        else:  # the first step of a kind
            shown, kinds = self.log[-1:], {kind} - self.printed
        self.printed |= kinds
        for k in sorted(kinds) if self.main else ():
            tqdm.write(means(shown, k))
        if len(self.log) % self.s.save_every == 0:
            self.save_state()

    def save_state(self):
        half, old = self.work / "state", self.states()
        self.acc.save_state(half)
        self.acc.wait_for_everyone()
        if self.main:
            (half / "log.json").write_text(json.dumps(self.log))
            (half / "recipe.json").write_text(json.dumps(self.recipe))
            self.state.mkdir(exist_ok=True)
            os.replace(half, self.state / f"step{len(self.log):09d}")
            for path in old:
                shutil.rmtree(path)

    def save(self):
        """Put the trained model into OUT/seedN/NAME, all at once, and forget the saved states."""
        state, model = self.acc.get_state_dict(self.model), self.acc.unwrap_model(self.model)
        if not self.main:
            return
        check_finite("the trained model", state.items())
        end = data.Encoder(model.tokenizer).end  # what was learned as the end ends an answer
        for config in (model.generation_config, model.router.generation_config):
            ends = config.eos_token_id or []
            config.eos_token_id = sorted({end, *(ends if isinstance(ends, list) else [ends])})
        half = self.work / "model"
        (model.save_pretrained if self.s.experts else model.save_router)(half, state_dict=state)
        (half / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in self.log))
        (half / "recipe.json").write_text(json.dumps(self.recipe, indent=1))
        os.replace(half, self.path)
        shutil.rmtree(self.state, ignore_errors=True)
        print(f"saved {self.path}")
