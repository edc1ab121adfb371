"""python -m exercises train: both trainings with the reader's functions in place of ours."""

from copy import deepcopy
from dataclasses import dataclass
from random import Random

import torch
from tqdm import tqdm

import fusionroute
import train_cdpo
import train_sft
from toy_experts import batch, evaluate, script, tasks, tokenizer
from toy_experts import pairs as toy_pairs
from toy_experts import train as toy
from toy_experts.data import Data, scored


@dataclass
class Settings:
    seed: int = 0          # selects the run whose experts are used
    out: str = "out"       # runs are kept in OUT/seedN/; without one, toy_experts/weights is used
    samples: int = 2400    # SFT samples of phase 1
    prompts: int = 2000    # prompts from which the pairs of phase 2 are made
    tests: int = 40        # test prompts of each benchmark at the end

    def __post_init__(self):
        script.positive(self, "samples", "prompts", "tests")


def losses(mine):
    """The reader's functions in the form that train_sft.train and train_cdpo.train take.

    What is printed besides the loss is computed by ours; it has no part in the gradient.
    """
    def loss(logits, w, targets, mask, logp, choice, lam):
        six = logits, w, targets, mask, logp, choice
        with torch.no_grad():
            terms = fusionroute.sft_loss(*six, lam)[1]
        return mine.sft_loss(*six, lam), terms

    def pair_loss(logits, w, targets, mask, logp, ref, beta):
        theta = mine.sequence_logp(logits, targets, mask).view(-1, 2)             # (B, 2)
        expert = mine.routed_logp(w, logp, mask).view(-1, 2)                      # (B, 2)
        six = *theta.unbind(1), *ref.unbind(1), *expert.unbind(1)
        with torch.no_grad():
            terms = fusionroute.cdpo_loss(*six, beta)[1]
        return mine.cdpo_loss(*six, beta), terms

    return loss, pair_loss


def accuracies(answer, s, name):
    """The shares of right answers on s.tests test prompts of each benchmark, and their average.

    answer: items -> their answers as texts.
    """
    shares = []
    for b in tqdm(tasks.BENCHMARKS, desc=name):
        items = tasks.dataset(b, "test", s.tests, Random(f"test {b} {s.seed}"))
        shares.append(sum(map(judge.check, items, answer(items))) / s.tests)
    return shares + [sum(shares) / len(shares)]


@torch.no_grad()
def reference(router, both, mine):
    """log pi_ref of each answer, by the reader's sequence_logp. both: Data of N answers -> (N,)."""
    out = torch.zeros(len(both.lengths))                                          # (N,)
    for rows in torch.arange(len(out)).split(64):
        x, mask, _, _ = both.batch(rows, "cpu")                                   # (b, T), (b, T-1)
        out[rows] = mine.sequence_logp(router.lm(x[:, :-1])[0], x[:, 1:], mask)   # (b,)
    return out


def phases(s, mine, experts):
    """Both trainings, as in train_sft.main and train_cdpo.main, with the reader's losses.

    Returns the router after phase 1 and the router after phase 2.
    """
    torch.manual_seed(s.seed)
    torch.set_flush_denormal(True)                       # as in script.prepare
    loss, pair_loss = losses(mine)
    first, second = train_sft.Settings(s.seed), train_cdpo.Settings(s.seed)
    items = tasks.mixed("train", s.samples, Random(f"sft {s.seed}"))
    sft = scored([toy.sample(item) for item in items], experts)
    instruct = experts[toy.EXPERTS.index("instruct")]
    router = fusionroute.Router(deepcopy(instruct), len(experts)).requires_grad_(True)
    train_sft.train(first, router, sft, loss=loss)
    router_sft = deepcopy(router).requires_grad_(False)

    found = toy_pairs.sample(router_sft, experts, s.seed, s.prompts)
    print(f"{len(found)} pairs from {s.prompts} prompts")
    both = scored(toy_pairs.samples(found), experts)     # chosen, rejected, chosen, ...
    ref = reference(router_sft, both, mine).view(-1, 2)                           # (pairs, 2)
    pairs = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
    plan = train_cdpo.make_plan(second, sft.lengths, pairs.lengths)
    train_cdpo.train(second, router, sft, pairs, ref, plan, pair_loss=pair_loss, loss=loss)
    return router_sft, router.requires_grad_(False)


def train(s, mine):
    """Train both phases with the functions that you wrote in steps 1 to 6. Your loop of step 7 then
    answers test prompts. Nothing is saved. It takes two to five minutes.
    """
    folder, flags = script.run_dir(s), script.flags(s)
    if not flags and not (folder / "router.pt").exists():
        folder = script.WEIGHTS
    theirs, experts, _ = toy.load_router(folder, "router", "cpu", f"run bash run.sh{flags}")
    print(f"the experts are those in {folder}")
    router_sft, router = phases(s, mine, experts)

    def yours(model):
        def answer(item):
            ids = tokenizer.encode_prompt(item.prompt)
            answer, _ = mine.fused_greedy(model, experts, ids, tokenizer.END, batch.MAX_NEW)
            return tokenizer.encoding.decode(answer)
        return lambda items: list(map(answer, items))

    def ours(items):
        return [trace.text() for trace in batch.answers(theirs, experts, items)]

    short = [b.removeprefix("toy-") for b in tasks.BENCHMARKS]
    rows = [["right answers, per cent", *short, "average"]]
    for name, answer in [("yours, phase 1", yours(router_sft)), ("yours, phase 2", yours(router)),
                         ("ours, phase 2", ours)]:
        rows.append([name, *map(evaluate.percent, accuracies(answer, s, name))])
    print("\n".join(["", *evaluate.table(rows), "", f"{s.tests} test prompts of each benchmark"]))
