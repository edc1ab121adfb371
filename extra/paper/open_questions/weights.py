"""(b) The weights of the losses: lambda of Eq. (2), beta of Eq. (3), and the share of tokens in the set S of L_expert.

    python -m extra.paper.open_questions.weights --seeds 2 3

Varied, one at a time, five values each:

    lambda N       the weight of L_expert in phase 1. At 0 nothing trains W: it stays 0, and the first expert (math) is picked always
    N of S         L_expert on a random part of S, the same part in every pass
    S + rest/2     L_expert on S and a random half of the other positions; in the row "all" on all of them
    beta N         beta in phase 2

Held fixed: everything else. A token in L_expert has the same weight whatever the share: the sum is divided by the number of all answer
tokens, as in Eq. (2), so a larger set also weighs more as a whole. L_expert trains theta_LM too, through the hidden state, and Adam
rescales the gradient of W; so lambda is about what L_expert does to theta_LM more than about how fast W learns.

Lines: FusionRoute (Eq. (1)), and the picked expert alone (routing_only), which says how good the choice is. lambda and S are judged
after phase 1, and phase 2 is left out: it trains the choice by the same L_expert. beta is judged after phase 2. The column "in
L_expert" is the share of the answer tokens of the SFT samples that L_expert is summed over.
"""


import torch

from extra import models
from extra.paper import train as paper_train
from extra.paper.open_questions import frame
from extra.paper.train import Cdpo, Sft
from fusionroute import informative
from toy_experts import run

LAMBDAS = {"0": 0.0, "1/9": 1 / 9, "1/3": 1 / 3, "1": 1.0, "3": 3.0}
BETAS = (0.01, 0.03, 0.1, 0.3, 1.0)
SHARES = {"1/4 of S": 0.25, "1/2 of S": 0.5, "S": 1.0, "S + rest/2": 1.5, "all": 2.0}
WAYS = {"fusionroute": {}, "routing_only": {"use_router": False}}


def with_share(sft, share, seed):
    """The samples (Data) with another set S. share: up to 1, this part of S; above, S and the part share - 1 of all other positions.

    The set is where the experts' choices differ (informative), and the losses use the choices for nothing else. So the choices are
    exchanged: all equal outside the new set, and the first one different inside it.
    """
    S = informative(sft.choice)                                                     # (N, T-1)
    u = torch.rand(S.shape, generator=torch.Generator().manual_seed(seed))          # (N, T-1), in [0, 1)
    chosen = S & (u < share) | ~S & (u < share - 1)                                 # (N, T-1)
    choice = torch.zeros_like(sft.choice)
    choice[..., 0] = chosen                                                         # 1, 0, 0, ... inside; 0, 0, 0, ... outside
    return sft._replace(choice=choice)


def in_S(sft):
    """The share of the answer tokens that L_expert is summed over."""
    mask = sft.mask[:, 1:]                                                          # (N, T-1)
    return round(float((mask & informative(sft.choice)).sum() / mask.sum()), 4)


def measure(s, cell):
    first, experts, _ = models.load_router(s, "router_sft")
    problems, made = frame.items(s), {}

    def usual():
        if "sft" not in made:
            made["sft"] = frame.sft_data(s, experts)
        return made["sft"]

    def trained(name, spec):
        paper_train.train(s, name, spec)
        return models.load_router(s, name)[0]

    def of_share(label):
        if label == "S":
            return first
        if label == "all":  # also a row of the tables: evaluate.py
            return trained("sft_all", paper_train.TRAINING["sft_all"])
        return frame.phase1(s, experts, with_share(usual(), SHARES[label], s.seed))

    def both_lines(label, sweep, make, used):
        for line, how in WAYS.items():
            def compute():
                if label not in made:
                    made[label] = make()
                return frame.judged(s, frame.fused(made[label], experts, **how), problems) | {"in L_expert": used()}
            cell(label, f"{sweep}: {line}", compute)

    for name, lam in LAMBDAS.items():
        both_lines(f"lambda {name}", "lambda", lambda: first if name == "1/3" else trained(f"open_lambda_{lam:.3g}", Sft(lam=lam)),
                   lambda: in_S(usual()))
    for label, share in SHARES.items():
        both_lines(label, "S", lambda: of_share(label), lambda: in_S(with_share(usual(), share, s.seed)))
    for beta in BETAS:  # the names are objectives.py's, which trains some of them too
        cell(f"beta {beta:g}", "beta: fusionroute", lambda: frame.judged(s, frame.fused(
            models.load_router(s, "router")[0] if beta == Cdpo.beta else trained(f"open_cdpo_{beta}", Cdpo(beta=beta)), experts), problems))


if __name__ == "__main__":
    run.run(lambda: frame.main("weights", measure, __doc__, "weight"))
