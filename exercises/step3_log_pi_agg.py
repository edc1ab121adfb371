"""Step 3. log pi_agg: how likely the experts find the right token, weighted by the router.

At each position the router gives n numbers w, one for each expert. They are raw scores: softmax
makes weights of them, positive and with sum 1. The experts' log-probabilities of the right token
y_t are averaged with these weights:

    log pi_agg(y_t)  =  sum_i softmax(w)_i  log pi_i(y_t)

This is a weighted mean of logarithms, as the paper prints it, not the logarithm of a mean.
The gradient must reach w: this formula is how the router learns which expert to trust.

Worked example, n = 2:

    w = (0, 0)             weights 1/2 and 1/2
    pi_i(y_t)              0.50 and 0.02
    log pi_i(y_t)          -0.693 and -3.912
    log pi_agg             (-0.693 - 3.912) / 2 = -2.303
"""

import torch
import torch.nn.functional as F


def log_pi_agg(w, logp):
    """The weighted mean of the experts' log-probabilities.

    w (..., n): routing scores before softmax; logp (..., n): log pi_i(y_t) -> (...).

    >>> w, logp = torch.tensor([0.0, 0.0]), torch.tensor([0.50, 0.02]).log()
    >>> round(log_pi_agg(w, logp).item(), 3)
    -2.303
    """
    raise NotImplementedError
