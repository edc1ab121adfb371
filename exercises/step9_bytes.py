"""Step 9. Other tokenizers: how likely a text is, whatever the tokens that spell it.

Eq. (1) adds logits, so all models need the same tokens. Bytes are what all tokenizers share. But a
model says how likely the next token is. How likely is it that an answer begins with a given text?

Many sequences of tokens spell the text, and the last token may reach beyond it. A cover of a text
is a sequence of tokens that spells the text or more, but no longer does so without its last token:

    P(text)  =  sum over the covers c of the text  of  p(c_1) p(c_2 | c_1) p(c_3 | c_1, c_2) ...

and then  p(next byte | text)  =  P(text + byte) / P(text), for a model with any tokenizer.

Worked example: three tokens, a, b and ab, and the end; two bytes, a and b.

    at the start    a 0.5   b 0.2   ab 0.2   end 0.1
    after a         a 0.1   b 0.6   ab 0.1   end 0.2

    P("a")   covers (a), and (ab), which reaches beyond:    0.5 + 0.2         = 0.7
    P("ab")  covers (ab), and (a, b):                       0.2 + 0.5 * 0.6   = 0.5
    P("aa")  covers (a, a), and (a, ab):                    0.5 * 0.1 + 0.5 * 0.1 = 0.1

So behind "a" the byte b has probability 0.5 / 0.7 = 0.71, although the token b has only 0.6. The
function may call itself: the first token of a cover, then the covers of what is left of the text.
docs/tokenizers.md goes on from here, without writing out all covers.
"""


def text_probability(text, words, p, tokens=()):
    """P(text): the probability that what follows `tokens` begins with the text.

    text: bytes. words: {token: bytes}. p(tokens) gives the next token's probabilities, a list
    (the end's too, last), for a tuple of tokens.

    >>> words = {0: b"a", 1: b"b", 2: b"ab"}
    >>> p = lambda tokens: [0.1, 0.6, 0.1, 0.2] if tokens == (0,) else [0.5, 0.2, 0.2, 0.1]
    >>> [round(text_probability(text, words, p), 2) for text in (b"a", b"ab", b"aa")]
    [0.7, 0.5, 0.1]
    """
    raise NotImplementedError
