"""extra/paper/gemma.py against a second, slow computation written from the formulas."""

import math

import pytest
import torch

from extra.paper.gemma import GPT, GPTConfig
from tests.test_model import check_cache, check_rows, check_some_rows

SHAPE = {"vocab_size": 29, "d_model": 16, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "d_ff": 20}
CAPS = {"query_scalar": 10.0, "attn_cap": 1.5, "logit_cap": 2.0, "window": 3}
CONFIG = GPTConfig(**SHAPE, head_dim=6, max_len=40, **CAPS)


def double(config=CONFIG, scale=2.0):
    """A random model in float64: orders of summation differ by 1e-13, mistakes by much more."""
    gpt = GPT(config).double().eval().requires_grad_(False)
    i = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angle = torch.arange(config.max_len)[:, None] * (1 / config.rope_theta**i)
    gpt.cos, gpt.sin = angle.cos(), angle.sin()
    for p in gpt.parameters():
        p.data = p.data * scale + 0.1 * torch.randn_like(p)  # a forgotten norm weight shows
    return gpt


def slow_forward(gpt, ids):
    """Logits of one prompt, head by head, with plain Python numbers."""
    c, w = gpt.config, {k: v.tolist() for k, v in gpt.state_dict().items()}
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    times = lambda m, x: [dot(row, x) for row in m]
    cap = lambda x, limit: limit * math.tanh(x / limit)
    gelu = lambda g: g / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))

    def norm(x, weight):
        rms = math.sqrt(dot(x, x) / len(x) + c.norm_eps)
        return [a / rms * (b + 1) for a, b in zip(x, weight)]

    def turn(x, t):  # pairs (i, i + hd/2), rotated as complex numbers
        half = c.head_dim // 2
        angles = [t * c.rope_theta ** (-2 * i / c.head_dim) for i in range(half)]
        pairs = [complex(x[i], x[i + half]) for i in range(half)]
        z = [p * complex(math.cos(a), math.sin(a)) for p, a in zip(pairs, angles)]
        return [v.real for v in z] + [v.imag for v in z]

    heads = lambda x: [x[i : i + c.head_dim] for i in range(0, len(x), c.head_dim)]
    keys, values, out = [[] for _ in range(2)], [[] for _ in range(2)], []
    for t, token in enumerate(ids):
        x = [a * math.sqrt(c.d_model) for a in w["embed.weight"][token]]
        for layer in range(c.n_layer):
            part = lambda name, layer=layer: w[f"blocks.{layer}.{name}.weight"]
            h = norm(x, part("attn_norm"))
            q = [turn(v, t) for v in heads(times(part("wq"), h))]
            keys[layer].append([turn(v, t) for v in heads(times(part("wk"), h))])
            values[layer].append(heads(times(part("wv"), h)))
            y, first = [], max(0, t + 1 - c.window) if layer % 2 == 0 else 0
            for head, query in enumerate(q):
                g = head // (c.n_head // c.n_kv_head)  # neighbouring query heads share one
                scores = [dot(query, k[g]) / math.sqrt(c.query_scalar) for k in keys[layer][first:]]
                e = [math.exp(cap(score, c.attn_cap)) for score in scores]
                seen = [v[g] for v in values[layer][first:]]
                y += [sum(a * v[i] for a, v in zip(e, seen)) / sum(e) for i in range(c.head_dim)]
            y = norm(times(part("wo"), y), part("attn_post_norm"))
            x = [a + b for a, b in zip(x, y)]
            h = norm(x, part("ff_norm"))
            gate, up = times(part("w_gate"), h), times(part("w_up"), h)
            y = times(part("w_down"), [gelu(g) * u for g, u in zip(gate, up)])
            x = [a + b for a, b in zip(x, norm(y, part("ff_post_norm")))]
        logits = times(w["head.weight"], norm(x, w["norm.weight"]))
        out.append([cap(a, c.logit_cap) for a in logits])
    return torch.tensor(out, dtype=torch.float64)


def test_forward_equals_the_slow_computation():
    gpt, ids = double(), torch.randint(0, 29, (1, 11))
    expected = slow_forward(gpt, ids[0].tolist())
    torch.testing.assert_close(gpt(ids)[0][0], expected, rtol=1e-10, atol=1e-10)
    assert gpt.head.weight is gpt.embed.weight


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 6], [3, 9]])
def test_cache_equals_the_uncached_forward(cuts):
    check_cache(double(), cuts)


def test_the_rows_of_a_cache():
    check_rows(double())
    check_some_rows(double())
