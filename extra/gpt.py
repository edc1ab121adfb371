"""The toy's GPT (model.py) with what Llama-3 and Gemma-2 have besides: every option is off by default.

At its defaults it computes what model.GPT computes, to the bit. Shapes as in model.py.
"""


from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from model import Cache, rotate


@dataclass
class GPTConfig(model.GPTConfig):
    tied: bool = True        # the output layer shares the embedding's weights
    # Llama-3.1 and later read further than they were first trained to, with their slow rotations slowed down (`rope_table`)
    rope_factor: float = 1.0   # how many times slower the slowest become; 1: none does
    rope_low: float = 1.0      # slowed in full: rotations of fewer turns than this within rope_original tokens
    rope_high: float = 4.0     # untouched: rotations of more turns than this; a linear passage in between
    rope_original: int = 8192  # the longest sequence before
    rope_float32: bool = False  # angles in float32, which rounds those of far positions: so these models were trained
    # Gemma-2
    gelu: bool = False         # GELU (its tanh approximation) in the place of SiLU: GeGLU
    post_norm: bool = False    # a second norm behind each sublayer, before the sum
    one_plus: bool = False     # norms multiply by 1 + weight
    embed_scaled: bool = False  # embeddings are multiplied by sqrt(d_model)
    query_scalar: float = 0.0  # attention scores are divided by its square root; 0: head_dim
    attn_cap: float = 0.0      # attention scores stay within +-cap, by way of tanh; 0: no cap
    logit_cap: float = 0.0     # and so do the final logits
    window: int = 0            # layers 0, 2, 4, ... see the last `window` tokens only, their own included; 0: everything


def rope_table(config):
    """cos and sin of every rotation, (max_len, hd / 2): position p turns the pair (i, i + hd/2) by p * theta^(-2i/hd)."""
    dtype = torch.float32 if config.rope_float32 else torch.float64
    freq = 1 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=dtype) / config.head_dim)  # (hd/2,)
    if config.rope_factor != 1:  # a pair that did not get round even once has met only a part of its angles: keep it within them
        turns = config.rope_original / (2 * torch.pi / freq)                                               # (hd/2,)
        keep = ((turns - config.rope_low) / (config.rope_high - config.rope_low)).clamp(0, 1)              # (hd/2,)
        freq = (1 - keep) * freq / config.rope_factor + keep * freq                                        # (hd/2,)
    angle = torch.arange(config.max_len, dtype=dtype)[:, None] * freq                                      # (max_len, hd/2)
    return angle.cos(), angle.sin()


def soft_cap(x, cap):
    """cap * tanh(x / cap): about x where x is small, and never beyond cap. A cap of 0 is none."""
    return cap * torch.tanh(x / cap) if cap else x


LONG = 256  # longer inputs, which the toy has none of, go to torch's own kernel: the same without keeping every score, (B, H, T, S)


def attention(q, k, v, mask, scale, cap=0.0):
    """softmax(scale q k') v with grouped queries. q (B, H, T, hd); k, v (B, K, S, hd); mask (B or 1, T, S), True = may see.

    No mask: S = T, and every token sees itself and all before it.
    """
    B, H, T, hd = q.shape
    K, G = k.size(1), H // k.size(1)
    if T > LONG and not cap:
        k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)  # (B, H, S, hd): not all of torch's kernels know groups
        return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None], is_causal=mask is None, scale=scale)
    if mask is None:
        mask = torch.ones(1, T, T, dtype=torch.bool, device=q.device).tril()
    q = q.reshape(B, K, G * T, hd)                             # query heads of one group side by side: one matmul serves them
    scores = soft_cap((q @ k.transpose(-1, -2)) * scale, cap)  # (B, K, G*T, S)
    scores = scores.view(B, K, G, T, -1).masked_fill(~mask[:, None, None], float("-inf")).view(B, K, G * T, -1)
    return (scores.softmax(-1) @ v).view(B, H, T, hd)


class RMSNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(c.d_model) if c.one_plus else torch.ones(c.d_model))
        self.eps, self.one_plus = c.norm_eps, c.one_plus

    def forward(self, x):
        if not self.one_plus:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        y = F.rms_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(y, y, self.weight)  # y (1 + weight), without rounding 1 + weight to a short float


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.attn_norm = RMSNorm(c)
        self.wq = nn.Linear(c.d_model, c.n_head * c.head_dim, bias=False)
        self.wk = nn.Linear(c.d_model, c.n_kv_head * c.head_dim, bias=False)
        self.wv = nn.Linear(c.d_model, c.n_kv_head * c.head_dim, bias=False)
        self.wo = nn.Linear(c.n_head * c.head_dim, c.d_model, bias=False)
        self.attn_post_norm = RMSNorm(c) if c.post_norm else nn.Identity()
        self.ff_norm = RMSNorm(c)
        self.w_gate = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.w_up = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.w_down = nn.Linear(c.d_ff, c.d_model, bias=False)
        self.ff_post_norm = RMSNorm(c) if c.post_norm else nn.Identity()
        self.scale = (c.query_scalar or c.head_dim) ** -0.5

    def attend(self, x, cos, sin, mask, cache, layer, pos, end):
        B, T, _ = x.shape
        q = rotate(self.wq(x).view(B, T, -1, self.c.head_dim), cos, sin)  # (B, T, H, hd)
        k = rotate(self.wk(x).view(B, T, -1, self.c.head_dim), cos, sin)  # (B, T, K, hd)
        v = self.wv(x).view(B, T, -1, self.c.head_dim)                    # (B, T, K, hd)
        if cache is None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)                   # (B, K, T, hd)
        else:
            k, v = cache.append(layer, k, v, pos, end)                    # (B, K, end, hd)
        y = attention(q.transpose(1, 2), k, v, mask, self.scale, self.c.attn_cap)  # (B, H, T, hd)
        return self.wo(y.transpose(1, 2).reshape(B, T, -1))               # (B, T, d)

    def feed_forward(self, x):
        gate = self.w_gate(x)                                             # (B, T, d_ff)
        gate = F.gelu(gate, approximate="tanh") if self.c.gelu else F.silu(gate)
        return self.w_down(gate * self.w_up(x))                           # GeGLU or SwiGLU, (B, T, d)

    def forward(self, x, *where):
        x = x + self.attn_post_norm(self.attend(self.attn_norm(x), *where))
        return x + self.ff_post_norm(self.feed_forward(self.ff_norm(x)))  # (B, T, d)


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.n_head % config.n_kv_head or config.head_dim % 2:
            raise ValueError(f"{config.n_head} query heads over {config.n_kv_head} key/value heads of size {config.head_dim}: the "
                             "first must be a multiple of the second, the size even")
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for name, p in self.named_parameters():
            if name == "embed.weight":
                nn.init.normal_(p, std=0.1 if config.embed_scaled else 0.3)  # chosen on validation: at toy width, smaller ones learn slowly
            elif p.dim() == 2:  # unit gain; what is added to the stream starts smaller, so that depth does not inflate it (GPT-2)
                small = (2 * config.n_layer) ** -0.5 if name.endswith(("wo.weight", "w_down.weight")) else 1.0
                nn.init.normal_(p, std=small * p.size(1) ** -0.5)
        if config.tied:
            self.head.weight = self.embed.weight
        cos, sin = rope_table(config)
        self.register_buffer("cos", cos.float(), persistent=False)  # (max_len, hd/2)
        self.register_buffer("sin", sin.float(), persistent=False)

    def forward(self, ids, cache=None, new=None):
        """ids (B, T) -> logits (B, T, V) of each next token, final hidden states (B, T, d).

        With a cache, row b's tokens stand behind the cache.length[b] tokens it has read, and count as read afterwards. Rows may
        bring different numbers of tokens, right-padded: new (B,) says how many are real, at least one each. Padding then repeats
        the row's last real token in that token's own place, which changes nothing, so [:, -1] is every row's last real output.
        Raises ValueError when a row would grow past config.max_len.
        """
        step = torch.arange(ids.size(1), device=ids.device)[None]               # (1, T)
        if new is not None:
            step = torch.minimum(step, new[:, None] - 1)                        # (B, T)
            ids = ids.gather(1, step)                                           # (B, T)
        pos = step if cache is None else cache.length[:, None] + step           # (1 or B, T)
        end = ids.size(1) if cache is None else int(pos.max()) + 1
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens, but the model reads at most {self.config.max_len}")
        mask = near = None                                                      # all of the past
        if cache is not None or self.config.window:
            ago = pos[:, :, None] - torch.arange(end, device=ids.device)        # (1 or B, T, end): how many tokens back
            mask = ago >= 0                                                     # (1 or B, T, end): nobody sees the future
            near = mask & (ago < self.config.window) if self.config.window else mask  # and every second layer not the far past
        cos, sin = self.cos[pos][:, :, None], self.sin[pos][:, :, None]         # (1 or B, T, 1, hd/2)
        x = self.embed(ids)                                                     # (B, T, d)
        if self.config.embed_scaled:
            x = x * x.new_tensor(self.config.d_model**0.5)                      # rounded to x's dtype, as Gemma was trained
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask if layer % 2 else near, cache, layer, pos, end)
        if cache is not None:
            cache.length = pos[:, -1] + 1                                       # (B,)
        hidden = self.norm(x)                                                   # (B, T, d)
        return soft_cap(self.head(hidden), self.config.logit_cap), hidden

    def new_cache(self, n_rows, max_len=None):
        p = self.embed.weight
        return Cache(self.config, n_rows, max_len or self.config.max_len, p.device, p.dtype)
