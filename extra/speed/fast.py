"""One row, one cache: the same pass as GPT.forward in half of the operations.

An operation of torch costs a microsecond or more, however little it computes, and a pass of a small model over one token is nothing but
such operations. So here are as few as still read well: q, k and v come from one matrix, and so do gate and up; q and k are rotated
together, k and v are stored together; attention is torch's own kernel. Read model.py first: it says what is computed, for any number of
rows, with and without a cache, and for training. tests/speed/test_fast.py shows that the two agree.

model.py does not know this file. Who wants the fast pass calls `fast.read(model, ids, cache)`, or wraps a model in `fast.Fast`.

Shapes as in model.py, without B, because there is one row.
"""

import weakref

import torch
import torch.nn.functional as F

from fusionroute import Router

OTHER = ("gelu", "post_norm", "one_plus", "embed_scaled", "attn_cap", "logit_cap", "window")  # what Gemma-2 has besides: extra/gpt.py


def read(model, ids, cache, new=None):
    """As model(ids, cache, new) of a GPT or a Router, by the fast pass where it applies."""
    if watched(model):
        return model(ids, cache, new)
    if isinstance(model, Router):
        logits, hidden = read(model.lm, ids, cache, new)                              # (B, T, V), (B, T, d)
        return logits, model.W(hidden)                                                # (B, T, V), (B, T, n)
    return forward(model, ids, cache) if applies(model, ids, cache, new) else model(ids, cache, new)


class Fast:
    """A GPT or a Router that reads by `read`, for functions that call a model themselves: generate(Fast(model), ...)."""

    def __init__(self, model):
        self.model = model

    def __call__(self, ids, cache=None, new=None):
        return read(self.model, ids, cache, new)

    def __getattr__(self, name):  # config, embed, new_cache, lm, W
        if name.startswith("__"):  # what copy and pickle ask for, before there is a model
            raise AttributeError(name)
        return getattr(self.model, name)


def watched(model):
    """Has somebody registered a hook, which only model(...) calls?"""
    return bool(model._forward_hooks or model._forward_pre_hooks)


def applies(model, ids, cache, new=None):
    """Can `forward` do this pass: one row with a cache, frozen weights, nothing of Gemma-2's, no hooks?"""
    return (cache is not None and cache.rows is None and new is None and ids.size(0) == 1 and not model.embed.weight.requires_grad
            and not any(getattr(model.config, name, 0) for name in OTHER) and not watched(model))


def joined(*layers):
    """The weights (N_i, d) of linear layers that read the same input, as one matrix (sum of N_i, d).

    The first call moves them into one piece of memory and leaves each layer a view of its part. So no weight is in memory twice, and a
    weight that changes later changes here too. If a layer gets new memory, the next call moves all of them again.
    """
    first, *_ = parts = [layer.weight for layer in layers]
    memory, ends = first.untyped_storage(), [p.data_ptr() + p.nbytes for p in parts]
    if ends[:-1] != [p.data_ptr() for p in parts[1:]] or ends[-1] > memory.data_ptr() + memory.nbytes():
        with torch.inference_mode(first.is_inference()), torch.no_grad():  # as it was: what inference mode makes cannot be trained
            for part, view in zip(parts, torch.cat(parts).split([p.size(0) for p in parts])):
                part.data = view
    return first.as_strided((sum(p.size(0) for p in parts), first.size(1)), first.stride())


def times(x, w):
    """x w', (T, d) and (N, d) -> (T, N); for 4 to 64 tokens and a large matrix on a CPU, in float32, in pieces of 32 rows.

    From four tokens on, the CPU's kernel copies a matrix to another place before it multiplies, which takes as long as reading it from
    memory once more. A piece of 32 rows is still in the processor's cache then. From 14 tokens on, it is faster with the matrix on the
    left. With many tokens arithmetic is what takes the time, and one call for the whole matrix is best again.
    """
    (T, d), N = x.shape, w.size(0)
    if w.numel() <= 2**18 or not 4 <= T <= 64 or N % 32 or w.dtype != torch.float32 or not w.is_cpu:
        return F.linear(x, w)
    n, pieces = N // 32, w.view(-1, 32, d)                                            # (N/32, 32, d)
    if T < 14:
        return torch.bmm(x.expand(n, T, d), pieces.mT).transpose(0, 1).reshape(T, N)  # from (N/32, T, 32)
    return torch.bmm(pieces, x.t().contiguous().expand(n, d, T)).view(N, T).t().contiguous()  # from (N/32, 32, T)


# What every pass of an answer needs, by the answer's cache: (model, `joined` weights and their addresses, the rest). Modules within
# modules take as long to look up as a small model takes to compute. An entry goes when its cache does, so that nothing outlives an
# answer; models and caches themselves carry no mark of it, and are copied and pickled as ever.
ready = weakref.WeakKeyDictionary()


def gathered(model, cache):
    """Per block its weights, and cos, sin (max_len, 1, hd). Gathered anew when a `joined` weight has got new memory since."""
    owner, parts, addresses, *rest = ready.get(cache) or (None, (), None)
    if owner is not model or addresses != [p.data_ptr() for p in parts]:
        rest = [(b.attn_norm.weight, joined(b.wq, b.wk, b.wv), b.wo.weight,
                 b.ff_norm.weight, joined(b.w_gate, b.w_up), b.w_down.weight) for b in model.blocks], \
            torch.cat([model.cos, model.cos], -1)[:, None], torch.cat([-model.sin, model.sin], -1)[:, None]
        parts = [layer.weight for b in model.blocks for layer in (b.wq, b.wk, b.wv, b.w_gate, b.w_up)]
        ready[cache] = model, parts, [p.data_ptr() for p in parts], *rest
    return rest


def forward(model, ids, cache):
    """As GPT.forward for one row and its cache: ids (1, T) -> logits (1, T, V), hidden states (1, T, d)."""
    c, start, T = model.config, int(cache.length), ids.size(1)
    H, K, hd, end = c.n_head, c.n_kv_head, c.head_dim, start + T
    scale = (getattr(c, "query_scalar", 0) or hd) ** -0.5
    norm = lambda x, w: F.rms_norm(x, (c.d_model,), w, c.norm_eps)
    if end > c.max_len:
        raise ValueError(f"{end} tokens, but the model reads at most {c.max_len}")
    weights, cos, sin = gathered(model, cache)
    x = F.embedding(ids[0], model.embed.weight)                                       # (T, d)
    cos, sin = cos[start:end], sin[start:end]                                         # (T, 1, hd)
    mask = x.new_full((T, end), float("-inf")).triu(start + 1) if T > 1 else None     # (T, end), added to the scores: no future

    for (attn_norm, wqkv, wo, ff_norm, w_in, w_down), kv in zip(weights, cache.kv):  # kv (2, 1, K, max_len, hd)
        qkv = times(norm(x, attn_norm), wqkv).view(T, -1, hd)                         # (T, H+2K, hd)
        qk = qkv[:, :H + K]                                                           # (T, H+K, hd)
        torch.addcmul(qk * cos, qk.roll(hd // 2, -1), sin, out=qk)                    # (a, b) -> (a cos - b sin, b cos + a sin)
        kv[:, 0, :, start:end] = qkv[:, H:].view(T, 2, K, hd).permute(1, 2, 0, 3)     # (2, K, T, hd)
        q, (k, v) = qkv[:, :H].transpose(0, 1)[None], kv[..., :end, :].unbind()       # (1, H, T, hd), (1, K, end, hd) twice
        y = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=H > K)  # (1, H, T, hd)
        x = x + times(y[0].transpose(0, 1).reshape(T, -1), wo)                        # (T, d)
        gate, up = times(norm(x, ff_norm), w_in).chunk(2, -1)                         # (T, d_ff) each
        x = x + times(F.silu(gate) * up, w_down)                                      # (T, d)

    cache.length = cache.length + T                                                   # (1,)
    hidden = norm(x, model.norm.weight)                                               # (T, d)
    return times(hidden, model.head.weight)[None], hidden[None]
