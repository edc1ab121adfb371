"""Speed beside what one would take instead: TRL's SFTTrainer and DPOTrainer, and transformers' generate. A real model, on this machine.

    pip install -r requirements-real.txt -r requirements-trl.txt
    python -m extra.real.beside --model smollm2      ten minutes on two idle cores: extra/results/beside.json and docs/speed.md

--model is the directory that convert_smollm2.py writes. Both sides have the same weights in float32, the same token ids, padding and
batches in the same order, the same AdamW (torch's fused one), learning rates, clipping and threads, and neither computes activations
twice (gradient checkpointing). They take turns: some training steps each, another one first in each round; decoders, prompt by prompt.

The times would mean nothing if the two did not compute the same. So the losses of all steps are compared first, and all answers. Our DPO
step is the CDPO step of train_cdpo.py with experts that give every token a log-probability of 0: the bias of Eq. (3) is 0, and the loss
is that of DPO. A step lasts from the end of one update to the end of the next: batch, both passes, update, and what is logged.
"""

import importlib
import json
import os
import platform
import tempfile
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import mean

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from extra.common import RESULTS, fill, table
from extra.gpt import Router
from extra.real import pretrained, train_cdpo, train_sft
from extra.real.costs import parameters
from extra.real.decode import decode_batch
from extra.real.pretrained_tokenizer import Tokenizer
from extra.real.scores import rows_a_pass
from extra.speed.bench import rates
from extra.speed.block import BLOCK, Lookup, block_decode, draft
from extra.speed.equal import PAGE
from extra.speed.fast import Fast
from extra.speed.page import ratio
from extra.speed.training import over, spread
from fusionroute import score
from model import generate
from toy_experts import run, tasks
from toy_experts.data import Data, answer_only, batches, pack
from toy_experts.run import UserError, write
from toy_experts.train import schedule

RESULT, COMMAND = RESULTS / "beside.json", "python -m extra.real.beside"
NAMES = [f"expert{i}" for i in range(3)]
CLOSE = 1e-3  # how far two losses may be apart, relative to their size
NEVER = ()    # the end tokens of an answer: none, so that all answers have the same length
LOOKUP = 10   # tokens of a guess at most that transformers takes from the prompt, as in its documentation


@dataclass
class Settings:
    model: str = "smollm2"  # DIR: a Llama in the format of Hugging Face, for both sides
    out: str = "own"        # a result that is not made with the default settings and SmolLM2-135M goes to OUT/beside.json
    rounds: int = 3         # of each comparison
    steps: int = 3          # training steps a round that count, after one that does not
    batch: int = 4          # answers a training step: SFT samples, or twice as many as pairs
    prompts: int = 6        # to answer, of all benchmarks in turn
    new: int = 64           # tokens of an answer

    def __post_init__(self):
        run.positive(self, "rounds", "steps", "batch", "prompts", "new")
        if self.batch % 2:
            raise UserError(f"--batch is {self.batch}, and must be even: a pair is two answers")


def needed(package):
    """A module that is compared with. UserError when it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise UserError(f"this compares with TRL, and there is no {package}: pip install -r requirements-trl.txt") from e


# --- training ---------------------------------------------------------------------------------------------------------------------------


def samples(s, tokenizer):
    """SFT samples and pairs for one round, as token ids: [(prompt, answer)], [(prompt, chosen, rejected)]. Another prompt's answer is
    the rejected one."""
    n = s.batch * (s.steps + 1)
    items = tasks.mixed("train", 2 * n, Random("beside"), tasks.BENCHMARKS)
    return ([tokenizer.encode_sample(i.prompt, i.answer) for i in items[:n]],
            [tokenizer.encode_sample(i.prompt, i.answer, j.answer) for i, j in zip(items[n::2], items[n + 1::2])])


def packed(found, n, scores):
    """samples -> Data with n experts' scores: random ones, or (scores False) zeros."""
    ids, mask, lengths = pack([answer_only(x[0], answer) for x in found for answer in x[1:]])
    logp = torch.zeros(*ids[:, 1:].shape, n)                                                              # (N, T-1, n)
    choice = torch.zeros_like(logp, dtype=torch.int32)                                                    # (N, T-1, n)
    return Data(ids, mask, lengths, *(-torch.rand_like(logp), torch.randint_like(choice, 9)) if scores else (logp, choice))


def trainings(s, lm, hf, tokenizer, scratch):
    """"sft" and "dpo" -> name -> function that trains a copy for one round and returns the loss of each step."""
    trl, Dataset, AutoTokenizer = needed("trl"), needed("datasets").Dataset, needed("transformers").AutoTokenizer
    steps, sft, pairs = s.steps + 1, *samples(s, tokenizer)
    phase1, phase2 = train_sft.Settings(batch=s.batch), train_cdpo.Settings(batch=s.batch // 2, mix=0)
    both = packed(pairs, 3, False)                                                                        # chosen, rejected, chosen, ...
    ref = (score([lm], both.ids, both.lengths)[0][..., 0] * both.mask[:, 1:]).sum(-1).view(-1, 2)         # (pairs, 2): log pi_ref
    both = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
    plain, scored = packed(sft, 0, False), packed(sft, 3, True)
    sft = [sft[i] for rows in batches(plain.lengths, s.batch, 0) for i in rows]                           # the order that ours takes
    pairs = [pairs[i] for _, rows in train_cdpo.make_plan(phase2, both.lengths, both.lengths) for i in rows]
    words = AutoTokenizer.from_pretrained(s.model)

    def ours(train, settings, data, n, *more):
        names = NAMES[:n]
        return [r.get("loss_lm", r["loss"]) for r in train(settings, Router(deepcopy(lm), n), *data, *more, names)[1]]

    def theirs(Trainer, Config, rows, batch, lr, ref_model=None, **how):
        class Ready(Trainer):  # the rows are token ids already
            def _prepare_dataset(self, dataset, *_, **__):
                return dataset

        model = deepcopy(hf)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps, warmup=20))
        config = Config(output_dir=scratch, per_device_train_batch_size=batch, num_train_epochs=1, bf16=False, gradient_checkpointing=False,
                        max_grad_norm=1.0, max_length=None, train_sampling_strategy="sequential", dataloader_pin_memory=False, use_cpu=True,
                        logging_steps=1, save_strategy="no", report_to="none", **how)
        more = {"ref_model": deepcopy(ref_model)} if ref_model else {}
        trainer = Ready(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=words, optimizers=(optimizer, scheduler),
                        **more)
        trainer.train()
        return [r["loss"] for r in trainer.state.log_history if "loss" in r]

    labelled = [{"input_ids": p + a, "labels": [-100] * len(p) + a} for p, a in sft]
    preferred = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), x)) for x in pairs]
    dpo = lambda **how: theirs(trl.DPOTrainer, trl.DPOConfig, preferred, s.batch // 2, phase2.lr, beta=phase2.beta, **how)
    return {"sft": {"plain SFT": lambda: ours(train_sft.train, phase1, [plain], 0),
                    "phase 1": lambda: ours(train_sft.train, phase1, [scored], 3),
                    "TRL": lambda: theirs(trl.SFTTrainer, trl.SFTConfig, labelled, s.batch, phase1.lr)},
            "dpo": {"CDPO": lambda: ours(train_cdpo.train, phase2, [both, both], 3, ref),
                    "TRL": lambda: dpo(precompute_ref_log_probs=True),
                    "TRL, reference in each step": lambda: dpo(ref_model=hf)}}, plain, both
