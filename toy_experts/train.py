"""Trains the toy world: one base model, then three experts fine-tuned from it (math, code, instruct), as the paper's experts are
fine-tunes of one base.

    python -m toy_experts.train --seed 0

The base sees drills in arithmetic and copying, a few whole question-answer documents, mostly mathematical, and unpaired halves (a prompt alone,
an answer alone), so that every word of the vocabulary has been met in context. An expert sees its own domain, and a little of the base's mix, so that it
still speaks the others' language. The sub-skills in `held_out` are in nobody's question-answer documents: that is the coverage
gap, and only the router's data closes it. Writes base.pt, math.pt, code.pt and instruct.pt into OUT/seedN/.
"""

import time
from copy import deepcopy
from dataclasses import dataclass
from random import Random

import torch
from tqdm import tqdm

import common
from fusionroute import token_logp
from model import GPT, GPTConfig
from toy_experts import tasks, tokenizer

EXPERTS = list(tasks.DOMAINS)  # the order of the routing weights, everywhere


@dataclass
class Settings:
    seed: int = 0              # selects the run: all data and weights follow from it
    out: str = "out"           # runs are kept in OUT/seedN/
    device: str = "auto"       # auto, cuda, mps or cpu
    family: str = "llama"      # architecture of all models: llama or gemma (Gemma-2)
    gap: float = 0.25          # share of each benchmark's sub-skills that no expert is trained on, 0 to 0.75
    d_model: int = 96          # width of base and experts
    n_layer: int = 3           # depth of base and experts
    base_steps: int = 3400     # training steps of the base
    math_steps: int = 2000     # training steps of the math expert
    code_steps: int = 600      # training steps of the code expert
    instruct_steps: int = 2000 # training steps of the instruction expert
    batch: int = 16            # documents a step
    base_lr: float = 2e-3      # peak learning rate of the base
    lr: float = 1.5e-3         # peak learning rate of the experts
    replay: float = 0.15       # share of the base's mix in an expert's data

    def __post_init__(self):
        common.positive(self, "base_steps", "math_steps", "code_steps", "instruct_steps", "batch", "base_lr", "lr")
        if not (0 <= self.gap <= 0.75 and 0 <= self.replay <= 1):
            raise common.UserError(f"--gap {self.gap} --replay {self.replay}: must be within [0, 0.75] and [0, 1]")
        if self.n_layer < 1 or self.d_model < 24 or self.d_model % 24:
            raise common.UserError(f"--d_model {self.d_model} --n_layer {self.n_layer}: width must be a multiple of 24, depth >= 1")


# The base's documents: drills in arithmetic and copying, a few whole question-answer documents, and for the rest unpaired halves.
DRILLS = 0.35
WHOLE = {"toy-gsm8k": 0.06, "toy-math500": 0.12, "toy-mbpp": 0.02, "toy-humaneval": 0.02, "toy-ifeval": 0.14}
EQUALS, STOP = tokenizer.encoding.encode_single_token(" = "), tokenizer.encoding.encode_single_token(".")


def covered(s, bench):
    """The sub-skills of a benchmark that experts may learn."""
    return [skill for skill in tasks.SKILLS[bench] if skill not in tasks.held_out(bench, s.gap, s.seed)]


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
    return f"{a} {op} {b} = { {'+': a + b, '-': a - b, '*': a * b, '/': a // b, '//': a // b}[op]}."


def drill(rng):
    """A line of facts in which only the results are learned, or a list of words said twice of which the second time is learned."""
    if rng.random() < 0.4:
        words = rng.sample(tasks.WORDS, rng.randint(3, 8))
        first, again = (tokenizer.encoding.encode_ordinary(rng.choice(["", " "]) + " ".join(words) + ".") for _ in range(2))
        return common.answer_only(first, again)
    ids, learn = tokenizer.encoding.encode_ordinary(" ".join(fact(rng) for _ in range(6))), []
    for i, t in enumerate(ids):
        learn.append(i > 0 and (ids[i - 1] == EQUALS or learn[-1] and ids[i - 1] != STOP))
    return ids, learn


def whole(rng, bench, skills):
    item = tasks.draw(bench, "train", rng, skills)
    return common.answer_only(tokenizer.encode_prompt(item.prompt), tokenizer.encode_answer(item.answer))


def base_document(s, rng):
    if rng.random() < DRILLS:
        return drill(rng)
    x = rng.random()
    for bench, share in WHOLE.items():
        x -= share
        if x < 0:
            return whole(rng, bench, covered(s, bench))
    item = tasks.draw(rng.choice(tasks.BENCHMARKS + ["general"]), "train", rng)  # a half: a prompt, or an answer to nothing
    prompt, answer = tokenizer.encode_prompt(item.prompt), [tokenizer.ASSISTANT] + tokenizer.encode_answer(item.answer)
    return common.answer_only([], prompt if rng.random() < 0.5 else answer)


def expert_document(s, rng, domain):
    if rng.random() < s.replay:
        return base_document(s, rng)
    bench = rng.choice(tasks.DOMAINS[domain])
    return whole(rng, bench, covered(s, bench))


# Gemma-2's own in the proportions of its checkpoints: heads wider than the width shares out, a window that most documents outgrow.
GEMMA = dict(gelu=True, post_norm=True, one_plus=True, embed_scaled=True, head_dim=32, query_scalar=24.0, attn_cap=50.0, logit_cap=30.0,
             window=32)


def new_gpt(s):
    heads = s.d_model // 24
    return GPT(GPTConfig(vocab_size=tokenizer.VOCAB_SIZE, d_model=s.d_model, n_layer=s.n_layer, n_head=heads,
                         n_kv_head=heads // 2 if heads % 2 == 0 else heads, d_ff=s.d_model * 8 // 3,
                         **(GEMMA if s.family == "gemma" else {})))


def train(name, model, documents, steps, batch, lr, seed):
    """Plain language-model training, in place; documents: (ids, learn) samples."""
    ids, mask, lengths = common.pack(documents)
    device = model.embed.weight.device
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "peak": lr}], betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    plan = []
    while len(plan) < steps:
        plan += common.batches(lengths, batch, seed + len(plan))
    seen, start = 0, time.time()
    bar = tqdm(range(steps), desc=name, mininterval=1.0)
    for step in bar:
        rows = plan[step]
        x = ids[rows, :int(lengths[rows].max())].to(device)                  # (B, T)
        m = mask[rows, 1:x.size(1)].to(device)                               # (B, T-1)
        logits, _ = model(x[:, :-1])                                         # (B, T-1, V)
        loss = -token_logp(logits, x[:, 1:])[m].mean()
        common.update(loss, model, optimizer, common.schedule(step, steps, warmup=30))
        seen += int(lengths[rows].sum())
        if step % 50 == 49:
            bar.set_postfix_str(f"loss {loss.item():.3f}, {seen / (time.time() - start):,.0f} tokens/s")
    return model


def ensure(s, only=None):
    """Train what is missing of base and experts; returns the experts, frozen, in the order of EXPERTS.

    What is there already must have been trained with the settings s, or with the fields of s named in `only`.
    """
    folder, device = common.prepare(s)
    asked = {k: v for k, v in common.recipe(s).items() if only is None or k in only}
    models = {}
    for i, name in enumerate(["base"] + EXPERTS):
        path = folder / f"{name}.pt"
        if not path.exists():
            rng, begun = Random(f"{name} {s.seed}"), time.time()
            print(f"there is no {path} yet: training it")
            if name == "base":
                torch.manual_seed(s.seed)
                model, steps, lr = new_gpt(s), s.base_steps, s.base_lr
                documents = [base_document(s, rng) for _ in range(min(steps * s.batch, 40_000))]
            else:
                model, steps, lr = deepcopy(models["base"]).requires_grad_(True), getattr(s, f"{name}_steps"), s.lr
                documents = [expert_document(s, rng, name) for _ in range(min(steps * s.batch, 20_000))]
            train(name, model.to(device), documents, steps, s.batch, lr, s.seed * 1000 + i)
            common.save_model(path, model, tokenizer.FINGERPRINT, common.recipe(s), time.time() - begun)
        models[name], content = common.load_model(path, tokenizer.FINGERPRINT, "start again", device)
        common.check_same(path, content["recipe"], asked, remove=f"the folder {folder}")  # all in it was made from these
    return [models[name] for name in EXPERTS]


def main(argv=None):
    s = common.settings(Settings, __doc__, argv)
    ensure(s)
    print(f"experts ready in {common.run_dir(s)}")


if __name__ == "__main__":
    common.run(main)
