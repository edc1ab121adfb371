"""model.py against a second, slow computation written from the formulas; its cache; sampling."""

import math

import pytest
import torch

from model import GPT, GPTConfig, sample
from toy_experts import script

CONFIG = GPTConfig(
    vocab_size=29, d_model=16, n_layer=2, n_head=4, n_kv_head=2, head_dim=6, d_ff=20, max_len=40
)


def double():
    """A random model in float64: orders of summation differ by 1e-13, a mistake by much more."""
    model = GPT(CONFIG).double().eval()
    i = torch.arange(0, 6, 2, dtype=torch.float64) / 6  # rope_table rounds to float32
    angle = torch.arange(40, dtype=torch.float64)[:, None] / CONFIG.rope_theta**i
    model.cos, model.sin = angle.cos(), angle.sin()
    for p in model.parameters():
        p.data = 2 * p.data + 0.1 * torch.randn_like(p)  # no norm is 1: a forgotten weight shows
    return model


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def slow_forward(model, ids):
    """Logits of one prompt, token by token and head by head, with Python's own numbers."""
    c, w = model.config, {k: v.tolist() for k, v in model.state_dict().items()}
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    times = lambda m, x: [dot(row, x) for row in m]
    silu = lambda g: g / (1 + math.exp(-g))
    heads = lambda x: [x[i : i + c.head_dim] for i in range(0, len(x), c.head_dim)]

    def norm(x, weight):
        rms = math.sqrt(dot(x, x) / len(x) + c.norm_eps)
        return [a / rms * b for a, b in zip(x, weight)]

    def turn(x, t):  # the pairs (i, i + hd/2) as complex numbers, turned by t times their frequency
        half, z = c.head_dim // 2, []
        for i in range(half):
            a = t * c.rope_theta ** (-2 * i / c.head_dim)
            z.append(complex(x[i], x[i + half]) * complex(math.cos(a), math.sin(a)))
        return [v.real for v in z] + [v.imag for v in z]

    keys, values, out = [[], []], [[], []], []
    for t, token in enumerate(ids):
        x = w["embed.weight"][token]
        for l in range(c.n_layer):
            layer = lambda name, l=l: w[f"blocks.{l}.{name}.weight"]
            h = norm(x, layer("attn_norm"))
            keys[l].append([turn(v, t) for v in heads(times(layer("wk"), h))])
            values[l].append(heads(times(layer("wv"), h)))
            y = []
            for head, query in enumerate(heads(times(layer("wq"), h))):
                g, q = head // (c.n_head // c.n_kv_head), turn(query, t)  # neighbours share a key
                e = [math.exp(dot(q, k[g]) / math.sqrt(c.head_dim)) for k in keys[l]]
                y += [dot(e, column) / sum(e) for column in zip(*(v[g] for v in values[l]))]
            x = [a + b for a, b in zip(x, times(layer("wo"), y))]
            h = norm(x, layer("ff_norm"))
            gate, up = times(layer("w_gate"), h), times(layer("w_up"), h)
            y = times(layer("w_down"), [silu(g) * u for g, u in zip(gate, up)])
            x = [a + b for a, b in zip(x, y)]
        out.append(times(w["head.weight"], norm(x, w["norm.weight"])))
    return torch.tensor(out, dtype=torch.float64)


def test_forward_equals_the_slow_computation():
    model, ids = double(), torch.randint(0, 29, (1, 11))
    same(model(ids)[0][0], slow_forward(model, ids[0].tolist()))


def check_cache(model, cuts):
    """Read in pieces of these lengths, a text gives what it gives as a whole."""
    ids = torch.randint(0, 29, (3, 12))
    cache = model.new_cache(3)
    got = [model(piece, cache) for piece in ids.split(cuts, dim=1)]
    for i in (0, 1):  # logits and hidden states
        same(torch.cat([g[i] for g in got], 1), model(ids)[i])
    assert cache.length.tolist() == [12, 12, 12]


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 6], [12]])
def test_cache_equals_the_uncached_forward(cuts):
    check_cache(double(), cuts)


def check_rows(model):
    """Row b reads new[b] tokens; a shorter row repeats its last token in the same place.

    The last output of each row is as if it had been alone.
    """
    ids = torch.randint(0, 29, (4, 10))
    cache, new = model.new_cache(4, max_len=10), torch.tensor([1, 6, 3, 2])
    model(ids[:, :4], cache)
    pos = torch.minimum(4 + torch.arange(6), 3 + new[:, None])  # (4, 6)
    logits, hidden = model(ids.gather(1, pos), cache, pos)
    assert cache.length.tolist() == [5, 10, 7, 6]
    for b in range(4):
        alone = model(ids[b : b + 1, : 4 + new[b]])
        same(logits[b, -1], alone[0][0, -1])
        same(hidden[b, -1], alone[1][0, -1])


def test_rows_with_different_numbers_of_new_tokens():
    check_rows(double())


def check_some_rows(model):
    """Rows 2 and 0 read on alone, then row 1: each as if it had always been alone."""
    ids = torch.randint(0, 29, (3, 9))
    cache, pos = model.new_cache(3), torch.arange(4, 9)
    model(ids[:, :4], cache)
    for rows, lengths in (([2, 0], [9, 4, 9]), ([1], [9, 9, 9])):
        part = cache.select(torch.tensor(rows))
        logits, _ = model(ids[rows, 4:], part, pos.expand(len(rows), 5))
        same(logits, model(ids[rows])[0][:, 4:])
        assert cache.length.tolist() == part.length.tolist() == lengths  # one length for both


def test_some_rows_of_a_cache():
    check_some_rows(double())


def test_weights_at_the_start():
    """The head shares the embedding; what is added to the residual stream starts smaller."""
    model = GPT(GPTConfig(n_layer=8))
    assert model.head.weight is model.embed.weight
    assert float(model.embed.weight.data.std()) == pytest.approx(0.3, rel=0.02)
    for block in model.blocks:
        for name, std in (("wq", 1), ("wk", 1), ("w_up", 1), ("wo", 1 / 4), ("w_down", 1 / 4)):
            weight = getattr(block, name).weight.data
            assert float(weight.std()) * weight.size(1) ** 0.5 == pytest.approx(std, rel=0.05)


def test_a_checkpoint_holds_the_config_and_every_weight(tmp_path):
    """Saved and loaded, a model says the same to the bit; it comes back frozen."""
    model, ids = GPT(CONFIG), torch.randint(0, 29, (2, 9))
    script.save_model(tmp_path / "a.pt", model, {"seed": 4}, 2.5)
    again, content = script.load_model(tmp_path / "a.pt", "hint")
    assert again.config == CONFIG and torch.equal(again(ids)[0], model(ids)[0])
    assert not any(p.requires_grad for p in again.parameters())
    assert content["recipe"] == {"seed": 4} and content["seconds"] == 2.5
    assert script.fingerprint(again) == script.fingerprint(model)
    again.blocks[1].wv.weight[3, 2] += 1e-7  # one bit of one weight
    assert script.fingerprint(again) != script.fingerprint(model)


def test_too_long_is_refused():
    model = double()
    with pytest.raises(ValueError, match="41 tokens"):
        model(torch.zeros(1, 41, dtype=torch.long))
    cache = model.new_cache(1)
    model(torch.zeros(1, 40, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="41 tokens"):
        model(torch.zeros(1, 1, dtype=torch.long), cache)


def test_sample_draws_from_the_right_distribution():
    """20,000 draws against softmax(logits / T): chi-square, 4 degrees of freedom.

    A false alarm (35) has a chance below 1e-6. Rows come with logits of their own.
    """
    logits, n = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0]), 20_000
    p = (logits / 0.7).softmax(-1)
    draws = sample(logits.repeat(n, 1), temperature=0.7, u=torch.rand(n)).bincount(minlength=5)
    assert float(((draws - n * p) ** 2 / (n * p)).sum()) < 35


def test_sample_limits():
    """p = (.04, .69, .25, .01): the second token alone has 0.5; 0.9 needs the third one too."""
    logits, u = torch.tensor([[0.1, 3.0, 2.0, -1.0]]).repeat(500, 1), torch.rand(500)
    assert set(sample(logits, 1.0, top_p=0.5, u=u).tolist()) == {1}
    assert set(sample(logits, 1.0, top_p=0.9, u=u).tolist()) == {1, 2}
    assert set(sample(logits, 1.0, u=u).tolist()) >= {0, 1, 2}
    rounded_up = torch.ones(1)  # even then a dropped token is not reached
    assert sample(logits[:1], 1.0, top_p=0.5, u=rounded_up).tolist() == [1]
    assert sample(logits[:1], 0.0).tolist() == [1]
