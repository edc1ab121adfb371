"""What Eq. (2) and Eq. (3) need of experts with other tokenizers: the Data of the lesson.

Both losses want two numbers of each expert at each of the router's tokens (fusionroute.score). The
log-probability of a token is here the sum over its bytes. The expert's own choice is the string of
the bytes that it finds likeliest at these places. So the lesson's trainers run unchanged.
"""

import numpy as np
import torch

from extra.tokenizers.bytewise import END, ByteModel
from toy_experts import data


def byte_scores(model, answer):
    """For each byte of an answer (a string) and its END: log p (n+1,), likeliest symbol (n+1,).

    model: a ByteModel behind the prompt. One pass over the expert's own tokens, see `spine`.
    """
    symbols = [*answer.encode(), END]
    logp = torch.stack([model.next(state) for state in model.spine(answer.encode())])  # (n+1, 257)
    return logp[range(len(symbols)), symbols].numpy(), logp.argmax(-1).numpy()


def scored(samples, tokenizer, experts, least=1e-4):
    """[(prompt, answer)], strings -> Data in the tokens of `tokenizer`, the router's.

    experts: [(Reader, its tokenizer)]. Equal choices get equal numbers; the numbers mean no more.
    """
    ids = [(tokenizer.prompt(prompt), tokenizer.answer(answer)) for prompt, answer in samples]
    out = data.scored([data.answer_only(*pair) for pair in ids], [])
    shape = (*out.ids[:, 1:].shape, len(experts))  # N, T-1, n
    logp, choice, numbers = torch.zeros(shape), torch.zeros(shape, dtype=torch.int32), {}
    for row, ((prompt, answer), (before, tokens)) in enumerate(zip(samples, ids)):
        ends = np.cumsum([len(tokenizer.words.get(token, b"e")) for token in tokens])  # END: 1
        starts, at = [0, *ends[:-1]], slice(len(before) - 1, len(before) - 1 + len(tokens))
        for i, (reader, own) in enumerate(experts):
            model = ByteModel(reader, own.vocabulary, own.prompt(prompt), least)
            found, best = byte_scores(model, answer)
            logp[row, at, i] = torch.from_numpy(np.add.reduceat(found, starts)).float()
            strings = [tuple(best[a:b]) for a, b in zip(starts, ends)]
            choice[row, at, i] = torch.tensor(
                [numbers.setdefault(s, len(numbers)) for s in strings], dtype=torch.int32
            )
    return out._replace(logp=logp, choice=choice)
