"""model.py against a second, slow computation written from the formulas, and every fast path against the plain one."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import common
import fast
import model as model_file
from model import GPT, GPTConfig, Uniform, generate, rope_table, sample, soft_cap

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


@pytest.mark.parametrize("config", [CONFIG, LLAMA3, replace(CONFIG, n_kv_head=4, query_scalar=10.0)], ids=["toy", "llama3", "one-to-one"])
def test_the_fast_path_equals_the_plain_one(config, monkeypatch):
    """A frozen row with a cache goes through fast.py, the same model before it was frozen through the rest of model.py."""
    model, ids, read = double(config), torch.randint(0, 29, (1, 16)), []
    run, caches = fast.forward, (model.new_cache(1), model.new_cache(1, max_len=16))
    monkeypatch.setattr(fast, "forward", lambda model, ids, cache: read.append(ids.size(1)) or run(model, ids, cache))
    for piece in ids.split([4, 1, 1, 8, 2], dim=1):
        plain = model.requires_grad_(True)(piece, caches[0])
        quick = model.requires_grad_(False)(piece, caches[1])
        for a, b in zip(plain, quick):  # logits and hidden states
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert caches[0].length.tolist() == caches[1].length.tolist()
    assert read == [4, 1, 1, 8, 2]
    for a, b in zip(caches[0].kv, caches[1].kv):
        torch.testing.assert_close(a[..., :16, :], b, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="41 tokens"):
        model(torch.zeros(1, 41, dtype=torch.long), model.new_cache(1))


def test_what_the_fast_path_is_for():
    model, gemma = double().requires_grad_(False), double(GEMMA).requires_grad_(False)
    ids, cache = torch.zeros(1, 3, dtype=torch.long), model.new_cache(1)
    assert fast.applies(model, ids, cache, None)
    assert not fast.applies(model, ids, None, None)                                # training and scoring have no cache
    assert not fast.applies(model, ids.repeat(2, 1), model.new_cache(2), None)     # several rows
    assert not fast.applies(model, ids, model.new_cache(2).select(torch.tensor([1])), None)
    assert not fast.applies(model, ids, cache, torch.tensor([2]))                  # padding
    assert not fast.applies(model.requires_grad_(True), ids, cache, None)
    for field in ("gelu", "post_norm", "one_plus", "embed_scaled", "attn_cap", "logit_cap", "window"):
        one = GPT(replace(CONFIG, **{field: getattr(GEMMA, field)})).requires_grad_(False)
        assert not fast.applies(one, ids, one.new_cache(1), None), field
    assert not fast.applies(gemma, ids, gemma.new_cache(1), None)


def test_joined_weights_are_the_layers_own():
    """One matrix, the layers' memory: what changes a weight later changes it, a layer that gets new memory is taken up again, a copy
    has its own; the uncached forward stays the same to the bit; and a model that has decoded can still be trained."""
    model = GPT(CONFIG).requires_grad_(False)
    ids, block = torch.randint(0, 29, (2, 9)), model.blocks[0]
    before, names = model(ids)[0], list(model.state_dict())
    answer = lambda m: m(ids[:1], m.new_cache(1))[0]
    with torch.inference_mode():
        first = answer(model)
    assert torch.equal(model(ids)[0], before) and list(model.state_dict()) == names
    parts = block.wq, block.wk, block.wv
    whole = fast.joined(*parts)
    assert torch.equal(whole, torch.cat([x.weight for x in parts])) and whole.data_ptr() == block.wq.weight.data_ptr()
    copy = deepcopy(model)
    for change in (lambda w: w.data.mul_(2), lambda w: setattr(w, "data", w.data * 2)):  # in place, and with new memory
        change(block.wk.weight)
        assert torch.equal(fast.joined(*parts), torch.cat([x.weight for x in parts]))
        torch.testing.assert_close(answer(model), model(ids[:1])[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(answer(model), first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer(copy), first, rtol=1e-4, atol=1e-5)
    model.requires_grad_(True)(ids)[0].sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(answer(model.requires_grad_(False)), model(ids[:1])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("N", [704, 700])
@pytest.mark.parametrize("T", [1, 3, 4, 13, 14, 64, 65])
def test_times_as_a_whole_and_in_pieces(T, N, monkeypatch):
    x, w, whole = torch.randn(T, 600), torch.randn(N, 600), []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(fast.F, "linear", lambda *args: whole.append(1) or linear(*args))
    y = fast.times(x, w)
    assert y.is_contiguous() and len(whole) == (T < 4 or T > 64 or N == 700)  # 700 rows are no number of 32s
    torch.testing.assert_close(y, x @ w.t(), rtol=1e-4, atol=1e-4)
    fast.times(x.bfloat16(), w.bfloat16())
    assert len(whole) == 1 + (T < 4 or T > 64 or N == 700)


@pytest.mark.parametrize("config", [CONFIG, LLAMA3, replace(CONFIG, window=3)], ids=["toy", "llama3", "window"])
def test_long_inputs_go_to_torchs_own_kernel(config, monkeypatch):
    """With the same outputs and gradients, with a cache (of two rows, so not fast.py's) and without, and never where scores are capped."""
    model, ids, calls = double(config), torch.randint(0, 29, (2, 12)), []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(model_file.F, "scaled_dot_product_attention", lambda *args, **kw: calls.append(1) or kernel(*args, **kw))

    def run():
        model.zero_grad()
        cache, whole = model.new_cache(2), model(ids)[0]
        whole.square().sum().backward()
        parts = torch.cat([model(piece, cache)[0] for piece in ids.split([9, 3], 1)], 1)
        return [whole.detach(), parts.detach(), *(p.grad.clone() for p in model.parameters())]

    expected, explicit = run(), len(calls)
    monkeypatch.setattr(model_file, "LONG", 5)
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


def test_a_checkpoint_from_before_the_later_fields_loads(tmp_path):
    """They are off by default and add no weights, so that a config without them is the same model."""
    old = ("vocab_size", "d_model", "n_layer", "n_head", "n_kv_head", "head_dim", "d_ff", "max_len", "rope_theta", "norm_eps", "tied")
    model, ids = GPT(CONFIG), torch.randint(0, 29, (2, 9))
    common.save(tmp_path / "old.pt", {"config": {name: getattr(CONFIG, name) for name in old}, "vocabulary": "v", "recipe": {},
                                      "seconds": 0, "experts": {}, "model": model.state_dict()})
    again, _ = common.load_model(tmp_path / "old.pt", "v", "hint")
    assert again.config == CONFIG and torch.equal(again(ids)[0], model(ids)[0])
    assert {name: value for name, value in vars(CONFIG).items() if name not in old} == {
        "rope_factor": 1.0, "rope_low": 1.0, "rope_high": 4.0, "rope_original": 8192, "rope_float32": False, "gelu": False,
        "post_norm": False, "one_plus": False, "embed_scaled": False, "query_scalar": 0.0, "attn_cap": 0.0, "logit_cap": 0.0, "window": 0}
    assert {name.split(".")[2] for name in model.state_dict() if name.startswith("blocks")} == {
        "attn_norm", "wq", "wk", "wv", "wo", "ff_norm", "w_gate", "w_up", "w_down"}


def test_too_long_is_refused():
    model = double()
    with pytest.raises(ValueError, match="41 tokens"):
        model(torch.zeros(1, 41, dtype=torch.long))
    cache = model.new_cache(1)
    model(torch.zeros(1, 40, dtype=torch.long), cache)
    with pytest.raises(ValueError):
        model(torch.zeros(1, 1, dtype=torch.long), cache)


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 5}, {"temperature": 1.3, "top_p": 0.7}])
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
    assert set(sample(logits, 1.0, top_k=2, u=u).tolist()) == {1, 2}
    assert set(sample(logits, 1.0, top_p=0.5, u=u).tolist()) == {1}        # p = (.04, .69, .25, .01): the first has 0.5 alone
    assert set(sample(logits, 1.0, top_p=0.9, u=u).tolist()) == {1, 2}     # .69 is not enough, .69 + .25 is
    assert sample(logits[:1], 1.0, top_k=1, u=torch.tensor([1 - 1e-7])).tolist() == [1]
    assert sample(logits[:1], 0.0).tolist() == [1]


def test_uniform_streams_do_not_depend_on_the_batch():
    a, b = Uniform(3, seed=5), Uniform(1, seed=7)
    first, second = a([0, 1, 2], "cpu"), a([2], "cpu")
    assert torch.equal(torch.stack([first[2], second[0]]), torch.cat([b([0], "cpu"), b([0], "cpu")]))
