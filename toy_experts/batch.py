"""The decoder for many prompts at once, and what a training shows of what it learned.

decode.py is the same loop for one prompt: read that first. A test holds the two equal.
"""

from dataclasses import dataclass, field
from random import Random

import torch
import torch.nn.functional as F

from fusionroute import fuse, informative
from model import Uniform, sample
from toy_experts import tasks, tokenizer
from toy_experts.train import EXPERTS

MAX_NEW = 96  # longest answer, in tokens
# Every method is a limit of one decoder: what each leaves out of Eq. (1).
METHODS = {
    "fusionroute": {},                        # router and picked expert, Eq. (1)
    "sft_only": {},                           # the same with the router as phase 1 left it
    "routing_only": {"use_router": False},    # the picked expert without the router's logits
    "router": {"use_expert": False},          # the router's language model alone
    "math": {"use_router": False, "only": 0},       # one expert alone
    "code": {"use_router": False, "only": 1},
    "instruct": {"use_router": False, "only": 2},
}


@dataclass
class Trace:
    """One answer: lists with one entry per token; the last is the end token, if it came."""
    tokens: list = field(default_factory=list)         # token ids
    pick: list = field(default_factory=list)           # the expert that was picked
    weights: list = field(default_factory=list)        # softmax(w), n numbers
    expert_choice: list = field(default_factory=list)  # what the picked expert would have written

    def answer(self):
        """The token ids without the end token."""
        return [t for t in self.tokens if t != tokenizer.END]

    def text(self):
        return tokenizer.encoding.decode(self.answer())


def read_on(model, cache, rows, text, have):
    """Let `model` read what it has not read yet of some rows: the prompt, or the tokens it missed.

    cache: of all B rows; rows (b,): those that read now; text (B, T) token ids; have (B,): how many
    of them count. Returns the outputs after each row's last token: logits (b, V), second (b, ...).
    """
    view = cache if len(rows) == len(have) else cache.select(rows)
    missed = have[rows] - view.length                                         # (b,), at least 1
    offset = torch.arange(int(missed.max()), device=rows.device)              # (t,)
    index = view.length[:, None] + torch.minimum(offset, missed[:, None] - 1)  # (b, t)
    new = missed if len(have) > 1 else None
    logits, second = model(text[rows[:, None], index], view, new)             # (b, t, V), (b, t, .)
    if view is not cache:
        cache.length[rows] = view.length
    return logits[:, -1], second[:, -1]


@torch.no_grad()
def decode_batch(router, experts, prompts, max_new=MAX_NEW, use_router=True, use_expert=True,
                 only=None, temperature=0.0, seed=0):
    """decode.py's loop for many prompts at once (lists of token ids). Returns one Trace a prompt.

    use_router, use_expert, only: see METHODS. Temperature 0 is greedy; otherwise row b draws from a
    random stream seeded seed + b. A row's tokens do not depend on the other rows.
    """
    device, B = router.W.weight.device, len(prompts)
    have = torch.tensor([len(p) for p in prompts], device=device)             # (B,)
    text = torch.zeros(B, int(have.max()) + max_new, dtype=torch.long, device=device)  # (B, T)
    for b, p in enumerate(prompts):
        text[b, :len(p)] = torch.tensor(p)
    room = min(text.size(1), router.lm.config.max_len)
    router_cache, *caches = [m.new_cache(B, room) for m in (router.lm, *experts)]
    uniform, traces = Uniform(B, seed), [Trace() for _ in prompts]
    rows = torch.arange(B, device=device)            # (b,): the answers that have not ended

    for _ in range(max_new):
        if use_router or only is None:
            router_logits, w = read_on(router, router_cache, rows, text, have)    # (b, V), (b, n)
        if only is None:
            weights, pick = w.softmax(-1), w.argmax(-1)                       # (b, n), (b,): I*
        else:
            pick = torch.full_like(rows, only)                                # (b,)
            weights = F.one_hot(pick, len(experts)).float()                   # (b, n)
        if use_expert:
            expert_logits = torch.empty(len(rows), router.lm.config.vocab_size, device=device,
                                        dtype=router.W.weight.dtype)          # (b, V)
            for i in pick.unique().tolist():         # an expert that nobody picked does not run
                mine = (pick == i).nonzero()[:, 0]                            # (m,)
                expert_logits[mine] = read_on(experts[i], caches[i], rows[mine], text, have)[0]
        own = expert_logits if use_expert else router_logits                  # (b, V)
        fused = fuse(router_logits, expert_logits) if use_router and use_expert else own  # Eq. (1)
        u = uniform(rows.tolist(), device) if temperature else None
        token = sample(fused, temperature, u=u)                               # (b,)

        columns = [x.tolist() for x in (token, pick, weights, own.argmax(-1))]
        for b, *values in zip(rows.tolist(), *columns):
            for name, value in zip(("tokens", "pick", "weights", "expert_choice"), values):
                getattr(traces[b], name).append(value)
        alive = token != tokenizer.END                                        # (b,)
        rows = rows[alive]
        if not len(rows):
            break
        text[rows, have[rows]] = token[alive]
        have[rows] += 1
    return traces


def answers(router, experts, items, size=128, **how):
    """The Trace of each item's greedy answer, in the items' order. how: as in METHODS."""
    traces = [None] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))     # less padding
    for start in range(0, len(order), size):
        rows = order[start:start + size]
        prompts = [tokenizer.encode_prompt(items[i].prompt) for i in rows]
        for i, trace in zip(rows, decode_batch(router, experts, prompts, **how)):
            traces[i] = trace
    return traces


# --- what a training shows, before and after ----------------------------------------------------


def validation_item(seed):
    """One validation prompt: a sub-skill that no expert was trained on."""
    skill = tasks.held_out("toy-gsm8k", 0.25, seed)[0]
    return tasks.draw("toy-gsm8k", "validation", Random(f"show {seed}"), [skill])


def show_answer(when, router, experts, item):
    """Print a model's answer to one item, and whether it is right."""
    trace, = answers(router, experts, [item])
    verdict = "right" if tasks.check(item, trace.text()) else "wrong"
    print(f"{when}: {trace.text()!r} ({verdict})")


def expect_losses(batch):
    """Print what both terms of Eq. (2) must be at step 1, from the experts' scores alone.

    batch: of Data.batch. The router is a copy of the instruction expert, so L_LM is that expert's.
    W = 0 gives every expert the weight 1/n, so log pi_agg is the mean of their log-probabilities.
    """
    _, mask, logp, choice = batch                                     # (B, T-1), (B, T-1, n) twice
    lm = -logp[..., EXPERTS.index("instruct")][mask].sum() / mask.sum()
    expert = -logp.mean(-1)[mask & informative(choice)].sum() / mask.sum()
    print(f"expect at step 1: loss_lm {lm:.3f}, the instruction expert's, as the router is a copy "
          f"of it; loss_expert {expert:.3f}, the mean of all experts' in S, as W = 0 weights them "
          "alike")


def accuracy(router, experts, seed, n=20):
    """The share of right answers to n validation prompts of each benchmark, {benchmark: share}."""
    out = {}
    for b in tasks.BENCHMARKS:
        items = tasks.dataset(b, "validation", n, Random(f"validation {b} {seed}"))
        texts = [t.text() for t in answers(router, experts, items)]
        out[b] = sum(map(tasks.check, items, texts)) / n
    return out


def show_accuracy(router, experts, seed, n=20):
    """Print `accuracy`."""
    shares = accuracy(router, experts, seed, n)
    print(f"right on {n} validation prompts each: "
          + ", ".join(f"{b} {x:.0%}" for b, x in shares.items()))
