"""From samples to tensors: packing, batches, and the experts' scores beside each sample.

Also the learning rate's schedule, which all trainings share.
"""

from typing import NamedTuple

import torch

from fusionroute import score


def answer_only(prompt, answer):
    """A sample (ids, learn): learn is True where a token counts in the loss, on the answer."""
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def pack(samples):
    """(ids, learn) samples -> ids (N, T) padded with zeros, mask (N, T) of learn, lengths (N,).

    The padding is on the right. So the causal mask hides it, and there is no attention mask.

    >>> ids, mask, lengths = pack([answer_only([7, 8], [9]), answer_only([5], [6])])
    >>> ids.tolist(), mask.int().tolist()
    ([[7, 8, 9], [5, 6, 0]], [[0, 0, 1], [0, 1, 0]])
    """
    lengths = torch.tensor([len(ids) for ids, _ in samples])  # (N,)
    there = torch.arange(int(lengths.max())) < lengths[:, None]  # (N, T), False where padded
    ids, mask = torch.zeros(there.shape, dtype=torch.long), torch.zeros_like(there)  # (N, T) both
    ids[there] = torch.tensor([token for x, _ in samples for token in x])
    mask[there] = torch.tensor([x for _, learn in samples for x in learn])
    return ids, mask, lengths


class Data(NamedTuple):
    """Samples with all that training needs to know about the experts: two numbers per token.

    N is the number of samples; for preference pairs it is two axes, (pairs, 2): the chosen answer
    first, then the rejected one.
    """

    ids: torch.Tensor  # (N, T), padded
    mask: torch.Tensor  # (N, T), True on the answer's tokens
    lengths: torch.Tensor  # (N,)
    logp: torch.Tensor  # (N, T-1, n), log pi_i of each next token
    choice: torch.Tensor  # (N, T-1, n), the token that expert i would choose itself

    def batch(self, rows, device):
        """The samples with these numbers, cut to the longest, rows flattened into one axis.

        Returns x (B, T), mask (B, T-1) of the targets x[:, 1:], logp and choice (B, T-1, n).
        """
        T = int(self.lengths[rows].max())
        parts = (
            self.ids[rows, ..., :T],
            self.mask[rows, ..., 1:T],
            self.logp[rows, ..., : T - 1, :],
            self.choice[rows, ..., : T - 1, :],
        )
        lead = self.lengths.dim() - 1  # 1 for pairs, else 0
        return tuple(part.flatten(0, lead).to(device) for part in parts)


def scored(samples, experts):
    """(ids, learn) samples -> Data. Each expert reads each sample once, and is not needed again."""
    ids, mask, lengths = pack(samples)
    return Data(ids, mask, lengths, *score(experts, ids, lengths))


def batches(lengths, size, seed):
    """All samples once, in random order: index tensors of at most `size`. lengths (N,).

    A batch holds samples of similar length (sorted within pools of 16 batches): less padding.
    seed: the trainings of run N take N * 1000 and up.
    """
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=g)  # (N,)
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(16 * size)]
    out = [b for pool in pools for b in pool.split(size)]
    return [out[i] for i in torch.randperm(len(out), generator=g)]


def schedule(step, steps, warmup):
    """The learning rate's factor: a linear rise, then a cosine down to a tenth."""
    warmup = min(warmup, steps // 10 + 1)  # a short training must come down, too
    if step < warmup:
        return (step + 1) / warmup
    t = torch.tensor((step - warmup) / max(1, steps - warmup))
    return float(0.1 + 0.9 * 0.5 * (1 + torch.cos(torch.pi * t)))
