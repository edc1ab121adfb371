"""Other losses in the place of Eq. (2) and Eq. (3), each known by a name.

Every loss takes what train_sft.train or train_cdpo.train hands to theirs:

    train_sft.train(s, router, sft, loss_fn=sft_loss_of("co_llm", experts))
    train_cdpo.train(s, router, sft, pairs, ref, plan, pair_loss_fn=pair_loss_of("ipo", experts))

Some losses need the experts' whole distributions, full (B, T, n, V). These are computed again at
every step. The models' input follows from the targets: every sample begins with <|user|>.
Shapes are those of fusionroute.py.
"""

from functools import partial

import torch
import torch.nn.functional as F

from fusionroute import (
    cdpo_loss,
    fuse,
    informative,
    log_pi_agg,
    routed_logp,
    sequence_logp,
    sft_loss,
    token_logp,
)
from toy_experts import tokenizer
from train_cdpo import pair_loss

# --- the experts' whole distributions ------------------------------------------------------------


@torch.no_grad()
def read(experts, ids):
    """All experts' log-probabilities of every next token: ids (B, T) -> (B, T, n, V)."""
    return torch.stack([expert(ids)[0].log_softmax(-1) for expert in experts], 2)


def inputs(targets):
    """What the models read before each target: <|user|>, then the targets. (B, T) -> (B, T)."""
    first = torch.full_like(targets[:, :1], tokenizer.USER)  # (B, 1)
    return torch.cat([first, targets[:, :-1]], 1)  # (B, T)


def picked(full, w):
    """The distribution of the picked expert: full (B, T, n, V), w (B, T, n) -> (B, T, V)."""
    pick = w.argmax(-1)[..., None, None].expand(-1, -1, 1, full.size(-1))  # (B, T, 1, V)
    return full.gather(2, pick)[:, :, 0]  # (B, T, V)


# --- neighbours of Eq. (2) -----------------------------------------------------------------------


def everywhere(choice):
    """All positions, in the place of the set S. choice (..., n) -> bool (...)."""
    return torch.ones_like(choice[..., 0], dtype=torch.bool)


def mixture(w, logp):
    """log sum_i softmax(w)_i pi_i(y_t), in the place of log pi_agg. (..., n) twice -> (...)."""
    return (w.log_softmax(-1) + logp).logsumexp(-1)


def eq2(logits, w, targets, mask, logp, choice, lam, S=informative, agg=log_pi_agg):
    """sft_loss with another rule S for the positions, or another rule agg for log pi_agg."""
    answer_tokens = mask.sum()
    inside = mask & S(choice)  # (B, T)
    loss_lm = -token_logp(logits, targets)[mask].sum() / answer_tokens
    loss_expert = -agg(w, logp)[inside].sum() / answer_tokens
    pick = w[inside].argmax(-1)  # (|S|,)
    routing = [(pick == i).sum() / max(1, len(pick)) for i in range(w.size(-1))]
    share = inside.sum() / answer_tokens
    terms = {"loss_lm": loss_lm, "loss_expert": loss_expert, "informative": share}
    return loss_lm + lam * loss_expert, terms | {"routing": routing}


def plain(logits, w, targets, mask, logp, choice, lam):
    """L_LM alone: ordinary fine-tuning."""
    return sft_loss(logits, w, targets, mask, logp, choice, 0.0)


def raw(w, logp):
    """log pi_agg with the raw weights. As a loss it has no lower bound."""
    return (w * logp).sum(-1)


def best(w, logp):
    """The log-weight of the expert to which y_t is likeliest, in the place of log pi_agg."""
    return w.log_softmax(-1).gather(-1, logp.argmax(-1, True))[..., 0]


def renormalised(logits, w, targets, *rest, full):
    """Eq. (2), log pi_agg renormalised over the vocabulary."""
    agg = lambda w, _: token_logp((w.softmax(-1)[..., None] * full).sum(2), targets)
    return eq2(logits, w, targets, *rest, agg=agg)


def co_llm(logits, w, targets, mask, logp, choice, lam):
    """log sum_i w_i pi_i(y_t) at all positions, with lambda 1."""
    return eq2(logits, w, targets, mask, logp, choice, 1.0, S=everywhere, agg=mixture)


def co_llm_self(logits, w, targets, mask, logp, choice, lam):
    """The same with the router's language model as one more choice. w (B, T, n + 1)."""
    own = token_logp(logits, targets)[..., None]  # (B, T, 1)
    loss, terms = co_llm(logits, w, targets, mask, torch.cat([logp, own], -1), choice, lam)
    return loss, terms | {"route_router": terms["routing"][-1]}


def fused(logits, w, targets, *rest, full):
    """Eq. (2) with L_LM of the fused distribution, Eq. (1), not the router's. The pick is fixed."""
    return eq2(fuse(logits, picked(full, w)), w, targets, *rest)


def fused_own(logits, w, targets, mask, *rest, full):
    """The same with 0.2 times the router's own L_LM on top."""
    loss, terms = fused(logits, w, targets, mask, *rest, full=full)
    own = token_logp(logits, targets)[mask]  # (answer tokens,)
    return loss - 0.2 * (own.sum() / max(own.numel(), 1)), terms


SFT_LOSSES = {
    "paper": sft_loss,
    "plain": plain,
    "all": partial(eq2, S=everywhere),
    "raw": partial(eq2, agg=raw),
    "renormalised": renormalised,
    "mixture": partial(eq2, agg=mixture),  # pi_agg = sum_i w_i pi_i
    "best": partial(eq2, agg=best),
    "co_llm": co_llm,
    "co_llm_self": co_llm_self,
    "fused": fused,
    "fused_own": fused_own,
}

# --- neighbours of Eq. (3) -----------------------------------------------------------------------
# Write m = [log pi_theta/pi_ref(y_w) - log pi_theta/pi_ref(y_l)] and
# b = stopgrad(log pi_expert(y_w) - log pi_expert(y_l)). Eq. (3) is -log sigmoid(beta (m + b)).


def dpo(theta, ref, beta):
    """Eq. (3) without b. theta (2B,): chosen and rejected answers in turn; ref (B, 2)."""
    zero = torch.zeros_like(ref[:, 0])  # (B,)
    return cdpo_loss(*theta.view(-1, 2).unbind(1), *ref.unbind(1), zero, zero, beta)


def no_bias(logits, w, targets, mask, logp, ref, beta):
    """Eq. (3) without the bias: ordinary DPO of the router's language model."""
    return dpo(sequence_logp(logits, targets, mask), ref, beta)


def gradient(logits, w, targets, mask, logp, ref, beta):
    """Eq. (3) with a gradient through the bias: that of log pi_agg, because a pick has none."""
    theta = sequence_logp(logits, targets, mask) + (log_pi_agg(w, logp) * mask).sum(-1)  # (2B,)
    return dpo(theta, ref, beta)


def fused_dpo(logits, w, targets, mask, logp, ref, beta, full):
    """Ordinary DPO of the normalised fused policy, Eq. (1). ref is from fused_reference."""
    return dpo(sequence_logp(fuse(logits, picked(full, w)), targets, mask), ref, beta)


def sft_on_chosen(logits, w, targets, mask, logp, ref, beta):
    """No preference at all: fine-tuning on the chosen answer for as many steps."""
    nll = -token_logp(logits, targets)[::2][mask[::2]]  # (tokens of chosen answers,)
    loss_lm = nll.sum() / max(nll.numel(), 1)
    return loss_lm, {"loss_lm": loss_lm}


def sums(logits, w, targets, mask, logp):
    """log pi_theta and log pi_expert of chosen and rejected answers, (B, 2) each."""
    theta = sequence_logp(logits, targets, mask).view(-1, 2)
    return theta, routed_logp(w, logp, mask).view(-1, 2).detach()


def margin(logits, w, targets, mask, logp, ref):
    """m + b, (B,)."""
    theta, expert = sums(logits, w, targets, mask, logp)
    chosen, rejected = (theta - ref + expert).unbind(1)
    return chosen - rejected


def told(x):
    """What a step logs: the share of pairs whose m + b is positive."""
    return {"fused_accuracy": (x > 0).float().mean()}


def ipo(logits, w, targets, mask, logp, ref, beta):
    """(m + b - 1 / (2 beta))^2: Azar et al. 2023, Eq. (17), whose tau is called beta here."""
    x = margin(logits, w, targets, mask, logp, ref)
    return ((x - 1 / (2 * beta)) ** 2).mean(), told(x)


def hinge(logits, w, targets, mask, logp, ref, beta):
    """max(0, 1 - beta (m + b)): SLiC-HF, Zhao et al. 2023, with log-ratios to pi_ref."""
    x = margin(logits, w, targets, mask, logp, ref)
    return F.relu(1 - beta * x).mean(), told(x)


def simpo(logits, w, targets, mask, logp, ref, beta):
    """-log sigmoid(beta (s_w - s_l) - beta / 2): Meng et al. 2024, Eq. (6), with gamma = beta / 2.

    There is no pi_ref: s is the mean over the answer's tokens of log pi_theta + log pi_expert.
    """
    theta, expert = sums(logits, w, targets, mask, logp)
    s = (theta + expert) / mask.sum(-1).view(-1, 2)  # (B, 2)
    x = s[:, 0] - s[:, 1]  # (B,)
    return -F.logsigmoid(beta * x - beta / 2).mean(), told(x)


SAMPLES = 4  # answers to each prompt, for REINFORCE's mean


def reinforce(logits, w, targets, mask, logp, reward, beta, full):
    """-(r - mean r) log pi_final(y), Eq. (1), mean over answers: Williams 1992. No pairs.

    Rows are SAMPLES answers to each prompt; reward (B,) is the checker's 1 or 0, and the mean is
    over the answers to the same prompt.
    """
    r = reward.view(-1, SAMPLES)
    advantage = (r - r.mean(1, keepdim=True)).flatten()  # (B,)
    logp_final = sequence_logp(fuse(logits, picked(full, w)), targets, mask)  # (B,)
    return -(advantage * logp_final).mean(), {}


def bradley_terry(scores, at):
    """-log sigmoid(r_chosen - r_rejected), mean over pairs, for a reward model.

    scores (2B, T): of every prefix of the answers, chosen and rejected in turn; at (2B,): the
    prefix that counts.
    """
    r_chosen, r_rejected = scores.gather(1, at[:, None]).view(-1, 2).unbind(1)  # (B,) each
    return -F.logsigmoid(r_chosen - r_rejected).mean()


PAIR_LOSSES = {
    "paper": pair_loss,
    "plain": no_bias,
    "gradient": gradient,
    "fused": fused_dpo,
    "sft": sft_on_chosen,
    "ipo": ipo,
    "hinge": hinge,
    "simpo": simpo,
    "reinforce": reinforce,
}

# --- by name -------------------------------------------------------------------------------------

NEED_FULL = (renormalised, fused, fused_own, fused_dpo, reinforce)


def with_full(loss, experts):
    """The loss with the experts' whole distributions as its argument `full`, if it has one."""
    if loss not in NEED_FULL:
        return loss
    return lambda logits, w, targets, *rest: loss(
        logits, w, targets, *rest, full=read(experts, inputs(targets))
    )


def sft_loss_of(name, experts):
    """The loss `name` of SFT_LOSSES as train_sft.train calls it."""
    return with_full(SFT_LOSSES[name], experts)


def pair_loss_of(name, experts):
    """The loss `name` of PAIR_LOSSES as train_cdpo.train calls it."""
    return with_full(PAIR_LOSSES[name], experts)


@torch.no_grad()
def fused_reference(router, experts, pairs, batch=32):
    """log pi(y | x) of the normalised fused policy as it is now, of each answer: (pairs, 2).

    pairs: Data of shape (pairs, 2, ...).
    """
    ref, device = torch.zeros(len(pairs.ids), 2), router.W.weight.device
    for rows in pairs.lengths.amax(1).argsort().split(batch):
        x, mask, *_ = pairs.batch(rows, device)  # (2b, t), (2b, t-1)
        logits, w = router(x[:, :-1])  # (2b, t-1, V), (2b, t-1, n)
        logits = fuse(logits, picked(read(experts, x[:, :-1]), w))  # (2b, t-1, V)
        ref[rows] = sequence_logp(logits, x[:, 1:], mask).view(-1, 2).cpu()
    return ref
