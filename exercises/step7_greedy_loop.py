"""Step 7. Decode: the fused greedy loop, with caches. For each token two models run, and no more.

For each new token:
    1. the router reads the text; its last position gives logits and w
    2. the pick: the expert with the largest w. It reads the text as well; the others do not run
    3. fuse the two models' logits of the last position; the largest one is the new token
    4. stop if it is the end token, or if max_new tokens are written

Caches make it fast. A model with a cache remembers what it has read, so it only needs the tokens
that it has not read yet: all of the prompt at first, later often just one. But an expert that was
not picked falls behind. When it is picked again, it must first read all tokens that it missed.

    cache = expert.new_cache(1)             an empty cache for one text; each model needs its own
    cache = router.lm.new_cache(1)          the router's: it belongs to its language model
    int(cache.length)                       how many tokens the model has read with this cache
    logits, _ = expert(ids, cache)          ids (1, t): the t >= 1 new tokens -> logits (1, t, V)
                                            (_ is the hidden states, which are not needed)
    logits, w = router(ids, cache)          the same -> logits (1, t, V), w (1, t, n)

Worked example. The prompt is [7, 8], the end token is 0, and there are two experts:

    pick        0             1                0                1
    router      reads 7 8     reads 5          reads 6          reads 9
    expert 0    reads 7 8     -                reads 5 6        -
    expert 1    -             reads 7 8 5      -                reads 6 9
    new token   5             6                9                0: the end

The result is the tokens [5, 6, 9] and the picks [0, 1, 0, 1]: the end token is not in the answer,
but its pick is in the picks. Without an end after max_new tokens there are as many picks as tokens.
"""

import torch

from exercises.step1_fuse import fuse


@torch.no_grad()
def fused_greedy(router, experts, prompt, end, max_new):
    """Answer one prompt. prompt: a list of token ids; experts: a list of models; end: a token id.

    Returns two lists of int: the answer's tokens without the end, and the experts picked.
    """
    raise NotImplementedError
