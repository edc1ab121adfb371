"""Both trainings with the reader's functions in place of ours. Started by python -m exercises train."""

from copy import deepcopy
from dataclasses import dataclass
from random import Random

import torch
from tqdm import tqdm

import fusionroute
import train_cdpo
import train_sft
from toy_experts.run import WEIGHTS
from toy_experts import batch, evaluate, run, tasks, tokenizer
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
        run.positive(self, "samples", "prompts", "tests")


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
    """The share of right answers to s.tests test prompts of each benchmark. answer: prompt ids -> ids."""
    out = []
    bar = tqdm(total=len(tasks.BENCHMARKS) * s.tests, desc=name, mininterval=1.0)
    for b in tasks.BENCHMARKS:
        items = tasks.dataset(b, "test", s.tests, Random(f"test {b} {s.seed}"))
        right = 0
        for item in items:
            text = tokenizer.encoding.decode(answer(tokenizer.encode_prompt(item.prompt)))
            right += tasks.check(item, text)
            bar.update()
        out.append(right / s.tests)
    bar.close()
    return out + [sum(out) / len(out)]


def train(s, mine):
    """Train phase 1 and phase 2 with the functions that you wrote in steps 1 to 6, and let your loop of
    step 7 answer test prompts. Nothing is saved. It takes a minute or two.
    """
    folder, device = run.run_dir(s), torch.device("cpu")
    if not folder.exists() and (s.seed, s.out) == (0, "out") and WEIGHTS.exists():
        folder = WEIGHTS
    hint = f"run bash run.sh{run.flags(s)}"
    theirs, experts, _ = toy.load_router(folder, "router", device, hint)
    print(f"the experts are those in {folder}")
    torch.manual_seed(s.seed)
    torch.set_flush_denormal(True)                      # as in run.prepare
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
    both = scored(toy_pairs.samples(found), experts)    # chosen, rejected, chosen, ...
    ref = reference(router_sft, both, mine).view(-1, 2)                           # (pairs, 2)
    pairs = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
    plan = train_cdpo.make_plan(second, sft.lengths, pairs.lengths)
    train_cdpo.train(second, router, sft, pairs, ref, plan, pair_loss=pair_loss, loss=loss)
    router.requires_grad_(False)

    def loop(decode, model):
        return lambda ids: decode(model, experts, ids, tokenizer.END, batch.MAX_NEW)[0]

    def ours(model, experts, ids, end, max_new):
        return [batch.decode_batch(model, experts, [ids], max_new)[0].answer()]

    rows = [["right answers, per cent", *(b.removeprefix("toy-") for b in tasks.BENCHMARKS), "average"]]
    for name, decode, model in [("yours, phase 1", mine.fused_greedy, router_sft),
                                ("yours, phase 2", mine.fused_greedy, router),
                                ("ours, phase 2", ours, theirs)]:
        rows.append([name, *map(evaluate.percent, accuracies(loop(decode, model), s, name))])
    print("\n".join(["", *evaluate.table(rows), "", f"{s.tests} test prompts of each benchmark"]))


@torch.no_grad()
def reference(model, both, mine):
    """log pi_ref of each answer, with the reader's sequence_logp. both: Data of N rows -> (N,)."""
    out = torch.zeros(len(both.lengths))                                          # (N,)
    for rows in torch.arange(len(out)).split(64):
        x, mask, _, _ = both.batch(rows, "cpu")                                   # (b, T), (b, T-1)
        out[rows] = mine.sequence_logp(model.lm(x[:, :-1])[0], x[:, 1:], mask)
    return out
