"""extra/gpt.py against a second, slow computation written from the formulas; at its defaults it is model.GPT, to the bit."""

import math
from dataclasses import asdict, replace

import pytest
import torch

import extra.gpt
import model as ground
from extra.gpt import GPT, GPTConfig, rope_table, soft_cap

CONFIG = GPTConfig(vocab_size=29, d_model=16, n_layer=2, n_head=4, n_kv_head=2, head_dim=6, d_ff=20, max_len=40)
LLAMA3 = replace(CONFIG, rope_factor=8.0, rope_original=12, tied=False)  # of the three rotations one is kept, one slowed in part
GEMMA = replace(CONFIG, gelu=True, post_norm=True, one_plus=True, embed_scaled=True, query_scalar=10.0, attn_cap=1.5, logit_cap=2.0,
                window=3)
FAMILIES = pytest.mark.parametrize("config", [CONFIG, LLAMA3, GEMMA], ids=["toy", "llama3", "gemma"])


def double(config=CONFIG, scale=1.0):
    """A random model in float64, where two orders of summation differ by 1e-13 and a mistake by much more."""
    model = GPT(config).double().eval()
    model.cos, model.sin = rope_table(config)
    for p in model.parameters():
        p.data = p.data * scale + 0.1 * torch.randn_like(p)  # norms away from 1, so that a forgotten weight shows
    return model


def slow_forward(model, ids):
    """Logits of one prompt, token by token and head by head, with plain Python numbers: no tensor operation is shared."""
    c, w = model.config, {k: v.tolist() for k, v in model.state_dict().items()}
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    times = lambda m, x: [dot(row, x) for row in m]

    def norm(x, weight):
        rms = math.sqrt(dot(x, x) / len(x) + c.norm_eps)
        return [a / rms * (b + c.one_plus) for a, b in zip(x, weight)]

    cap = lambda x, limit: limit * math.tanh(x / limit) if limit else x
    silu = lambda g: g / (1 + math.exp(-g))
    gelu = lambda g: g / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))

    def frequency(i):
        f = c.rope_theta ** (-2 * i / c.head_dim)
        if c.rope_factor == 1:
            return f
        wavelength = 2 * math.pi / f
        if wavelength < c.rope_original / c.rope_high:
            return f
        if wavelength > c.rope_original / c.rope_low:
            return f / c.rope_factor
        part = (c.rope_original / wavelength - c.rope_low) / (c.rope_high - c.rope_low)
        return part * f + (1 - part) * f / c.rope_factor

    def turn(x, t):  # pairs (i, i + hd/2), rotated by t times their frequency, as complex numbers
        half = c.head_dim // 2
        z = [complex(x[i], x[i + half]) * complex(math.cos(a), math.sin(a))
             for i in range(half) for a in [t * frequency(i)]]
        return [v.real for v in z] + [v.imag for v in z]

    heads = lambda x: [x[i:i + c.head_dim] for i in range(0, len(x), c.head_dim)]
    keys, values, out = [[] for _ in range(c.n_layer)], [[] for _ in range(c.n_layer)], []
    for t, token in enumerate(ids):
        x = [a * (math.sqrt(c.d_model) if c.embed_scaled else 1) for a in w["embed.weight"][token]]
        for l in range(c.n_layer):
            p = f"blocks.{l}."
            h = norm(x, w[p + "attn_norm.weight"])
            q = [turn(v, t) for v in heads(times(w[p + "wq.weight"], h))]
            keys[l].append([turn(v, t) for v in heads(times(w[p + "wk.weight"], h))])
            values[l].append(heads(times(w[p + "wv.weight"], h)))
            y, seen = [], max(0, t + 1 - c.window) if c.window and l % 2 == 0 else 0  # what a key must not lie before
            for head, query in enumerate(q):
                g = head // (c.n_head // c.n_kv_head)  # neighbouring query heads share a key/value head
                e = [math.exp(cap(dot(query, k[g]) / math.sqrt(c.query_scalar or c.head_dim), c.attn_cap)) for k in keys[l][seen:]]
                y += [sum(a * v[g][i] for a, v in zip(e, values[l][seen:])) / sum(e) for i in range(c.head_dim)]
            y = times(w[p + "wo.weight"], y)
            x = [a + b for a, b in zip(x, norm(y, w[p + "attn_post_norm.weight"]) if c.post_norm else y)]
            h = norm(x, w[p + "ff_norm.weight"])
            gate, up = times(w[p + "w_gate.weight"], h), times(w[p + "w_up.weight"], h)
            y = times(w[p + "w_down.weight"], [(gelu if c.gelu else silu)(g) * u for g, u in zip(gate, up)])
            x = [a + b for a, b in zip(x, norm(y, w[p + "ff_post_norm.weight"]) if c.post_norm else y)]
        out.append([cap(a, c.logit_cap) for a in times(w["head.weight"], norm(x, w["norm.weight"]))])
    return torch.tensor(out, dtype=torch.float64)


def test_at_its_defaults_it_is_the_toys_model_to_the_bit():
    """The same weights at the start, outputs with and without a cache, and gradients."""
    made = []
    for module in (ground, extra.gpt):
        torch.manual_seed(5)
        gpt = module.GPT(module.GPTConfig(vocab_size=29, d_model=16, n_layer=2, n_head=4, n_kv_head=2, head_dim=6, d_ff=20))
        ids, cache = torch.randint(0, 29, (3, 17)), gpt.new_cache(3)
        logits, hidden = gpt(ids)
        logits.square().sum().backward()
        parts = [gpt(ids[:, :9], cache)[0], gpt(ids[:, 9:], cache, torch.tensor([8, 1, 4]))[0]]
        made.append([*gpt.state_dict().values(), logits, hidden, *parts, *(p.grad for p in gpt.parameters())])
    for a, b in zip(*made, strict=True):
        assert torch.equal(a, b)


def test_the_options_are_off_by_default_and_add_no_weights():
    """A config of the toy's is the same model here."""
    theirs = ground.GPTConfig()
    ours = GPTConfig(**asdict(theirs))
    assert {name: value for name, value in vars(ours).items() if name not in vars(theirs)} == {
        "tied": True, "rope_factor": 1.0, "rope_low": 1.0, "rope_high": 4.0, "rope_original": 8192, "rope_float32": False, "gelu": False,
        "post_norm": False, "one_plus": False, "embed_scaled": False, "query_scalar": 0.0, "attn_cap": 0.0, "logit_cap": 0.0, "window": 0}
    assert {name.split(".")[2] for name in GPT(CONFIG).state_dict() if name.startswith("blocks")} == {
        "attn_norm", "wq", "wk", "wv", "wo", "ff_norm", "w_gate", "w_up", "w_down"}


@FAMILIES
def test_forward_equals_the_slow_computation(config):
    model = double(config, scale=2.0)
    ids = torch.randint(0, 29, (1, 11))
    torch.testing.assert_close(model(ids)[0][0], slow_forward(model, ids[0].tolist()), rtol=1e-10, atol=1e-10)


def test_tied_means_one_matrix():
    tied, untied = GPT(CONFIG), GPT(GPTConfig(**{**CONFIG.__dict__, "tied": False}))
    assert tied.head.weight is tied.embed.weight
    assert untied.head.weight is not untied.embed.weight


@FAMILIES
@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 6], [12], [3, 9]])
def test_cache_equals_the_uncached_forward(cuts, config):
    model, ids = double(config), torch.randint(0, 29, (3, 12))
    cache, got = model.new_cache(3), []
    for piece in ids.split(cuts, dim=1):
        got.append(model(piece, cache))
    for i in (0, 1):  # logits and hidden states
        torch.testing.assert_close(torch.cat([g[i] for g in got], 1), model(ids)[i], rtol=1e-12, atol=1e-12)
    assert cache.length.tolist() == [12, 12, 12]


@pytest.mark.parametrize("config", [CONFIG, LLAMA3, replace(CONFIG, window=3)], ids=["toy", "llama3", "window"])
def test_long_inputs_go_to_torchs_own_kernel(config, monkeypatch):
    """With the same outputs and gradients, with a cache and without, and never where scores are capped."""
    model, ids, calls = double(config), torch.randint(0, 29, (2, 12)), []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(extra.gpt.F, "scaled_dot_product_attention", lambda *args, **kw: calls.append(1) or kernel(*args, **kw))

    def run():
        model.zero_grad()
        cache, whole = model.new_cache(2), model(ids)[0]
        whole.square().sum().backward()
        parts = torch.cat([model(piece, cache)[0] for piece in ids.split([9, 3], 1)], 1)
        return [whole.detach(), parts.detach(), *(p.grad.clone() for p in model.parameters())]

    expected, explicit = run(), len(calls)
    monkeypatch.setattr(extra.gpt, "LONG", 5)
    for a, b in zip(run(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert explicit == 0 and len(calls) == 4  # two layers without a cache, two with the first 9 tokens
    double(GEMMA)(ids)
    assert len(calls) == 4


@FAMILIES
def test_rows_with_different_numbers_of_new_tokens(config):
    """Row b brings new[b] of the 6 columns; the last output of each is as if it had been alone. Padding must be inert."""
    model, ids = double(config), torch.randint(0, 29, (4, 10))
    cache = model.new_cache(4, max_len=10)
    model(ids[:, :4], cache)
    new = torch.tensor([1, 6, 3, 2])
    logits, hidden = model(torch.cat([ids[:, 4:], ids[:, :1]], 1)[:, :6], cache, new)
    assert cache.length.tolist() == [5, 10, 7, 6]
    for b in range(4):
        alone = model(ids[b:b + 1, :4 + new[b]])
        torch.testing.assert_close(logits[b, -1], alone[0][0, -1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(hidden[b, -1], alone[1][0, -1], rtol=1e-12, atol=1e-12)


@FAMILIES
def test_some_rows_and_rolling_back(config):
    """Rows 2 and 0 read on alone, then row 2 takes three tokens back and reads others: as if it had never read the first."""
    model, ids, other = double(config), torch.randint(0, 29, (3, 9)), torch.randint(0, 29, (1, 5))
    cache = model.new_cache(3)
    model(ids[:, :4], cache)
    view = cache.select(torch.tensor([2, 0]))
    logits, _ = model(ids[[2, 0], 4:], view)
    torch.testing.assert_close(logits, model(ids[[2, 0]])[0][:, 4:], rtol=1e-12, atol=1e-12)
    assert cache.length.tolist() == [4, 4, 4] and view.length.tolist() == [9, 9]
    cache.length[2] = 6
    logits, _ = model(other, view := cache.select(torch.tensor([2])))
    whole = torch.cat([ids[2:3, :6], other], 1)
    torch.testing.assert_close(logits, model(whole)[0][:, 6:], rtol=1e-12, atol=1e-12)


def test_nobody_sees_the_future():
    model, ids = double(), torch.randint(0, 29, (1, 8))
    changed = ids.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % 29
    before, after = model(ids)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=0)
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("layers, reach", [(1, 3), (2, 8), (3, 8)])
def test_a_sliding_window_by_hand(layers, reach):
    """Token 0 of 8 is changed. Through one layer with a window of 3, the positions 0, 1 and 2 notice; the second layer sees all."""
    model, ids = double(replace(GEMMA, n_layer=layers)), torch.randint(0, 29, (1, 8))
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 29
    noticed = (model(ids)[0] != model(changed)[0]).any(-1)[0]  # (8,)
    assert noticed.tolist() == [t < reach for t in range(8)]


def test_soft_cap_by_hand():
    """tanh(log(3) / 2) = (3 - 1) / (3 + 1) = 1/2, so a cap of 2 takes log 3 to 1. Small numbers pass, large ones stop at the cap."""
    x = torch.tensor([0.0, math.log(3), -math.log(3), 1e-3, 1e9], dtype=torch.float64)
    torch.testing.assert_close(soft_cap(x, 2.0), torch.tensor([0, 1, -1, 1e-3, 2], dtype=torch.float64), rtol=1e-6, atol=0)
    assert soft_cap(x, 0.0) is x


@torch.no_grad()
def test_gemma_in_bfloat16_by_hand():
    """bfloat16 has 8 bits, and steps of 2^-7 = 0.0078 above 1. Norms with weights of 0.003 must scale by 1.003 all the same, though
    1 + 0.003 would round to 1; embeddings of width 24 must be scaled by 4.90625, sqrt(24) = 4.899 rounded, as in the trained model."""
    model = GPT(replace(GEMMA, d_model=24)).bfloat16()
    x = torch.randn(1000, 24)
    model.norm.weight.fill_(0.003)
    rms = x.bfloat16().float().pow(2).mean(-1, keepdim=True).sqrt()
    ratio = model.norm(x.bfloat16()).float().abs().mean() / (x.bfloat16().float() / rms).abs().mean()
    assert float(ratio) == pytest.approx(1.003, abs=5e-4)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    model(torch.tensor([[5]]))
    assert torch.equal(seen[0][0, 0], (model.embed.weight[5].float() * 4.90625).bfloat16())


def test_llama3_rope_by_hand():
    """The frequencies 1, 1/10, 1/100 turn 10 pi, pi and pi/10 radians in 10 pi tokens: 5, 1/2 and 1/20 of a turn. Above 4 turns a
    rotation is kept, below 1 it is 8 times slower; with bounds of 0.25 and 0.75, half a turn lies halfway: (1 + 1/8) / 2 = 9/16."""
    config = GPTConfig(head_dim=6, rope_theta=1e3, rope_factor=8.0, rope_original=10 * math.pi, max_len=2)
    angle = lambda c: torch.atan2(rope_table(c)[1], rope_table(c)[0])[1].tolist()  # of position 1
    assert angle(config) == pytest.approx([1, 1 / 80, 1 / 800])
    assert angle(replace(config, rope_low=0.25, rope_high=0.75)) == pytest.approx([1, 9 / 160, 1 / 800])
    assert angle(replace(config, rope_factor=1.0)) == pytest.approx([1, 1 / 10, 1 / 100])


def test_too_long_is_refused():
    model = double()
    with pytest.raises(ValueError, match="41 tokens"):
        model(torch.zeros(1, 41, dtype=torch.long))
    cache = model.new_cache(1)
    model(torch.zeros(1, 40, dtype=torch.long), cache)
    with pytest.raises(ValueError):
        model(torch.zeros(1, 1, dtype=torch.long), cache)
