"""What Eq. (2) and Eq. (3) need of experts with other tokenizers: the Data of the lesson.

Both losses want two numbers of each expert at each of the router's tokens (fusionroute.score). The
log-probability of a token is here the sum over its bytes. The expert's own choice is the string of
the bytes that it finds likeliest at these places. So the lesson's trainers run unchanged.
"""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

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

    experts: (Reader, its tokenizer) of each. They may come from a generator, which then loads one
    at a time. Equal choices get equal numbers; the numbers mean no more.
    """
    ids = [(tokenizer.prompt(prompt), tokenizer.answer(answer)) for prompt, answer in samples]
    out = data.scored([data.answer_only(*pair) for pair in ids], [])
    logp = torch.zeros(*out.ids[:, 1:].shape, 0)  # (N, T-1, experts so far)
    choice, numbers = logp.int(), {}
    for reader, own in experts:
        logp, choice = F.pad(logp, (0, 1)), F.pad(choice, (0, 1))  # a column of zeros more
        both = tqdm(zip(samples, ids), "scores", len(ids), mininterval=1.0)
        for row, ((prompt, answer), (before, tokens)) in enumerate(both):
            ends = np.cumsum([len(tokenizer.words.get(token, b"e")) for token in tokens])  # END: 1
            starts, at = [0, *ends[:-1]], slice(len(before) - 1, len(before) - 1 + len(tokens))
            model = ByteModel(reader, own.vocabulary, own.prompt(prompt), least)
            found, best = byte_scores(model, answer)
            logp[row, at, -1] = torch.from_numpy(np.add.reduceat(found, starts)).float()
            strings = [tuple(best[a:b]) for a, b in zip(starts, ends)]
            choice[row, at, -1] = torch.tensor(
                [numbers.setdefault(s, len(numbers)) for s in strings], dtype=torch.int32
            )
        del reader, model  # out of memory, before the next is loaded
    return out._replace(logp=logp, choice=choice)
