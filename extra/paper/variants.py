"""Other losses in the place of Eq. (2) and Eq. (3), and other sources of wrong answers, for baselines and ablations.

Every loss has the arguments that train_sft.train and train_cdpo.train hand to theirs, so it is simply handed in:

    train_sft.train(s, router, sft, loss=sft_loss_for("co_llm", experts))
    train_cdpo.train(s, router, sft, pairs, ref, plan, pair_loss=pair_loss_for("plain", experts))

A few of them need the experts' whole distributions, full (B, T, n, V). These are computed again at every step: the model's input is known
from the targets, because every sample of the toy begins with <|user|>. Shapes are those of fusionroute.py.
"""

from random import Random

import torch
from tqdm import tqdm

import train_cdpo
from fusionroute import cdpo_loss, fuse, informative, log_pi_agg, sequence_logp, sft_loss, token_logp
from toy_experts import pairs as toy_pairs
from toy_experts import tasks, tokenizer
from toy_experts.batch import decode_batch
from toy_experts.pairs import MAX_NEW, TEMPERATURE, TRIES
from toy_experts.run import UserError

# --- the experts' whole distributions -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def read(experts, ids):
    """All experts' log-probabilities of every next token: ids (B, T) -> (B, T, n, V)."""
    return torch.stack([expert(ids)[0].log_softmax(-1) for expert in experts], 2)


def inputs(targets):
    """What the models read before each target: <|user|>, then the targets themselves. (B, T) -> (B, T)."""
    first = torch.full_like(targets[:, :1], tokenizer.USER)                # (B, 1)
    return torch.cat([first, targets[:, :-1]], 1)                          # (B, T)


def picked(full, w):
    """The distribution of the expert that w picks: full (B, T, n, V), w (B, T, n) -> (B, T, V)."""
    pick = w.argmax(-1)[..., None, None].expand(-1, -1, 1, full.size(-1))  # (B, T, 1, V)
    return full.gather(2, pick)[:, :, 0]                                   # (B, T, V)


# --- neighbours of Eq. (2) ----------------------------------------------------------------------------------------------------------------


def everywhere(choice):
    """All positions, in the place of the set S. choice (..., n) -> bool (...)."""
    return torch.ones_like(choice[..., 0], dtype=torch.bool)


def mixture(w, logp):
    """log sum_i softmax(w)_i pi_i(y_t), in the place of log pi_agg. (..., n) twice -> (...)."""
    return (w.log_softmax(-1) + logp).logsumexp(-1)


def eq2(logits, w, targets, mask, logp, choice, lam, S=informative, agg=log_pi_agg):
    """sft_loss with another rule S for the positions, or another rule agg for log pi_agg."""
    answer_tokens = mask.sum()
    inside = mask & S(choice)                                                                         # (B, T)
    loss_lm = -token_logp(logits, targets)[mask].sum() / answer_tokens
    loss_expert = -agg(w, logp)[inside].sum() / answer_tokens
    pick = w[inside].argmax(-1)                                                                       # (|S|,)
    return loss_lm + lam * loss_expert, {
        "loss_lm": loss_lm, "loss_expert": loss_expert, "informative": inside.sum() / answer_tokens,
        "routing": [(pick == i).sum() / max(1, len(pick)) for i in range(w.size(-1))]}


def plain(logits, w, targets, mask, logp, choice, lam):
    """L_LM alone: ordinary fine-tuning."""
    return sft_loss(logits, w, targets, mask, logp, choice, 0.0)


def all_positions(*batch):
    """Eq. (2) with L_expert on all positions instead of S."""
    return eq2(*batch, S=everywhere)


def raw(*batch):
    """Eq. (2), log pi_agg with the raw weights."""
    return eq2(*batch, agg=lambda w, logp: (w * logp).sum(-1))


def renormalised(logits, w, targets, *rest, full):
    """Eq. (2), log pi_agg renormalised over the vocabulary."""
    return eq2(logits, w, targets, *rest, agg=lambda w, _: token_logp((w.softmax(-1)[..., None] * full).sum(2), targets))


def mixed(*batch):
    """Eq. (2), pi_agg = sum_i w_i pi_i."""
    return eq2(*batch, agg=mixture)


def best(*batch):
    """Eq. (2), instead of log pi_agg the log-weight of the expert that gives y_t the highest probability."""
    return eq2(*batch, agg=lambda w, logp: w.log_softmax(-1).gather(-1, logp.argmax(-1, True))[..., 0])


def co_llm(logits, w, targets, mask, logp, choice, lam):
    """log sum_i w_i pi_i(y_t) at all positions, with lambda 1."""
    return eq2(logits, w, targets, mask, logp, choice, 1.0, S=everywhere, agg=mixture)


def co_llm_self(logits, w, targets, mask, logp, choice, lam):
    """The same with the router's language model as one more choice. w (B, T, n + 1)."""
    own = token_logp(logits, targets)[..., None]                                                      # (B, T, 1)
    loss, terms = eq2(logits, w, targets, mask, logp, choice, 1.0, S=everywhere,
                      agg=lambda w, logp: mixture(w, torch.cat([logp, own], -1)))
    return loss, terms | {"route_router": terms["routing"][-1]}


def fused(logits, w, targets, *rest, full):
    """Eq. (2) with L_LM of the fused distribution of Eq. (1) instead of the router's own. The pick is held fixed."""
    return eq2(fuse(logits, picked(full, w)), w, targets, *rest)


def fused_own(logits, w, targets, mask, *rest, full):
    """The same with 0.2 times the router's own L_LM on top."""
    loss, terms = fused(logits, w, targets, mask, *rest, full=full)
    own = token_logp(logits, targets)[mask]                                                           # (answer tokens,)
    return loss - 0.2 * (own.sum() / max(own.numel(), 1)), terms


SFT_LOSSES = {"paper": sft_loss, "plain": plain, "all": all_positions, "raw": raw, "renormalised": renormalised, "mixture": mixed,
              "best": best, "co_llm": co_llm, "co_llm_self": co_llm_self, "fused": fused, "fused_own": fused_own}


def sft_loss_for(name, experts):
    """The loss `name` of SFT_LOSSES as train_sft.train calls it."""
    loss = SFT_LOSSES[name]
    if name not in ("renormalised", "fused", "fused_own"):
        return loss
    return lambda logits, w, targets, *rest: loss(logits, w, targets, *rest, full=read(experts, inputs(targets)))


# --- neighbours of Eq. (3) ----------------------------------------------------------------------------------------------------------------


def dpo(theta, ref, beta):
    """Eq. (3) without a bias. theta (2B,): chosen and rejected answers in turn; ref (B, 2)."""
    zero = torch.zeros_like(ref[:, 0])                                                                # (B,)
    return cdpo_loss(*theta.view(-1, 2).unbind(1), *ref.unbind(1), zero, zero, beta)


def no_bias(logits, w, targets, mask, logp, ref, beta):
    """Eq. (3) without the bias: ordinary DPO of the router's language model."""
    return dpo(sequence_logp(logits, targets, mask), ref, beta)


def gradient(logits, w, targets, mask, logp, ref, beta):
    """Eq. (3) with the gradient through the bias, which is then that of log pi_agg, because a pick has none."""
    return dpo(sequence_logp(logits, targets, mask) + (log_pi_agg(w, logp) * mask).sum(-1), ref, beta)


def fused_dpo(logits, w, targets, mask, logp, ref, beta, full):
    """Ordinary DPO of the normalised fused policy of Eq. (1). ref is then from fused_reference."""
    return dpo(sequence_logp(fuse(logits, picked(full, w)), targets, mask), ref, beta)


def sft_on_chosen(logits, w, targets, mask, logp, ref, beta):
    """No preference at all: fine-tuning on the chosen answer for as many steps."""
    nll = -token_logp(logits, targets)[::2][mask[::2]]                                                # (tokens of chosen answers,)
    loss_lm = nll.sum() / max(nll.numel(), 1)
    return loss_lm, {"loss_lm": loss_lm}


PAIR_LOSSES = {"paper": train_cdpo.pair_loss, "plain": no_bias, "gradient": gradient, "fused": fused_dpo, "sft": sft_on_chosen}


def pair_loss_for(name, experts):
    """The loss `name` of PAIR_LOSSES as train_cdpo.train calls it."""
    loss = PAIR_LOSSES[name]
    if name != "fused":
        return loss
    return lambda logits, w, targets, *rest: loss(logits, w, targets, *rest, full=read(experts, inputs(targets)))


@torch.no_grad()
def fused_reference(router, experts, ids, mask, lengths, batch=64):
    """log pi(y | x) of the normalised fused policy as it is now: ids, mask (N, T), lengths (N,) -> (N,)."""
    out = torch.zeros(len(ids))
    for rows in lengths.argsort().split(batch):
        x = ids[rows, :int(lengths[rows].max())].to(router.W.weight.device)                           # (b, t)
        logits, w = router(x[:, :-1])                                                                 # (b, t-1, V), (b, t-1, n)
        logits = fuse(logits, picked(read(experts, x[:, :-1]), w))                                    # (b, t-1, V)
        out[rows] = sequence_logp(logits, x[:, 1:], mask[rows, 1:x.size(1)].to(x.device)).cpu()
    return out


# --- where the rejected answer comes from -------------------------------------------------------------------------------------------------

SOURCES = {  # whose mistakes the rejected answers are
    "fused": "the router's and the experts' together, Eq. (1), as on the ground floor",
    "router": "the router's language model's alone",
    "experts": "one expert's alone, in turn",
    "corrupted": "the right answer with one token exchanged",
}


def corrupt(answer, rng):
    """The answer with one of its tokens exchanged for another word of the vocabulary."""
    ids = tokenizer.encode_answer(answer)[:-1]
    ids[rng.randrange(len(ids))] = rng.randrange(256, tokenizer.USER)
    return tokenizer.encoding.decode(ids)


def sample_pairs(router, experts, seed, n_prompts, source):
    """toy_experts.pairs.sample with rejected answers from one of SOURCES."""
    if source == "fused":
        return toy_pairs.sample(router, experts, seed, n_prompts)
    items = tasks.mixed("preference", n_prompts, Random(f"preference {seed}"))
    items.sort(key=lambda item: len(item.prompt))
    found, size, rng = [], 128, Random(f"corrupted {seed}")
    for i in tqdm(range(0, len(items), size), desc="sampling pairs", mininterval=1.0):
        chunk = items[i:i + size]
        if source == "corrupted":
            texts = [corrupt(item.answer, rng) for item in chunk for _ in range(TRIES)]
        else:
            how = {"router": {"use_expert": False}, "experts": {"use_router": False, "only": i // size % len(experts)}}[source]
            prompts = [tokenizer.encode_prompt(item.prompt) for item in chunk for _ in range(TRIES)]
            traces = decode_batch(router, experts, prompts, MAX_NEW, temperature=TEMPERATURE, seed=seed * 1_000_000 + i * TRIES, **how)
            texts = [t.text() for t in traces]
        for k, item in enumerate(chunk):
            pair = toy_pairs.of_item(item, texts[k * TRIES:(k + 1) * TRIES])
            found += [pair] if pair else []
    if not found:
        raise UserError("no wrong answer was sampled: no pairs; raise the number of prompts")
    return found
