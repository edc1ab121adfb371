"""python -m exercises train: both trainings with the reader's functions in place of ours."""

from copy import deepcopy
from dataclasses import dataclass
from random import Random

import torch
from tqdm import tqdm

import fusionroute
import train_cdpo
import train_sft
from decode import MAX_NEW
from toy_experts import decode_batch, judge, script, tasks, tokenizer
from toy_experts import pairs as preference
from toy_experts.data import scored
from toy_experts.experts import sft_samples
from toy_experts.script import EXPERTS


@dataclass
class Settings:
    seed: int = 0  # selects the run whose experts are used
    out: str = "out"  # runs are kept in OUT/seedN/; without one, toy_experts/weights is used
    samples: int = 2400  # SFT samples of phase 1
    prompts: int = 2000  # prompts from which the pairs of phase 2 are made
    tests: int = 40  # test prompts of each benchmark at the end

    def __post_init__(self):
        script.positive(self, "samples", "prompts", "tests")


def losses(mine):
    """The reader's functions in the form that train_sft.train and train_cdpo.train take.

    What is printed besides the loss is computed by ours; it has no part in the gradient.
    """

    def loss(logits, w, targets, mask, logp, choice, lam):
        inputs = logits, w, targets, mask, logp, choice, lam
        with torch.no_grad():
            terms = fusionroute.sft_loss(*inputs)[1]
        return mine.sft_loss(*inputs), terms

    def pair_loss(logits, w, targets, mask, logp, ref, beta):
        theta = mine.sequence_logp(logits, targets, mask).view(-1, 2)  # (B, 2)
        expert = mine.routed_logp(w, logp, mask).view(-1, 2)  # (B, 2)
        six = *theta.unbind(1), *ref.unbind(1), *expert.unbind(1)
        with torch.no_grad():
            terms = fusionroute.cdpo_loss(*six, beta)[1]
        return mine.cdpo_loss(*six, beta), terms

    return loss, pair_loss


def phases(s, mine, experts):
    """Both trainings, as in train_sft.main and train_cdpo.main, with the reader's losses.

    Returns the router after phase 1 and the router after phase 2.
    """
    torch.manual_seed(s.seed)
    torch.set_flush_denormal(True)  # as in script.prepare
    loss, pair_loss = losses(mine)
    sft = scored(sft_samples(s.samples, s.seed), experts)
    instruct = experts[EXPERTS.index("instruct")]
    router = fusionroute.Router(deepcopy(instruct), len(experts)).requires_grad_(True)
    train_sft.train(train_sft.Settings(s.seed), router, sft, loss_fn=loss)
    router_sft = deepcopy(router).requires_grad_(False)

    found = preference.make_pairs(router_sft, experts, s.seed, s.prompts)
    print(f"{len(found)} pairs from {s.prompts} prompts")
    pairs, ref = train_cdpo.scored_pairs(found, experts, router_sft.lm)
    cdpo = train_cdpo.Settings(s.seed)
    plan = train_cdpo.make_plan(cdpo, sft.lengths, pairs.lengths)
    train_cdpo.train(cdpo, router, sft, pairs, ref, plan, pair_loss, loss)
    return router_sft, router.requires_grad_(False)


def accuracies(answer, s, name):
    """The shares of right answers on s.tests test prompts of each benchmark, and their average.

    answer: items -> their answers as texts.
    """
    shares = []
    for b in tqdm(tasks.BENCHMARKS, desc=name):
        items = tasks.dataset(b, "test", s.tests, Random(f"test {b} {s.seed}"))
        shares.append(sum(map(judge.check, items, answer(items))) / s.tests)
    return shares + [sum(shares) / len(shares)]


def train(s, mine):
    """Train both phases with the functions that you wrote in steps 1 to 6. Your loop of step 7 then
    answers test prompts. Nothing is saved. It takes two to five minutes.
    """
    folder, flags = script.run_dir(s), script.flags(s)
    if not flags and not (folder / "router.pt").exists():
        folder = script.WEIGHTS
    theirs, experts, _ = script.load_router(folder, "router", "cpu", f"run bash run.sh{flags}")
    print(f"the experts are those in {folder}")
    router_sft, router = phases(s, mine, experts)

    def yours(model):
        def answer(item):
            prompt = tokenizer.encode_prompt(item.prompt)
            ids, _ = mine.fused_greedy(model, experts, prompt, tokenizer.END, MAX_NEW)
            return tokenizer.encoding.decode(ids)

        return lambda items: list(map(answer, items))

    def ours(items):
        return [trace.text() for trace in decode_batch.answers(theirs, experts, items)]

    short = [b.removeprefix("toy-") for b in tasks.BENCHMARKS]
    lines = [f"{'right answers, per cent':25}" + "".join(f"{b:>11}" for b in [*short, "average"])]
    for name, answer in [
        ("yours, phase 1", yours(router_sft)),
        ("yours, phase 2", yours(router)),
        ("ours, phase 2", ours),
    ]:
        shares = accuracies(answer, s, name)
        lines.append(f"{name:25}" + "".join(f"{share:11.0%}" for share in shares))
    print("\n".join(["", *lines, "", f"{s.tests} test prompts of each benchmark"]))
