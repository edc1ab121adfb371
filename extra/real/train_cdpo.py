"""Phase 2 with models and data of your own: Eq. (3) and Algorithm 1. Read train_sft.py here first.

    python -m extra.real.train_cdpo --data FILE --pairs FILE --out OUT

It trains the router of phase 1, OUT/seedN/PHASE1, which knows its experts; --experts only says
where they are now. A PHASE1 that was fine-tuned without experts is trained by plain DPO.
Defaults are the paper's: one pass over the pairs, a learning rate of 1e-5.
Departures from the paper are the ground floor's: whole batches are shuffled, --mix of them SFT
batches to one of pairs, and these SFT samples may be those of phase 1.
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from extra.real import runs
from extra.real.data import Data, from_answer, reference, samples
from extra.real.loading import adapter_config, load, longest
from extra.real.modeling import FusionRoute, FusionRouteConfig
from extra.real.train_sft import phase1_loss
from extra.tokenizers import real as other
from toy_experts import script
from toy_experts.script import UserError
from train_cdpo import make_plan, pair_loss


@dataclass
class Settings(runs.Settings):
    pairs: str = ""  # preference pairs: FILE, or what `datasets` knows by name
    beta: float = 0.1  # beta of Eq. (3)
    mix: int = 1  # SFT batches to one batch of pairs
    phase1: str = "router_sft"  # what is trained further: OUT/seedN/PHASE1
    name: str = "router"  # what is written: the directory OUT/seedN/NAME

    def __post_init__(self):
        super().__post_init__()
        script.positive(self, "beta")
        script.positive(self, "mix", or_zero=True)
        if not self.pairs or not self.data:
            raise UserError("--data FILE and --pairs FILE are needed")


def train(run, model, sft, pairs, ref):
    """Train a FusionRoute in place on sft and pairs (Data). ref: log pi_ref of them, (N, 2)."""
    s = run.s
    plan = make_plan(s, sft.lengths, pairs.lengths, s.batch, s.mix)
    model = run.begin(model, len(plan))
    for kind, rows in tqdm(plan[len(run.log) :], "phase 2", disable=not run.main, mininterval=1.0):
        rows = run.share(rows)
        data = pairs if kind == "pair" else sft
        x, mask, logp, choice = data.batch(rows, run.device)  # (B, T), (B, T-1), (B, T-1, n) twice
        t = from_answer(mask)  # (t,): logits of the prompts are not needed
        out = model(x[:, :-1], logits_to_keep=t)  # logits (B, t, V), w (B, t, n)
        targets, mask, logp, choice = (part[:, t] for part in (x[:, 1:], mask, logp, choice))
        if kind == "pair":  # moves theta_LM, never W: argmax has no gradient, W.grad is None
            this = ref[rows].to(run.device)  # (B, 2)
            none = torch.zeros(*mask.shape, 1, device=run.device)  # (2B, t, 1): makes Eq. (3) DPO
            w, logp = (out.w, logp) if s.experts else (none, none)
            loss, terms = pair_loss(out.logits, w, targets, mask, logp, this, s.beta)
            run.update(loss, terms, len(rows), kind)
        else:
            loss, terms = phase1_loss(s, out, targets, mask, logp, choice)
            run.update(loss, terms, mask.sum(), kind)


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    phase1 = script.run_dir(s) / s.phase1
    if not phase1.exists():
        raise UserError(f"there is no router {phase1}: python -m extra.real.train_sft makes it")
    plain = not (phase1 / "W.safetensors").exists()  # fine-tuned without experts
    config = FusionRouteConfig(experts=[]) if plain else FusionRouteConfig.from_pretrained(phase1)
    theirs = dict(config.experts)
    if s.fuse == "tokens":
        s.fuse = config.fuse  # as phase 1 was trained
    if not set(s.experts) <= set(theirs):
        raise UserError(f"{phase1} routes among {', '.join(theirs) or 'no experts'}")
    s.experts = theirs | s.experts
    s.ignore = list(dict.fromkeys([*(config.ignore or ()), *s.ignore]))
    run = runs.Run(s, phase1=phase1)
    with run.alone():
        if run.is_there():
            return
        frozen = adapter_config(phase1 if plain else phase1 / "router")
        how = {"dtype": getattr(torch, s.dtype) if frozen else torch.float32}
        if plain:
            model = FusionRoute.start(load(phase1, s.ignore, **how), {}, train=True)
        else:
            model = FusionRoute.from_pretrained(phase1, train=True, expert_paths=s.experts, **how)
        size, max_len = model.config.n_tokens, min(s.max_len, longest(model.router))
        read = (model.tokenizer, size, max_len, s.ignore)
        sft = samples(s.data, ("completion",), *read)
        pairs = samples(s.pairs, ("chosen", "rejected"), *read)
        if s.fuse != "tokens":
            sft = other.scores(run, sft, model.tokenizer)
            pairs = other.scores(run, pairs, model.tokenizer, answers=2)
            ref = other.reference(model.to(run.device).eval(), pairs)
            train(run, model.train(), sft, pairs, ref)
            return run.save()

        def pi_ref():  # the router as phase 1 left it, computing as it will in training
            model.eval().to(run.device)
            return run.acc.autocast()(lambda ids: model(ids.to(run.device)).logits)

        ref_job = pairs, pi_ref, [run.recipe["phase1"], s.dtype, s.bf16], "the reference"
        *scored, ref = run.scores([*run.jobs(sft, size), *run.jobs(pairs, size), ref_job])
        ref, n = reference(pairs, ref), len(s.experts)
        sft, pairs = Data(sft, scored[:n]), Data(pairs, scored[n:], answers=2)
        train(run, model.train(), sft, pairs, ref)
        run.save()


if __name__ == "__main__":
    runs.run(main)
