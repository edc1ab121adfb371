"""Step 4. The loss of phase 1, Eq. (2): a language model and a selector at once.

    L_SFT  =  L_LM  +  lambda * L_expert                                Eq. (2)

    L_LM      the cross-entropy of the router's own language model, on the answer's tokens
    L_expert  the sum of -log pi_agg(y_t) over those of the answer's tokens that are in S

Both sums are divided by the same number: the answer tokens of the whole batch (of all rows
together). So L_expert is not a mean over S, and it is 0 where S is empty.

What the tensors hold. Row t of the logits is about token t + 1; the targets are shifted already,
so that logits[b, t], targets[b, t], w[b, t], logp[b, t] and choice[b, t] are about the same token.
mask is True on the answer's tokens and False on the prompt's and on padding: these count nowhere.
logp has numbers on padding too: they mean nothing, and mask must leave them out.

If you use F.cross_entropy: it wants the vocabulary's axis second, logits.transpose(1, 2).

Worked example. B = 1, T = 3; the first token belongs to the prompt, n = 2, lambda = 0.5:

    token                        prompt    answer    answer
    -log pi_theta(y_t)            9.0       1.0       3.0     L_LM = (1 + 3) / 2 = 2
    the experts' choices          4 5       7 7       7 8     S: the last token (and not the first)
    -log pi_agg(y_t)              8.0       2.0       5.0     L_expert = 5 / 2 = 2.5
                                                              L_SFT = 2 + 0.5 * 2.5 = 3.25
"""

import torch
import torch.nn.functional as F

from exercises.step2_informative import informative
from exercises.step3_log_pi_agg import log_pi_agg


def sft_loss(logits, w, targets, mask, logp, choice, lam):
    """Eq. (2) for a batch: one number, a tensor without axes.

    logits (B, T, V), w (B, T, n), targets (B, T), mask (B, T) bool, logp (B, T, n) the experts'
    log-probabilities of the targets, choice (B, T, n) their own choices, lam lambda -> ().

    With all logits 0 and V = 4, an answer token costs log 4 = 1.386. The experts agree: S is empty.

    >>> logits, w, logp = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)
    >>> targets, mask = torch.tensor([[1, 2, 3]]), torch.tensor([[False, True, True]])
    >>> choice = torch.tensor([[[1, 1], [2, 2], [3, 3]]])
    >>> round(sft_loss(logits, w, targets, mask, logp, choice, 1.0).item(), 3)
    1.386
    """
    raise NotImplementedError
