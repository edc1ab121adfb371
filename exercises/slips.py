"""The usual mistakes in the nine steps: for each, what to say, and a function that makes it.

A checker runs the reader's function and these on the same input. If a wrong result is that of a
slip, the reader is told which. (Reading on shows solutions.)
"""

import numpy as np
import torch
import torch.nn.functional as F

from fusionroute import fuse, informative, log_pi_agg, token_logp

# --- functions of which one part can be replaced -------------------------------------------------


def sft(
    lm=lambda cost, mask, S: cost[mask].sum() / mask.sum(),
    expert=lambda cost, mask, S: cost[mask & S].sum() / mask.sum(),
    agg=log_pi_agg,
    join=lambda lm, expert, lam: lm + lam * expert,
    S_of=lambda choice, targets: informative(choice),
    w_of=lambda w: w,
    logits_of=lambda logits: logits,
):
    """Eq. (2). lm, expert: from the cost of each token (B, T), mask and S to L_LM and L_expert."""

    def f(logits, w, targets, mask, logp, choice, lam):
        S = S_of(choice, targets)  # (B, T)
        loss_lm = lm(-token_logp(logits_of(logits), targets), mask, S)
        return join(loss_lm, expert(-agg(w_of(w), logp), mask, S), lam)

    return f


def shifted_sft(logits, w, targets, mask, logp, choice, lam):
    cost = -token_logp(logits[:, :-1], targets[:, 1:])  # (B, T-1)
    alone = sft(lm=lambda *_: cost[mask[:, 1:]].mean())
    return alone(logits, w, targets, mask, logp, choice, lam)


def sequence(of=token_logp, end=lambda logp, mask: (logp * mask).sum(-1)):
    """sequence_logp. of: logits, targets -> (B, T). end: that and the mask -> (B,)."""
    return lambda logits, targets, mask: end(of(logits, targets), mask)


def picked(w, logp):
    return logp.gather(-1, w.argmax(-1, keepdim=True))[..., 0]


def routed(of=picked, end=lambda logp, mask: (logp * mask).sum(-1)):
    """routed_logp. of: w, logp -> (B, T). end: that and the mask -> (B,)."""
    return lambda w, logp, mask: end(of(w, logp), mask)


def one_pick(score):
    """One expert for the whole row. score: w (B, T, n) -> (B, n)."""

    def of(w, logp):
        return picked(score(w)[:, None].expand_as(logp), logp)  # (B, T)

    return routed(of)


def cdpo(
    margin=lambda tw, tl, rw, rl, beta: beta * (tw - rw - tl + rl),
    bias=lambda ew, el, beta: beta * (ew - el),
    join=lambda margin, bias: margin + bias.detach(),
    end=lambda z: -F.logsigmoid(z).mean(),
):
    """Eq. (3). tw, tl: log pi_theta of y_w and y_l; rw, rl of the reference; ew, el of experts."""

    def f(tw, tl, rw, rl, ew, el, beta):
        return end(join(margin(tw, tl, rw, rl, beta), bias(ew, el, beta)))

    return f


dpo = cdpo(join=lambda margin, bias: margin)


def bias_alone(tw, tl, rw, rl, ew, el, beta):
    return (beta * (ew - el)).detach()


def loop(
    fused=fuse,
    pick_of=lambda w, picks: int(w.argmax()),
    at_router=-1,
    at_expert=-1,
    at_w=-1,
    router_reads="new",
    expert_reads="new",
    everyone=False,
):
    """fused_greedy. at_...: which of the positions read now counts. everyone: all experts run."""

    def read(model, config, cache, ids, how):
        if how == "without a cache":
            return model(torch.tensor([ids]))
        if how == "into a fresh cache":
            return model(torch.tensor([ids]), config.new_cache(1))
        had = int(cache.length)
        new = {"new": ids[had:], "all": ids, "last": ids[-1:] if had else ids}[how]
        return model(torch.tensor([new]), cache)

    def f(router, experts, prompt, end, max_new):
        ids, picks = list(prompt), []
        router_cache, *caches = [m.new_cache(1) for m in (router.lm, *experts)]
        while len(picks) < max_new:
            r, w = read(router, router.lm, router_cache, ids, router_reads)
            i = pick_of(w[0, at_w], picks)
            picks.append(i)
            logits = {
                j: read(experts[j], experts[j], caches[j], ids, expert_reads)[0]
                for j in (range(len(experts)) if everyone else [i])
            }
            token = int(fused(r[0, at_router], logits[i][0, at_expert]).argmax())
            if token == end:
                break
            ids.append(token)
        return ids[len(prompt) :], picks

    return torch.no_grad()(f)


def routing(
    rule=lambda r, Q, pi: (pi * Q).sum(-1),
    best=lambda values: values.max(0),
    child=lambda V, A: V.reshape(-1, A),
    start=0.0,
    picks_of=lambda values, r, pi: values.argmax(0),
):
    """best_routing. rule: reward (A^t, A), Q (A^t, A), experts (n, A^t, A) -> (n, A^t)."""

    def f(rewards, experts):
        A, picks = rewards[0].shape[1], []
        V = np.full(A ** len(rewards), start)  # (A^T,)
        for r, pi in zip(rewards[::-1], experts[::-1]):
            values = rule(r, r + child(V, A), pi)  # (n, A^t)
            V = best(values)  # (A^t,)
            picks.insert(0, picks_of(values, r, pi))  # (A^t,)
        return V[0], picks

    return f


def one_expert(rewards, experts):
    """The value of the best expert, if it must write the whole answer."""
    n = len(experts[0])
    return max(routing()(rewards, [pi[i : i + 1] for pi in experts])[0] for i in range(n)), []


def next_reward_only(r, Q, pi):
    """The expected Q of the expert with the best next reward; 0 for the others."""
    now = (pi * r).sum(-1)  # (n, A^t)
    return np.where(now == now.max(0), (pi * Q).sum(-1), 0)


def favourite(r, Q, pi):
    return np.take_along_axis(Q[None], pi.argmax(-1)[..., None], 2)[..., 0]  # (n, A^t)


def covers(goes_on=lambda word, text: word.startswith(text), known=lambda tokens: tokens, first=0):
    """text_probability. goes_on: whether a word may reach the text's end, or beyond it."""

    def f(text, words, p, tokens=()):
        if not text:
            return 1.0
        fits = [(t, w) for t, w in words.items() if goes_on(w, text) or text.startswith(w)]
        fits = sorted(fits, key=lambda pair: -len(pair[1]))[: first or len(fits)]
        left = [f(text[len(w) :], words, p, (*tokens, t)) for t, w in fits]
        return float(sum(p(known(tokens))[t] * x for (t, _), x in zip(fits, left)))

    return f


# --- the slips -----------------------------------------------------------------------------------

LOG_WANTED = "these are probabilities. Eq. (1) wants log-probabilities: leave the exponential out"
CHOICE_AXIS = "the wrong axis is compared: the experts are the last one, so choice[..., :1]"
SOFTMAX_AXIS = "the softmax runs over the wrong axis: the experts are the last one, dim=-1"
VOCABULARY_AXIS = "log_softmax runs over the wrong axis: the vocabulary is the last one, dim=-1"
PROMPT_IN_LM = "the prompt's tokens (and padding) are counted in L_LM: use mask"
PROMPT_IN_EXPERT = "the prompt's tokens are counted in L_expert: S needs mask as well"
ON_S = "L_LM is counted on S only: S is for L_expert"
PROMPT = "the prompt's tokens are counted: use mask"
SHIFTED = "the targets are shifted a second time: logits[b, t] are about targets[b, t] already"
FIRST = "where position 0 is an answer token, it is left out: nothing is to be shifted"
NO_GRADIENT_W = "W gets no gradient: w is detached, or only its argmax is used"
NO_GRADIENT_LM = "theta_LM gets no gradient: logits are detached, or under no_grad"
ONE_PICK = "one expert is picked for the whole answer: pick anew at each token"
A_MEAN = "this is a mean: Eq. (3) takes the sum over the answer's tokens"
OUTSIDE = "the bias stands outside the sigmoid"
ONLY_A_MEAN = "this is the mean of margin + bias, without -log sigmoid"
INFINITE = (
    "the loss is not finite when margin + bias is far below 0: there sigmoid is 0 and exp is "
    "infinite in float32. F.logsigmoid does all in one, safely"
)
FIRST_LOGITS = "the first position's logits are used: take the last one's, logits[0, -1]"
WEIGHT_FUTURE = "the value of the next prefix must be weighted by the expert's probabilities, too"


def pairs(*entries):
    """message, function, message, function, ... -> [(message, function)]."""
    return list(zip(entries[::2], entries[1::2]))


SLIPS = {
    "fuse": pairs(
        "the two distributions are averaged (a mixture). Eq. (1) adds their logarithms, which "
        "multiplies them",
        lambda r, e: (r.softmax(-1) + e.softmax(-1)).log(),
        "the two probabilities are added. Eq. (1) adds their logarithms",
        lambda r, e: r.softmax(-1) + e.softmax(-1),
        LOG_WANTED,
        lambda r, e: r.softmax(-1) * e.softmax(-1),
        LOG_WANTED,
        lambda r, e: (r + e).softmax(-1),
        "the two log-probabilities are multiplied. Eq. (1) adds them",
        lambda r, e: r.log_softmax(-1) * e.log_softmax(-1),
        "the two logits are multiplied. Eq. (1) adds log-probabilities",
        lambda r, e: r * e,
        "this is half of Eq. (1): add the two, do not average them",
        lambda r, e: (r + e) / 2,
        "only the router speaks here: the expert's log-probabilities are missing",
        lambda r, e: r,
        "only the expert speaks here: the router's log-probabilities are missing",
        lambda r, e: e,
        "the expert's log-probabilities are subtracted. Eq. (1) adds them",
        lambda r, e: r - e,
        VOCABULARY_AXIS,
        lambda r, e: r.log_softmax(0) + e.log_softmax(0),
        "log_softmax without dim takes another axis where there are three: name it, dim=-1",
        lambda r, e: (r + e).log_softmax(1 if r.dim() == 2 else 0),
    ),
    "informative": pairs(
        "this is the opposite: True must mean that the experts differ",
        lambda c: (c == c[..., :1]).all(-1),
        "only the first two experts are compared",
        lambda c: c[..., 0] != c[..., 1],
        "only the first and the last expert are compared",
        lambda c: c[..., 0] != c[..., -1],
        "only the last two experts are compared",
        lambda c: c[..., -2] != c[..., -1],
        CHOICE_AXIS,
        lambda c: (c != c[:1]).any(-1),
        CHOICE_AXIS,
        lambda c: (c != c[:, :1]).any(-1),
        "True only where all experts differ from the first one: one that differs is enough",
        lambda c: (c[..., 1:] != c[..., :1]).all(-1),
        "always False: the first expert never differs from itself. Use any, not all",
        lambda c: (c != c[..., :1]).all(-1),
        "True only where each expert has a choice of its own: two different choices are enough",
        lambda c: (c.sort(-1).values.diff(dim=-1) != 0).all(-1),
        "the mean of token numbers means nothing: (4, 3, 5) has the mean 4 and three choices",
        lambda c: c.float().mean(-1) != c[..., 0],
        "True everywhere",
        lambda c: torch.ones(c.shape[:-1], dtype=torch.bool),
    ),
    "log_pi_agg": pairs(
        "w is used raw. It needs a softmax: raw weights need not be positive or sum to 1, and "
        "the loss could fall without end",
        lambda w, logp: (w * logp).sum(-1),
        "this is the logarithm of a mean of probabilities. The formula is a mean of logarithms",
        lambda w, logp: (w.softmax(-1) * logp.exp()).sum(-1).log(),
        "this is a mean of probabilities, without any logarithm",
        lambda w, logp: (w.softmax(-1) * logp.exp()).sum(-1),
        SOFTMAX_AXIS,
        lambda w, logp: (w.softmax(0) * logp).sum(-1),
        SOFTMAX_AXIS,
        lambda w, logp: (w.softmax(1) * logp).sum(-1),
        "only the picked expert counts here. That is Eq. (1)'s way of decoding; in training "
        "all experts count, with their weights",
        picked,
        "all experts count alike: w is not used",
        lambda w, logp: logp.mean(-1),
        "this is divided by the number of experts: the weights sum to 1 already",
        lambda w, logp: (w.softmax(-1) * logp).mean(-1),
        "the weights are log_softmax(w), which are negative: take softmax(w)",
        lambda w, logp: (w.log_softmax(-1) * logp).sum(-1),
        "the weights are sigmoid(w), which do not sum to 1: take softmax(w)",
        lambda w, logp: (w.sigmoid() * logp).sum(-1),
        "the weights do not sum to 1: softmax(w) is exp(w) over its sum",
        lambda w, logp: (w.exp() * logp).sum(-1),
        "the weights come from logp, not from the router's w",
        lambda w, logp: (logp.softmax(-1) * logp).sum(-1),
        "this is -log pi_agg: the minus belongs to the loss, step 4",
        lambda w, logp: -log_pi_agg(w, logp),
        "w gets no gradient: something between w and the result is detached",
        lambda w, logp: log_pi_agg(w.detach(), logp),
    ),
    "sft_loss": pairs(
        PROMPT_IN_LM,
        sft(lm=lambda cost, mask, S: cost.mean()),
        PROMPT_IN_LM,
        sft(lm=lambda cost, mask, S: cost.sum() / mask.sum()),
        "L_LM is divided by all positions: divide by the answer tokens, mask.sum()",
        sft(lm=lambda cost, mask, S: (cost * mask).mean()),
        "L_LM is a sum: divide it by the number of answer tokens",
        sft(lm=lambda cost, mask, S: cost[mask].sum()),
        "L_LM is averaged row by row: divide the batch's sum by the batch's answer tokens",
        sft(lm=lambda cost, mask, S: ((cost * mask).sum(1) / mask.sum(1)).mean()),
        "L_LM is divided by the number of rows, not of answer tokens",
        sft(lm=lambda cost, mask, S: cost[mask].sum() / len(cost)),
        SHIFTED,
        shifted_sft,
        "L_LM has the wrong sign: a cross-entropy is positive",
        sft(lm=lambda cost, mask, S: -cost[mask].mean()),
        ON_S,
        sft(lm=lambda cost, mask, S: cost[mask & S].sum() / mask.sum()),
        ON_S,
        sft(lm=lambda cost, mask, S: cost[mask & S].mean()),
        "lambda stands at L_LM: it belongs to L_expert",
        sft(join=lambda lm, expert, lam: lam * lm + expert),
        "lambda has no effect: Eq. (2) has lambda * L_expert",
        sft(join=lambda lm, expert, lam: lm + expert),
        "L_expert is missing",
        sft(join=lambda lm, expert, lam: lm),
        "lambda also takes L_LM away: the loss is L_LM + lambda * L_expert",
        sft(join=lambda lm, expert, lam: (1 - lam) * lm + lam * expert),
        PROMPT_IN_EXPERT,
        sft(expert=lambda cost, mask, S: cost[S].sum() / mask.sum()),
        PROMPT_IN_EXPERT,
        sft(expert=lambda cost, mask, S: cost[S].mean()),
        "L_expert is counted on all answer tokens: only those in S, where the experts differ",
        sft(expert=lambda cost, mask, S: cost[mask].mean()),
        "L_expert is counted outside S, where the experts agree",
        sft(expert=lambda cost, mask, S: cost[mask & ~S].sum() / mask.sum()),
        "L_expert is divided by the size of S: divide by the answer tokens, as L_LM",
        sft(expert=lambda cost, mask, S: cost[mask & S].mean()),
        "L_expert is a sum: divide it by the number of answer tokens",
        sft(expert=lambda cost, mask, S: cost[mask & S].sum()),
        "L_expert is divided by all positions: divide by the answer tokens, mask.sum()",
        sft(expert=lambda cost, mask, S: (cost * (mask & S)).mean()),
        "L_expert is averaged row by row: divide the batch's sum by the batch's answer tokens",
        sft(expert=lambda cost, mask, S: ((cost * (mask & S)).sum(1) / mask.sum(1)).mean()),
        "L_expert uses w raw: it needs a softmax",
        sft(agg=lambda w, logp: (w * logp).sum(-1)),
        "the softmax is taken twice: log_pi_agg has one already",
        sft(w_of=lambda w: w.softmax(-1)),
        "only the picked expert counts, and W gets no gradient: in training all experts count, "
        "with their weights",
        sft(agg=picked),
        "S is where an expert differs from the target. It is where the experts differ from "
        "each other",
        sft(S_of=lambda choice, targets: (choice != targets[..., None]).any(-1)),
        "L_expert has the wrong sign: it is -log pi_agg",
        sft(agg=lambda w, logp: -log_pi_agg(w, logp)),
        NO_GRADIENT_LM,
        sft(logits_of=lambda logits: logits.detach()),
        NO_GRADIENT_W,
        sft(w_of=lambda w: w.detach()),
        "where S is empty the loss is nan: L_expert is 0 there",
        sft(expert=lambda cost, mask, S: cost[mask & S].mean() * (mask & S).sum() / mask.sum()),
        FIRST,
        sft(lm=lambda cost, mask, S: cost[:, 1:][mask[:, 1:]].sum() / mask.sum()),
        FIRST,
        sft(expert=lambda cost, mask, S: cost[:, 1:][(mask & S)[:, 1:]].sum() / mask.sum()),
    ),
    "sequence_logp": pairs(
        PROMPT,
        sequence(end=lambda logp, mask: logp.sum(-1)),
        PROMPT,
        sequence(end=lambda logp, mask: logp.mean(-1)),
        A_MEAN,
        sequence(end=lambda logp, mask: (logp * mask).sum(-1) / mask.sum(-1)),
        A_MEAN,
        sequence(end=lambda logp, mask: (logp * mask).mean(-1)),
        "this is the probability of the answer, not its logarithm",
        sequence(end=lambda logp, mask: (logp * mask).sum(-1).exp()),
        "probabilities are added up: add their logarithms",
        sequence(end=lambda logp, mask: (logp.exp() * mask).sum(-1)),
        "this is the cross-entropy, which has the other sign: log-probabilities are negative",
        sequence(end=lambda logp, mask: -(logp * mask).sum(-1)),
        "these are raw logits of the targets: they need a log_softmax",
        sequence(of=lambda x, y: x.gather(-1, y[..., None])[..., 0]),
        "this follows the model's favourite token: take the probability of the target",
        sequence(of=lambda x, y: x.log_softmax(-1).amax(-1)),
        SHIFTED,
        lambda x, y, mask: (token_logp(x[:, :-1], y[:, 1:]) * mask[:, 1:]).sum(-1),
        VOCABULARY_AXIS,
        sequence(of=lambda x, y: x.log_softmax(1).gather(-1, y[..., None])[..., 0]),
        "only the prompt (and padding) is counted: mask is the other way round",
        sequence(end=lambda logp, mask: (logp * ~mask).sum(-1)),
        FIRST,
        sequence(end=lambda logp, mask: (logp * mask)[:, 1:].sum(-1)),
        NO_GRADIENT_LM,
        sequence(of=lambda x, y: token_logp(x.detach(), y)),
    ),
    "routed_logp": pairs(
        "the experts are mixed by their weights. The router picks one expert for each token, "
        "the argmax of w (and without a detach a mixture would give W a gradient)",
        routed(log_pi_agg),
        "the experts are mixed by raw w. The router picks one for each token, the argmax of w",
        routed(lambda w, logp: (w * logp).sum(-1)),
        "the experts' mean is taken: the router picks one expert for each token, the argmax of w",
        routed(lambda w, logp: logp.mean(-1)),
        "the pick looks at the answer: it takes the expert with the largest logp, but the "
        "router knows only w",
        routed(lambda w, logp: logp.amax(-1)),
        "the pick is the expert with the smallest w",
        routed(lambda w, logp: picked(-w, logp)),
        ONE_PICK,
        one_pick(lambda w: w.mean(1)),
        ONE_PICK,
        one_pick(lambda w: w[:, 0]),
        ONE_PICK,
        one_pick(lambda w: w[:, -1]),
        PROMPT,
        routed(end=lambda logp, mask: logp.sum(-1)),
        A_MEAN,
        routed(end=lambda logp, mask: (logp * mask).sum(-1) / mask.sum(-1)),
        A_MEAN,
        routed(end=lambda logp, mask: (logp * mask).mean(-1)),
        "the picked log-probability is multiplied by its weight: the pick alone decides",
        routed(lambda w, logp: picked(w, w.softmax(-1) * logp)),
        "the sign is wrong: log-probabilities are negative",
        routed(end=lambda logp, mask: -(logp * mask).sum(-1)),
        FIRST,
        routed(end=lambda logp, mask: (logp * mask)[:, 1:].sum(-1)),
    ),
    "cdpo_loss": pairs(
        "the bias is missing: this is plain DPO",
        dpo,
        "beta is missing in the bias",
        cdpo(bias=lambda ew, el, beta: ew - el),
        "beta is missing in the margin",
        cdpo(margin=lambda tw, tl, rw, rl, beta: tw - rw - tl + rl),
        "beta is missing",
        cdpo(
            margin=lambda tw, tl, rw, rl, beta: tw - rw - tl + rl, bias=lambda ew, el, beta: ew - el
        ),
        "beta is multiplied twice",
        cdpo(
            margin=lambda tw, tl, rw, rl, beta: beta**2 * (tw - rw - tl + rl),
            bias=lambda ew, el, beta: beta**2 * (ew - el),
        ),
        "beta is missing at the rejected half of the margin",
        cdpo(margin=lambda tw, tl, rw, rl, beta: beta * (tw - rw) - (tl - rl)),
        "the rejected half of the margin is missing",
        cdpo(margin=lambda tw, tl, rw, rl, beta: beta * (tw - rw)),
        "the rejected half of the bias is missing",
        cdpo(bias=lambda ew, el, beta: beta * ew),
        "a quotient of log-probabilities is taken: log pi_theta/pi_ref is their difference",
        cdpo(margin=lambda tw, tl, rw, rl, beta: beta * (tw / rw - tl / rl)),
        "the bias has the wrong sign: chosen minus rejected",
        cdpo(bias=lambda ew, el, beta: beta * (el - ew)),
        "chosen and rejected are exchanged: this loss would teach the rejected answers",
        cdpo(end=lambda z: -F.logsigmoid(-z).mean()),
        "chosen and rejected are exchanged in the margin",
        cdpo(margin=lambda tw, tl, rw, rl, beta: beta * (tl - rl - tw + rw)),
        "the reference is missing",
        cdpo(margin=lambda tw, tl, rw, rl, beta: beta * (tw - tl)),
        "the reference has the wrong sign: it is subtracted from theta",
        cdpo(margin=lambda tw, tl, rw, rl, beta: beta * (tw + rw - tl - rl)),
        "the rejected answer's reference has the wrong sign: it is subtracted from theta_rejected",
        cdpo(margin=lambda tw, tl, rw, rl, beta: beta * (tw - rw - tl - rl)),
        "the chosen answer's reference has the wrong sign: it is subtracted from theta_chosen",
        cdpo(margin=lambda tw, tl, rw, rl, beta: beta * (tw + rw - tl + rl)),
        OUTSIDE,
        lambda *six: dpo(*six) + bias_alone(*six).mean(),
        OUTSIDE,
        lambda *six: dpo(*six) - bias_alone(*six).mean(),
        "margin and bias each have a sigmoid: Eq. (3) has one, of the sum",
        lambda *six: dpo(*six) - F.logsigmoid(bias_alone(*six)).mean(),
        "this is the sum over the pairs: Eq. (3) is a mean here",
        cdpo(end=lambda z: -F.logsigmoid(z).sum()),
        "the pairs are averaged before the sigmoid: average their losses",
        cdpo(end=lambda z: -F.logsigmoid(z.mean())),
        "the logarithm is missing: -log sigmoid, not -sigmoid",
        cdpo(end=lambda z: -z.sigmoid().mean()),
        "the logarithm is missing: -log sigmoid, not 1 - sigmoid",
        cdpo(end=lambda z: 1 - z.sigmoid().mean()),
        "the minus is missing: the loss is -log sigmoid",
        cdpo(end=lambda z: F.logsigmoid(z).mean()),
        ONLY_A_MEAN,
        cdpo(end=lambda z: z.mean()),
        ONLY_A_MEAN,
        cdpo(end=lambda z: -z.mean()),
        INFINITE,
        cdpo(end=lambda z: -z.sigmoid().log().mean()),
        INFINITE,
        cdpo(end=lambda z: (1 + (-z).exp()).log().mean()),
        "theta gets no gradient: the stop-gradient is for the bias only, not for the margin",
        cdpo(join=lambda margin, bias: (margin + bias).detach()),
        "theta_chosen gets no gradient: only the bias is detached",
        lambda tw, *others: cdpo()(tw.detach(), *others),
        "theta_rejected gets no gradient: only the bias is detached",
        lambda tw, tl, *others: cdpo()(tw, tl.detach(), *others),
    ),
    "fused_greedy": pairs(
        "only the expert's logits decide: fuse them with the router's",
        loop(fused=lambda r, e: e),
        "only the router's logits decide: fuse them with the picked expert's",
        loop(fused=lambda r, e: r),
        "the pick is the expert with the smallest w",
        loop(pick_of=lambda w, picks: int(w.argmin())),
        "the expert that is picked first writes all tokens: pick anew for each one",
        loop(pick_of=lambda w, picks: picks[0] if picks else int(w.argmax())),
        "the first position's w is used: take the last one, w[0, -1]",
        loop(at_w=0),
        FIRST_LOGITS,
        loop(at_router=0, at_expert=0),
        FIRST_LOGITS,
        loop(at_router=0),
        FIRST_LOGITS,
        loop(at_expert=0),
        "an expert that is picked again reads the last token only: it must first read all "
        "tokens that it missed",
        loop(expert_reads="last"),
    ),
    "best_routing": pairs(
        "the router chooses the token itself here. It only chooses an expert, which draws the "
        "token: max over experts of the expected Q",
        routing(rule=lambda r, Q, pi: Q.max(-1)[None]),
        "each token comes from the expert that suits it best: one expert draws among all tokens",
        routing(rule=lambda r, Q, pi: (pi.max(0, keepdims=True) * Q).sum(-1)),
        "the experts are averaged: the router picks the best one",
        routing(best=lambda values: values.mean(0)),
        "the worst expert is picked: min instead of max",
        routing(best=lambda values: values.min(0)),
        "one expert writes the whole answer: the pick may change at each prefix",
        one_expert,
        "the pick looks at the next reward only: it must count what comes later, V, as well",
        routing(rule=next_reward_only),
        "only the first token's reward is counted: Q needs the value of the next prefix",
        routing(rule=lambda r, Q, pi: (pi * r).sum(-1)),
        "the experts always write their favourite token here: they draw from their distribution",
        routing(rule=favourite),
        "prefixes are joined wrongly: token a leads from s to A s + a, and not to a A^t + s",
        routing(child=lambda V, A: V.reshape(A, -1).T),
        "the reward is missing in Q: Q is the reward plus the value of the next prefix",
        routing(rule=lambda r, Q, pi: (pi * (Q - r)).sum(-1)),
        WEIGHT_FUTURE,
        routing(rule=lambda r, Q, pi: (pi * r).sum(-1) + (Q - r).mean(-1)),
        WEIGHT_FUTURE,
        routing(rule=lambda r, Q, pi: (pi * r).sum(-1) + (Q - r).max(-1)),
        "V after the last token is 0, not 1",
        routing(start=1.0),
    ),
    "text_probability": pairs(
        "the last token may reach beyond the text: a word that begins with what is left counts too",
        covers(goes_on=lambda word, text: word == text),
        "p is asked about the start again: it must know the tokens before, (*tokens, token)",
        covers(known=lambda tokens: ()),
        "p must know all tokens before, not only the last one",
        covers(known=lambda tokens: tokens[-1:]),
        "only the longest word is followed: all words that fit count, so sum over them",
        covers(first=1),
        "only the first token counts: multiply by the probability of the rest of the cover",
        lambda text, words, p, tokens=(): sum(
            p(tokens)[t] for t, w in words.items() if w.startswith(text) or text.startswith(w)
        ),
    ),
}
