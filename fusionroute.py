"""FusionRoute (arXiv 2601.05106): the router, Eq. (1), the losses of Eq. (2) and Eq. (3). Everything here is a pure function.

Where the paper leaves a choice open, or where we depart from it:

1. log pi_agg = sum_i w_i log pi_i(y_t) uses softmax(w) as the weights. Raw weights make the loss unbounded below (put a large
   negative w on a bad expert). The result is not renormalised over the vocabulary: this is the paper's formula taken literally, it
   needs one number per expert and token, and in a first trial it routed better than the renormalised reading.
2. L_LM and L_expert of Eq. (2) are both divided by the number of answer tokens in the batch, so that lambda weighs two sums over
   the same tokens (the sum of L_expert simply skips those outside S), whatever the batch.
3. Experts are never differentiated. Training needs two numbers of each expert at each position, the log-probability of the given
   token and the argmax, and `score` computes them once per data set: a router step costs the same for any number of experts.

Shapes: B rows, T positions, V vocabulary, n experts. Row t of the logits has read the tokens up to and with number t, and speaks of
the one after them, which is what Eq. (2) calls y_t: "targets" are the tokens shifted by one, and expert scores are stored in the same
alignment.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Router(nn.Module):
    """A language model theta_LM and one linear projection W of its final hidden state to n routing weights."""

    def __init__(self, lm, n_experts):
        super().__init__()
        self.lm = lm
        self.W = nn.Linear(lm.config.d_model, n_experts, bias=False)
        nn.init.zeros_(self.W.weight)  # all experts equal at the start

    def forward(self, ids, cache=None, new=None):
        """ids (B, T) -> next-token logits (B, T, V), routing weights w (B, T, n). cache, new: as in GPT.forward."""
        logits, hidden = self.lm(ids, cache, new)  # (B, T, V), (B, T, d)
        return logits, self.W(hidden.to(self.W.weight.dtype))  # W is float32 even where the language model is bfloat16


# --- decoding: Eq. (1) ----------------------------------------------------------------------------------------------------------------


def wide(x):
    """x, in float32 where it comes in 16 bits: rounded there, log-probabilities of a large vocabulary would tie and their sums drift."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def fuse(router_logits, expert_logits):
    """Eq. (1): log pi_final = log pi_theta + log pi_expert, up to a constant. (..., V), (..., V) -> (..., V).

    Uniform router logits leave the expert alone, uniform expert logits the router alone.
    """
    return F.log_softmax(wide(router_logits), -1) + F.log_softmax(wide(expert_logits), -1)


@torch.no_grad()
def naive_fused_greedy(router, experts, prompt, end, max_new):
    """The definition, slow and obvious: every model reads everything anew for every token. decode.py must agree with it.

    prompt: token ids. Returns (tokens, picks): the answer without its end token, and the expert picked for each token, the end
    token's included.
    """
    ids, picks = torch.tensor([prompt]), []                            # (1, T)
    while len(picks) < max_new:
        router_logits, w = router(ids)                                 # (1, T, V), (1, T, n)
        picks.append(int(w[0, -1].argmax()))                           # I* = argmax_i w_i
        expert_logits = [expert(ids)[0][0, -1] for expert in experts]  # n times (V,)
        token = fuse(router_logits[0, -1], expert_logits[picks[-1]]).argmax()
        if token == end:
            break
        ids = torch.cat([ids, token.view(1, 1)], 1)
    return ids[0, len(prompt):].tolist(), picks


# --- expert scores: all that training needs to know of the experts -----------------------------------------------------------------------


LOGITS = 2**28  # at most so many (1 GiB in float32) are computed at a time: with a large vocabulary, batches are smaller


def token_logp(logits, targets):
    """log pi(y_t) of each target. logits (B, T, V), targets (B, T) -> (B, T)."""
    return -F.cross_entropy(wide(logits).flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


@torch.no_grad()
def score(experts, ids, lengths, batch=128):
    """Each expert's log-probability of every next token, and its own choice there; one expert at a time, each sample once.

    ids (N, T) padded, lengths (N,) -> logp (N, T-1, n) float, choice (N, T-1, n) int32, aligned with the targets ids[:, 1:].
    """
    logp = torch.zeros(*ids[:, 1:].shape, len(experts))                        # (N, T-1, n)
    choice = torch.zeros(*ids[:, 1:].shape, len(experts), dtype=torch.int32)   # (N, T-1, n)
    for i, expert in enumerate(experts):
        device, vocabulary = expert.embed.weight.device, expert.embed.weight.size(0)
        size = max(1, min(batch, LOGITS // (vocabulary * int(lengths.max()))))
        for rows in lengths.argsort().split(size):                             # similar lengths together: little padding
            x = ids[rows, :int(lengths[rows].max())].to(device)                # (b, t)
            logits, _ = expert(x[:, :-1])                                      # (b, t-1, V)
            logp[rows, :x.size(1) - 1, i] = token_logp(logits, x[:, 1:]).float().cpu()
            choice[rows, :x.size(1) - 1, i] = logits.argmax(-1).to("cpu", torch.int32)
    return logp, choice


# --- phase 1: Eq. (2) ---------------------------------------------------------------------------------------------------------------------


def informative(choice):
    """The set S: positions where the experts' own argmax tokens are not all the same. choice (..., n) -> (...) bool.

    >>> informative(torch.tensor([[3, 3, 3], [3, 3, 8]])).tolist()
    [False, True]
    """
    return (choice != choice[..., :1]).any(-1)


def log_pi_agg(w, logp):
    """log pi_agg(y_t) = sum_i w_i log pi_i(y_t), the weights through a softmax (departure 1). w, logp (..., n) -> (...)."""
    return (w.softmax(-1) * logp).sum(-1)


def mean(x, count=None):
    """The sum of x over count, or over how many x are (of none: 0). On several GPUs parallel.py has one over the batches of all."""
    return x.sum() / (max(x.numel(), 1) if count is None else count)


def sft_loss(logits, w, targets, mask, logp, choice, lam, positions=informative, agg=log_pi_agg, mean=mean):
    """Eq. (2): L_SFT = L_LM(theta_LM) + lambda * L_expert, L_expert = sum over S of -log pi_agg(y_t).

    logits (B, T, V), w (B, T, n), targets (B, T), mask (B, T) True on answer tokens, logp and choice (B, T, n): the experts'
    scores. Returns the loss and a dict of what to log. Another rule for S or for log pi_agg makes a neighbour of the method:
    see baselines.py.
    """
    count = mask.sum()
    S = mask & positions(choice)                                 # (B, T)
    lm = mean(-token_logp(logits, targets)[mask], count)         # L_LM
    expert = mean(-agg(w, logp)[S], count)                       # L_expert
    pick = w[S].argmax(-1) if w.size(-1) else None               # (|S|,), I*; no experts, no routing: plain fine-tuning
    return lm + lam * expert, {
        "loss_lm": lm.detach(), "loss_expert": expert.detach(), "informative": mean(S, count),
        "routing": [mean(pick == i) for i in range(w.size(-1))]}


# --- phase 2: Eq. (3) ---------------------------------------------------------------------------------------------------------------------


def sequence_logp(logits, targets, mask):
    """log pi(y | x): the log-probabilities of the answer's tokens, summed. (B, T, V), (B, T), (B, T) -> (B,)."""
    return (token_logp(logits, targets) * mask).sum(-1)


def routed_logp(w, logp, mask):
    """log pi_expert(y | x), the expert at each token being the one that the router picks there. w, logp (B, T, n) -> (B,)."""
    pick = w.argmax(-1, keepdim=True)                            # (B, T, 1), I*
    return (logp.gather(-1, pick)[..., 0] * mask).sum(-1)        # (B,)


def cdpo_loss(theta_w, theta_l, ref_w, ref_l, expert_w, expert_l, beta, mean=mean):
    """Eq. (3): -log sigmoid( beta [log pi_theta/pi_ref (y_w) - log pi_theta/pi_ref (y_l)] + stopgrad(bias) ),
    bias = beta [log pi_expert(y_w) - log pi_expert(y_l)].

    Six sequence log-probabilities (B,), for the chosen answer y_w and the rejected y_l under the router's language model, the
    frozen reference and the routed experts. An expert that already prefers y_w by far makes the bias large and the gradient
    small; one that prefers y_l makes it negative, and the router is pushed to correct it. Returns the loss and what to log.

    >>> z = torch.zeros(1)
    >>> round(float(cdpo_loss(z, z, z, z, z, z, beta=0.1)[0]), 4)  # nothing learned, expert indifferent: log 2
    0.6931
    """
    reward_w, reward_l = beta * (theta_w - ref_w), beta * (theta_l - ref_l)  # (B,)
    bias = (beta * (expert_w - expert_l)).detach()                           # (B,)
    margin = reward_w - reward_l                                             # (B,)
    loss = mean(-F.logsigmoid(margin + bias))
    return loss, {
        "reward_w": mean(reward_w).detach(), "reward_l": mean(reward_l).detach(), "margin": mean(margin).detach(),
        "accuracy": mean(margin > 0), "bias": mean(bias), "fused_accuracy": mean(margin + bias > 0)}
