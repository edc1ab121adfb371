"""GPT.forward over one row with a cache, which is what answering a prompt is made of: the same from half of the operations.

An operation of torch costs a microsecond or more, whatever it computes, and a small model's pass over one token consists of nothing
else. So here are as few as can be read: q, k and v come from one matrix, as do gate and up; q and k are turned together, k and v stored
together; attention is torch's own kernel. Read model.py first: it says what is computed, for any number of rows, with or without a
cache, and for training. tests/test_model.py shows that the two agree.

Shapes as in model.py, without B, as there is one row.
"""

import torch
import torch.nn.functional as F


def applies(model, ids, cache, new):
    """Is this pass one for `forward`: one row with a cache, frozen weights, and nothing of Gemma-2's?"""
    c = model.config
    return cache is not None and cache.rows is None and new is None and ids.size(0) == 1 and not model.embed.weight.requires_grad and not (
        c.gelu or c.post_norm or c.one_plus or c.embed_scaled or c.attn_cap or c.logit_cap or c.window)


def joined(*layers):
    """The weights (N_i, d) of linear layers that read the same input, as one matrix (sum of N_i, d).

    The first call moves them into one piece of memory and leaves each layer a view of its part. So no weight exists twice, and one
    that is changed later is changed here, too; if a layer gets new memory, the next call moves all of them again.
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
    memory once more. A piece is still in the processor's cache then. From some tokens on, the matrix is better on the left. With many
    tokens arithmetic is what takes the time, and one call for the whole matrix is best again.
    """
    (T, d), N = x.shape, w.size(0)
    if w.numel() <= 2**18 or not 4 <= T <= 64 or N % 32 or w.dtype != torch.float32 or not w.is_cpu:
        return F.linear(x, w)
    n, pieces = N // 32, w.view(-1, 32, d)                                            # (N/32, 32, d)
    if T < 14:
        return torch.bmm(x.expand(n, T, d), pieces.mT).transpose(0, 1).reshape(T, N)  # from (N/32, T, 32)
    return torch.bmm(pieces, x.t().contiguous().expand(n, d, T)).view(N, T).t().contiguous()  # from (N/32, 32, T)


def prepare(model):
    """What every pass needs, gathered once: to look it up in modules within modules takes as long as to compute with it.

    It stays with the model (`ready`) until one of the weights has got new memory.
    """
    parts, memory, *_ = model.ready or ((), None)
    if memory != [part.weight.data_ptr() for part in parts]:
        weights = [(b.attn_norm.weight, joined(b.wq, b.wk, b.wv), b.wo.weight,
                    b.ff_norm.weight, joined(b.w_gate, b.w_up), b.w_down.weight) for b in model.blocks]
        cos, sin = torch.cat([model.cos, model.cos], -1)[:, None], torch.cat([-model.sin, model.sin], -1)[:, None]  # (max_len, 1, hd)
        parts = [part for part in model.modules() if getattr(part, "weight", None) is not None]
        model.ready = parts, [part.weight.data_ptr() for part in parts], weights, cos, sin
    return model.ready[2:]


def forward(model, ids, cache):
    """As GPT.forward: ids (1, T) -> logits (1, T, V), hidden states (1, T, d)."""
    c, start, T = model.config, int(cache.length), ids.size(1)
    H, K, hd, end, scale = c.n_head, c.n_kv_head, c.head_dim, start + T, model.blocks[0].scale
    norm = lambda x, w: F.rms_norm(x, (c.d_model,), w, c.norm_eps)
    if end > c.max_len:
        raise ValueError(f"{end} tokens, but the model reads at most {c.max_len}")
    if cache.ready is None:
        cache.ready = prepare(model)
    weights, cos, sin = cache.ready
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
