"""A small decoder-only GPT in the style of Llama, from scratch.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, an output layer that shares the
embedding's weights, and a key/value cache; no dropout. The base model, the experts, the
reference model and the router's language model are all this one class.

Shapes: B rows, T tokens read now, S tokens a row can look back at (itself too), V vocabulary, d
width, H query heads, K key/value heads (each serves H / K query heads), hd head size.
"""

from copy import copy
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    vocab_size: int = 512  # V; the toy's tokenizer sets its own
    d_model: int = 96  # width d
    n_layer: int = 3
    n_head: int = 4  # query heads H
    n_kv_head: int = 2  # key/value heads K
    head_dim: int = 24  # hd
    d_ff: int = 256  # hidden width of the feed-forward layer
    max_len: int = 256  # longest sequence, prompt and answer together
    rope_theta: float = 500.0  # short texts need only short wavelengths
    norm_eps: float = 1e-5


class Cache:
    """The keys and values of what each row has read: one buffer per layer, one length per row.

    Only the part below a row's length counts. Rows may have different lengths.

    kv: per layer (2, B, K, max_len, hd), first keys, then values. length: (B,) tokens read.
    rows: which of the B rows are read now; None means all of them (see `select`).
    """

    def __init__(self, config, n_rows, max_len, device=None, dtype=None):
        shape = (2, n_rows, config.n_kv_head, max_len, config.head_dim)
        self.kv = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.length = torch.zeros(n_rows, dtype=torch.long, device=device)  # (B,)
        self.rows = None

    def select(self, rows):
        """The same buffers for a model that reads only some rows. rows (b,) long."""
        part = copy(self)
        part.rows = rows
        return part

    def append(self, layer, k, v, pos, end):
        """Store k, v (B, T, K, hd) at pos (B, T); return all keys and values (B, K, end, hd)."""
        rows = torch.arange(len(pos), device=pos.device) if self.rows is None else self.rows
        # two index tensors with a slice between them: their axes (B, T) come first
        self.kv[layer][:, rows[:, None], :, pos] = torch.stack([k, v], 2)  # (B, T, 2, K, hd)
        kv = self.kv[layer][..., :end, :]  # (2, B, K, end, hd)
        return (kv if self.rows is None else kv[:, rows]).unbind()


def rope_table(config):
    """cos and sin of every rotation, (max_len, hd / 2) each.

    Position p turns the pair (i, i + hd/2) of a head by the angle p * theta^(-2i/hd).
    """
    i = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim  # (hd/2,)
    p = torch.arange(config.max_len, dtype=torch.float64)  # (max_len,)
    angle = p[:, None] * (1 / config.rope_theta**i)  # (max_len, hd/2)
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    """Turn x (B, T, heads, hd) by its positions' angles; cos, sin (B or 1, T, 1, hd/2)."""
    a, b = x.chunk(2, dim=-1)  # (B, T, heads, hd/2) each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)  # (B, T, heads, hd)


def attention(q, k, v, mask):
    """softmax(q k' / sqrt(hd)) v. q (B, H, T, hd); k, v (B, K, S, hd); mask (B or 1, T, S).

    mask is True where a token may look. The query heads that share a key/value head stand side by
    side in one matrix, so that one product serves all of them.
    """
    B, H, T, hd = q.shape
    K, G = k.size(1), H // k.size(1)
    q = q.reshape(B, K, G * T, hd)
    scores = (q @ k.transpose(-1, -2)) * hd**-0.5  # (B, K, G*T, S)
    scores = scores.view(B, K, G, T, -1).masked_fill(~mask[:, None, None], float("-inf"))
    p = scores.view(B, K, G * T, -1).softmax(-1)  # (B, K, G*T, S)
    return (p @ v).view(B, H, T, hd)


class RMSNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c.d_model))
        self.eps = c.norm_eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.attn_norm = RMSNorm(c)
        self.wq = nn.Linear(c.d_model, c.n_head * c.head_dim, bias=False)
        self.wk = nn.Linear(c.d_model, c.n_kv_head * c.head_dim, bias=False)
        self.wv = nn.Linear(c.d_model, c.n_kv_head * c.head_dim, bias=False)
        self.wo = nn.Linear(c.n_head * c.head_dim, c.d_model, bias=False)
        self.ff_norm = RMSNorm(c)
        self.w_gate = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.w_up = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.w_down = nn.Linear(c.d_ff, c.d_model, bias=False)

    def attend(self, x, cos, sin, mask, cache, layer, pos, end):
        B, T, _ = x.shape
        q = rotate(self.wq(x).view(B, T, -1, self.c.head_dim), cos, sin)  # (B, T, H, hd)
        k = rotate(self.wk(x).view(B, T, -1, self.c.head_dim), cos, sin)  # (B, T, K, hd)
        v = self.wv(x).view(B, T, -1, self.c.head_dim)  # (B, T, K, hd)
        if cache is None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, K, T, hd)
        else:
            k, v = cache.append(layer, k, v, pos, end)  # (B, K, end, hd)
        y = attention(q.transpose(1, 2), k, v, mask)  # (B, H, T, hd)
        return self.wo(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, d)

    def feed_forward(self, x):
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))  # (B, T, d)

    def forward(self, x, *where):
        x = x + self.attend(self.attn_norm(x), *where)  # (B, T, d)
        return x + self.feed_forward(self.ff_norm(x))  # (B, T, d)


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for name, p in self.named_parameters():
            if name == "embed.weight":
                nn.init.normal_(p, std=0.3)  # by validation: tiny models learn slowly from less
            elif p.dim() == 2:  # what is added to the residual stream starts smaller, as in GPT-2
                added = name.endswith(("wo.weight", "w_down.weight"))
                scale = (2 * config.n_layer) ** -0.5 if added else 1.0
                nn.init.normal_(p, std=scale * p.size(1) ** -0.5)
        self.head.weight = self.embed.weight
        cos, sin = rope_table(config)  # (max_len, hd/2) each
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids, cache=None, pos=None):
        """ids (B, T) -> logits (B, T, V) of the next token, final hidden states (B, T, d).

        With a cache, the new tokens follow the cache.length[b] tokens that row b has read already.
        pos (B, T) says where else the tokens stand, for rows that read different numbers of tokens.
        Raises ValueError if a row would become longer than config.max_len.
        """
        if pos is None:
            pos = torch.arange(ids.size(1), device=ids.device)[None]  # (1, T)
            if cache is not None:
                pos = cache.length[:, None] + pos  # (B, T)
        end = int(pos.max()) + 1
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens, but the model reads at most {self.config.max_len}")
        mask = pos[:, :, None] >= torch.arange(end, device=ids.device)  # (1 or B, T, end)
        cos, sin = self.cos[pos][:, :, None], self.sin[pos][:, :, None]  # (1 or B, T, 1, hd/2)
        x = self.embed(ids)  # (B, T, d)
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, cache, layer, pos, end)  # (B, T, d)
        if cache is not None:
            cache.length[slice(None) if cache.rows is None else cache.rows] = pos[:, -1] + 1
        hidden = self.norm(x)  # (B, T, d)
        return self.head(hidden), hidden  # (B, T, V), (B, T, d)

    def new_cache(self, n_rows, max_len=None):
        p = self.embed.weight
        return Cache(self.config, n_rows, max_len or self.config.max_len, p.device, p.dtype)


def sample(logits, temperature=0.0, top_p=1.0, u=None):
    """One token a row. logits (B, V), u (B,) uniform random numbers in [0, 1) -> (B,).

    Temperature 0 is greedy. top_p keeps the smallest set of the likeliest tokens that has at least
    that probability together.
    """
    if temperature == 0:
        return logits.argmax(-1)  # (B,)
    p, order = (logits / temperature).softmax(-1).sort(descending=True, stable=True)  # (B, V) both
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)  # (B, V), 0 where those before suffice
    cdf = p.cumsum(-1)  # (B, V)
    index = (cdf <= u[:, None] * cdf[:, -1:]).sum(-1)  # the token whose share of the cdf has u
    index = index.minimum((p > 0).sum(-1) - 1)  # rounding must not reach a dropped token
    return order.gather(1, index[:, None])[:, 0]  # (B,)
