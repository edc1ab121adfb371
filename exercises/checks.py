"""The checkers of the eight steps. Each takes your function, and raises Wrong if it is wrong.

How they know: each computes the right answer on a small input, and beside it the answers that the
usual slips give. A result that is not right but equals the result of a slip has its name.
(Reading on shows solutions.)
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

import fusionroute
from model import GPT, GPTConfig


class Wrong(Exception):
    """Says what is wrong with a reader's function, in one or two sentences."""


# --- what all checkers use -----------------------------------------------------------------------


def expect(ok, message):
    if not ok:
        raise Wrong(message)


def tensor(got, shape, what, hint):
    """Wrong unless `got` is a finite tensor of this shape. hint: what the shape should be."""
    expect(got is not None, f"{what}: the function returns None. Is the return statement missing?")
    expect(isinstance(got, torch.Tensor), f"{what}: must be a tensor, not {type(got).__name__}")
    expect(got.shape == torch.Size(shape),
           f"{what}: the shape must be {tuple(shape)}, not {tuple(got.shape)}. {hint}")
    expect(got.dtype == torch.bool or got.isfinite().all(), f"{what}: a value is nan or infinite")
    return got


def close(a, b):
    a, b = torch.as_tensor(a).detach().double(), torch.as_tensor(b).detach().double()
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def show(x):
    if isinstance(x, torch.Tensor) and x.dtype != torch.bool:
        x = x.detach().double().mul(1000).round().div(1000)
    return x.tolist() if isinstance(x, torch.Tensor) else round(x, 4)


def compare(got, right, what, slips):
    """Wrong unless got is right. slips: pairs of a message and what the slip leads to."""
    if close(got, right):
        return
    for message, value in slips:
        if close(got, value):
            raise Wrong(message)
    raise Wrong(f"{what}: on the checker's input yours is {show(got)}, right is {show(right)}")


def gradient(loss, x):
    """The gradient of a number for x; None if it does not reach x."""
    if not loss.requires_grad:
        return None
    return torch.autograd.grad(loss, x, allow_unused=True, retain_graph=True)[0]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- step 1 --------------------------------------------------------------------------------------


def fuse(f):
    r, e = 2 * random(3, 4, seed=1), 2 * random(3, 4, seed=2)                     # (3, V)
    p, q, kept = r.softmax(-1), e.softmax(-1), (r.clone(), e.clone())
    got = f(r, e)
    expect(not isinstance(got, torch.Tensor) or not got.isnan().any(), "a value is nan: logits may "
           "be negative, so take no log of them. log_softmax makes log-probabilities of them")
    tensor(got, (3, 4), "fuse", "One number for each token of the vocabulary, no argmax.")
    expect(torch.equal(r, kept[0]) and torch.equal(e, kept[1]),
           "the arguments are changed in place: make a new tensor")
    compare(got.log_softmax(-1), (r + e).log_softmax(-1), "fuse, after a log_softmax", [
        (message, value.log_softmax(-1)) for message, value in [
            ("the two distributions are averaged (a mixture). Eq. (1) adds their logarithms, which "
             "multiplies them", (p + q).log()),
            ("the two probabilities are added. Eq. (1) adds their logarithms", p + q),
            ("these are probabilities. Eq. (1) wants log-probabilities: leave the exponential out",
             p * q),
            ("these are probabilities. Eq. (1) wants log-probabilities: leave the exponential out",
             (r + e).softmax(-1)),
            ("the two log-probabilities are multiplied. Eq. (1) adds them", p.log() * q.log()),
            ("the two logits are multiplied. Eq. (1) adds log-probabilities", r * e),
            ("this is half of Eq. (1): add the two, do not average them", (r + e) / 2),
            ("only the router speaks here: the expert's log-probabilities are missing", r),
            ("only the expert speaks here: the router's log-probabilities are missing", e),
            ("the expert's log-probabilities are subtracted. Eq. (1) adds them", r - e),
            ("log_softmax runs over the wrong axis: the vocabulary is the last one, dim=-1",
             r.log_softmax(0) + e.log_softmax(0))]])
    try:
        one, deep = f(r[0], e[0]), f(r[None], e[None])
    except (IndexError, RuntimeError) as error:
        raise Wrong("fuse works for (3, V), but not for (V,) or (1, 3, V): name the vocabulary's "
                    f"axis as dim=-1 ({error})") from error
    compare(one.log_softmax(-1), (r + e)[0].log_softmax(-1), "fuse of two (V,)", [])
    compare(deep[0].log_softmax(-1), (r + e).log_softmax(-1), "fuse of two (1, 3, V)", [
        ("log_softmax runs over the wrong axis when there are three: take dim=-1",
         (r[None].log_softmax(1) + e[None].log_softmax(1))[0].log_softmax(-1))])


# --- step 2 --------------------------------------------------------------------------------------


def informative(f):
    choice = torch.tensor([[[3, 3, 3], [3, 3, 8], [8, 3, 3], [1, 2, 3]],
                           [[3, 8, 3], [4, 3, 5], [0, 0, 0], [4, 5, 3]]])         # (2, 4, n)
    first, different = choice[..., 0], choice != choice[..., :1]
    right = different.any(-1)                                                     # (2, 4)
    got = f(choice)
    expect(not isinstance(got, torch.Tensor) or got.shape != choice.shape,
           "the experts' axis is still there: say for each position whether any expert differs")
    tensor(got, (2, 4), "informative", "The experts' axis, the last one, goes; the others stay.")
    compare(got, right, "informative", [
        ("this is the opposite: True must mean that the experts differ", ~right),
        ("only the first two experts are compared", choice[..., 0] != choice[..., 1]),
        ("only the first and the last expert are compared", choice[..., 0] != choice[..., -1]),
        ("only the last two experts are compared", choice[..., -2] != choice[..., -1]),
        ("the wrong axis is compared: the experts are the last one, so choice[..., :1]",
         (choice != choice[:1]).any(-1)),
        ("the wrong axis is compared: the experts are the last one, so choice[..., :1]",
         (choice != choice[:, :1]).any(-1)),
        ("True only where all experts differ from the first one: one that differs is enough",
         different[..., 1:].all(-1)),
        ("always False: the first expert never differs from itself. Use any, not all",
         different.all(-1)),
        ("True only where each expert has a choice of its own: two different choices are enough",
         (choice.sort(-1).values.diff(dim=-1) != 0).all(-1)),
        ("the mean of token numbers means nothing: (4, 3, 5) has the mean 4 and three choices",
         choice.float().mean(-1) != first),
        ("True everywhere", torch.ones_like(right))])
    expect(got.dtype == torch.bool,
           f"the result must be bool, not {got.dtype}: numbers index, only bool selects")
    try:
        alone = f(torch.tensor([[1], [2]]))
    except IndexError as error:
        raise Wrong("this works for three experts, but not for one: do not name the experts by "
                    f"their numbers ({error})") from error
    expect(not alone.any(), "a single expert never differs: False")


# --- step 3 --------------------------------------------------------------------------------------


def log_pi_agg(f):
    w = random(3, 4, 3, seed=3).requires_grad_()                                  # (3, 4, n)
    logp = 2 * random(3, 4, 3, seed=4).log_softmax(-1)                            # (3, 4, n)
    pi, weights = logp.exp(), w.softmax(-1)                                       # (3, 4, n) each
    right = (weights * logp).sum(-1)                                              # (3, 4)
    pick = w.argmax(-1, keepdim=True)                                             # (3, 4, 1)
    got = tensor(f(w, logp), (3, 4), "log_pi_agg", "Sum over the experts, the last axis.")
    compare(got, right, "log_pi_agg", [
        ("w is used raw. It needs a softmax: raw weights need not be positive or sum to 1, and "
         "the loss could fall without end", (w * logp).sum(-1)),
        ("this is the logarithm of a mean of probabilities. The formula is a mean of logarithms",
         (weights * pi).sum(-1).log()),
        ("this is a mean of probabilities, without any logarithm", (weights * pi).sum(-1)),
        ("the softmax runs over the wrong axis: the experts are the last one, dim=-1",
         (w.softmax(0) * logp).sum(-1)),
        ("the softmax runs over the wrong axis: the experts are the last one, dim=-1",
         (w.softmax(1) * logp).sum(-1)),
        ("only the picked expert counts here. That is Eq. (1)'s way of decoding; in training all "
         "experts count, with their weights", logp.gather(-1, pick)[..., 0]),
        ("all experts count alike: w is not used", logp.mean(-1)),
        ("this is divided by the number of experts: the weights sum to 1 already", right / 3),
        ("the weights are log_softmax(w), which are negative: take softmax(w)",
         (w.log_softmax(-1) * logp).sum(-1)),
        ("the weights are sigmoid(w), which do not sum to 1: take softmax(w)",
         (w.sigmoid() * logp).sum(-1)),
        ("the weights do not sum to 1: softmax(w) is exp(w) over its sum",
         (w.exp() * logp).sum(-1)),
        ("the weights come from logp, not from the router's w", (logp.softmax(-1) * logp).sum(-1)),
        ("this is -log pi_agg: the minus belongs to the loss, step 4", -right)])
    wanted, g = gradient(right.sum(), w), gradient(got.sum(), w)
    expect(g is not None, "w gets no gradient: something between w and the result is detached")
    compare(g, wanted, "the gradient of log pi_agg for w", [])


# --- step 4 --------------------------------------------------------------------------------------


def sft_inputs():
    """A batch of two rows of five positions: prompts, answers of two lengths, padding; n = 3."""
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]).bool()                # (B, T)
    mask[1, 4] = False                                   # three answer tokens, and two
    choice = torch.tensor([[[1, 2, 2], [3, 3, 3], [4, 4, 1], [5, 5, 5], [0, 1, 0]],
                           [[2, 2, 2], [5, 1, 1], [3, 0, 3], [1, 1, 1], [4, 4, 4]]])  # (B, T, n)
    return {"logits": 2 * random(2, 5, 6, seed=5), "w": random(2, 5, 3, seed=6),
            "targets": torch.tensor([[1, 3, 4, 2, 0], [2, 5, 3, 1, 4]]), "mask": mask,
            "logp": 3 * random(2, 5, 3, seed=7).log_softmax(-1), "choice": choice}


def sft_loss(f):
    x = sft_inputs()
    logits, w = x["logits"].requires_grad_(), x["w"].requires_grad_()
    mask, logp, count = x["mask"], x["logp"], x["mask"].sum()
    nll = -fusionroute.token_logp(logits, x["targets"])                           # (B, T)
    agg = -fusionroute.log_pi_agg(w, logp)                                        # (B, T)
    differ = fusionroute.informative(x["choice"])                                 # (B, T)
    S, lm = mask & differ, nll[mask].sum() / count
    expert = agg[S].sum() / count
    shifted = -fusionroute.token_logp(logits[:, :-1], x["targets"][:, 1:])        # (B, T-1)
    raw = -(w * logp).sum(-1)                                                     # (B, T)
    picked = -logp.gather(-1, w.argmax(-1, keepdim=True))[..., 0]                 # (B, T)
    wrong = (x["choice"] != x["targets"][..., None]).any(-1)                      # (B, T)
    kept = {name: value.detach().clone() for name, value in x.items()}
    own = tensor(f(**x, lam=0.0), (), "sft_loss", "One number for the whole batch.")
    expect(all(torch.equal(x[name], value) for name, value in kept.items()),
           "the arguments are changed in place: make a new tensor")
    compare(own, lm, "sft_loss with lambda = 0 (it is L_LM)", [
        ("the prompt's tokens (and padding) are counted in L_LM: use mask", nll.mean()),
        ("the prompt's tokens (and padding) are counted in L_LM: use mask", nll.sum() / count),
        ("L_LM is divided by all positions: divide by the answer tokens, mask.sum()",
         (nll * mask).mean()),
        ("L_LM is a sum: divide it by the number of answer tokens", nll[mask].sum()),
        ("L_LM is averaged row by row: divide the batch's sum by the batch's answer tokens",
         ((nll * mask).sum(1) / mask.sum(1)).mean()),
        ("L_LM is divided by the number of rows, not of answer tokens", nll[mask].sum() / 2),
        ("the targets are shifted a second time: logits[b, t] are about targets[b, t] already",
         shifted[mask[:, 1:]].mean()),
        ("L_LM has the wrong sign: a cross-entropy is positive", -lm),
        ("L_LM is counted on S only: S is for L_expert", nll[S].sum() / count),
        ("L_LM is counted on S only: S is for L_expert", nll[S].mean()),
        ("lambda stands at L_LM: it belongs to L_expert", expert),
        ("lambda has no effect: Eq. (2) has lambda * L_expert", lm + expert)])
    part = f(**x, lam=1.0) - own                                                  # L_expert
    compare(part, expert, "the part of sft_loss that lambda multiplies (L_expert)", [
        ("lambda has no effect: L_expert is missing", torch.zeros(())),
        ("the prompt's tokens are counted in L_expert: S needs mask as well",
         agg[differ].sum() / count),
        ("the prompt's tokens are counted in L_expert: S needs mask as well", agg[differ].mean()),
        ("L_expert is counted on all answer tokens: only those in S, where the experts differ",
         agg[mask].sum() / count),
        ("L_expert is counted outside S, where the experts agree",
         agg[mask & ~differ].sum() / count),
        ("L_expert is divided by the size of S: divide by the answer tokens, as L_LM",
         agg[S].mean()),
        ("L_expert is a sum: divide it by the number of answer tokens", agg[S].sum()),
        ("L_expert is divided by all positions: divide by the answer tokens, mask.sum()",
         agg[S].sum() / mask.numel()),
        ("L_expert uses w raw: it needs a softmax", raw[S].sum() / count),
        ("the softmax is taken twice: log_pi_agg has one already",
         -fusionroute.log_pi_agg(w.softmax(-1), logp)[S].sum() / count),
        ("only the picked expert counts, and W gets no gradient: in training all experts count, "
         "with their weights", picked[S].sum() / count),
        ("S is where an expert differs from the target. It is where the experts differ from each "
         "other", agg[mask & wrong].sum() / count),
        ("L_expert is averaged row by row: divide the batch's sum by the batch's answer tokens",
         ((agg * S).sum(1) / mask.sum(1)).mean()),
        ("L_expert has the wrong sign: it is -log pi_agg", -expert),
        ("lambda also takes L_LM away: the loss is L_LM + lambda * L_expert", expert - lm)])
    compare(f(**x, lam=0.25), lm + 0.25 * expert, "sft_loss with lambda = 0.25", [
        ("L_expert does not grow in proportion to lambda", own)])
    total = f(**x, lam=0.25)
    g_logits, g_w = gradient(total, logits), gradient(total, w)
    expect(g_logits is not None, "theta_LM gets no gradient: logits are detached")
    expect(g_w is not None, "W gets no gradient: w is detached, or only its argmax is used")
    compare(g_logits, gradient(lm, logits), "the gradient for the logits", [])
    compare(g_w, 0.25 * gradient(expert, w), "the gradient for w", [])
    agree = x | {"choice": torch.ones_like(x["choice"])}
    empty = f(**agree, lam=1.0)
    expect(empty.isfinite(), "where S is empty the loss is nan: L_expert is 0 there")
    compare(empty, lm, "sft_loss with an empty S", [])
    whole = nll.mean() + agg[differ].sum() / mask.numel()
    expect(close(f(**x | {"mask": torch.ones_like(mask)}, lam=1.0), whole),
           "where position 0 is an answer token, it is left out: nothing is to be shifted")


# --- step 5 --------------------------------------------------------------------------------------


def sequence_logp(f):
    x = sft_inputs()
    logits, targets, mask = x["logits"].requires_grad_(), x["targets"], x["mask"]
    logp = fusionroute.token_logp(logits, targets)                                # (B, T)
    right = (logp * mask).sum(-1)                                                 # (B,)
    raw = logits.gather(-1, targets[..., None])[..., 0]                           # (B, T)
    best = logits.log_softmax(-1).amax(-1)                                        # (B, T)
    shifted = fusionroute.token_logp(logits[:, :-1], targets[:, 1:])              # (B, T-1)
    got = tensor(f(logits, targets, mask), (2,), "sequence_logp",
                 "One number for each row: sum over the tokens, keep the batch.")
    compare(got, right, "sequence_logp", [
        ("the prompt's tokens are counted: use mask", logp.sum(-1)),
        ("the prompt's tokens are counted: use mask", logp.mean(-1)),
        ("this is the mean over the answer's tokens: Eq. (3) takes the sum", right / mask.sum(-1)),
        ("this is a mean over all positions: Eq. (3) takes the sum over the answer's tokens",
         (logp * mask).mean(-1)),
        ("this is the probability of the answer, not its logarithm", right.exp()),
        ("probabilities are added up: add their logarithms", (logp.exp() * mask).sum(-1)),
        ("this is the cross-entropy, which has the other sign: log-probabilities are negative",
         -right),
        ("these are raw logits of the targets: they need a log_softmax", (raw * mask).sum(-1)),
        ("this follows the model's favourite token: take the probability of the target",
         (best * mask).sum(-1)),
        ("the targets are shifted a second time: logits[b, t] are about targets[b, t] already",
         (shifted * mask[:, 1:]).sum(-1)),
        ("log_softmax runs over the wrong axis: the vocabulary is the last one, dim=-1",
         (logits.log_softmax(1).gather(-1, targets[..., None])[..., 0] * mask).sum(-1)),
        ("only the prompt (and padding) is counted: mask is the other way round",
         (logp * ~mask).sum(-1)),
        ("only the last token of the answer is counted", torch.stack([logp[0, 3], logp[1, 3]]))])
    expect(close(f(logits, targets, torch.ones_like(mask)), logp.sum(-1)),
           "where position 0 is an answer token, it is left out: nothing is to be shifted")
    g = gradient(got.sum(), logits)
    expect(g is not None, "theta_LM gets no gradient: logits are detached, or under no_grad")
    compare(g, gradient(right.sum(), logits), "the gradient for the logits", [])


def routed_logp(f):
    x = sft_inputs()
    w, logp, mask = x["w"].requires_grad_(), x["logp"], x["mask"]
    pick = w.argmax(-1, keepdim=True)                                             # (B, T, 1)
    routed = logp.gather(-1, pick)[..., 0]                                        # (B, T)
    right, weights = (routed * mask).sum(-1), w.softmax(-1)

    def one_pick(scores):                          # one expert for a whole row. scores (B, n)
        i = scores.argmax(-1)[:, None, None].expand(-1, 5, 1)                     # (B, T, 1)
        return (logp.gather(-1, i)[..., 0] * mask).sum(-1)                        # (B,)

    got = tensor(f(w, logp, mask), (2,), "routed_logp",
                 "One number for each row: sum over the tokens, keep the batch.")
    soft = ("the experts are mixed by their weights. The router picks one expert for each token, "
            "the argmax of w (and without a detach a mixture would give W a gradient)")
    compare(got, right, "routed_logp", [
        (soft, ((weights * logp).sum(-1) * mask).sum(-1)),
        ("the experts are mixed by raw w. The router picks one for each token, the argmax of w",
         ((w * logp).sum(-1) * mask).sum(-1)),
        ("the experts' mean is taken: the router picks one expert for each token, the argmax of w",
         (logp.mean(-1) * mask).sum(-1)),
        ("the pick looks at the answer: it takes the expert with the largest logp, but the router "
         "knows only w", (logp.amax(-1) * mask).sum(-1)),
        ("the pick is the expert with the smallest w",
         (logp.gather(-1, w.argmin(-1, keepdim=True))[..., 0] * mask).sum(-1)),
        ("one expert is picked for the whole answer: pick anew at each token", one_pick(w.mean(1))),
        ("one expert is picked for the whole answer: pick anew at each token", one_pick(w[:, 0])),
        ("one expert is picked for the whole answer: pick anew at each token", one_pick(w[:, -1])),
        ("the prompt's tokens are counted: use mask", routed.sum(-1)),
        ("this is a mean: Eq. (3) takes the sum over the answer", right / mask.sum(-1)),
        ("this is a mean: Eq. (3) takes the sum over the answer", (routed * mask).mean(-1)),
        ("the picked log-probability is multiplied by its weight: the pick alone decides",
         ((routed * weights.amax(-1)) * mask).sum(-1)),
        ("the sign is wrong: log-probabilities are negative", -right)])
    expect(close(f(w, logp, torch.ones_like(mask)), routed.sum(-1)),
           "where position 0 is an answer token, it is left out: nothing is to be shifted")
    g = gradient(got.sum(), w)
    expect(g is None or not g.any(), "W gets a gradient, though the values are right: the pick is "
           "outside the stop-gradient. No pair may move W: index with the argmax, or detach w")


# --- step 6 --------------------------------------------------------------------------------------


def cdpo_loss(f):
    beta, six = 0.3, [(-12 + 3 * random(4, seed=10 + i)).requires_grad_() for i in range(6)]
    tw, tl, rw, rl, ew, el = six                                                  # (B,) each
    margin, bias = beta * (tw - rw) - beta * (tl - rl), beta * (ew - el)          # (B,)

    def nll(x):
        return -F.logsigmoid(x).mean()

    right = nll(margin + bias.detach())                                           # ()
    got = f(*six, beta)
    each = torch.Size([4])
    expect(not isinstance(got, torch.Tensor) or got.shape != each,
           "this is one loss a pair: return their mean, one number")
    tensor(got, (), "cdpo_loss", "One number for the batch.")
    compare(got, right, "cdpo_loss", [
        ("the bias is missing: this is plain DPO", nll(margin)),
        ("beta is missing in the bias", nll(margin + ew - el)),
        ("beta is missing in the margin", nll(margin / beta + bias)),
        ("beta is missing", nll((margin + bias) / beta)),
        ("beta is multiplied twice", nll((margin + bias) * beta)),
        ("beta is missing at the rejected half of the margin",
         nll(beta * (tw - rw) - (tl - rl) + bias)),
        ("the rejected half of the margin is missing", nll(beta * (tw - rw) + bias)),
        ("the rejected half of the bias is missing", nll(margin + beta * ew)),
        ("a quotient of log-probabilities is taken: log pi_theta/pi_ref is their difference",
         nll(beta * (tw / rw - tl / rl) + bias)),
        ("the bias has the wrong sign: chosen minus rejected", nll(margin - bias)),
        ("chosen and rejected are exchanged: this loss would teach the rejected answers",
         nll(-margin - bias)),
        ("chosen and rejected are exchanged in the margin", nll(-margin + bias)),
        ("the reference is missing", nll(beta * (tw - tl) + bias)),
        ("the reference has the wrong sign: it is subtracted from theta",
         nll(beta * (tw + rw - tl - rl) + bias)),
        ("the rejected answer's reference has the wrong sign: it is subtracted from theta_rejected",
         nll(beta * (tw - rw - tl - rl) + bias)),
        ("the chosen answer's reference has the wrong sign: it is subtracted from theta_chosen",
         nll(beta * (tw + rw - tl + rl) + bias)),
        ("the bias stands outside the sigmoid", nll(margin) + bias.mean()),
        ("the bias stands outside the sigmoid", nll(margin) - bias.mean()),
        ("margin and bias each have a sigmoid: theirs is one, of the sum", nll(margin) + nll(bias)),
        ("this is the sum over the pairs: Eq. (3) is a mean here", right * 4),
        ("the pairs are averaged before the sigmoid: average their losses",
         -F.logsigmoid((margin + bias).mean())),
        ("the logarithm is missing: -log sigmoid, not -sigmoid", -(margin + bias).sigmoid().mean()),
        ("the logarithm is missing: -log sigmoid, not 1 - sigmoid",
         1 - (margin + bias).sigmoid().mean()),
        ("the minus is missing: the loss is -log sigmoid", -right),
        ("this is the mean of margin + bias, without -log sigmoid", (margin + bias).mean()),
        ("this is the mean of margin + bias, without -log sigmoid", -(margin + bias).mean())])
    g = [gradient(got, x) for x in six]
    expect(all(x is None or not x.any() for x in g[4:]),
           "the experts get a gradient: the bias needs the stop-gradient, .detach()")
    expect(any(x is not None and x.any() for x in g[:2]),
           "theta gets no gradient: the stop-gradient is for the bias only, not for the margin")
    for name, x in (("theta_chosen", g[0]), ("theta_rejected", g[1])):
        expect(x is not None, f"{name} gets no gradient: only the bias is detached")
    compare(torch.stack(g[:2]), torch.stack([gradient(right, x) for x in six[:2]]),
            "the gradient for theta", [])
    far = [torch.tensor([x]) for x in (-9000.0, 0.0, 0.0, 0.0, 0.0, 0.0)]
    expect(f(*far, beta).isfinite(), "the loss is not finite when margin + bias is -2700: there "
           "sigmoid is 0 and exp is infinite in float32. F.logsigmoid does all in one, safely")
    expect(abs(float(f(*far, beta)) - 2700) < 1, "the loss is cut off when margin + bias is -2700: "
           "it must be 2700 there, or such a pair gets no gradient. F.logsigmoid needs no clamp")


# --- step 7 --------------------------------------------------------------------------------------


class Watched(GPT):
    """A tiny GPT that complains when it reads in a wrong way, and writes down what it has read."""

    def __init__(self, name, diary):
        super().__init__(GPTConfig(vocab_size=12, d_model=16, n_layer=1, n_head=2, n_kv_head=1,
                                   head_dim=8, d_ff=16, max_len=64))
        self.name, self.diary = name, diary
        for block in self.blocks:              # so that the text matters, not its last token only
            block.wo.weight.data *= 8
            block.w_down.weight.data *= 8

    def forward(self, ids, cache=None, new=None):
        if self.diary.watching:
            self.diary.note(self.name, ids, cache)
        return super().forward(ids, cache, new)


class Diary:
    """Who has read what, and how often each model ran."""

    def __init__(self):
        self.watching = False

    def begin(self, max_new):
        self.watching, self.max_new = True, max_new
        self.read, self.runs, self.owners = {}, {}, {}

    def note(self, name, ids, cache):
        expect(isinstance(ids, torch.Tensor) and ids.dim() == 2,
               f"{name} must be given its new tokens as a tensor (1, t)")
        expect(ids.size(1) > 0, f"{name} is given no token: is the new token added to the text?")
        expect(int(ids.max()) < 12, f"{name} is given the token {int(ids.max())}, of 12: take the "
               "last position's logits, logits[0, -1], before the argmax")
        expect(cache is not None,
               f"{name} reads without a cache: give it one, and new tokens only")
        owner = self.owners.setdefault(id(cache), (name, cache))[0]
        expect(owner == name, f"{owner} and {name} share a cache: each needs its own")
        before, ids, had = self.read.get(name, []), ids[0].tolist(), int(cache.length[0])
        expect(had == len(before), f"{name} gets a new cache, and reads the text again: keep one "
               "cache for the whole answer")
        expect(not before or ids[:had] != before, f"{name} reads the whole text again, though its "
               "cache remembers it: give it the tokens after cache.length only")
        self.read[name], self.runs[name] = before + ids, self.runs.get(name, 0) + 1
        expect(self.runs.get("the router", 0) <= self.max_new + 1,
               "the loop does not stop: it must, after max_new tokens")


def watched(seed):
    """A router, three experts, and the diary in which all of them write."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        diary = Diary()
        experts = [Watched(f"expert {i}", diary) for i in range(3)]
        router = fusionroute.Router(Watched("the router", diary), 3)
        torch.nn.init.normal_(router.W.weight)
    return router.requires_grad_(False), [e.requires_grad_(False) for e in experts], diary


# Texts on which the picks change often: seed of the models, prompt, end token, max_new. The first
# one ends, the second one does not.
TEXTS = [(199, [5, 3], 3, 12), (155, [7, 8, 2], 0, 10)]


@torch.no_grad()
def wrong_loop(router, experts, prompt, end, max_new, slip):
    """The tokens that the fused greedy loop gives with a slip in it."""
    text, picks = list(prompt), []
    caches, had = [e.new_cache(1) for e in experts], [0] * len(experts)
    while len(picks) < max_new:
        new = 0 if not picks else -1          # the first of the positions that the router reads now
        r, w = router(torch.tensor([text]))                                # (1, T, V), (1, T, n)
        w = w[0, new if slip == "first w" else -1]                                # (n,)
        picks.append(int(w.argmin() if slip == "smallest" else w.argmax()))
        i = picks[0] if slip == "first pick" else picks[-1]
        if slip == "last token":                        # what the expert missed stays unread
            unread = text if not int(caches[i].length) else text[-1:]
            e = experts[i](torch.tensor([unread]), caches[i])[0][0, -1]           # (V,)
        else:
            first, had[i] = had[i], len(text)
            at = first if slip in ("first logits", "first of the expert's") else -1
            e = experts[i](torch.tensor([text]))[0][0, at]                        # (V,)
        r = r[0, new if slip in ("first logits", "first of the router's") else -1]  # (V,)
        token = int({"expert": e, "router": r}.get(slip, fusionroute.fuse(r, e)).argmax())
        if token == end:
            break
        text.append(token)
    return text[len(prompt):]


LOOP_SLIPS = {
    "expert": "only the expert's logits decide: fuse them with the router's",
    "router": "only the router's logits decide: fuse them with the picked expert's",
    "smallest": "the pick is the expert with the smallest w",
    "first pick": "the expert that is picked first writes all tokens: pick anew for each one",
    "first w": "the first position's w is used: take the last one, w[0, -1]",
    **dict.fromkeys(("first logits", "first of the router's", "first of the expert's"),
                    "the first position's logits are used: take the last one's, logits[0, -1]"),
    "last token": "an expert that is picked again reads the last token only: it must first read "
                  "all tokens that it missed"}


def fused_greedy(f):
    for seed, prompt, end, max_new in TEXTS:
        router, experts, diary = watched(seed)
        models = router, experts, prompt, end, max_new
        tokens, picks = fusionroute.naive_fused_greedy(*models)
        slips = {slip: wrong_loop(*models, slip) for slip in LOOP_SLIPS}
        given = list(prompt)
        diary.begin(max_new)
        got = f(router, experts, given, end, max_new)
        expect(isinstance(got, tuple) and len(got) == 2,
               "return two lists: the tokens, and the picks")
        mine, picked = ([int(x) for x in part] for part in got)
        expect(given == prompt, "the caller's prompt is changed: work on a copy, list(prompt)")
        expect(mine != prompt + tokens, "the prompt is in the answer: return the new tokens only")
        expect(mine != tokens + [end], "the end token is in the answer: leave it out")
        for slip, message in LOOP_SLIPS.items():
            expect(mine != slips[slip] or mine == tokens, message)  # some slips do no harm here
        expect(len(mine) <= max_new, f"{len(mine)} tokens are written, and max_new is {max_new}")
        expect(mine != tokens[:-1], "the last token is missing: the loop stops too early")
        for name, read in diary.read.items():
            text = (prompt + mine)[:len(read)]
            expect(read == text, f"{name} has read {read}, and the text is {prompt + mine}: it "
                   "must read all tokens in order, each one once, also those that it missed")
        expect(mine == tokens, f"with the prompt {prompt} and the end token {end} the tokens must "
               f"be {tokens}; yours are {mine}")
        expect(len(picks) == len(tokens) or picked != picks[:-1],
               "the pick for the end token is missing: the pick comes before the token")
        expect(picked == picks, f"the picks must be {picks}; yours are {picked}")
        runs = sum(n for name, n in diary.runs.items() if name != "the router")
        expect(runs <= len(picks),
               f"experts ran {runs} times for {len(picks)} tokens: only the picked one may run")
        expect(diary.runs["the router"] <= len(picks),
               f"the router ran more often than {len(picks)} times for {len(picks)} tokens")


# --- step 8 --------------------------------------------------------------------------------------


def world(seed, A, T, n):
    """Random rewards [(A^t, A)] and experts [(n, A^t, A)]."""
    g = np.random.default_rng(seed)
    experts = [g.random((n, A**t, A))**3 for t in range(T)]
    return ([g.random((A**t, A)).round(2) for t in range(T)],
            [pi / pi.sum(-1, keepdims=True) for pi in experts])


def routing_value(rewards, experts, picks):
    """The value of a routing: the sum of what it earns, forward from the empty prefix."""
    reach, value = np.ones(1), 0.0                                                # (A^t,)
    for r, pi, pick in zip(rewards, experts, picks):
        p = pi[np.asarray(pick), np.arange(len(r))]                               # (A^t, A)
        value += (reach[:, None] * p * r).sum()
        reach = (reach[:, None] * p).reshape(-1)                                  # (A^(t+1),)
    return value


def backwards(rewards, experts, rule, child=lambda V, A: V.reshape(-1, A), start=0.0):
    """Dynamic programming with any rule (r, Q, pi) -> V (A^t,)."""
    A = rewards[0].shape[1]
    V = np.full(A**len(rewards), start)
    for r, pi in zip(rewards[::-1], experts[::-1]):
        V = rule(r, r + child(V, A), pi)                                          # (A^t,)
    return float(V[0])


def best_routing(f):
    rewards, experts = world(66, A=2, T=3, n=2)
    sizes = [len(r) for r in rewards]                                             # 1, 2, 4
    right = max(routing_value(rewards, experts, np.split(np.array(flat), np.cumsum(sizes)[:-1]))
                for flat in itertools.product(range(2), repeat=sum(sizes)))       # all 128 routings

    def expected(r, Q, pi):
        return (pi * Q).sum(-1)                                                   # (n, A^t)

    def greedy(r, Q, pi):                        # the expert with the best next reward only
        i = (pi * r).sum(-1).argmax(0)                                            # (A^t,)
        return expected(r, Q, pi)[i, np.arange(len(r))]

    def favourite(r, Q, pi):
        return np.take_along_axis(Q[None], pi.argmax(-1)[..., None], 2)[..., 0].max(0)

    def back(rule, **how):
        return backwards(rewards, experts, rule, **how)

    given = [r.copy() for r in rewards], [e.copy() for e in experts]
    got = f(*given)
    expect(all(map(np.array_equal, given[0] + given[1], rewards + experts)),
           "the arguments are changed in place: make a new array for Q")
    expect(isinstance(got, tuple) and len(got) == 2,
           "return two things: the value, and the list of picks")
    value, picks = got
    expect(np.ndim(value) == 0, f"the value must be one number, V of the empty prefix, not "
           f"{np.shape(value)}")
    compare(float(value), right, "the value of the best routing", [
        ("the router chooses the token itself here. It only chooses an expert, which draws the "
         "token: max over experts of the expected Q", back(lambda r, Q, pi: Q.max(-1))),
        ("each token comes from the expert that suits it best: one expert draws among all tokens",
         back(lambda r, Q, pi: (pi.max(0) * Q).sum(-1))),
        ("the experts are averaged: the router picks the best one",
         back(lambda r, Q, pi: expected(r, Q, pi).mean(0))),
        ("the worst expert is picked: min instead of max",
         back(lambda r, Q, pi: expected(r, Q, pi).min(0))),
        ("one expert writes the whole answer: the pick may change at each prefix",
         max(backwards(rewards, [e[i:i + 1] for e in experts], lambda r, Q, pi: (pi[0] * Q).sum(-1))
             for i in range(2))),
        ("the pick looks at the next reward only: it must count what comes later, V, as well",
         back(greedy)),
        ("only the first token's reward is counted: Q needs the value of the next prefix",
         back(lambda r, Q, pi: (pi * r).sum(-1).max(0))),
        ("the experts always write their favourite token here: they draw from their distribution",
         back(favourite)),
        ("prefixes are joined wrongly: token a leads from s to A s + a, and not to a A^t + s",
         back(lambda r, Q, pi: expected(r, Q, pi).max(0), child=lambda V, A: V.reshape(A, -1).T)),
        ("the reward is missing in Q: Q is the reward plus the value of the next prefix", 0.0),
        ("the value of the next prefix must be weighted by the expert's probabilities, too",
         back(lambda r, Q, pi: ((pi * r).sum(-1) + (Q - r).mean(-1)).max(0))),
        ("the value of the next prefix must be weighted by the expert's probabilities, too",
         back(lambda r, Q, pi: ((pi * r).sum(-1) + (Q - r).max(-1)).max(0))),
        ("V after the last token is 0, not 1",
         back(lambda r, Q, pi: expected(r, Q, pi).max(0), start=1.0))])
    expect(isinstance(picks, list) and len(picks) == len(rewards),
           f"picks must be a list of T = {len(rewards)} arrays, one for each length of prefix")
    expect([np.shape(p) for p in picks] != [(n,) for n in sizes[::-1]],
           "the picks are in reverse order: those of the empty prefix come first")
    expect([np.shape(p) for p in picks] == [(n,) for n in sizes],
           f"the picks must have the shapes {[(n,) for n in sizes]}, not "
           f"{[np.shape(p) for p in picks]}")
    expect(all(np.isin(p, [0, 1]).all() for p in picks), "a pick is an expert's number, 0 to n - 1")
    picks = [np.asarray(p).astype(int) for p in picks]
    reached = routing_value(rewards, experts, picks)
    expect(np.isclose(reached, right), f"the value is right, {right:.4f}, but your picks reach "
           f"only {reached:.4f}: the pick at s is the argmax over experts of the expected Q")
    rewards, experts = world(9, A=3, T=2, n=4)           # other sizes: nothing may be fixed to 2
    wanted = backwards(rewards, experts, lambda r, Q, pi: expected(r, Q, pi).max(0))
    compare(float(f(rewards, experts)[0]), wanted, "the value with A = 3, T = 2 and n = 4", [])


# --- the steps -----------------------------------------------------------------------------------

# number -> (file, its functions with their checkers)
STEPS = {
    1: ("step1_fuse", {"fuse": fuse}),
    2: ("step2_informative", {"informative": informative}),
    3: ("step3_log_pi_agg", {"log_pi_agg": log_pi_agg}),
    4: ("step4_sft_loss", {"sft_loss": sft_loss}),
    5: ("step5_sequence_logp", {"sequence_logp": sequence_logp, "routed_logp": routed_logp}),
    6: ("step6_cdpo_loss", {"cdpo_loss": cdpo_loss}),
    7: ("step7_greedy_loop", {"fused_greedy": fused_greedy}),
    8: ("step8_routing_dp", {"best_routing": best_routing}),
}
