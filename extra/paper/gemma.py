"""The toy's second family: model.GPT with what Gemma-2 has besides. Shapes as in model.py.

GeGLU instead of SwiGLU, a second norm after each sublayer, norms that multiply by 1 + weight,
embeddings times sqrt(d), soft caps, heads wider than d_model / n_head, and a sliding window in
every second layer. The proportions are those of Gemma-2's checkpoints: most documents outgrow the
window.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from model import rotate


@dataclass
class GPTConfig(model.GPTConfig):
    head_dim: int = 32
    query_scalar: float = 24.0  # attention scores are divided by its square root
    attn_cap: float = 50.0  # attention scores stay within +-cap, by tanh
    logit_cap: float = 30.0  # the same for the final logits
    window: int = 32  # layers 0, 2, ... see the last `window` tokens only, their own included


def soft_cap(x, cap):
    """cap * tanh(x / cap): about x where x is small, and never beyond cap."""
    return cap * torch.tanh(x / cap)


def attention(q, k, v, mask, scale, cap):
    """softmax(cap(scale q k')) v, otherwise as model.attention."""
    B, H, T, hd = q.shape
    K, G = k.size(1), H // k.size(1)
    q = q.reshape(B, K, G * T, hd)
    scores = soft_cap((q @ k.transpose(-1, -2)) * scale, cap)  # (B, K, G*T, S)
    scores = scores.view(B, K, G, T, -1).masked_fill(~mask[:, None, None], float("-inf"))
    p = scores.view(B, K, G * T, -1).softmax(-1)  # (B, K, G*T, S)
    return (p @ v).view(B, H, T, hd)


class RMSNorm(model.RMSNorm):
    def __init__(self, c):
        super().__init__(c)
        nn.init.zeros_(self.weight)

    def forward(self, x):
        y = F.rms_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(y, y, self.weight)  # y (1 + weight)


class Block(model.Block):
    def __init__(self, c):
        super().__init__(c)
        self.attn_norm, self.ff_norm = RMSNorm(c), RMSNorm(c)
        self.attn_post_norm, self.ff_post_norm = RMSNorm(c), RMSNorm(c)

    def attend(self, x, cos, sin, mask, cache, layer, pos, end):
        B, T, _ = x.shape
        q = rotate(self.wq(x).view(B, T, -1, self.c.head_dim), cos, sin)  # (B, T, H, hd)
        k = rotate(self.wk(x).view(B, T, -1, self.c.head_dim), cos, sin)  # (B, T, K, hd)
        v = self.wv(x).view(B, T, -1, self.c.head_dim)  # (B, T, K, hd)
        if cache is None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, K, T, hd)
        else:
            k, v = cache.append(layer, k, v, pos, end)  # (B, K, end, hd)
        scale = self.c.query_scalar**-0.5
        y = attention(q.transpose(1, 2), k, v, mask, scale, self.c.attn_cap)  # (B, H, T, hd)
        return self.wo(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, d)

    def feed_forward(self, x):
        gate = F.gelu(self.w_gate(x), approximate="tanh")  # (B, T, d_ff)
        return self.w_down(gate * self.w_up(x))  # (B, T, d)

    def forward(self, x, *where):
        x = x + self.attn_post_norm(self.attend(self.attn_norm(x), *where))  # (B, T, d)
        return x + self.ff_post_norm(self.feed_forward(self.ff_norm(x)))  # (B, T, d)


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for name, p in self.named_parameters():  # as in model.GPT, with a smaller embedding
            if name == "embed.weight":
                nn.init.normal_(p, std=0.1)
            elif p.dim() == 2:
                added = name.endswith(("wo.weight", "w_down.weight"))
                scale = (2 * config.n_layer) ** -0.5 if added else 1.0
                nn.init.normal_(p, std=scale * p.size(1) ** -0.5)
        self.head.weight = self.embed.weight
        cos, sin = model.rope_table(config)  # (max_len, hd/2) each
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids, cache=None, pos=None):
        """As model.GPT.forward: ids (B, T) -> logits (B, T, V), hidden states (B, T, d)."""
        if pos is None:
            pos = torch.arange(ids.size(1), device=ids.device)[None]  # (1, T)
            if cache is not None:
                pos = cache.length[:, None] + pos  # (B, T)
        end = int(pos.max()) + 1
        ago = pos[:, :, None] - torch.arange(end, device=ids.device)  # (1 or B, T, end)
        mask = ago >= 0  # (1 or B, T, end)
        near = mask & (ago < self.config.window)  # (1 or B, T, end)
        cos, sin = self.cos[pos][:, :, None], self.sin[pos][:, :, None]  # (1 or B, T, 1, hd/2)
        x = self.embed(ids) * self.config.d_model**0.5  # (B, T, d)
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask if layer % 2 else near, cache, layer, pos, end)  # (B, T, d)
        if cache is not None:
            cache.length[slice(None) if cache.rows is None else cache.rows] = pos[:, -1] + 1
        hidden = self.norm(x)  # (B, T, d)
        return soft_cap(self.head(hidden), self.config.logit_cap), hidden

    new_cache = model.GPT.new_cache
