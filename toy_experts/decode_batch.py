"""The decoder for many prompts at once.

decode.py is the same loop for one prompt: read that first. A test holds the two equal.
"""

from dataclasses import dataclass, field

import torch

from decode import MAX_NEW
from fusionroute import fuse
from model import sample
from toy_experts import tokenizer

PADDING = 128  # tokens read in vain in one pass; more than these cost more than a second pass


@dataclass
class Trace:
    """One answer: lists with one entry per token; the last is the end token, if it came."""

    tokens: list = field(default_factory=list)  # token ids
    pick: list = field(default_factory=list)  # the expert that was picked
    expert_choice: list = field(default_factory=list)  # see decode.Step

    def answer(self):
        """The token ids without the end token."""
        return [t for t in self.tokens if t != tokenizer.END]

    def text(self):
        return tokenizer.encoding.decode(self.answer())


def read_on(model, cache, rows, text, have):
    """Let `model` read what it has not read yet of some rows: the prompt, or the tokens it missed.

    cache: of all B rows; rows (b,): those that read now; text (B, T) token ids; have (B,): how many
    of them count. Returns what the model gives after each row's last token: logits (b, V), and w
    (b, n) of a router or the hidden states (b, d) of an expert.

    Rows miss different numbers of tokens. A row that misses fewer reads its last one several times,
    in the same place, which changes nothing. If that is too much padding, the rows that missed
    more than half of the most are read apart.
    """
    missed = have[rows] - cache.length[rows]  # (b,)
    most = int(missed.max())
    late = missed > most // 2  # (b,)
    if len(rows) * most - int(missed.sum()) > PADDING and not late.all():
        said = [read_on(model, cache, rows[part], text, have) for part in (late, ~late)]
        order = torch.cat([late.nonzero(), (~late).nonzero()])[:, 0].argsort()  # (b,)
        return tuple(torch.cat(x)[order] for x in zip(*said))
    part = cache if len(rows) == len(have) else cache.select(rows)
    offset = torch.arange(most, device=rows.device)  # (t,)
    pos = torch.minimum(cache.length[rows, None] + offset, have[rows, None] - 1)  # (b, t)
    logits, w_or_hidden = model(text[rows[:, None], pos], part, pos)  # (b, t, V), (b, t, ...)
    return logits[:, -1], w_or_hidden[:, -1]


class Uniform:
    """A stream of random numbers for each row, seeded seed, seed + 1, ...

    So a row draws the same numbers alone as in a batch.
    """

    def __init__(self, n_rows, seed):
        self.streams = [torch.Generator().manual_seed(seed + b) for b in range(n_rows)]

    def __call__(self, rows, device):
        return torch.stack([torch.rand((), generator=self.streams[b]) for b in rows]).to(device)


@torch.inference_mode()
def decode_batch(
    router,
    experts,
    prompts,
    max_new=MAX_NEW,
    use_router=True,
    use_expert=True,
    only=None,
    temperature=0.0,
    top_p=1.0,
    seed=0,
):
    """decode.py's loop for many prompts at once (lists of token ids). Returns one Trace a prompt.

    use_router, use_expert, only: see decode.METHODS. Temperature 0 is greedy; otherwise row b draws
    from a random stream seeded seed + b. A row's tokens do not depend on the other rows.
    """
    device, B = router.W.weight.device, len(prompts)
    have = torch.tensor([len(p) for p in prompts], device=device)  # (B,)
    text = torch.zeros(B, int(have.max()) + max_new, dtype=torch.long, device=device)  # (B, T)
    for b, p in enumerate(prompts):
        text[b, : len(p)] = torch.tensor(p)
    room = min(text.size(1), router.lm.config.max_len)
    router_cache, *caches = [m.new_cache(B, room) for m in (router.lm, *experts)]
    uniform, traces = Uniform(B, seed), [Trace() for _ in prompts]
    rows = torch.arange(B, device=device)  # (b,): the answers that have not ended

    for _ in range(max_new):
        if use_router or only is None:
            router_logits, w = read_on(router, router_cache, rows, text, have)  # (b, V), (b, n)
        pick = w.argmax(-1) if only is None else torch.full_like(rows, only)  # (b,): I*
        if use_expert:
            size = len(rows), router.lm.config.vocab_size
            expert_logits = torch.empty(size, device=device, dtype=router.W.weight.dtype)  # (b, V)
            for i in pick.unique().tolist():  # an expert that nobody picked does not run
                mine = (pick == i).nonzero()[:, 0]  # (m,)
                expert_logits[mine], _ = read_on(experts[i], caches[i], rows[mine], text, have)
        own = expert_logits if use_expert else router_logits  # (b, V)
        fused = own  # (b, V)
        if use_router and use_expert:
            fused = fuse(router_logits, expert_logits)  # (b, V), Eq. (1)
        u = uniform(rows.tolist(), device) if temperature else None
        token = sample(fused, temperature, top_p, u)  # (b,)

        columns = [x.tolist() for x in (rows, token, pick, own.argmax(-1))]
        for b, t, i, choice in zip(*columns):
            traces[b].tokens.append(t)
            traces[b].pick.append(i)
            traces[b].expert_choice.append(choice)
        alive = token != tokenizer.END  # (b,)
        rows = rows[alive]
        if not len(rows):
            break
        text[rows, have[rows]] = token[alive]
        have[rows] += 1
    return traces


def in_batches(decoder, items, size=128):
    """What decoder(prompts as token ids) says of each item, in the items' order."""
    out = [None] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))  # less padding
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        said = decoder([tokenizer.encode_prompt(items[i].prompt) for i in rows])
        for i, answer in zip(rows, said):
            out[i] = answer
    return out


def answers(router, experts, items, size=128, **how):
    """The Trace of each item's greedy answer, in the items' order. how: see decode.METHODS."""
    return in_batches(lambda prompts: decode_batch(router, experts, prompts, **how), items, size)
