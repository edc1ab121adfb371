"""Step 8. Theory: the best that choosing an expert can reach, by dynamic programming.

Now the world is small enough for exact numbers. An answer has T tokens, each one of A. A state is a
prefix, the tokens so far; an action is the next token. Each token earns a reward, and the value of
an answer is the sum of its rewards. n experts are given as distributions over the next token.

Prefixes of length t have the numbers 0 ... A^t - 1. Token a leads from prefix s to prefix A s + a:

    length 0    the empty prefix is 0
    length 1    with A = 2: prefix 0 is (0), prefix 1 is (1)
    length 2    prefix 0 is (0, 0), 1 is (0, 1), 2 is (1, 0), 3 is (1, 1)

A routing picks an expert for each prefix, and the expert then draws the token from its
distribution. So the router chooses who speaks, but not what is said. The best routing:

    Q(s, a)  =  reward(s, a) + V(A s + a)         V is 0 after the last token
    V(s)     =  max_i  sum_a pi_i(a | s) Q(s, a)

computed from the last token back to the first: V of a longer prefix is needed first.

Worked example, A = 2, T = 2, two experts, which both know something at the empty prefix only:

    rewards     empty prefix: token 0 earns 1;   prefix (0): token 1 earns 1;   else nothing
    expert 0    empty prefix (0.9, 0.1);         everywhere else (0.5, 0.5)
    expert 1    empty prefix (0.2, 0.8);         everywhere else (0.5, 0.5)

    prefix (0)  both experts give 0.5 * 0 + 0.5 * 1 = 0.5        V = 0.5
    prefix (1)  nothing to earn                                  V = 0
    empty       Q = (1 + 0.5, 0 + 0); expert 0 gives 0.9 * 1.5 = 1.35, expert 1 0.2 * 1.5 = 0.3
                V = 1.35, the pick is expert 0. The best tokens would earn 2: choosing cannot.
"""

import numpy as np


def best_routing(rewards, experts):
    """The value of the best routing at the empty prefix, and its picks.

    rewards: a list of T arrays; rewards[t] (A^t, A), the reward of each token at each prefix of t
    tokens. experts: a list of T arrays; experts[t] (n, A^t, A), pi_i(a | s).
    Returns the value (a number) and a list of T arrays of int, picks[t] (A^t,).

    >>> rewards = [np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 0.0]])]
    >>> experts = [np.array([[[0.9, 0.1]], [[0.2, 0.8]]]), np.full((2, 2, 2), 0.5)]
    >>> value, picks = best_routing(rewards, experts)
    >>> round(float(value), 2), picks[0].tolist()
    (1.35, [0])
    """
    raise NotImplementedError
