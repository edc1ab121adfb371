"""Speed beside what one would take instead: TRL's SFTTrainer and DPOTrainer, and transformers' generate. A real model, on this machine.

    pip install -r requirements-real.txt -r requirements-trl.txt
    python -m extra.real.beside --model smollm2      ten minutes on an idle core: extra/results/beside.json and docs/speed.md

--model is the directory that convert_smollm2.py writes. Both sides have the same weights in float32, the same token ids, padding and
batches in the same order, the same AdamW (torch's fused one), learning rates, clipping and one thread, and neither computes activations
twice (gradient checkpointing). They take turns: trainings after each step, decoders after each prompt. Seconds are of CPU time.

The times would mean nothing if the two did not compute the same. So the losses of all steps are compared first, and all answers. Our DPO
step is the CDPO step of train_cdpo.py with experts that give every token a log-probability of 0: the bias of Eq. (3) is 0, and the loss
is that of DPO. A step lasts from the end of one update to the end of the next: batch, both passes, update, and what is logged.
"""

import importlib
import json
import os
import platform
import tempfile
import threading
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from extra.common import RESULTS, cached, fill, table
from extra.gpt import Router
from extra.real import pretrained, train_cdpo, train_sft
from extra.real.costs import parameters
from extra.real.decode import decode_batch
from extra.real.pretrained_tokenizer import Tokenizer
from extra.real.scores import rows_a_pass
from extra.speed.bench import guessed, rates
from extra.speed.block import BLOCK, Lookup, block_decode
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
CLOSE = 1e-4  # how far two losses may be apart, relative to their size
clock = time.process_time  # with one thread what an idle machine takes, and other work on the machine does not count
NEVER = ()    # the end tokens of an answer: none, so that all answers have the same length
LOOKUP = 10   # tokens of a guess at most that transformers takes from the prompt, as in its documentation


@dataclass
class Settings:
    model: str = "smollm2"  # DIR: a Llama in the format of Hugging Face, for both sides
    out: str = "own"        # where parts are kept until all is measured, and a result with other settings or another model
    steps: int = 4          # training steps of each kind that count, after one that does not
    batch: int = 4          # answers a training step: SFT samples, or twice as many as pairs
    prompts: int = 4        # to answer
    new: int = 32           # tokens of an answer
    rounds: int = 1         # of all answers, after one that does not count

    def __post_init__(self):
        run.positive(self, "steps", "batch", "prompts", "new", "rounds")
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
    """SFT samples and pairs for all steps, as token ids: [(prompt, answer)], [(prompt, chosen, rejected)]. Another prompt's answer is
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
    """"sft" and "dpo" -> name -> function that trains a copy and returns the loss of each step."""
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


def in_turns(runs):
    """Trainings (name -> function), which take turns after each update; returns what each returned, and the seconds of all its steps but
    the first. A busy moment of the machine then falls on all of them alike."""
    names, seconds, begun, results = list(runs), {name: [] for name in runs}, {}, {}
    batons, ring = {name: threading.Semaphore(0) for name in runs}, list(runs)
    after = lambda name: batons[ring[(ring.index(name) + 1) % len(ring)]]

    def wait(name):
        batons[name].acquire()
        begun[name] = clock()

    def updated(*_):
        name = threading.current_thread().name
        seconds[name].append(clock() - begun[name])
        after(name).release()
        wait(name)

    def whole(name):
        wait(name)
        try:
            results[name] = runs[name]()
        except BaseException as e:  # raised below, when nobody waits any more
            results[name] = e
        baton = after(name)
        ring.remove(name)
        baton.release()

    hook, threads = register_optimizer_step_post_hook(updated), [threading.Thread(target=whole, args=(name,), name=name) for name in names]
    for thread in threads:
        thread.start()
    batons[names[0]].release()
    for thread in threads:
        thread.join()
    hook.remove()
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return results, {name: x[1:] for name, x in seconds.items()}


def agree(losses):
    """How far the losses of the trainings (name -> list) are apart at most, relative to their size. UserError if they are not the same."""
    first, *others = losses.values()
    apart = max(abs(a - b) / abs(a) for other in others for a, b in zip(first, other, strict=True))
    if apart > CLOSE:
        raise UserError(f"the two sides do not compute the same, and their times cannot be compared: losses {losses}")
    return apart


def training_section(s, lm, hf, tokenizer):
    with tempfile.TemporaryDirectory() as scratch:
        return trained(s, lm, *trainings(s, lm, hf, tokenizer, scratch))


def trained(s, lm, kinds, plain, both):
    """Of `trainings`: seconds of their steps, TRL's over each, and how far their losses are apart; and what a batch's scores cost."""
    out = {}
    for kind, runs in kinds.items():
        (losses, seconds), data = in_turns(runs), both if kind == "dpo" else plain
        out[kind] = {"seconds": {name: spread(x) for name, x in seconds.items()}, "losses_apart": agree(losses),
                     "losses": losses[next(iter(runs))], "trl_over": {name: over(seconds["TRL"], x) for name, x in seconds.items()},
                     "tokens": int(data.lengths.sum()) // (s.steps + 1), "loss_tokens": int(data.mask.sum()) // (s.steps + 1)}
        print(f"{kind}: " + ", ".join(f"{name} {median(x):.2f} s" for name, x in seconds.items()))
    times, ids, lengths = [], plain.ids, plain.lengths
    for _ in range(2):
        begun = clock()
        score([lm], ids, lengths, rows_a_pass(lm.config.vocab_size, ids.size(1)))
        times.append((clock() - begun) / (s.steps + 1))
    step = out["sft"]["seconds"]["phase 1"]["median"]
    return out | {"scoring": {"seconds": spread(times), "over_step": spread([x / step for x in times])}}


# --- decoding ---------------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def with_guesses(lm, prompt, new):
    """One model alone, with block decoding's guesses from the prompt; returns its tokens and its passes."""
    tokens, passes = guessed(Router(lm, 1), prompt, Lookup([prompt]), BLOCK, NEVER, new)
    return tokens, {"model": passes}


def decoders(s, lm, hf):
    """name -> function of a prompt (token ids): its answer (token ids) and the passes that it took, {model, draft}.

    The router, the experts and the assistant all have the same weights, so each says what the one model says, and every draft is right.
    """
    router, experts, assistant, count = Router(lm, 3).requires_grad_(False), [lm] * 3, deepcopy(hf), {}
    for name, model in (("model", hf), ("draft", assistant)):
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0  # no end token: as NEVER
        model.register_forward_hook(lambda *_, name=name: count.update({name: count.get(name, 0) + 1}))

    def fused(prompt, *how):
        t = block_decode(router, experts, prompt, NEVER, s.new, *how)
        return t.tokens, {"model": t.expert_passes, "draft": t.router_passes}

    def hf_generate(prompt, **how):
        count.clear()
        ids = torch.tensor([prompt])
        text = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=s.new, do_sample=False, **how)[0]
        return text[len(prompt):].tolist(), dict(count)

    alone = {"use_router": False, "only": 0}
    return {"generate": hf_generate,
            "generate, prompt lookup": lambda p: hf_generate(p, prompt_lookup_num_tokens=LOOKUP),
            "generate, assistant": lambda p: hf_generate(p, assistant_model=assistant),
            "ours": lambda p: (generate(Fast(lm), [p], s.new, -1)[0], {"model": s.new}),
            "ours, decode.py --method NAME": lambda p: (decode_batch(router, experts, [p], NEVER, s.new, **alone)[0].tokens, {"model": s.new}),
            "ours, guesses from the prompt": lambda p: with_guesses(lm, p, s.new),
            "ours, fused, token by token": lambda p: fused(p, 1),
            "ours, fused, blocks without guesses": lambda p: fused(p, BLOCK),
            "ours, fused, blocks": lambda p: fused(p, BLOCK, Lookup([p]))}


def decode_section(s, lm, hf, tokenizer):
    prompts = [tokenizer.encode_prompt(i.prompt) for i in tasks.mixed("test", s.prompts, Random("beside"), tasks.BENCHMARKS)]
    runs, passes, right = decoders(s, lm, hf), {}, None
    for name, answer in runs.items():  # this warms up, too
        found = [answer(p) for p in prompts]
        right = right or [tokens for tokens, _ in found]
        if [tokens for tokens, _ in found] != right:
            raise UserError(f"{name} says something else than transformers' generate, and their times cannot be compared")
        passes[name] = {k: round(sum(x.get(k, 0) for _, x in found) / (s.new * len(prompts)), 4) for k in ("model", "draft")}
    print("all answers are equal")
    speed = rates({name: lambda p, answer=answer: len(answer(p)[0]) for name, answer in runs.items()}, [[(p,)] for p in prompts] * s.rounds,
                  clock)
    return {"prompt_tokens": [len(p) for p in prompts], "methods": {
        name: {"tokens_per_second": spread(x), "over_generate": over(x, speed["generate"]), "passes": passes[name]} for name, x in speed.items()}}


# --- the command and the page -----------------------------------------------------------------------------------------------------------

ROWS = {"plain SFT": "sft", "phase 1": "sft", "TRL's SFTTrainer": "sft", "CDPO": "dpo", "TRL's DPOTrainer": "dpo",
        "TRL's DPOTrainer, reference in each step": "dpo"}


def block(r):
    """What beside.json says, as Markdown."""
    m, t, d = r["meta"], r["training"], r["decode"]
    steps = [["a training step", "answers", "tokens", "of answers", "seconds", "TRL over it"]]
    for name, kind in ROWS.items():
        key, x = name.replace("'s SFTTrainer", "").replace("'s DPOTrainer", ""), t[kind]
        steps.append([name, f"{m['settings']['batch']}", f"{x['tokens']}", f"{x['loss_tokens']}", ratio(x["seconds"][key]),
                      ratio(x["trl_over"][key])])
    rows = [["an answer", "passes a token", "tokens/s", "over generate"]]
    for name, x in d["methods"].items():
        passes = " + ".join(f"{p:.2f}" for p in (x["passes"]["draft"], x["passes"]["model"]) if p)
        rows.append([name, passes, ratio(x["tokens_per_second"]), ratio(x["over_generate"])])
    score = t["scoring"]
    return "\n\n".join([
        f"{m['model']}, float32, {m['machine']}, 1 thread, torch {m['torch']}, TRL {m['trl']}, transformers {m['transformers']} "
        f"(attention: {m['attention']}). Median (lowest to highest): of {m['settings']['steps']} training steps, "
        f"and of all answers. Ratios are of steps on the same batch, and of answers to the same prompt. Seconds of CPU time.",
        "\n".join(table(steps)),
        f"The losses of all steps differ by {max(t[k]['losses_apart'] for k in ('sft', 'dpo')):.0e} of their size at most. Scores come before "
        f"phase 1, once: {ratio(score['seconds'])} seconds for an expert and a batch, so {3 * score['over_step']['median']:.2f} of a step "
        "for three experts.",
        f"{m['settings']['prompts']} prompts of {min(d['prompt_tokens'])} to {max(d['prompt_tokens'])} tokens, one at a time; "
        f"{m['settings']['new']} tokens each, the same from all:",
        "\n".join(table(rows))])


def main(argv=None):
    s = run.settings(Settings, __doc__, argv)
    transformers, trl = [needed(name) for name in ("transformers", "trl", "datasets", "accelerate")][:2]
    if not Path(s.model).is_dir():
        raise UserError(f"there is no directory {s.model} (--model); python -m extra.real.convert_smollm2 makes one")
    torch.set_num_threads(1)
    tokenizer, place, settings = Tokenizer(s.model), Path(s.out), {k: v for k, v in asdict(s).items() if k not in ("model", "out")}
    lm = pretrained.load(s.model).eval().requires_grad_(False)
    hf = transformers.AutoModelForCausalLM.from_pretrained(s.model, dtype=torch.float32).eval()
    size, smol = sum(p.numel() for p in lm.parameters()), parameters("SmolLM2-135M")
    meta = {"model": "SmolLM2-135M-Instruct" if size == smol else f"{size} parameters", "settings": settings,
            "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "trl": trl.__version__,
            "attention": hf.config._attn_implementation, "python": platform.python_version(), "machine": f"{os.cpu_count()} CPU cores"}
    sections, result = {"training": training_section, "decode": decode_section}, {"meta": meta}
    place.mkdir(parents=True, exist_ok=True)
    for name, section in sections.items():  # an interrupted run goes on with the second
        result[name] = cached(place / f"beside-{name}.json", meta, lambda: section(s, lm, hf, tokenizer))
    print(block(result))
    published = size == smol and settings == {k: getattr(Settings, k) for k in settings}
    path = RESULT if published else place / "beside.json"
    write(path, json.dumps(result, indent=1) + "\n")
    if published:
        write(PAGE, fill(PAGE.read_text(), {"beside": block(result)}, COMMAND))
    for name in sections:
        (place / f"beside-{name}.json").unlink()
    print(f"saved {path}" + " and docs/speed.md" * published)


if __name__ == "__main__":
    run.run(main)
