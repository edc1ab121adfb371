"""Step 2. The set S: the positions at which the experts disagree.

At most positions of a text every expert alone would write the same token, so the paper leaves them
out. (After the addition the pick can still matter there: the experts are not equally sure.) S holds
the other positions: those at which the experts' own choices (the argmax of each expert's logits)
are not all the same token. Phase 1 trains the routing weights on S only.

Worked example, n = 3 experts at four positions:

    choices     3 3 3     all choose token 3: not in S
                3 3 8     the last one differs: in S
                8 3 3     the first one differs: in S
                1 2 3     all differ: in S
"""

import torch


def informative(choice):
    """True where the experts do not all choose the same token.

    choice (..., n): the token that each of n experts would choose; whole numbers -> bool (...).

    >>> informative(torch.tensor([[3, 3, 3], [3, 3, 8], [8, 3, 3], [1, 2, 3]])).tolist()
    [False, True, True, True]
    """
    raise NotImplementedError
