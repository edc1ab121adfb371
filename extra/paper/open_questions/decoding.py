"""(c) Decoding that is not greedy: do added logits still help?

    python -m extra.paper.open_questions.decoding --seeds 2 3

Varied: the temperature, the nucleus (top-p), and beam search. Held fixed: the models of the run, after both phases. Lines: FusionRoute,
the picked expert alone, the router's language model alone, and `half the sum`: Eq. (1) with the mean of both models' logits. A sum of two
models' logits is about twice as large as one model's, which alone makes sampling safer. The mean is not, so this line tells what the
second model adds from what the sharper distribution does. (Greedily it is FusionRoute.)

Beam search is over the fused distribution of Eq. (1): at each token every hypothesis asks the router, which picks its expert, and the
WIDTH hypotheses with the highest sum of log-probabilities stay. An answer's sum is not divided by its length. For one model alone it
is ordinary beam search. (Not for the picked expert alone: on the prompts that it was not trained for, its hypotheses do not end, and nothing here has
a cache.) The paper decodes greedily.
"""

import contextlib
import functools

import torch

from extra import models
from extra.paper.open_questions import frame
from fusionroute import fuse
from model import sample
from toy_experts import batch, run, tokenizer
from toy_experts.batch import MAX_NEW

LINES = {"fusionroute": {}, "half the sum": {}, "routing_only": {"use_router": False}, "router": {"use_expert": False}}
WAYS = {"greedy": {}, "T 0.3": {"temperature": 0.3}, "T 0.7": {"temperature": 0.7}, "T 1": {"temperature": 1.0}, "T 1.5": {"temperature": 1.5},
        "T 1, top-p 0.9": {"temperature": 1.0}}
WIDTH = 4  # hypotheses of the beam search


@contextlib.contextmanager
def nucleus(top_p):
    """decode_batch samples from the whole distribution; for a while only from its likeliest tokens with the probability top_p together."""
    batch.sample = functools.partial(sample, top_p=top_p)
    try:
        yield
    finally:
        batch.sample = sample


@torch.no_grad()
def next_logp(router, experts, texts, use_router=True, use_expert=True):
    """log pi of the next token after each text (lists of token ids): Eq. (1), or one part of it. -> (R, V)."""
    have = torch.tensor([len(t) for t in texts])                                                     # (R,)
    ids = torch.zeros(len(texts), int(have.max()), dtype=torch.long, device=router.W.weight.device)  # (R, T)
    for row, text in enumerate(texts):
        ids[row, :len(text)] = torch.tensor(text)
    rows = torch.arange(len(texts))                                                                  # (R,)
    logits, w = (x[rows, have - 1] for x in router(ids))                                             # (R, V), (R, n)
    if use_expert:
        own, pick = torch.empty_like(logits), w.argmax(-1)                                           # (R, V), (R,)
        for i in pick.unique().tolist():
            mine = (pick == i).nonzero()[:, 0]                                                       # (m,)
            own[mine] = experts[i](ids[mine])[0][torch.arange(len(mine)), have[mine] - 1]
        logits = fuse(logits, own) if use_router else own
    return logits.log_softmax(-1)


def beam_search(router, experts, prompts, width=WIDTH, end=tokenizer.END, max_new=MAX_NEW, **how):
    """The likeliest answer found for each prompt (lists of token ids), without the end token."""
    hypotheses = [[(0.0, list(p))] for p in prompts]                 # of each prompt: (log-probability, text); one that has ended has `end` last
    for _ in range(max_new):
        # Where the best hypothesis has ended, the search has: every further token only lowers the others.
        live = [(b, h) for b, beam in enumerate(hypotheses) if max(beam)[1][-1] != end for h in beam if h[1][-1] != end]
        if not live:
            break
        best = next_logp(router, experts, [text for _, (_, text) in live], **how)                    # (R, V)
        best = best.topk(min(width, best.size(-1)), -1)                                              # (R, width) twice
        searched = {b for b, _ in live}
        longer = [[h for h in beam if h[1][-1] == end or b not in searched] for b, beam in enumerate(hypotheses)]
        for (b, (logp, text)), values, tokens in zip(live, best.values.tolist(), best.indices.tolist()):
            longer[b] += [(logp + value, text + [token]) for value, token in zip(values, tokens)]
        hypotheses = [sorted(beam, key=lambda h: -h[0])[:width] for beam in longer]
    return [[t for t in max(beam)[1][len(p):] if t != end] for beam, p in zip(hypotheses, prompts)]


def measure(s, cell):
    router, experts, _ = models.load_router(s, "router")
    problems = frame.items(s)
    for line, how in LINES.items():
        for label, options in WAYS.items():
            if line == "half the sum":  # logits / 2 at a temperature are the logits at twice the temperature
                options = {name: 2 * value for name, value in options.items()}
            with nucleus(0.9 if "top-p" in label else 1.0):
                cell(label, line, lambda: frame.judged(s, frame.fused(router, experts, **how, **options), problems))
        if line in ("fusionroute", "router"):
            cell(f"beam of {WIDTH}", line, lambda: frame.judged(s, lambda prompts: [
                answer for start in range(0, len(prompts), 32) for answer in beam_search(router, experts, prompts[start:start + 32], **how)], problems))


if __name__ == "__main__":
    run.run(lambda: frame.main("decoding", measure, __doc__, "decoding"))
