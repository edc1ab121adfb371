"""Step 6. The loss of phase 2, Eq. (3): DPO in which the experts are a fixed bias.

Read docs/dpo.md, sections 1 to 5, if preference losses are new to you. A pair is a chosen answer
y_w and a rejected answer y_l to the same prompt.

    margin  =  beta * [ log pi_theta(y_w) - log pi_ref(y_w) ]
             - beta * [ log pi_theta(y_l) - log pi_ref(y_l) ]
    bias    =  beta * [ log pi_expert(y_w) - log pi_expert(y_l) ]
    L_CDPO  =  -log sigmoid( margin + stopgrad(bias) )                  Eq. (3)

and the mean over the pairs of the batch. The loss must stay finite when the sum is far below zero
(-2000, say).

stopgrad(x) has the value of x and is a constant for the gradient. Your function must pass no
gradient to the two arguments of the experts, whoever calls it. See docs/dpo.md, section 5.

Worked example, beta = 0.1:

                 chosen    rejected
    theta         -10        -16
    reference     -12        -14      margin = 0.1 * (-10 + 12) - 0.1 * (-16 + 14) = 0.4
    experts       -20        -15      bias   = 0.1 * (-20 + 15) = -0.5
                                      loss   = -log sigmoid(-0.1) = log(1 + e^0.1) = 0.744
"""

import torch
import torch.nn.functional as F


def cdpo_loss(
    theta_chosen, theta_rejected, ref_chosen, ref_rejected, expert_chosen, expert_rejected, beta
):
    """Eq. (3). Six log-probabilities of whole answers, (B,) each, and beta -> the mean loss, ().

    >>> six = [torch.tensor([x]) for x in (-10.0, -16.0, -12.0, -14.0, -20.0, -15.0)]
    >>> round(cdpo_loss(*six, beta=0.1).item(), 3)
    0.744
    """
    raise NotImplementedError
