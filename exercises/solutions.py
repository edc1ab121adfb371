"""Our answers to the nine steps: reading them spoils the exercises.

They are the ground floor's own functions where it has them, in the signatures of the exercises.
"""

import numpy as np
import torch

import fusionroute
from fusionroute import fuse, informative, log_pi_agg, routed_logp, sequence_logp  # noqa: F401


def sft_loss(logits, w, targets, mask, logp, choice, lam):
    return fusionroute.sft_loss(logits, w, targets, mask, logp, choice, lam)[0]


def cdpo_loss(
    theta_chosen, theta_rejected, ref_chosen, ref_rejected, expert_chosen, expert_rejected, beta
):
    return fusionroute.cdpo_loss(
        theta_chosen, theta_rejected, ref_chosen, ref_rejected, expert_chosen, expert_rejected, beta
    )[0]


@torch.no_grad()
def fused_greedy(router, experts, prompt, end, max_new):
    text, picks = list(prompt), []
    router_cache, *caches = [model.new_cache(1) for model in (router.lm, *experts)]
    while len(picks) < max_new:
        new = text[int(router_cache.length) :]
        router_logits, w = router(torch.tensor([new]), router_cache)  # (1, t, V), (1, t, n)
        pick = int(w[0, -1].argmax())
        picks.append(pick)
        missed = text[int(caches[pick].length) :]
        expert_logits, _ = experts[pick](torch.tensor([missed]), caches[pick])  # (1, t, V)
        token = int(fuse(router_logits[0, -1], expert_logits[0, -1]).argmax())
        if token == end:
            break
        text.append(token)
    return text[len(prompt) :], picks


def best_routing(rewards, experts):
    A, picks = rewards[0].shape[1], []
    V = np.zeros(A ** len(rewards))  # (A^T,)
    for r, pi in zip(rewards[::-1], experts[::-1]):
        Q = r + V.reshape(-1, A)  # (A^t, A)
        values = (pi * Q).sum(-1)  # (n, A^t)
        V = values.max(0)  # (A^t,)
        picks.insert(0, values.argmax(0))  # (A^t,)
    return V[0], picks


def text_probability(text, words, p, tokens=()):
    if not text:
        return 1.0
    total = 0.0
    for token, word in words.items():
        fits = word.startswith(text) or text.startswith(word)
        if fits:
            here = p(tokens)[token]
            left = text_probability(text[len(word) :], words, p, (*tokens, token))
            total += here * left
    return total
