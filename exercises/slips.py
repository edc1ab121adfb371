"""The usual mistakes in the nine steps: each is a line of the right function written otherwise.

A checker runs the reader's function and these on the same input. If a wrong result is that of a
slip, the reader is told which. (Reading on shows solutions.)
"""

import inspect
import re

import numpy as np
import torch.nn.functional as F

import fusionroute
from exercises import solutions
from fusionroute import token_logp

# --- right functions. Those that are not here are in solutions.py --------------------------------


def fuse(r, e):
    return r.log_softmax(-1) + e.log_softmax(-1)


def informative(c):
    return (c != c[..., :1]).any(-1)


def log_pi_agg(w, logp):
    return (w.softmax(-1) * logp).sum(-1)


def sft_loss(logits, w, targets, mask, logp, choice, lam):
    S = fusionroute.informative(choice)  # (B, T)
    cost = -token_logp(logits, targets)  # (B, T)
    lm = cost[mask].sum() / mask.sum()
    agg = -fusionroute.log_pi_agg(w, logp)  # (B, T)
    expert = agg[mask & S].sum() / mask.sum()
    return lm + lam * expert


def sequence_logp(logits, targets, mask):
    logp = token_logp(logits, targets)  # (B, T)
    return (logp * mask).sum(-1)


def picked(w, logp):
    return logp.gather(-1, w.argmax(-1, keepdim=True))[..., 0]


def routed_logp(w, logp, mask):
    each = picked(w, logp)  # (B, T)
    return (each * mask).sum(-1)


def cdpo_loss(tw, tl, rw, rl, ew, el, beta):
    """tw, tl: log pi_theta of y_w and y_l; rw, rl of the reference; ew, el of the experts."""
    margin = beta * (tw - rw - tl + rl)
    bias = beta * (ew - el)
    z = margin + bias.detach()
    return -F.logsigmoid(z).mean()


# --- what some slips need ------------------------------------------------------------------------


def one_expert(rewards, experts):
    """The value of the best expert, if it must write the whole answer."""
    alone = [[pi[i : i + 1] for pi in experts] for i in range(len(experts[0]))]
    return max(solutions.best_routing(rewards, one)[0] for one in alone), []


def next_reward_only(r, Q, pi):
    """The expected Q of the expert with the best next reward; 0 for the others."""
    now = (pi * r).sum(-1)  # (n, A^t)
    return np.where(now == now.max(0), (pi * Q).sum(-1), 0)


def favourite(Q, pi):
    return np.take_along_axis(Q[None], pi.argmax(-1)[..., None], 2)[..., 0]  # (n, A^t)


def longest(words, text):
    return max((w for w in words.values() if w.startswith(text) or text.startswith(w)), key=len)


# --- the slips -----------------------------------------------------------------------------------

# Below a function's name, a slip a line: the line that is written otherwise | what to say. Without
# a name before " = " it is the return statement. "; " is between two lines. A slip without words
# has those of the slip above.
TABLE = """
fuse
(r.softmax(-1) + e.softmax(-1)).log() | the two distributions are averaged (a mixture). Eq. (1) adds
    | their logarithms, which multiplies them
r.softmax(-1) + e.softmax(-1) | the two probabilities are added. Eq. (1) adds their logarithms
r.softmax(-1) * e.softmax(-1) | these are probabilities. Eq. (1) wants log-probabilities: leave the
    | exponential out
(r + e).softmax(-1)
r.log_softmax(-1) * e.log_softmax(-1) | the two log-probabilities are multiplied. Eq. (1) adds them
r * e | the two logits are multiplied. Eq. (1) adds log-probabilities
(r + e) / 2 | this is half of Eq. (1): add the two, do not average them
r | only the router speaks here: the expert's log-probabilities are missing
e | only the expert speaks here: the router's log-probabilities are missing
r - e | the expert's log-probabilities are subtracted. Eq. (1) adds them
r.log_softmax(0) + e.log_softmax(0) | log_softmax runs over the wrong axis: the vocabulary is the
    | last one, dim=-1
(r + e).log_softmax(1 if r.dim() == 2 else 0) | log_softmax without dim takes another axis where
    | there are three: name it, dim=-1

informative
(c == c[..., :1]).all(-1) | this is the opposite: True must mean that the experts differ
c[..., 0] != c[..., 1] | only the first two experts are compared
c[..., 0] != c[..., -1] | only the first and the last expert are compared
c[..., -2] != c[..., -1] | only the last two experts are compared
(c != c[:1]).any(-1) | the wrong axis is compared: the experts are the last one, so choice[..., :1]
(c != c[:, :1]).any(-1)
(c[..., 1:] != c[..., :1]).all(-1) | True only where all experts differ from the first one: one that
    | differs is enough
(c != c[..., :1]).all(-1) | always False: the first expert never differs from itself. Use any, not
    | all
(c.sort(-1).values.diff(dim=-1) != 0).all(-1) | True only where each expert has a choice of its own:
    | two different choices are enough
c.float().mean(-1) != c[..., 0] | the mean of token numbers means nothing: (4, 3, 5) has the mean 4
    | and three choices
torch.ones(c.shape[:-1], dtype=torch.bool) | True everywhere

log_pi_agg
(w * logp).sum(-1) | w is used raw. It needs a softmax: raw weights need not be positive or sum to
    | 1, and the loss could fall without end
(w.softmax(-1) * logp.exp()).sum(-1).log() | this is the logarithm of a mean of probabilities. The
    | formula is a mean of logarithms
(w.softmax(-1) * logp.exp()).sum(-1) | this is a mean of probabilities, without any logarithm
(w.softmax(0) * logp).sum(-1) | the softmax runs over the wrong axis: the experts are the last one,
    | dim=-1
(w.softmax(1) * logp).sum(-1)
picked(w, logp) | only the picked expert counts here. That is Eq. (1)'s way of decoding; in training
    | all experts count, with their weights
logp.mean(-1) | all experts count alike: w is not used
(w.softmax(-1) * logp).mean(-1) | this is divided by the number of experts: the weights sum to 1
    | already
(w.log_softmax(-1) * logp).sum(-1) | the weights are log_softmax(w), which are negative: take
    | softmax(w)
(w.sigmoid() * logp).sum(-1) | the weights are sigmoid(w), which do not sum to 1: take softmax(w)
(w.exp() * logp).sum(-1) | the weights do not sum to 1: softmax(w) is exp(w) over its sum
(logp.softmax(-1) * logp).sum(-1) | the weights come from logp, not from the router's w
-(w.softmax(-1) * logp).sum(-1) | this is -log pi_agg: the minus belongs to the loss, step 4
(w.detach().softmax(-1) * logp).sum(-1) | w gets no gradient: something between w and the result is
    | detached

sft_loss
lm = cost.mean() | the prompt's tokens (and padding) are counted in L_LM: use mask
lm = cost.sum() / mask.sum()
lm = (cost * mask).mean() | L_LM is divided by all positions: divide by the answer tokens,
    | mask.sum()
lm = cost[mask].sum() | L_LM is a sum: divide it by the number of answer tokens
lm = ((cost * mask).sum(1) / mask.sum(1)).mean() | L_LM is averaged row by row: divide the batch's
    | sum by the batch's answer tokens
lm = cost[mask].sum() / len(cost) | L_LM is divided by the number of rows, not of answer tokens
lm = -token_logp(logits[:, :-1], targets[:, 1:])[mask[:, 1:]].mean() | the targets are shifted a
    | second time: logits[b, t] are about targets[b, t] already
lm = -cost[mask].mean() | L_LM has the wrong sign: a cross-entropy is positive
lm = cost[mask & S].sum() / mask.sum() | L_LM is counted on S only: S is for L_expert
lm = cost[mask & S].mean()
lam * lm + expert | lambda stands at L_LM: it belongs to L_expert
lm + expert | lambda has no effect: Eq. (2) has lambda * L_expert
lm | L_expert is missing
(1 - lam) * lm + lam * expert | lambda also takes L_LM away: the loss is L_LM + lambda * L_expert
expert = agg[S].sum() / mask.sum() | the prompt's tokens are counted in L_expert: S needs mask as
    | well
expert = agg[S].mean()
expert = agg[mask].mean() | L_expert is counted on all answer tokens: only those in S, where the
    | experts differ
expert = agg[mask & ~S].sum() / mask.sum() | L_expert is counted outside S, where the experts agree
expert = agg[mask & S].mean() | L_expert is divided by the size of S: divide by the answer tokens,
    | as L_LM
expert = agg[mask & S].sum() | L_expert is a sum: divide it by the number of answer tokens
expert = (agg * (mask & S)).mean() | L_expert is divided by all positions: divide by the answer
    | tokens, mask.sum()
expert = ((agg * (mask & S)).sum(1) / mask.sum(1)).mean() | L_expert is averaged row by row: divide
    | the batch's sum by the batch's answer tokens
agg = -(w * logp).sum(-1) | L_expert uses w raw: it needs a softmax
agg = -log_pi_agg(w.softmax(-1), logp) | the softmax is taken twice: log_pi_agg has one already
agg = -picked(w, logp) | only the picked expert counts, and W gets no gradient: in training all
    | experts count, with their weights
S = (choice != targets[..., None]).any(-1) | S is where an expert differs from the target. It is
    | where the experts differ from each other
agg = log_pi_agg(w, logp) | L_expert has the wrong sign: it is -log pi_agg
cost = -token_logp(logits.detach(), targets) | theta_LM gets no gradient: logits are detached, or
    | under no_grad
agg = -log_pi_agg(w.detach(), logp) | W gets no gradient: w is detached, or only its argmax is used
expert = agg[mask & S].mean() * (mask & S).sum() / mask.sum() | where S is empty the loss is nan:
    | L_expert is 0 there
lm = cost[:, 1:][mask[:, 1:]].sum() / mask.sum() | where position 0 is an answer token, it is left
    | out: nothing is to be shifted
expert = agg[:, 1:][(mask & S)[:, 1:]].sum() / mask.sum()

sequence_logp
logp.sum(-1) | the prompt's tokens are counted: use mask
logp.mean(-1)
(logp * mask).sum(-1) / mask.sum(-1) | this is a mean: Eq. (3) takes the sum over the answer's
    | tokens
(logp * mask).mean(-1)
(logp * mask).sum(-1).exp() | this is the probability of the answer, not its logarithm
(logp.exp() * mask).sum(-1) | probabilities are added up: add their logarithms
-(logp * mask).sum(-1) | this is the cross-entropy, which has the other sign: log-probabilities are
    | negative
logp = logits.gather(-1, targets[..., None])[..., 0] | these are raw logits of the targets: they
    | need a log_softmax
logp = logits.log_softmax(-1).amax(-1) | this follows the model's favourite token: take the
    | probability of the target
(token_logp(logits[:, :-1], targets[:, 1:]) * mask[:, 1:]).sum(-1) | the targets are shifted a
    | second time: logits[b, t] are about targets[b, t] already
logp = logits.log_softmax(1).gather(-1, targets[..., None])[..., 0] | log_softmax runs over the
    | wrong axis: the vocabulary is the last one, dim=-1
(logp * ~mask).sum(-1) | only the prompt (and padding) is counted: mask is the other way round
(logp * mask)[:, 1:].sum(-1) | where position 0 is an answer token, it is left out: nothing is to be
    | shifted
logp = token_logp(logits.detach(), targets) | theta_LM gets no gradient: logits are detached, or
    | under no_grad

routed_logp
each = log_pi_agg(w, logp) | the experts are mixed by their weights. The router picks one expert for
    | each token, the argmax of w (and without a detach a mixture would give W a gradient)
each = (w * logp).sum(-1) | the experts are mixed by raw w. The router picks one for each token, the
    | argmax of w
each = logp.mean(-1) | the experts' mean is taken: the router picks one expert for each token, the
    | argmax of w
each = logp.amax(-1) | the pick looks at the answer: it takes the expert with the largest logp, but
    | the router knows only w
each = picked(-w, logp) | the pick is the expert with the smallest w
each = picked(w.mean(1, keepdim=True).expand_as(logp), logp) | one expert is picked for the whole
    | answer: pick anew at each token
each = picked(w[:, :1].expand_as(logp), logp)
each = picked(w[:, -1:].expand_as(logp), logp)
each.sum(-1) | the prompt's tokens are counted: use mask
(each * mask).sum(-1) / mask.sum(-1) | this is a mean: Eq. (3) takes the sum over the answer's
    | tokens
(each * mask).mean(-1)
each = picked(w, w.softmax(-1) * logp) | the picked log-probability is multiplied by its weight: the
    | pick alone decides
-(each * mask).sum(-1) | the sign is wrong: log-probabilities are negative
(each * mask)[:, 1:].sum(-1) | where position 0 is an answer token, it is left out: nothing is to be
    | shifted

cdpo_loss
z = margin | the bias is missing: this is plain DPO
bias = ew - el | beta is missing in the bias
margin = tw - rw - tl + rl | beta is missing in the margin
margin = tw - rw - tl + rl; bias = ew - el | beta is missing
margin = beta**2 * (tw - rw - tl + rl); bias = beta**2 * (ew - el) | beta is multiplied twice
margin = beta * (tw - rw) - (tl - rl) | beta is missing at the rejected half of the margin
margin = beta * (tw - rw) | the rejected half of the margin is missing
bias = beta * ew | the rejected half of the bias is missing
margin = beta * (tw / rw - tl / rl) | a quotient of log-probabilities is taken: log pi_theta/pi_ref
    | is their difference
bias = beta * (el - ew) | the bias has the wrong sign: chosen minus rejected
-F.logsigmoid(-z).mean() | chosen and rejected are exchanged: this loss would teach the rejected
    | answers
margin = beta * (tl - rl - tw + rw) | chosen and rejected are exchanged in the margin
margin = beta * (tw - tl) | the reference is missing
margin = beta * (tw + rw - tl - rl) | the reference has the wrong sign: it is subtracted from theta
margin = beta * (tw - rw - tl - rl) | the rejected answer's reference has the wrong sign: it is
    | subtracted from theta_rejected
margin = beta * (tw + rw - tl + rl) | the chosen answer's reference has the wrong sign: it is
    | subtracted from theta_chosen
-F.logsigmoid(margin).mean() + bias.detach().mean() | the bias stands outside the sigmoid
-F.logsigmoid(margin).mean() - bias.detach().mean()
-F.logsigmoid(margin).mean() - F.logsigmoid(bias.detach()).mean() | margin and bias each have a
    | sigmoid: Eq. (3) has one, of the sum
-F.logsigmoid(z).sum() | this is the sum over the pairs: Eq. (3) is a mean here
-F.logsigmoid(z.mean()) | the pairs are averaged before the sigmoid: average their losses
-z.sigmoid().mean() | the logarithm is missing: -log sigmoid, not -sigmoid
1 - z.sigmoid().mean() | the logarithm is missing: -log sigmoid, not 1 - sigmoid
F.logsigmoid(z).mean() | the minus is missing: the loss is -log sigmoid
z.mean() | this is the mean of margin + bias, without -log sigmoid
-z.mean()
-z.sigmoid().log().mean() | the loss is not finite when margin + bias is far below 0: there sigmoid
    | is 0 and exp is infinite in float32. F.logsigmoid does all in one, safely
(1 + (-z).exp()).log().mean()
z = (margin + bias).detach() | theta gets no gradient: the stop-gradient is for the bias only, not
    | for the margin
margin = beta * (tw.detach() - rw - tl + rl) | theta_chosen gets no gradient: only the bias is
    | detached
margin = beta * (tw - rw - tl.detach() + rl) | theta_rejected gets no gradient: only the bias is
    | detached

fused_greedy
token = int(expert_logits[0, -1].argmax()) | only the expert's logits decide: fuse them with the
    | router's
token = int(router_logits[0, -1].argmax()) | only the router's logits decide: fuse them with the
    | picked expert's
pick = int(w[0, -1].argmin()) | the pick is the expert with the smallest w
pick = picks[0] if picks else int(w[0, -1].argmax()) | the expert that is picked first writes all
    | tokens: pick anew for each one
pick = int(w[0, 0].argmax()) | the first position's w is used: take the last one, w[0, -1]
token = int(fuse(router_logits[0, 0], expert_logits[0, 0]).argmax()) | the first position's logits
    | are used: take the last one's, logits[0, -1]
token = int(fuse(router_logits[0, 0], expert_logits[0, -1]).argmax())
token = int(fuse(router_logits[0, -1], expert_logits[0, 0]).argmax())
missed = text[-1:] if int(caches[pick].length) else text | an expert that is picked again reads the
    | last token only: it must first read all tokens that it missed

best_routing
values = Q.max(-1)[None] | the router chooses the token itself here. It only chooses an expert,
    | which draws the token: max over experts of the expected Q
values = (pi.max(0, keepdims=True) * Q).sum(-1) | each token comes from the expert that suits it
    | best: one expert draws among all tokens
V = values.mean(0) | the experts are averaged: the router picks the best one
V = values.min(0) | the worst expert is picked: min instead of max
one_expert(rewards, experts) | one expert writes the whole answer: the pick may change at each
    | prefix
values = next_reward_only(r, Q, pi) | the pick looks at the next reward only: it must count what
    | comes later, V, as well
values = (pi * r).sum(-1) | only the first token's reward is counted: Q needs the value of the next
    | prefix
values = favourite(Q, pi) | the experts always write their favourite token here: they draw from
    | their distribution
Q = r + V.reshape(A, -1).T | prefixes are joined wrongly: token a leads from s to A s + a, and not
    | to a A^t + s
values = (pi * (Q - r)).sum(-1) | the reward is missing in Q: Q is the reward plus the value of the
    | next prefix
values = (pi * r).sum(-1) + (Q - r).mean(-1) | the value of the next prefix must be weighted by the
    | expert's probabilities, too
values = (pi * r).sum(-1) + (Q - r).max(-1)
Q = r + V.reshape(-1, A) + (not picks) | V after the last token is 0, not 1

text_probability
fits = text.startswith(word) | the last token may reach beyond the text: a word that begins with
    | what is left counts too
here = p(())[token] | p is asked about the start again: it must know the tokens before,
    | (*tokens, token)
here = p(tokens[-1:])[token] | p must know all tokens before, not only the last one
fits = word == longest(words, text) | only the longest word is followed: all words that fit count,
    | so sum over them
left = 1.0 | only the first token counts: multiply by the probability of the rest of the cover
"""


def made(name, changes=""):
    """The right function of that name, with these lines written otherwise."""
    source = inspect.getsource(globals().get(name) or getattr(solutions, name))
    for change in filter(None, changes.split("; ")):
        part, assigned, _ = change.partition(" = ")
        start = f"{part} = " if assigned else "return "
        line = change if assigned else f"return {change}"
        *_, last = re.finditer(rf"^ +{re.escape(start)}.*$", source, re.M)
        indent = last[0][: -len(last[0].lstrip())]
        source = source[: last.start()] + indent + line + source[last.end() :]
    space = vars(solutions) | globals()
    exec(source, space)  # our own text
    return space[name]


def read(table):
    """TABLE as {function: [(what to say, the function with the slip)]}."""
    rows, name = {}, None
    for line in filter(None, table.splitlines()):
        change, bar, said = map(str.strip, line.partition(" | "))
        if not bar and (change in globals() or hasattr(solutions, change)):
            name = change
            rows[name] = []
        elif not change:
            rows[name][-1][0] += f" {said}"
        else:
            rows[name].append([said or rows[name][-1][0], change])
    return {name: [(said, made(name, x)) for said, x in slips] for name, slips in rows.items()}


SLIPS = read(TABLE)
