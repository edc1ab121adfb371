"""Step 5. The log-probability of a whole answer: by a language model, and by the routed experts.

Phase 2 compares two answers to one prompt. A language model gives the answer y the probability
pi(y | x), the product over the answer's tokens, so its logarithm is the sum

    log pi(y | x)  =  sum_t log pi(y_t | x, y_<t)

over the answer's tokens only: those of the prompt x are given. It is a sum and not a mean; a long
answer has a lower log-probability than a short one.

The second function is the same for the experts. At each token one expert speaks: the one with the
largest w at this token. No gradient goes through this pick, and W must get none from it.

Worked example, n = 2, an answer of two tokens after a prompt of one:

    token                prompt        answer         answer
    w                    (9, 0)        (2, 5)         (1, -1)
    pick                 -             expert 1       expert 0
    log pi_0, log pi_1   -7, -7        -3, -0.5       -0.25, -4
    counts               nothing       -0.5           -0.25        sum: -0.75
"""

import torch
import torch.nn.functional as F


def sequence_logp(logits, targets, mask):
    """log pi(y | x) of each row. logits (B, T, V), targets (B, T), mask (B, T) bool -> (B,).

    As in step 4, logits[b, t] are about targets[b, t], and mask is True on the answer's tokens.
    Two tokens of probability 1/4 each: log 1/16 = -2.773.

    >>> logits, targets = torch.zeros(1, 3, 4), torch.tensor([[1, 2, 3]])
    >>> mask = torch.tensor([[False, True, True]])
    >>> [round(x, 3) for x in sequence_logp(logits, targets, mask).tolist()]
    [-2.773]
    """
    raise NotImplementedError


def routed_logp(w, logp, mask):
    """log pi_expert(y | x) of each row, each token by the expert that the router picks for it.

    w (B, T, n): routing scores; logp (B, T, n): log pi_i(y_t); mask (B, T) bool -> (B,).

    >>> w = torch.tensor([[[9.0, 0.0], [2.0, 5.0], [1.0, -1.0]]])
    >>> logp = torch.tensor([[[-7.0, -7.0], [-3.0, -0.5], [-0.25, -4.0]]])
    >>> routed_logp(w, logp, torch.tensor([[False, True, True]])).tolist()
    [-0.75]
    """
    raise NotImplementedError
