"""FusionRoute (arXiv 2601.05106): the router, Eq. (1), and the losses of Eq. (2) and Eq. (3).

Everything but the Router is a pure function: tensors in, tensors out. Nothing knows about the toy.

Choices that the paper leaves open, and departures from it:
1. W gives routing scores w = W h. In log pi_agg = sum_i w_i log pi_i(y_t) we put the routing
   weights softmax(w)_i in their place: with the scores the loss has no lower bound, as a large
   negative one on a bad expert makes it as small as one likes. So -log pi_agg is the mean loss if
   the expert is drawn with probability softmax(w).
2. L_LM and L_expert are both divided by the number of answer tokens in the batch, so that lambda
   means the same for every batch. (L_expert leaves out the tokens outside S in its sum.)
3. Experts get no gradient. Training needs two numbers of an expert at each position: the
   log-probability of the next token, and the expert's own choice. `score` computes them once,
   before training, so a training step costs the same for any number of experts.

Shapes: B rows, T positions, V vocabulary, n experts. Row t of the logits is about token t + 1: the
"targets" are the tokens shifted by one place, and the experts' scores are stored in that order too.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Router(nn.Module):
    """A language model theta_LM, and a linear map W from its hidden state to n routing scores."""

    def __init__(self, lm, n_experts):
        super().__init__()
        self.lm = lm
        self.W = nn.Linear(lm.config.d_model, n_experts, bias=False)
        nn.init.zeros_(self.W.weight)  # at the start no expert is preferred

    def forward(self, ids, cache=None, pos=None):
        """ids (B, T) -> logits (B, T, V), routing scores w (B, T, n). cache, pos: see GPT."""
        logits, hidden = self.lm(ids, cache, pos)  # (B, T, V), (B, T, d)
        return logits, self.W(hidden)  # (B, T, V), (B, T, n); h is not detached


# --- decoding: Eq. (1) --------------------------------------------------------------------------


def fuse(router_logits, expert_logits):
    """Eq. (1): log pi_final = log pi_theta + log pi_expert, up to a constant. Both (..., V).

    If the router's logits are uniform, the expert decides alone, and the other way round.
    """
    return F.log_softmax(router_logits, -1) + F.log_softmax(expert_logits, -1)  # (..., V)


@torch.no_grad()
def naive_fused_greedy(router, experts, prompt, end, max_new):
    """The definition of decoding, slow and without caches. The tests hold decode.py equal to it.

    prompt: token ids. Returns the answer's tokens (without `end`), and the expert that was picked
    for each token (and for the end token).
    """
    ids = torch.tensor([prompt], device=router.W.weight.device)  # (1, T)
    picks = []
    while len(picks) < max_new:
        router_logits, w = router(ids)  # (1, T, V), (1, T, n)
        picks.append(int(w[0, -1].argmax()))  # I* = argmax_i w_i
        expert_logits, _ = experts[picks[-1]](ids)  # (1, T, V)
        token = fuse(router_logits[0, -1], expert_logits[0, -1]).argmax()  # ()
        if token == end:
            break
        ids = torch.cat([ids, token.view(1, 1)], 1)  # (1, T+1)
    return ids[0, len(prompt) :].tolist(), picks


# --- what training needs to know about the experts ----------------------------------------------


def token_logp(logits, targets):
    """log pi(y_t) of each target token. logits (B, T, V), targets (B, T) -> (B, T)."""
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")  # (B*T,)
    return -nll.view(targets.shape)  # (B, T)


@torch.no_grad()
def score(experts, ids, lengths, batch=128):
    """Each expert's log-probability of every next token, and the token it would choose itself.

    ids (N, T) padded, lengths (N,) -> logp (N, T-1, n), choice (N, T-1, n), one row per sample.
    """
    shape = (*ids[:, 1:].shape, len(experts))  # N, T-1, n
    logp, choice = torch.zeros(shape), torch.zeros(shape, dtype=torch.int32)
    for i, expert in enumerate(experts):
        device = next(expert.parameters()).device
        for rows in lengths.argsort().split(batch):  # similar lengths together: less padding
            x = ids[rows, : int(lengths[rows].max())].to(device)  # (b, t)
            logits, _ = expert(x[:, :-1])  # (b, t-1, V)
            logp[rows, : x.size(1) - 1, i] = token_logp(logits, x[:, 1:]).cpu()
            choice[rows, : x.size(1) - 1, i] = logits.argmax(-1).to("cpu", torch.int32)
    return logp, choice


# --- phase 1: Eq. (2) ---------------------------------------------------------------------------


def informative(choice):
    """The set S: positions at which the experts do not all choose the same token.

    choice (..., n) -> bool (...). Outside S every expert alone would write the same token, so the
    paper leaves these positions out. After the addition the pick can still matter. (In training,
    each expert has read the right answer up to there.)

    >>> informative(torch.tensor([[3, 3, 3], [3, 3, 8]])).tolist()
    [False, True]
    """
    return (choice != choice[..., :1]).any(-1)


def log_pi_agg(w, logp):
    """log pi_agg(y_t) = sum_i w_i log pi_i(y_t), w through softmax. (..., n), (..., n) -> (...).

    agg: aggregated, the paper's name. A weighted mean of logs, not the log of a mixture.
    """
    return (w.softmax(-1) * logp).sum(-1)


def sft_loss(logits, w, targets, mask, logp, choice, lam):
    """Eq. (2): L_SFT = L_LM(theta_LM) + lambda * L_expert.

    L_LM is the usual cross-entropy of the router's language model. L_expert is -log pi_agg(y_t),
    summed over S: it teaches W to prefer the experts that find the right token likely. (Its
    gradient goes through the hidden state into theta_LM too.)
    logits (B, T, V), w (B, T, n), targets (B, T), mask (B, T) True on answer tokens, logp and
    choice (B, T, n) from `score`. Returns the loss and a dict of what to log.
    """
    answer_tokens = mask.sum()
    S = mask & informative(choice)  # (B, T)
    loss_lm = -token_logp(logits, targets)[mask].sum() / answer_tokens  # L_LM
    loss_expert = -log_pi_agg(w, logp)[S].sum() / answer_tokens  # L_expert
    pick = w[S].argmax(-1)  # (|S|,)
    routing = [(pick == i).sum() / max(1, len(pick)) for i in range(w.size(-1))]
    return loss_lm + lam * loss_expert, {
        "loss_lm": loss_lm,
        "loss_expert": loss_expert,
        "informative": S.sum() / answer_tokens,
        "routing": routing,
    }


# --- phase 2: Eq. (3) ---------------------------------------------------------------------------


def sequence_logp(logits, targets, mask):
    """log pi(y | x), summed over the answer's tokens. (B, T, V), (B, T), (B, T) -> (B,)."""
    return (token_logp(logits, targets) * mask).sum(-1)


def routed_logp(w, logp, mask):
    """log pi_expert(y | x): at each token the expert that the router picks. (B, T, n) -> (B,)."""
    pick = w.argmax(-1, keepdim=True)  # (B, T, 1), I*
    return (logp.gather(-1, pick)[..., 0] * mask).sum(-1)  # (B,)


def cdpo_loss(
    theta_chosen, theta_rejected, ref_chosen, ref_rejected, expert_chosen, expert_rejected, beta
):
    """Eq. (3), complemented DPO (CDPO): DPO in which the experts are a constant bias.

    L_CDPO = -log sigmoid( beta [log pi_theta/pi_ref(y_w) - log pi_theta/pi_ref(y_l)]
                           + stopgrad( beta [log pi_expert(y_w) - log pi_expert(y_l)] ) )

    y_w ("win") is the chosen answer and y_l ("lose") the rejected one. The arguments are the six
    sequence log-probabilities (B,): of the router's language model, of the frozen reference, and of
    the routed experts. Without the second line it is DPO of the router. The second line is the
    experts' part of what is decoded, log pi_theta + log pi_expert. See docs/dpo.md, section 5.

    If the experts already prefer y_w, the bias is large and the gradient small. If they prefer y_l,
    the bias is negative, and the router is pushed to correct them. Returns the loss and a dict of
    what to log.

    >>> z = torch.zeros(1)                  # nothing learned yet, experts indifferent: log 2
    >>> round(float(cdpo_loss(z, z, z, z, z, z, beta=0.1)[0]), 4)
    0.6931
    """
    reward_chosen = beta * (theta_chosen - ref_chosen)  # (B,)
    reward_rejected = beta * (theta_rejected - ref_rejected)  # (B,)
    margin = reward_chosen - reward_rejected  # (B,)
    bias = (beta * (expert_chosen - expert_rejected)).detach()  # (B,), stopgrad
    loss = -F.logsigmoid(margin + bias).mean()
    return loss, {
        "reward_chosen": reward_chosen.mean(),
        "reward_rejected": reward_rejected.mean(),
        "margin": margin.mean(),
        "accuracy": (margin > 0).float().mean(),
        "bias": bias.mean(),
        "fused_accuracy": (margin + bias > 0).float().mean(),
    }
