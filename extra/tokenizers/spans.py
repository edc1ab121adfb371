"""Eq. (1) over the router's tokens, with experts of any tokenizer.

The router decodes token by token, as in decode.py. An expert says how likely its text goes on with
the bytes of a router's token v, a product of next-byte probabilities:

    log pi_final(v) = log pi_router(v) + log P_expert(bytes of v | text)   + constant

The likeliest token is found exactly, although few tokens are tried. P_expert is at most 1. So a
token whose log pi_router alone is below the best sum cannot win, and neither can those after it.
"""

from extra.tokenizers.bytewise import END


def state_at(expert, tree, text):
    """An expert's state behind a text, and log p(symbol | text). tree: those found already."""
    if text not in tree:
        before = tree.get(text[:-1])
        state = expert.push(before[0], text[-1]) if before else expert.seek(text)
        tree[text] = state, expert.next(state)
    return tree[text]


def span_logp(expert, tree, text, symbols, least):
    """log P(symbols | text), or None as soon as it is not above `least`."""
    total = 0.0
    for symbol in symbols:
        total += float(state_at(expert, tree, text)[1][symbol])
        if not total > least:
            return None
        text += bytes([symbol]) if symbol != END else b""
    return total


def decode(router, vocabulary, prompt, experts, max_new, use_router=True, only=None):
    """Yield (token, pick) for each token of the router and its end token. Greedy.

    router: a Reader. vocabulary: of its tokens; prompt: its token ids. experts: ByteModels.
    """
    ids, text, trees = list(prompt), b"", [{} for _ in experts]
    order = vocabulary.ids  # (N+1,), the end token last
    symbols = [*map(list, vocabulary.words), [END]]
    for _ in range(max_new):
        logits, w = router(ids, 1)  # (1, V), (1, n)
        logp = logits[0, order].log_softmax(-1)  # (N+1,)
        pick = int(w.argmax()) if only is None else only  # I*
        tree = trees[pick] = {t: x for t, x in trees[pick].items() if t.startswith(text)}
        best, found = float("-inf"), None
        for k in logp.argsort(descending=True).tolist():
            own = float(logp[k]) if use_router else 0.0
            if own <= best:
                break
            other = span_logp(experts[pick], tree, text, symbols[k], best - own)
            if other is not None:
                best, found = own + other, k
        token = int(order[found])
        yield token, pick
        if symbols[found] == [END]:
            return
        ids, text = ids + [token], text + vocabulary.words[found]
