"""model.py against a second, slow computation written from the formulas; its cache; sampling."""

import math

import pytest
import torch

from model import GPT, GPTConfig, Uniform, generate, rope_table, sample
from toy_experts import script

CONFIG = GPTConfig(vocab_size=29, d_model=16, n_layer=2, n_head=4, n_kv_head=2, head_dim=6, d_ff=20, max_len=40)


def angles(config):
    """cos and sin in float64 (rope_table rounds them to float32, and the models of this file are float64)."""
    angle = torch.tensor([[p * config.rope_theta ** (-2 * i / config.head_dim) for i in range(config.head_dim // 2)]
                          for p in range(config.max_len)], dtype=torch.float64)
    return angle.cos(), angle.sin()


def double(config=CONFIG, scale=1.0):
    """A random model in float64, where two orders of summation differ by 1e-13 and a mistake by much more."""
    model = GPT(config).double().eval()
    model.cos, model.sin = angles(config)
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
        return [a / rms * b for a, b in zip(x, weight)]

    silu = lambda g: g / (1 + math.exp(-g))

    def turn(x, t):  # pairs (i, i + hd/2), rotated by t times their frequency, as complex numbers
        half = c.head_dim // 2
        z = [complex(x[i], x[i + half]) * complex(math.cos(a), math.sin(a))
             for i in range(half) for a in [t * c.rope_theta ** (-2 * i / c.head_dim)]]
        return [v.real for v in z] + [v.imag for v in z]

    heads = lambda x: [x[i:i + c.head_dim] for i in range(0, len(x), c.head_dim)]
    keys, values, out = [[] for _ in range(c.n_layer)], [[] for _ in range(c.n_layer)], []
    for t, token in enumerate(ids):
        x = w["embed.weight"][token]
        for l in range(c.n_layer):
            p = f"blocks.{l}."
            h = norm(x, w[p + "attn_norm.weight"])
            q = [turn(v, t) for v in heads(times(w[p + "wq.weight"], h))]
            keys[l].append([turn(v, t) for v in heads(times(w[p + "wk.weight"], h))])
            values[l].append(heads(times(w[p + "wv.weight"], h)))
            y = []
            for head, query in enumerate(q):
                g = head // (c.n_head // c.n_kv_head)  # neighbouring query heads share a key/value head
                e = [math.exp(dot(query, k[g]) / math.sqrt(c.head_dim)) for k in keys[l]]
                y += [sum(a * v[g][i] for a, v in zip(e, values[l])) / sum(e) for i in range(c.head_dim)]
            y = times(w[p + "wo.weight"], y)
            x = [a + b for a, b in zip(x, y)]
            h = norm(x, w[p + "ff_norm.weight"])
            gate, up = times(w[p + "w_gate.weight"], h), times(w[p + "w_up.weight"], h)
            y = times(w[p + "w_down.weight"], [silu(g) * u for g, u in zip(gate, up)])
            x = [a + b for a, b in zip(x, y)]
        out.append(times(w["head.weight"], norm(x, w["norm.weight"])))
    return torch.tensor(out, dtype=torch.float64)


def test_forward_equals_the_slow_computation():
    model = double(scale=2.0)
    ids = torch.randint(0, 29, (1, 11))
    torch.testing.assert_close(model(ids)[0][0], slow_forward(model, ids[0].tolist()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 6], [12], [3, 9]])
def test_cache_equals_the_uncached_forward(cuts):
    model, ids = double(), torch.randint(0, 29, (3, 12))
    cache, got = model.new_cache(3), []
    for piece in ids.split(cuts, dim=1):
        got.append(model(piece, cache))
    for i in (0, 1):  # logits and hidden states
        torch.testing.assert_close(torch.cat([g[i] for g in got], 1), model(ids)[i], rtol=1e-12, atol=1e-12)
    assert cache.length.tolist() == [12, 12, 12]


def test_rows_with_different_numbers_of_new_tokens():
    """Row b brings new[b] of the 6 columns; the last output of each is as if it had been alone. Padding must be inert."""
    model, ids = double(), torch.randint(0, 29, (4, 10))
    cache = model.new_cache(4, max_len=10)
    model(ids[:, :4], cache)
    new = torch.tensor([1, 6, 3, 2])
    logits, hidden = model(torch.cat([ids[:, 4:], ids[:, :1]], 1)[:, :6], cache, new)
    assert cache.length.tolist() == [5, 10, 7, 6]
    for b in range(4):
        alone = model(ids[b:b + 1, :4 + new[b]])
        torch.testing.assert_close(logits[b, -1], alone[0][0, -1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(hidden[b, -1], alone[1][0, -1], rtol=1e-12, atol=1e-12)


def test_some_rows_and_rolling_back():
    """Rows 2 and 0 read on alone, then row 2 takes three tokens back and reads others: as if it had never read the first."""
    model, ids, other = double(), torch.randint(0, 29, (3, 9)), torch.randint(0, 29, (1, 5))
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


def test_rope_by_hand():
    """Head size 6 and theta 1000: the three pairs turn by 1, 1/10 and 1/100 radians a position."""
    cos, sin = rope_table(GPTConfig(head_dim=6, rope_theta=1e3, max_len=4))
    torch.testing.assert_close(torch.atan2(sin, cos)[2], torch.tensor([2, 0.2, 0.02]))
    torch.testing.assert_close(torch.stack(rope_table(CONFIG)).double(), torch.stack(angles(CONFIG)), rtol=0, atol=1e-7)


def test_weights_at_the_start():
    """The head shares the embedding's matrix; what is added to the residual stream starts smaller, as in GPT-2."""
    model = GPT(GPTConfig(n_layer=8))
    assert model.head.weight is model.embed.weight and float(model.embed.weight.std()) == pytest.approx(0.3, rel=0.02)
    std = lambda layer, width: float(layer.weight.std()) * width**0.5
    for block in model.blocks:
        assert std(block.wq, 96) == pytest.approx(1, rel=0.05) == pytest.approx(std(block.w_up, 96), rel=0.05)
        assert std(block.wo, 96) == pytest.approx(1 / 4, rel=0.05) == pytest.approx(std(block.w_down, 256), rel=0.05)


def test_a_checkpoint_holds_the_config_and_every_weight(tmp_path):
    """Saved and loaded, a model says the same to the bit; it comes back frozen."""
    model, ids = GPT(CONFIG), torch.randint(0, 29, (2, 9))
    script.save_model(tmp_path / "a.pt", model, {"seed": 4}, 2.5)
    again, content = script.load_model(tmp_path / "a.pt", "hint")
    assert again.config == CONFIG and torch.equal(again(ids)[0], model(ids)[0]) and not any(p.requires_grad for p in again.parameters())
    assert content["recipe"] == {"seed": 4} and content["seconds"] == 2.5 and "model" not in content


def test_too_long_is_refused():
    model = double()
    with pytest.raises(ValueError, match="41 tokens"):
        model(torch.zeros(1, 41, dtype=torch.long))
    cache = model.new_cache(1)
    model(torch.zeros(1, 40, dtype=torch.long), cache)
    with pytest.raises(ValueError):
        model(torch.zeros(1, 1, dtype=torch.long), cache)


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"temperature": 1.3, "top_p": 0.7}])
def test_generate_in_a_batch_equals_one_by_one(how):
    model = double(scale=2.0)
    prompts = [torch.randint(0, 29, (n,)).tolist() for n in (3, 9, 1, 5, 5, 7)]
    together = generate(model, prompts, 20, end=7, seed=40, **how)
    alone = [generate(model, [p], 20, end=7, seed=40 + b, **how)[0] for b, p in enumerate(prompts)]
    assert together == alone
    assert len({len(x) for x in together}) > 1, "rows must end at different times, or the test shows little"


def test_generate_greedy_equals_argmax_without_a_cache():
    model, prompt = double(scale=2.0), [3, 1, 4]
    ids = list(prompt)
    while len(ids) < 15:
        ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    assert generate(model, [prompt], 12, end=-1)[0] == ids[3:]


def test_sample_draws_from_the_right_distribution():
    """Frequencies of 20,000 draws against softmax(logits / T): chi-square, 4 degrees of freedom, false alarm below 1e-6 (bound 35)."""
    logits, n = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0]), 20_000
    p = (logits / 0.7).softmax(-1)
    draws = sample(logits.repeat(n, 1), temperature=0.7, u=torch.rand(n)).bincount(minlength=5)
    assert float(((draws - n * p) ** 2 / (n * p)).sum()) < 35


def test_sample_limits():
    logits, u = torch.tensor([[0.1, 3.0, 2.0, -1.0]]).repeat(500, 1), torch.rand(500)
    assert set(sample(logits, 1.0, top_p=0.5, u=u).tolist()) == {1}        # p = (.04, .69, .25, .01): the first has 0.5 alone
    assert set(sample(logits, 1.0, top_p=0.9, u=u).tolist()) == {1, 2}     # .69 is not enough, .69 + .25 is
    assert sample(logits[:1], 1.0, top_p=0.5, u=torch.tensor([1 - 1e-7])).tolist() == [1]
    assert sample(logits[:1], 0.0).tolist() == [1]


def test_uniform_streams_do_not_depend_on_the_batch():
    a, b = Uniform(3, seed=5), Uniform(1, seed=7)
    first, second = a([0, 1, 2], "cpu"), a([2], "cpu")
    assert torch.equal(torch.stack([first[2], second[0]]), torch.cat([b([0], "cpu"), b([0], "cpu")]))
