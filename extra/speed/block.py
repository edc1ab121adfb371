"""Block decoding: the tokens of Eq. (1), as decode.py writes them, in far fewer passes.

decode.py needs two passes a token: the router's, and that of the expert that it picks. Here the router writes a draft of up to 32 tokens
by itself, and each expert that it picks for one of them reads the whole draft in one pass. Eq. (1) then gives the right token at every
place of the draft at once. Most are those of the draft; the first that is not is taken instead, and the rest of the draft is dropped.
A wrong draft costs time and changes no token. This is speculative decoding (Leviathan et al. 2023, arXiv 2211.17192) with the router as
the draft model.

Read `block_decode` first, then `draft`. docs/speed.md has the costs and what was measured.

Shapes: t places of a draft, V vocabulary, n experts, g tokens of a guess.
"""

import functools
from dataclasses import dataclass, field
from random import Random

import torch

from extra.speed import fast
from fusionroute import fuse
from model import sample
from toy_experts import tasks, tokenizer

BLOCK = 32   # tokens of a draft at most
AHEAD = 8    # tokens of a guess at most
SURE = 0.65  # a draft ends after a token that the router finds less likely: what follows would often be drafted in vain


@dataclass
class Trace:
    """One answer. Lists have one entry per token; the last is the end token, if it came."""
    tokens: list = field(default_factory=list)         # token ids
    pick: list = field(default_factory=list)           # the expert that was picked
    weights: list = field(default_factory=list)        # softmax(w), n numbers
    expert_choice: list = field(default_factory=list)  # what the picked expert would have written by itself
    blocks: int = 0                                    # drafts,
    drafted: int = 0                                   # the tokens in them,
    router_passes: int = 0                             # passes of the router,
    expert_passes: int = 0                             # and passes of experts

    def answer(self, end):
        """The token ids without the end token."""
        return self.tokens[:-1] if ended(self.tokens, end) else self.tokens


@torch.inference_mode()
def block_decode(router, experts, prompt, end, max_new, block, lookup=None, temperature=0.0, seed=0):
    """Answer a prompt (token ids) with Eq. (1); returns its Trace. Tokens and picks are those of decode.py's loop.

    end: the token id that ends an answer, or several. block: tokens of a draft at most; with 1, this is decode.py's loop at two passes
    a token. lookup: guesses for the router (`draft`). Temperature 0 is greedy; else the answers follow the same distribution as
    decode.py's, with other random numbers: place t has its own three, so an answer does not depend on `block` or `lookup`.
    ValueError if the answer would become longer than the models can read.
    """
    text, trace, room = list(prompt), Trace(), min(len(prompt) + max_new, router.lm.config.max_len)
    router_cache, *caches = [model.new_cache(1, room) for model in (router.lm, *experts)]
    noise = torch.rand(max_new, 3, generator=torch.Generator().manual_seed(seed)).to(router.W.weight.device)

    while len(trace.tokens) < max_new and not ended(trace.tokens, end):
        # 1. The router drafts, and says which expert each place of the draft needs.
        u = noise[len(trace.tokens):]                                                 # (places left, 3)
        k = min(block, max_new - len(trace.tokens), max(1, room - len(text) + 1))     # no further than the models can read
        drafted, router_logits, w, passes = draft(router, router_cache, text, k, end, lookup, temperature, u)
        pick, said, choice = w.argmax(-1).tolist(), [None] * len(drafted), [None] * len(drafted)   # I* = argmax_i w_i

        for t, i in enumerate(pick):
            # 2. An expert that is needed for the first time reads the draft up to the last place that needs it, in one pass.
            if said[t] is None:
                mine = [s for s in range(t, len(pick)) if pick[s] == i]
                here = slice(t, mine[-1] + 1)
                logits, _ = read_block(experts[i], caches[i], text + drafted[:mine[-1]], mine[-1] + 1 - t)   # (places here, V)
                fused = fuse(router_logits[here], logits)                             # (places here, V), Eq. (1)
                right = accepted(drafted[here], router_logits[here], fused, temperature, u[here]).tolist()
                wanted = logits.argmax(-1).tolist()
                for s in mine:
                    said[s], choice[s] = right[s - t], wanted[s - t]
                trace.expert_passes += 1
            # 3. A token counts as long as all before it are those of the draft, because each was computed from these.
            if said[t] != drafted[t]:
                break

        n = t + 1                                                                     # the tokens that this block gives
        text += said[:n]
        for column, values in ((trace.tokens, said), (trace.pick, pick), (trace.weights, w.softmax(-1).tolist()),
                               (trace.expert_choice, choice)):
            column += values[:n]
        for cache in (router_cache, *caches):                                         # forget what was drafted wrong
            cache.length.clamp_(max=len(text) - 1)
        trace.blocks, trace.drafted, trace.router_passes = trace.blocks + 1, trace.drafted + len(drafted), trace.router_passes + passes
    return trace


def draft(router, cache, text, k, end, lookup=None, temperature=0.0, u=None):
    """The router goes on by itself, k tokens at most. Returns its tokens (t), logits (t, V) and w (t, n), and the passes they took.

    One pass gives one token, unless there is a guess: lookup(ids, k) says how a text may go on, in k tokens at most. The router reads
    the guess together with its own last token; it keeps the guessed tokens that it would have written itself, and the token that it
    writes after them. So a wrong guess, like none, gives that one token.
    """
    tokens, parts, passes = [], [], 0
    while True:
        guess = lookup(text + tokens, k - len(tokens) - 1) if lookup else []
        logits, w = read_block(router, cache, text + tokens + guess, len(guess) + 1)  # (g+1, V), (g+1, n)
        sure, own = logits.softmax(-1).max(-1)                                        # (g+1,) twice
        if temperature:
            own = sample(logits, temperature, u=u[len(tokens):, 0][:len(own)])        # (g+1,)
        sure, own, n = sure.tolist(), own.tolist(), 0
        while n < len(guess) and guess[n] == own[n] and not ended([own[n]], end) and sure[n] >= SURE:
            n += 1
        tokens, passes = tokens + own[:n + 1], passes + 1
        parts.append((logits[:n + 1], w[:n + 1]))
        cache.length.fill_(len(text) + len(tokens) - 1)                               # forget what was guessed wrong
        if len(tokens) == k or ended(tokens, end) or sure[n] < SURE:
            return tokens, *map(torch.cat, zip(*parts)), passes


def accepted(drafted, draft_logits, logits, temperature=0.0, u=None):
    """The tokens that should be there instead of the t drafted ones. draft_logits, logits (t, V); u (t, 3). Returns (t,).

    Greedy: the argmax of the logits. Otherwise the rule of speculative sampling (arXiv 2211.17192, theorem 3.5): tokens drawn from q
    become tokens distributed as p, and most of them stay. q and p are the softmax of draft_logits and logits over the temperature. A
    drafted token d stays with probability min(1, p(d) / q(d)); otherwise it is replaced by one drawn from max(0, p - q), normalised.
    So a share 1 - sum_d max(0, p(d) - q(d)) stays, the most that any rule can keep. u: random numbers; `draft` used the first column.
    """
    if temperature == 0:
        return logits.argmax(-1)                                                      # (t,)
    d = torch.tensor(drafted, device=u.device)[:, None]                               # (t, 1)
    q, p = ((x / temperature).softmax(-1) for x in (draft_logits, logits))            # (t, V) twice
    keep = u[:, 1:2] * q.gather(1, d) < p.gather(1, d)                                # (t, 1)
    rest = (p - q).clamp(min=0)                                                       # (t, V)
    rest = torch.where(rest.any(-1, keepdim=True), rest, p)                           # p = q: every token stays, rest is not used
    return torch.where(keep[:, 0], d[:, 0], sample(rest.log(), 1.0, u=u[:, 2]))       # (t,)


def read_block(model, cache, text, n):
    """Let a model read the tokens of `text` (a list) that its cache does not have yet, n of them or more.

    Returns its outputs after each of the last n: logits (n, V), and w (n, experts) or hidden states (n, d).
    """
    new = torch.tensor([text[int(cache.length):]], device=cache.length.device)        # (1, t)
    logits, second = fast.read(model, new, cache)                                     # (1, t, V), (1, t, ...)
    return wide(logits[0, -n:]), second[0, -n:]


def wide(x):
    """x, in float32 if it has 16 bits: log-probabilities of a large vocabulary would be rounded to ties there."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def ended(tokens, end):
    """Is the last of some token ids `end` (an id), or one of `end` (several ids, for models that have more than one)?

    >>> ended([7, 3], 3), ended([7, 3], (2, 3)), ended([3, 7], 3), ended([], 3)
    (True, True, False, False)
    """
    return tokens[-1:] == [end] if isinstance(end, int) else any(t in end for t in tokens[-1:])


# --- guesses --------------------------------------------------------------------------------------------------------------------------


class Lookup:
    """Guesses how a text goes on: as known texts last did after the same tokens. texts: lists of token ids.

    The longest match counts, of the `lengths` that are tried. A guess is no longer than its match, because short matches are often
    wrong, and no longer than `ahead`.

    >>> guess = Lookup([[5, 6, 7, 8], [1, 6, 9]], lengths=(2, 1))
    >>> guess([2, 5, 6], 3), guess([2, 6], 3), guess([4], 3)
    ([7, 8], [9], [])
    """

    def __init__(self, texts, lengths=(12, 8, 5, 3, 2), ahead=AHEAD):
        self.text, self.lengths, self.ahead = "".join(chr(token) for ids in texts for token in ids), lengths, ahead  # str: fast keys
        self.after = {self.text[t - n:t]: t for n in lengths for t in range(n, len(self.text))}

    def __call__(self, ids, k):
        """At most k tokens that may follow ids, a list."""
        end = "".join(map(chr, ids[-self.lengths[0]:]))
        for n in self.lengths:
            if n <= len(end) and (t := self.after.get(end[-n:])):
                return [ord(c) for c in self.text[t:t + min(k, n, self.ahead)]]
        return []


@functools.cache
def known_texts(ahead=AHEAD):
    """The toy's Lookup: 9600 answers of its train split, each with the end of its prompt."""
    items = tasks.mixed("train", 9600, Random("lookup"))
    return Lookup([tokenizer.encode_prompt(i.prompt)[-12:] + tokenizer.encode_answer(i.answer) for i in items], ahead=ahead)
