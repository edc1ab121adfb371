"""model.py's GPT with what Llama-3 and Gemma-2 have besides. Every option is off by default.

At its defaults it computes what model.GPT computes, to the bit. Shapes as in model.py.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import fusionroute
import model
from model import rotate


@dataclass
class GPTConfig(model.GPTConfig):
    tied: bool = True        # the output layer shares the embedding's weights
    # Llama-3.1 and later read longer texts than they were first trained on: their slow rotations are slowed down (rope_table)
    rope_factor: float = 1.0   # how many times slower the slowest become; 1: none does
    rope_low: float = 1.0      # slowed in full: rotations of fewer turns than this within rope_original tokens
    rope_high: float = 4.0     # untouched: rotations of more turns than this; linear in between
    rope_original: int = 8192  # the longest sequence of the first training
    rope_float32: bool = False  # angles in float32, which rounds far positions: these models were trained that way
    # Gemma-2
    gelu: bool = False         # GELU (its tanh approximation) instead of SiLU: GeGLU
    post_norm: bool = False    # a second norm after each sublayer, before the sum
    one_plus: bool = False     # norms multiply by 1 + weight
    embed_scaled: bool = False  # embeddings are multiplied by sqrt(d_model)
    query_scalar: float = 0.0  # attention scores are divided by its square root; 0: head_dim
    attn_cap: float = 0.0      # attention scores stay within +-cap, by tanh; 0: no cap
    logit_cap: float = 0.0     # the same for the final logits
    window: int = 0            # layers 0, 2, 4, ... see the last `window` tokens only, their own included; 0: everything


def rope_table(config):
    """cos and sin of every rotation, (max_len, hd / 2): position p turns the pair (i, i + hd/2) by p * theta^(-2i/hd)."""
    dtype = torch.float32 if config.rope_float32 else torch.float64
    freq = 1 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=dtype) / config.head_dim)  # (hd/2,)
    if config.rope_factor != 1:  # a pair that turned less than once in training has met only some of its angles: stay within these
        turns = config.rope_original / (2 * torch.pi / freq)                                               # (hd/2,)
        keep = ((turns - config.rope_low) / (config.rope_high - config.rope_low)).clamp(0, 1)              # (hd/2,)
        freq = (1 - keep) * freq / config.rope_factor + keep * freq                                        # (hd/2,)
    angle = torch.arange(config.max_len, dtype=dtype)[:, None] * freq                                      # (max_len, hd/2)
    return angle.cos(), angle.sin()


def soft_cap(x, cap):
    """cap * tanh(x / cap): about x where x is small, and never beyond cap. A cap of 0 is none."""
    return cap * torch.tanh(x / cap) if cap else x


LONG = 256  # longer inputs (the toy has none) go to torch's own kernel, which does not keep every score, (B, H, T, S)


def attention(q, k, v, mask, scale, cap=0.0):
    """softmax(scale q k') v, as model.attention, with a scale and a cap. q (B, H, T, hd); k, v (B, K, S, hd); mask (B or 1, T, S).

    mask is True where a token may look; None: S = T, and every token sees itself and all before it.
    """
    B, H, T, hd = q.shape
    K, G = k.size(1), H // k.size(1)
    if T > LONG and not cap:
        k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)  # (B, H, S, hd): not all of torch's kernels know groups
        return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None], is_causal=mask is None, scale=scale)
    if mask is None:
        mask = torch.ones(1, T, T, dtype=torch.bool, device=q.device).tril()
    q = q.reshape(B, K, G * T, hd)
    scores = soft_cap((q @ k.transpose(-1, -2)) * scale, cap)  # (B, K, G*T, S)
    scores = scores.view(B, K, G, T, -1).masked_fill(~mask[:, None, None], float("-inf")).view(B, K, G * T, -1)
    return (scores.softmax(-1) @ v).view(B, H, T, hd)


class RMSNorm(model.RMSNorm):
    def __init__(self, c):
        super().__init__(c)
        self.one_plus = c.one_plus
        if c.one_plus:
            nn.init.zeros_(self.weight)

    def forward(self, x):
        if not self.one_plus:
            return super().forward(x)
        y = F.rms_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(y, y, self.weight)  # y (1 + weight), without rounding 1 + weight to 16 bits


class Block(model.Block):
    def __init__(self, c):
        super().__init__(c)
        self.attn_norm, self.ff_norm = RMSNorm(c), RMSNorm(c)
        self.attn_post_norm = RMSNorm(c) if c.post_norm else nn.Identity()
        self.ff_post_norm = RMSNorm(c) if c.post_norm else nn.Identity()
        self.scale = (c.query_scalar or c.head_dim) ** -0.5

    def attend(self, x, cos, sin, mask, cache, layer, pos, end):
        """model.Block.attend with this file's attention."""
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
        if not self.c.gelu:
            return super().feed_forward(x)                                # SwiGLU, (B, T, d)
        return self.w_down(F.gelu(self.w_gate(x), approximate="tanh") * self.w_up(x))  # GeGLU, (B, T, d)

    def forward(self, x, *where):
        x = x + self.attn_post_norm(self.attend(self.attn_norm(x), *where))
        return x + self.ff_post_norm(self.feed_forward(self.ff_norm(x)))  # (B, T, d)


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.n_head % config.n_kv_head or config.head_dim % 2:
            raise ValueError(f"{config.n_head} query heads over {config.n_kv_head} key/value heads of size {config.head_dim}: the "
                             "first must be a multiple of the second, and the size even")
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for name, p in self.named_parameters():  # as in model.GPT
            if name == "embed.weight":
                nn.init.normal_(p, std=0.1 if config.embed_scaled else 0.3)
            elif p.dim() == 2:
                added = name.endswith(("wo.weight", "w_down.weight"))
                nn.init.normal_(p, std=((2 * config.n_layer) ** -0.5 if added else 1.0) * p.size(1) ** -0.5)
        if config.tied:
            self.head.weight = self.embed.weight
        cos, sin = rope_table(config)
        self.register_buffer("cos", cos.float(), persistent=False)  # (max_len, hd/2)
        self.register_buffer("sin", sin.float(), persistent=False)

    def forward(self, ids, cache=None, new=None):
        """ids (B, T) -> logits (B, T, V), final hidden states (B, T, d). cache, new: as in model.GPT.forward.

        A model in 16 bits gives its logits in float32: log-probabilities of a large vocabulary that are rounded to 16 bits
        would tie, and their sums would drift.
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
            near = mask & (ago < self.config.window) if self.config.window else mask  # every second layer sees only the near past
        cos, sin = self.cos[pos][:, :, None], self.sin[pos][:, :, None]         # (1 or B, T, 1, hd/2)
        x = self.embed(ids)                                                     # (B, T, d)
        if self.config.embed_scaled:
            x = x * x.new_tensor(self.config.d_model**0.5)                      # rounded to x's dtype, as Gemma was trained
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask if layer % 2 else near, cache, layer, pos, end)
        if cache is not None:
            cache.length = pos[:, -1] + 1                                       # (B,)
        hidden = self.norm(x)                                                   # (B, T, d)
        logits = soft_cap(self.head(hidden), self.config.logit_cap)             # (B, T, V)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits, hidden

    new_cache = model.GPT.new_cache


class Routing(nn.Linear):
    """W in float32, whatever the hidden states that it reads come in."""

    def forward(self, hidden):
        return super().forward(hidden.to(self.weight.dtype))


class Router(fusionroute.Router):
    """fusionroute.Router over a language model that may compute in 16 bits."""

    def __init__(self, lm, n_experts):
        super().__init__(lm, n_experts)
        self.W = Routing(lm.config.d_model, n_experts, bias=False)
        nn.init.zeros_(self.W.weight)
