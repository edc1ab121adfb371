"""Choosing an expert for each token can miss the best answer; added logits reach it. Exact numbers.

A state is a prefix (the tokens so far), an action the next token. At each prefix one token is right
and earns 1, the others 0: the best policy earns T. Two experts know some of the right tokens.
"""

import numpy as np

A, T, LEAK = 3, 6, 0.02  # tokens; length of an answer; what an expert spreads over other tokens
COVERAGES, BOUNDS, SEEDS = (1.0, 0.9, 0.5, 0.0), (1.0, 2.0, 4.0, np.inf), range(1, 21)


def draws(seed):
    """Random numbers in (0, 1). The rule is simple, so that page/theory.js draws the same ones."""
    x = 12345 * seed
    while True:
        yield (x := 48271 * x % 2147483647) / 2147483647


def tree(seed, coverage, leak=LEAK, length=T):
    """Rewards [(A^t, A)] and experts [(2, A^t, A)] of a world. Token a leads from s to A s + a.

    Each prefix, level by level, takes four numbers u, v, w, z. Token floor(A v) is right. If
    u < coverage, the prefix is covered: one expert favours the right token (the second expert if
    z >= 1/2). Any other expert favours a wrong token, floor(1 + (A - 1) w) further on, modulo A.
    """
    draw = draws(seed)
    rewards, experts = [], []
    favouring = np.where(np.eye(A) > 0, 1 - leak, leak / (A - 1))  # (A, A) row a favours token a
    for t in range(length):
        u, v, w, z = np.array([[next(draw) for _ in range(4)] for _ in range(A**t)]).T  # (A^t,)
        right = np.floor(A * v).astype(int)  # (A^t,)
        wrong = (right + np.floor(1 + (A - 1) * w).astype(int)) % A  # (A^t,)
        knows = (u < coverage) & ((z >= 0.5) == np.array([[False], [True]]))  # (2, A^t)
        experts.append(favouring[np.where(knows, right, wrong)])  # (2, A^t, A)
        rewards.append(np.eye(A)[right])  # (A^t, A)
    return rewards, experts


def loss(rewards, experts, B):
    """V* - V of the best expert and the best logits |l| <= B at each prefix. B = 0: choosing alone.

    Dynamic programming, last token first: Q(s, a) = reward + value of the prefix that it leads to.
    The best logits are +B on some number of tokens with the largest Q, and -B on the rest.
    """
    V = np.zeros(A ** len(rewards))  # (A^length,) after the last token
    for r, pi in zip(rewards[::-1], experts[::-1]):
        Q = r + V.reshape(-1, A)  # (A^t, A)
        raised = Q >= Q.T[:, :, None]  # (A, A^t, A) for each token: it and all that are as good
        p = pi[:, None] * np.where(raised, 1, np.exp(-2 * B))  # (2, A, A^t, A) pi e^l, unnormalised
        V = ((p * Q).sum(-1) / p.sum(-1)).max((0, 1))  # (A^t,) the best expert, the best logits
    return max(0.0, len(rewards) - V[0])


def mean_loss(coverage, B, nobody=False):
    """loss() averaged over the worlds. nobody: one uniform distribution instead of two experts."""
    worlds = [tree(seed, coverage) for seed in SEEDS]
    uniform = [np.full((1, 1, A), 1 / A)] * T
    return float(np.mean([loss(r, uniform if nobody else e, B) for r, e in worlds]))


def main():
    print(f"mean loss, of {T} tokens; added logits: with experts / with no expert")
    print("covered  choosing   " + "".join(f"logits up to {B:<7g}" for B in BOUNDS))
    for c in COVERAGES:
        pairs = [f"{mean_loss(c, B):.4f} / {mean_loss(c, B, True):.4f}" for B in BOUNDS]
        print(f"{c:7.0%}{mean_loss(c, 0):10.4f}   " + "     ".join(pairs))


if __name__ == "__main__":
    main()
