"""Speed beside what one would take instead: transformers' generate, and TRL's trainers.

    pip install -r requirements-real.txt -r requirements-trl.txt
    python -m extra.real.speed        after the run of smollm2.py; writes extra/results/speed.json

Both sides take turns on the same prompts and batches, with one thread, so a busy moment of the
machine falls on both. Seconds are CPU time. Every ratio is of two neighbours; its median and range
are kept. The times would mean nothing if the two sides did not compute the same: all fused answers
must be equal, and all losses.

Decoding: the trained router of the laptop run, and as the limit three experts and a router with the
same weights, where every draft is right. One model writes as many tokens as the fused one wrote.
Training: both sides start from the same weights, with the same batches in the same order, AdamW,
learning rates and clipping. Our CDPO step has experts that give every token a log-probability of 0:
its bias is 0, so its loss is that of DPO. The first step of each training does not count.
"""

import json
import tempfile
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch.optim.optimizer import register_optimizer_step_post_hook

from extra.real import data, runs, train_cdpo, train_sft
from extra.real.loading import load, load_tokenizer
from extra.real.modeling import FusionRoute
from extra.real.smollm2 import made_with
from toy_experts import script, tasks
from toy_experts.data import batches, schedule

try:
    import trl
except ImportError:
    trl = None

RESULT = Path(__file__).parents[1] / "results" / "speed.json"
CLOSE = 1e-3  # how far two losses may be apart, relative to their size
N = 3  # experts


@dataclass
class Settings:
    model: str = "smollm2"  # DIR: what everything starts from
    router: str = "smol/seed0/router"  # DIR: what phase 2 of the laptop run left
    prompts: int = 6  # to answer
    rounds: int = 2  # of each training
    steps: int = 4  # of a training that count
    batch: int = 4  # answers a step: samples, or twice as many as pairs
    new: int = 48  # longest answer, in tokens

    def __post_init__(self):
        script.positive(self, "prompts", "rounds", "steps", "batch", "new")
        if trl is None:
            raise script.UserError("there is no trl: pip install -r requirements-trl.txt")


def spread(values):
    return {k: round(f(values), 4) for k, f in (("median", median), ("low", min), ("high", max))}


# --- decoding ------------------------------------------------------------------------------------


def count_passes(model, name, passes):
    """Add 1 to passes[name] whenever the model reads."""

    def read(*_):
        passes[name] = passes.get(name, 0) + 1

    return model.register_forward_hook(read)


@torch.no_grad()
def decoding(s, fused):
    """{way of answering: tokens a second, their ratio to one model's, passes a token}."""
    lm, encoder = deepcopy(fused.router), data.Encoder(fused.tokenizer)
    lm.generation_config.eos_token_id = None  # one model writes until it is told to stop
    draft = deepcopy(fused.router)
    ways = {
        "one model": lambda x, n: lm.generate(x, max_new_tokens=n),
        "fused": lambda x, n: fused.generate(x, max_new_tokens=s.new),
        "fused, the router drafts": lambda x, n: fused.generate(
            x, max_new_tokens=s.new, assistant_model=fused.router
        ),
        "fused, transformers' own drafts": lambda x, n: fused.generate(
            x, max_new_tokens=s.new, assistant_model=draft
        ),
    }
    passes, seconds, tokens = {}, {way: [] for way in ways}, []
    counted = [(fused.router, "router"), (draft, "router"), *((e, "expert") for e in fused.experts)]
    hooks = [count_passes(m, name, passes) for m, name in counted]
    total = {way: {"router": 0, "expert": 0} for way in ways}
    for item in tasks.mixed("test", s.prompts, Random("speed"), tasks.BENCHMARKS):
        prompt = encoder.prompt([{"role": "user", "content": item.prompt}])
        x = torch.tensor([prompt])  # (1, T)
        right = fused.generate(x, max_new_tokens=s.new)  # (1, T + n)
        tokens.append(right.size(1) - x.size(1))
        for way, answer in ways.items():
            passes.clear()
            begun = time.process_time()
            out = answer(x, tokens[-1])
            seconds[way].append(time.process_time() - begun)
            if way != "one model" and out.tolist() != right.tolist():
                raise script.UserError(f"{way} writes another answer to: {item.prompt}")
            for who, k in passes.items():
                total[way][who] += k
    for hook in hooks:
        hook.remove()
    one = seconds["one model"]
    return {
        "tokens": spread(tokens),
        "ways": {
            way: {
                "tokens_a_second": spread([n / t for n, t in zip(tokens, times)]),
                "over_one_model": spread([a / b for a, b in zip(one, times)]),
                "passes": {k: round(v / sum(tokens), 3) for k, v in total[way].items()},
            }
            for way, times in seconds.items()
        },
    }


# --- training ------------------------------------------------------------------------------------


def write_samples(s, folder):
    """Enough problems of the toy for all steps: FILE of samples, FILE of pairs."""
    n = s.batch * (s.steps + 1)
    items = tasks.mixed("train", 2 * n, Random("speed"), tasks.BENCHMARKS)
    sft = [{"prompt": i.prompt, "completion": i.answer} for i in items[:n]]
    pairs = [  # the answer to another prompt is the rejected one
        {"prompt": i.prompt, "chosen": i.answer, "rejected": j.answer}
        for i, j in zip(items[n::2], items[n + 1 :: 2])
    ]
    for name, rows in (("sft", sft), ("pairs", pairs)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        script.write(Path(folder) / name, text)
        yield str(Path(folder) / name)


def silent(samples):
    """Scores of an expert that gives every token a log-probability of 0."""
    lengths = [len(ids) - 1 for ids in samples["ids"]]
    columns = {"logp": np.float32, "choice": np.int32}
    return Dataset.from_dict({c: [np.zeros(n, t) for n in lengths] for c, t in columns.items()})


def split(samples):
    """[(prompt, answer)] as token ids."""
    rows = zip(samples["ids"], samples["learn"])
    return [(ids[: learn.index(True)], ids[learn.index(True) :]) for ids, learn in rows]


def trainings(s, folder):
    """{kind: {name: function that trains a fresh copy and returns its losses}}."""
    sft_file, pair_file = write_samples(s, folder)
    experts = [f"e{i}={s.model}" for i in range(N)]
    how = {"experts": experts, "data": sft_file, "out": folder, "device": "cpu"}
    one = train_sft.Settings(init=s.model, batch=s.batch, **how)
    two = train_cdpo.Settings(pairs=pair_file, batch=s.batch // 2, mix=0, **how)
    lm, tokenizer = load(s.model, dtype=torch.float32), load_tokenizer(s.model)
    size = len(tokenizer)
    sft = data.samples(sft_file, ("completion",), tokenizer, size, one.max_len)
    pairs = data.samples(pair_file, ("chosen", "rejected"), tokenizer, size, one.max_len)

    def scores(samples):
        logits = lambda ids: lm(ids).logits[..., :size]  # (b, T, V)
        return data.scores(
            samples, lambda: logits, [], s.model, Path(folder), Path(folder) / "half.arrow"
        )

    begun = time.process_time()
    with_scores = data.Data(sft, [scores(sft)] * N)
    scoring = (time.process_time() - begun) / (s.steps + 1)
    ref = data.reference(pairs, scores(pairs))
    both = data.Data(pairs, [silent(pairs)] * N, answers=2)

    def ours(module, settings, *samples):
        model = FusionRoute.start(deepcopy(lm), settings.experts, train=True)
        run = runs.Run(settings)
        module.train(run, model, *samples)
        return [record.get("loss_lm", record["loss"]) for record in run.log]

    def theirs(trainer, config, rows, batch, lr, **more):
        class Ready(trainer):  # the rows are token ids already
            def _prepare_dataset(self, dataset, *_, **__):
                return dataset

        model = deepcopy(lm).requires_grad_(True).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        rates = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule(step, s.steps + 1, warmup=20)
        )
        options = config(
            output_dir=folder,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            bf16=False,
            gradient_checkpointing=False,
            max_grad_norm=1.0,
            max_length=None,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **more,
        )
        done = Ready(
            model,
            args=options,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            optimizers=(optimizer, rates),
        )
        done.remove_callback(transformers.PrinterCallback)
        done.train()
        return [record["loss"] for record in done.state.log_history if "loss" in record]

    order = torch.cat(batches(with_scores.lengths, s.batch, 0)).tolist()
    answers = [split(sft)[i] for i in order]
    labelled = [{"input_ids": p + a, "labels": [-100] * len(p) + a} for p, a in answers]
    plan = train_cdpo.make_plan(two, with_scores.lengths, both.lengths, two.batch, two.mix)
    answers = split(pairs)
    preferred = [
        {
            "prompt_ids": answers[2 * i][0],
            "chosen_ids": answers[2 * i][1],
            "rejected_ids": answers[2 * i + 1][1],
        }
        for _, rows in plan
        for i in rows.tolist()
    ]
    dpo = {"beta": two.beta, "precompute_ref_log_probs": True}
    return scoring, {
        "sft": {
            "ours": lambda: ours(train_sft, one, with_scores),
            "TRL": lambda: theirs(trl.SFTTrainer, trl.SFTConfig, labelled, s.batch, one.lr),
        },
        "dpo": {
            "ours": lambda: ours(train_cdpo, two, with_scores, both, ref),
            "TRL": lambda: theirs(
                trl.DPOTrainer, trl.DPOConfig, preferred, s.batch // 2, two.lr, **dpo
            ),
        },
    }


def training(s):
    """{kind: seconds of a step, TRL's over ours, how far the losses are apart}."""
    ends, out = [], {}
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(time.process_time()))
    with tempfile.TemporaryDirectory() as folder:
        scoring, kinds = trainings(s, folder)
        for kind, sides in kinds.items():
            seconds, apart = {name: [] for name in sides}, 0.0
            for _ in range(s.rounds):
                losses = {}
                for name, train in sides.items():
                    ends.clear()
                    losses[name] = train()
                    seconds[name] += [b - a for a, b in zip(ends, ends[1:])]
                pairs = list(zip(losses["ours"], losses["TRL"], strict=True))
                apart = max([apart, *(abs(a - b) / abs(b) for a, b in pairs)])
            if apart > CLOSE:
                raise script.UserError(f"the two sides do not compute the same: losses {losses}")
            ratios = [b / a for a, b in zip(seconds["ours"], seconds["TRL"])]
            out[kind] = {
                "seconds": {name: spread(x) for name, x in seconds.items()},
                "trl_over_ours": spread(ratios),
                "losses_apart": float(f"{apart:.1e}"),
            }
            print(kind, out[kind])
    hook.remove()
    step = out["sft"]["seconds"]["ours"]["median"]
    return out | {"scoring": {"seconds": round(scoring, 3), "of_a_step": round(scoring / step, 3)}}


def main(argv=None):
    s, found = script.settings(Settings, __doc__, argv), {}
    torch.set_num_threads(1)
    fused = FusionRoute.from_pretrained(s.router, dtype=torch.float32)
    found["trained"] = decoding(s, fused)
    same = {f"e{i}": s.model for i in range(N)}
    found["same weights"] = decoding(s, FusionRoute.start(s.model, same, dtype=torch.float32))
    print(json.dumps(found, indent=1))
    result = {"decoding": found, "training": training(s), "settings": asdict(s)}
    result["made_with"] = made_with() | {"trl": trl.__version__}
    script.write(RESULT, json.dumps(result, indent=1) + "\n")
    print(f"saved {RESULT}")


if __name__ == "__main__":
    runs.run(main)
