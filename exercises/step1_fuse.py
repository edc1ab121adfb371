"""Step 1. Fuse: add the router's logits to an expert's, Eq. (1).

A router and an expert have each read the same text. Each has an opinion about the next token, as
logits (numbers whose softmax is the distribution). FusionRoute adds the two log-probabilities:

    log pi_final  =  log pi_theta  +  log pi_expert  +  constant        Eq. (1)

pi_theta is the router's next-token distribution, pi_expert that of the expert. The constant is the
same for all tokens of a row, so softmax removes it: any constant is right here.

Worked example, V = 3 tokens:

    router     0.70   0.25   0.05      its favourite is token 0
    expert     0.01   0.25   0.74      its favourite is token 2
    product    0.007  0.0625 0.037     adding logarithms is multiplying probabilities
    / sum      0.07   0.59   0.35      the fused favourite is token 1, which both find possible
"""

import torch
import torch.nn.functional as F


def fuse(router_logits, expert_logits):
    """Eq. (1). Both (..., V), any number of leading axes, also none -> (..., V).

    >>> router, expert = torch.tensor([0.70, 0.25, 0.05]), torch.tensor([0.01, 0.25, 0.74])
    >>> [round(p, 2) for p in fuse(router.log(), expert.log()).softmax(-1).tolist()]
    [0.07, 0.59, 0.35]
    """
    raise NotImplementedError
