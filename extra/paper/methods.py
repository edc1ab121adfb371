"""Every method of the tables: the checkpoints that it decodes with, and how. METHODS is the table.

Most are limits of one decoder, Eq. (1) with parts left out (toy_experts/decode_batch.py). The
others are here: merged models, models that all read every token, and two methods without a router.
All decoders are greedy. No method sees the checkers.

Departures from the papers of the baselines:
1. Collab scores a proposal after a look-ahead of `lookahead` tokens of the proposing expert,
   greedy, by our reward model. Where all experts propose the same token, nothing is scored.
2. Co-LLM lets a trained base model defer to one assistant. Here the router defers to one of the
   experts at every token (co_llm). co_llm_self adds the router's own language model as a choice,
   which is closer to the original.
3. DARE drops entries of the task vectors by a seeded coin for each entry, in every tensor alike.
4. The Fine-tuned Model is trained on CDPO's pairs, as in the paper: their rejected answers are
   mistakes of FusionRoute, not its own. Half of its DPO's steps are SFT batches, as in CDPO.
5. Sequence Selection's and Collab's judge is trained here, on checked mistakes of the experts.
"""

import functools
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch

from decode import MAX_NEW
from fusionroute import fuse, informative, token_logp
from toy_experts import tokenizer
from toy_experts.data import answer_only, pack
from toy_experts.decode_batch import decode_batch, read_on

END = tokenizer.END

# --- Eq. (1) and its parts -----------------------------------------------------------------------


def fused(router, experts, **how):
    """A decoder that gives Traces. how: options of decode_batch."""
    return lambda prompts: decode_batch(router, experts, prompts, MAX_NEW, **how)


def answering(router, experts, **how):
    """The same as a decoder like all others: from token-id prompts to answers without the end."""
    decoder = fused(router, experts, **how)
    return lambda prompts: [trace.answer() for trace in decoder(prompts)]


# --- merging: one model from base and experts ----------------------------------------------------


def merge(base, experts, scale, drop=0.0):
    """TaskArithmetic: theta_base + scale * sum_i (theta_i - theta_base), as a new GPT.

    With drop = p it is DARE: each entry of a task vector is dropped with probability p, and the
    others are divided by 1 - p, so that the expectation stays.
    """
    merged, coin = deepcopy(base), torch.Generator().manual_seed(0)
    for expert in experts:
        for name, p in expert.named_parameters():
            delta = p.detach().cpu() - base.get_parameter(name).detach().cpu()
            keep = torch.rand(delta.shape, generator=coin) >= drop
            merged.get_parameter(name).data += (scale * keep * delta / (1 - drop)).to(p.device)
    return merged


# --- models that all read every token ------------------------------------------------------------


def buffers(prompts, room, models):
    """What a decoder starts with: text (B, longest + room), have (B,) tokens in it, rows (B,) all
    of them, one cache a model."""
    lms = [getattr(model, "lm", model) for model in models]
    device = lms[0].embed.weight.device
    have = torch.tensor([len(p) for p in prompts], device=device)  # (B,)
    length = int(have.max()) + room
    text = torch.zeros(len(prompts), length, dtype=torch.long, device=device)  # (B, T)
    for b, p in enumerate(prompts):
        text[b, : len(p)] = torch.tensor(p)
    caches = [lm.new_cache(len(prompts), min(length, lm.config.max_len)) for lm in lms]
    return text, have, torch.arange(len(prompts), device=device), caches


def extend(text, have, rows, token):
    """Write one token (b,) to each of rows (b,), in place. Returns the rows that go on: the end
    token is not written."""
    rows, token = rows[token != END], token[token != END]
    text[rows, have[rows]] = token
    have[rows] += 1
    return rows


def written(prompts, text, have):
    return [text[b, len(p) : have[b]].tolist() for b, p in enumerate(prompts)]


@torch.no_grad()
def all_read(models, prompts, rule, max_new):
    """Greedy decoding in which every model reads every token. Returns answers without the end.

    rule: from what the models say of the next token to the logits (b, V) from which it is taken.
    It gets a list of their logits (b, V), and a list of their second outputs (of a Router: w).
    """
    text, have, rows, caches = buffers(prompts, max_new, models)
    for _ in range(max_new):
        said = [read_on(m, cache, rows, text, have) for m, cache in zip(models, caches)]
        rows = extend(text, have, rows, rule(*zip(*said)).argmax(-1))
        if not len(rows):
            break
    return written(prompts, text, have)


def first(logits, _):
    """One model alone."""
    return logits[0]  # (b, V)


def product(logits, _):
    """The product of all models: the sum of their log-probabilities."""
    return sum(x.log_softmax(-1) for x in logits)  # (b, V)


def plus_mean(logits, _):
    """The router plus the mean of all experts: Eq. (1) without a choice."""
    return logits[0].log_softmax(-1) + product(logits[1:], _) / (len(logits) - 1)  # (b, V)


class PlusRandom:
    """Eq. (1), but in S an expert is drawn at random instead of the router's pick."""

    def __init__(self):
        self.coin = torch.Generator().manual_seed(0)

    def __call__(self, logits, second):
        experts, w = torch.stack(logits[1:], 1), second[0]  # (b, n, V), (b, n)
        drawn = torch.randint(w.size(1), w[:, 0].shape, generator=self.coin).to(w.device)  # (b,)
        pick = torch.where(informative(experts.argmax(-1)), drawn, w.argmax(-1))  # (b,)
        return fuse(logits[0], experts[torch.arange(len(pick)), pick])  # (b, V)


# --- Sequence Selection and Collab: a judge instead of a router ----------------------------------
# judge: a reward model, or a language model. A language model prefers what it finds likeliest.


def sequence_selection(experts, judge, prompts, max_new):
    """Every expert writes a whole greedy answer; the judge picks one. Result as in all_read."""
    answers = [all_read([expert], prompts, first, max_new) for expert in experts]  # n times B
    scores = [score_whole(judge, prompts, a, max_new) for a in answers]  # n times (B,)
    best = torch.stack(scores).argmax(0).tolist()
    return [answers[i][b] for b, i in enumerate(best)]


@torch.no_grad()
def score_whole(judge, prompts, answers, max_new):
    """The judge's score of whole answers, (B,). One that stopped at max_new has no end token."""
    ended = [a + [END] * (len(a) < max_new) for a in answers]
    ids, _, lengths = pack([answer_only(p, a) for p, a in zip(prompts, ended)])
    if not hasattr(judge, "W"):  # a language model
        return likelihood(judge, ids, torch.tensor([len(p) for p in prompts]), lengths)
    r = judge(ids.to(judge.W.weight.device))[1][..., 0].cpu()  # (B, T)
    return r.gather(1, lengths[:, None] - 1)[:, 0]  # (B,)


def likelihood(lm, ids, begin, stop):
    """A language model's log-probability of each row's tokens begin to stop - 1.

    ids (B, T), begin, stop (B,) -> (B,).
    """
    device = lm.embed.weight.device
    logp = token_logp(lm(ids[:, :-1].to(device))[0], ids[:, 1:].to(device))  # (B, T-1)
    at = torch.arange(1, ids.size(1), device=ids.device)  # (T-1,)
    inside = (at >= begin[:, None]) & (at < stop[:, None])  # (B, T-1)
    return (logp.to(ids.device) * inside).sum(1)  # (B,)


@torch.no_grad()
def collab(experts, judge, prompts, max_new, lookahead):
    """At every token each expert proposes its own, and goes on by itself up to `lookahead` tokens
    in all. The judge scores what each would have written; the best proposal stays."""
    models = [*experts, judge]
    text, have, rows, (*caches, judge_cache) = buffers(prompts, max_new + lookahead, models)
    room = judge_cache.kv[0].size(3)  # may end before text does
    for _ in range(max_new):
        steps = min(lookahead, room - int(have.max()))
        said = [read_on(e, c, rows, text, have)[0] for e, c in zip(experts, caches)]
        proposal = torch.stack([logits.argmax(-1) for logits in said], 1)  # (b, n)
        token = proposal[:, 0].clone()  # (b,)
        split = (proposal != proposal[:, :1]).any(1)  # (b,): elsewhere there is nothing to choose
        if split.any():
            scores = []
            for i, (expert, cache) in enumerate(zip(experts, caches)):
                trial = text.clone(), have.clone(), rows[split], proposal[split, i]
                scores.append(look_ahead(expert, cache, judge, judge_cache, *trial, steps))
            best = torch.stack(scores, 1).argmax(1, keepdim=True)  # (s, 1)
            token[split] = proposal[split].gather(1, best)[:, 0]
        rows = extend(text, have, rows, token)
        if not len(rows):
            break
    return written(prompts, text, have)


def look_ahead(expert, cache, judge, judge_cache, text, have, rows, token, steps):
    """The judge's score of each row's text with token (s,) and the expert's continuation, (s,).

    text and have are changed in place; the caches forget what they have read.
    """
    begin, active = have[rows], rows  # (s,), (a,)
    for step in range(steps):
        text[active, have[active]] = token  # here the end token counts too
        have[active] += 1
        active = active[token != END]
        if not len(active) or step + 1 == steps:
            break
        token = read_on(expert, cache, active, text, have)[0].argmax(-1)  # (a,)
    if hasattr(judge, "W"):  # a reward model
        score = read_on(judge, judge_cache, rows, text, have)[1][:, 0]  # (s,)
    else:
        longest = int(have[rows].max())
        score = likelihood(judge, text[rows, :longest], begin, have[rows])  # (s,)
    cache.length[rows], judge_cache.length[rows] = begin, begin
    return score


# --- the table -----------------------------------------------------------------------------------

# Chosen by tune.py on validation prompts, as the settings in recipes.TRAINING were.
TASK_ARITHMETIC, DARE, LOOKAHEAD = {"scale": 0.5}, {"scale": 0.5, "drop": 0.1}, {"lookahead": 64}


class Method(NamedTuple):
    """A row of the tables. decoder: from all models by name to a function prompts -> answers."""

    checkpoints: tuple  # what it decodes with besides base and experts: names of recipes.TRAINING
    decoder: Callable
    settings: dict = {}  # of what is not trained


def sums(router, itself=False, **how):
    """Eq. (1) or a part of it. itself: the router's language model is one more choice."""
    add = lambda m: [m[router].lm] if itself else []
    return Method((router,), lambda m: answering(m[router], m["experts"] + add(m), **how))


def together(rule, *names):
    """These models read every token. PlusRandom draws the same for every seed's models."""
    routers = tuple(name for name in names if name not in EXPERTS)

    def decoder(m):
        combine = rule() if rule is PlusRandom else rule
        return lambda prompts: all_read([m[n] for n in names], prompts, combine, MAX_NEW)

    return Method(routers, decoder)


def judged(by, judge, **how):
    """Sequence Selection or Collab. judge: the reward model, or a router's language model."""

    def decoder(m):
        model = m[judge] if judge == "reward" else m[judge].lm
        return lambda prompts: by(m["experts"], model, prompts, MAX_NEW, **how)

    return Method((judge,), decoder, how)


def merged(scale, drop=0.0):
    """One model out of base and experts."""

    def decoder(m):
        model = functools.cache(lambda: merge(m["base"], m["experts"], scale, drop))
        return lambda prompts: all_read([model()], prompts, first, MAX_NEW)

    return Method((), decoder, {"scale": scale, "drop": drop})


ALONE = {"use_router": False}  # the picked expert alone
EXPERTS = ("math", "code", "instruct")
METHODS = {
    "fusionroute": sums("router"),
    "sft_only": sums("router_sft"),
    "routing_only": sums("router", **ALONE),
    "router": together(first, "router"),
    "fusionroute_long": sums("router_long"),
    "fine_tuned_long": together(first, "fine_tuned_long"),
    "co_llm_self": sums("co_llm_self", itself=True, **ALONE),
    "fused_sft": sums("fused_sft"),
    "math_expert": together(first, "math"),
    "code_expert": together(first, "code"),
    "instruct_expert": together(first, "instruct"),
    "oracle_expert": Method((), None),  # a bound: the best expert for each prompt, by the checker
    "uniform_average": together(product, *EXPERTS),
    # what the choice is worth, what the addition is worth
    "router_mean": together(plus_mean, "router", *EXPERTS),
    "router_random": together(PlusRandom, "router", *EXPERTS),
    "fine_tuned": together(first, "fine_tuned"),
    "sft_long": sums("router_sft_long"),
    "fine_tuned_sft_long": together(first, "fine_tuned_sft_long"),
    "two_fine_tuned": together(product, "fine_tuned_sft_long", "fine_tuned_sft_math"),
    # until here: on every seed; the others on the first of them (--rest)
    "generalist": together(first, "generalist"),  # a bound: it needs the experts' training data
    "sft_all": sums("sft_all"),
    "fusionroute_all": sums("router_all"),
    "co_llm": sums("co_llm", **ALONE),
    "fused_full": sums("fused_full"),
    "sequence_selection": judged(sequence_selection, "reward"),
    "collab": judged(collab, "reward", **LOOKAHEAD),
    "selection_lm": judged(sequence_selection, "fine_tuned_long"),
    "collab_lm": judged(collab, "fine_tuned_long", **LOOKAHEAD),
    "task_arithmetic_paper": merged(1.0),  # with the paper's settings
    "task_arithmetic": merged(**TASK_ARITHMETIC),
    "dare_paper": merged(1.0, 0.9),
    "dare": merged(**DARE),
}
HEADLINE = list(METHODS)[: list(METHODS).index("generalist")]
