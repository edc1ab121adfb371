"""Phase 1 with models and data of your own: Eq. (2). Read train_sft.py of the ground floor first.

    python -m extra.real.train_sft --init DIR --experts math=DIR code=DIR --data FILE --out OUT
    python -m extra.real.train_sft --init DIR --data math.jsonl --name math --lora_r 16
    accelerate launch --num_processes 4 -m extra.real.train_sft ...    on four GPUs; or --use_fsdp
    torchrun --nproc_per_node 2 -m extra.real.train_sft ...            on two CPUs

A DIR may also be a name on the Hub, a LoRA adapter or a GGUF file. Without experts it is plain
fine-tuning, which makes an expert. The losses, the batches and the learning rate's schedule are the
ground floor's functions; --batch counts the samples of all processes together, so the result does
not depend on their number. Defaults are the paper's: one pass, a learning rate of 1e-5. W starts
at 0 and learns at its own rate, --lr_w.

Writes the directory OUT/seedN/NAME, with log.jsonl in it. Killed and started again, it goes on from
the last saved step, with the same result.
"""

from dataclasses import dataclass

import peft
import torch
from tqdm import tqdm

from extra.real import runs
from extra.real.data import Data, from_answer, samples
from extra.real.loading import adapter_config, load, longest, same
from extra.real.modeling import FusionRoute
from extra.tokenizers import real as other
from fusionroute import sft_loss, token_logp
from toy_experts import script
from toy_experts.data import batches
from toy_experts.script import UserError


@dataclass
class Settings(runs.Settings):
    init: str = ""  # DIR: the model that the router starts from; in the paper, the instruct expert
    lora_r: int = 0  # rank of a LoRA adapter that is trained instead of all weights; 0: none
    name: str = "router_sft"  # what is written: the directory OUT/seedN/NAME

    def __post_init__(self):
        super().__post_init__()
        script.positive(self, "lora_r", or_zero=True)
        if not self.init or not self.data:
            raise UserError("--init DIR and --data FILE are needed")


def phase1_loss(s, out, targets, mask, logp, choice, with_experts=sft_loss):
    """Eq. (2). Without experts, what is left of it: L_LM. with_experts: another loss."""
    if s.experts:
        return with_experts(out.logits, out.w, targets, mask, logp, choice, s.lam)
    loss = -token_logp(out.logits, targets)[mask].sum() / mask.sum()
    return loss, {"loss_lm": loss}


def train(run, model, sft, loss_fn=sft_loss):
    """Train a FusionRoute in place on sft (Data). run: a runs.Run, which then has the log."""
    s = run.s
    seeds = [s.seed * 1000 + epoch for epoch in range(s.epochs)]
    plan = [rows for seed in seeds for rows in batches(sft.lengths, s.batch, seed)]
    model = run.begin(model, len(plan))
    for rows in tqdm(plan[len(run.log) :], "phase 1", disable=not run.main, mininterval=1.0):
        x, mask, logp, choice = sft.batch(run.share(rows), run.device)  # (B, T), (B, T-1), (.., n)
        t = from_answer(mask)  # (t,): logits of the prompts are not needed
        out = model(x[:, :-1], logits_to_keep=t)  # logits (B, t, V), w (B, t, n)
        targets, mask, logp, choice = (part[:, t] for part in (x[:, 1:], mask, logp, choice))
        loss, terms = phase1_loss(s, out, targets, mask, logp, choice, loss_fn)
        run.update(loss, terms, mask.sum(), "sft")


def first_model(s):
    """The model that the router starts from; with --lora_r, frozen under a new adapter."""
    frozen = s.lora_r or adapter_config(s.init)
    lm = load(same(s.init), s.ignore, dtype=getattr(torch, s.dtype) if frozen else torch.float32)
    if s.lora_r and hasattr(lm, "peft_config"):
        raise UserError(f"--init {s.init} is an adapter; leave out --lora_r to train it further")
    if s.lora_r:
        how = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        lm = peft.get_peft_model(lm, peft.LoraConfig(r=s.lora_r, lora_alpha=2 * s.lora_r, **how))
    return lm


def main(argv=None, loss_fn=sft_loss):
    s = script.settings(Settings, __doc__, argv)
    run = runs.Run(s, init=s.init)
    with run.alone():
        if run.is_there():
            return
        start = {"train": True, "ignore": s.ignore, "fuse": s.fuse}
        model = FusionRoute.start(first_model(s), s.experts, **start)
        size, max_len = model.config.n_tokens, min(s.max_len, longest(model.router))
        sft = samples(s.data, ("completion",), model.tokenizer, size, max_len, s.ignore)
        if s.fuse == "tokens":
            sft = Data(sft, run.scores([*run.jobs(sft, size)]))
        else:
            sft = other.scores(run, sft, model.tokenizer)
        train(run, model, sft, loss_fn)
        run.save()


if __name__ == "__main__":
    runs.run(main)
