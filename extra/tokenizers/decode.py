"""Eq. (1) over bytes: the router and the experts may have different tokenizers.

    log pi_final(byte) = log p_router(byte | text) + log p_expert(byte | text)   + constant

This is another decoder than Eq. (1) over tokens, also where all tokenizers are the same. A token is
weighed as a whole; a byte collects all words that begin with it. See docs/tokenizers.md.
"""

import torch

from extra.tokenizers.bytewise import END, NONE


def follow(model, state, text):
    """The state of a ByteModel behind a text: one byte further, or one pass over what it missed."""
    if state is None or len(state.text) + 1 < len(text):
        return model.seek(text)
    return state if state.text == text else model.push(state, text[-1])


def decode(
    router, experts, max_bytes, use_router=True, use_expert=True, only=None, temperature=0.0, seed=0
):
    """Yield (symbol, pick) for each byte of an answer and its END.

    router, experts: ByteModels behind their own tokens of one prompt. use_router, use_expert, only:
    see decode.METHODS. The router's weights w are those of its likeliest tokens for the text.
    """
    text, mine, states = b"", None, [None] * len(experts)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(max_bytes):
        logp = torch.zeros(NONE, dtype=torch.double)  # (257,)
        if use_router or only is None:
            mine = follow(router, mine, text)
        pick = int(router.best(mine).second.argmax()) if only is None else only  # I*
        if use_router:
            logp = logp + router.next(mine)  # (257,)
        if use_expert:
            states[pick] = follow(experts[pick], states[pick], text)
            logp = logp + experts[pick].next(states[pick])  # (257,), Eq. (1)
        symbol = int(logp.argmax())
        if temperature:
            p = (logp / temperature).softmax(-1)  # (257,)
            symbol = int(torch.multinomial(p, 1, generator=generator))
        yield symbol, pick
        if symbol == END:
            return
        text += bytes([symbol])
