"""Trains the toy's frozen models: one base model, and three experts (math, code, instruct) that are
fine-tuned from it, as the paper's experts are fine-tuned from one base.

    python -m toy_experts.experts

The base sees exercises in arithmetic and copying, some whole questions with answers (most of them
mathematical), and many halves: a prompt alone, or an answer alone, so that it has met every word of
the vocabulary. An expert sees questions and answers of its own domain, and a little of the base's
data, so that it still speaks the others' language.

The sub-skills in tasks.held_out are in no question-answer document of any of these models. This is
the coverage gap: only the router's data closes it. (Prompts alone and answers alone of these
sub-skills are among the base's halves.) Writes base.pt, math.pt, code.pt and instruct.pt
into OUT/seedN.
"""

import multiprocessing
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from tqdm import tqdm

from fusionroute import token_logp
from model import GPT, GPTConfig
from toy_experts import script, tasks, tokenizer
from toy_experts.data import answer_only, batches, pack, schedule
from toy_experts.script import EXPERTS

STEPS = {"base": 3400, "math": 2000, "code": 600, "instruct": 2000}
LR = {"base": 2e-3, "math": 1.5e-3, "code": 1.5e-3, "instruct": 1.5e-3}
BATCH = 16  # documents a step
REPLAY = 0.15  # share of the base's kind of document in an expert's data


@dataclass
class Settings:
    seed: int = 0  # selects the run: all random numbers follow from it
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "auto"  # auto, cuda, mps or cpu
    gap: float = 0.25  # share of each benchmark's sub-skills that no expert learns, 0 to 0.75


# --- documents -----------------------------------------------------------------------------------

# The base's documents: exercises, whole questions with answers, and for the rest halves.
DRILLS = 0.35
WHOLE = {
    "toy-gsm8k": 0.06,
    "toy-math500": 0.12,
    "toy-mbpp": 0.02,
    "toy-humaneval": 0.02,
    "toy-ifeval": 0.14,
}
EQUALS = tokenizer.encoding.encode_single_token(" = ")
STOP = tokenizer.encoding.encode_single_token(".")


def covered(s, bench):
    """The sub-skills of a benchmark that experts may learn."""
    held_out = tasks.held_out(bench, s.gap, s.seed)
    return [skill for skill in tasks.SKILLS[bench] if skill not in held_out]


def fact(rng):
    """One fact of arithmetic, of the size that the problems need."""
    op, a, b = rng.choice(["+", "-", "*", "/", "//"]), rng.randint(2, 40), rng.randint(2, 15)
    if op == "-":
        a = b + rng.randint(0, 2 * a)
    if op == "//":
        a, b = rng.randint(10, 45), rng.randint(3, 9)
    if op in ("*", "/"):
        b = rng.randint(2, 9)
        a = rng.randint(2, 9 if b > 4 else 20)
    if op == "/":
        a = a * b
    results = {"+": a + b, "-": a - b, "*": a * b, "/": a // b, "//": a // b}
    return f"{a} {op} {b} = {results[op]}."


def drill(rng):
    """Facts of which only the results are learned, or a list of words to be said a second time."""
    encode = tokenizer.encoding.encode_ordinary
    if rng.random() < 0.4:
        words = rng.sample(tasks.WORDS, rng.randint(3, 8))
        first, again = (encode(rng.choice(["", " "]) + " ".join(words) + ".") for _ in range(2))
        return answer_only(first, again)
    ids, learn = encode(" ".join(fact(rng) for _ in range(6))), []
    for i in range(len(ids)):  # True from behind " = " to the ".", which counts too
        learn.append(i > 0 and (ids[i - 1] == EQUALS or learn[-1] and ids[i - 1] != STOP))
    return ids, learn


def sample_of(item):
    """A question with its answer; only the answer is learned."""
    return answer_only(tokenizer.encode_prompt(item.prompt), tokenizer.encode_answer(item.answer))


def sft_samples(n, seed):
    """Phase 1's samples for the router: n of the benchmarks and general prompts in equal shares."""
    return [sample_of(item) for item in tasks.mixed("train", n, Random(f"sft {seed}"))]


def base_document(s, rng):
    if rng.random() < DRILLS:
        return drill(rng)
    x = rng.random()
    for bench, share in WHOLE.items():
        x -= share
        if x < 0:
            return sample_of(tasks.draw(bench, "train", rng, covered(s, bench)))
    item = tasks.draw(rng.choice(tasks.BENCHMARKS + ["general"]), "train", rng)  # one half of it
    prompt = tokenizer.encode_prompt(item.prompt)
    answer = [tokenizer.ASSISTANT] + tokenizer.encode_answer(item.answer)
    return answer_only([], prompt if rng.random() < 0.5 else answer)  # all its tokens count


def expert_document(s, rng, domain):
    if rng.random() < REPLAY:
        return base_document(s, rng)
    bench = rng.choice(tasks.DOMAINS[domain])
    return sample_of(tasks.draw(bench, "train", rng, covered(s, bench)))


def documents(s, name):
    """The training documents of the model `name`, samples (ids, learn); `train` repeats them."""
    rng, n = Random(f"{name} {s.seed}"), STEPS[name] * BATCH
    if name == "base":
        return [base_document(s, rng) for _ in range(min(n, 40_000))]
    return [expert_document(s, rng, name) for _ in range(min(n, 20_000))]


# --- training ------------------------------------------------------------------------------------


def new_gpt():
    return GPT(GPTConfig(vocab_size=tokenizer.VOCAB_SIZE))


def train(model, samples, seed, steps, lr, name, shown=True):
    """Ordinary language-model training, in place. lr: the peak learning rate. shown: its bar."""
    ids, mask, lengths = pack(samples)
    device = model.embed.weight.device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, steps, warmup=30)
    )
    plan = []
    while len(plan) < steps:
        plan += batches(lengths, BATCH, seed + len(plan))
    bar = tqdm(plan[:steps], desc=name, mininterval=1.0, disable=not shown)
    for step, rows in enumerate(bar):
        x = ids[rows, : int(lengths[rows].max())].to(device)  # (B, T)
        learn = mask[rows, 1 : x.size(1)].to(device)  # (B, T-1)
        logits, _ = model(x[:, :-1])  # (B, T-1, V)
        loss = -token_logp(logits, x[:, 1:])[learn].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 50 == 49:
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)


def copy_shipped(folder, recipe):
    """Copy the experts of toy_experts/weights into a run's folder. UserError if it has others."""
    for path in [script.WEIGHTS / f"{name}.pt" for name in EXPERTS]:
        theirs = script.load(path, ["recipe"], "get the repository again")["recipe"]
        if theirs != recipe:
            flags = " ".join(f"--{k} {v}" for k, v in theirs.items())
            raise script.UserError(f"--experts shipped: these were trained with {flags}")
        own = folder / path.name
        if own.exists() and own.read_bytes() != path.read_bytes():
            raise script.UserError(f"--experts shipped: {own} is another expert; use another --out")
        script.write(own, lambda f: f.write(path.read_bytes()))


def make(s, name, model, shown=True):
    """Train the base, or an expert from a copy of the base, and save it."""
    begun = time.time()
    folder, device = script.prepare(s)
    seed = s.seed * 1000 + ["base", *EXPERTS].index(name)
    model = model.to(device).requires_grad_(True)
    train(model, documents(s, name), seed, STEPS[name], LR[name], name, shown)
    recipe = {"seed": s.seed, "gap": s.gap}
    script.save_model(folder / f"{name}.pt", model, recipe, time.time() - begun)


def make_expert(s, name, build, shown):
    """Train one expert from the base's checkpoint, in a process of its own."""
    torch.set_num_threads(1)  # whatever the others have: three at once need a core each
    base, _ = script.load_model(script.run_dir(s) / "base.pt", "start again", build=build)
    with redirect_stdout(None):  # another expert's bar may stand on the terminal
        make(s, name, base, shown)


def side_by_side(jobs):
    """make_expert(*job) for all jobs at once, each in a process of its own with one thread."""
    spawn = multiprocessing.get_context("spawn")  # the one way that works everywhere
    processes = [
        spawn.Process(target=script.run, args=(partial(make_expert, *job),)) for job in jobs
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise script.UserError("an expert's training has ended early; run this command again")


def ensure(s, new_gpt=new_gpt, build=script.gpt_of, shipped=False):
    """Train what is missing of base and experts. Returns the experts, frozen, in EXPERTS' order.

    s: settings with seed, out, device and gap. What is there already must have been trained with
    this seed and gap. new_gpt and build make an untrained model, and one for a checkpoint's config.
    shipped: take the experts that are missing from toy_experts/weights, which has no base.
    """
    if not 0 <= s.gap <= 0.75:
        raise script.UserError(f"--gap is {s.gap}, and must be from 0 to 0.75")
    folder, device = script.prepare(s)
    recipe = {"seed": s.seed, "gap": s.gap}
    if shipped:
        copy_shipped(folder, recipe)

    def load(name):
        path = folder / f"{name}.pt"
        model, content = script.load_model(path, "run this command again", device, build=build)
        script.check_same(path, content["recipe"], recipe, remove=f"the folder {folder}")
        return model

    is_there = lambda name: (folder / f"{name}.pt").exists()
    there = {name: load(name) for name in ["base", *EXPERTS] if is_there(name)}
    missing = [name for name in EXPERTS if name not in there]
    if missing and "base" not in there:
        print(f"there is no {folder / 'base.pt'} yet: training it")
        make(s, "base", new_gpt())
    if missing:
        print(f"training {', '.join(missing)} side by side; the bar is that of {missing[0]}")
        side_by_side([(s, name, build, name == missing[0]) for name in missing])
        print(*(f"saved {folder / name}.pt" for name in missing), sep="\n")
    return [there.get(name) or load(name) for name in EXPERTS]


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    ensure(s)
    print(f"experts ready in {script.run_dir(s)}")


if __name__ == "__main__":
    script.run(main)
