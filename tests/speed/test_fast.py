"""The fast pass against model.py's, and that it is never stale and leaves models as they were."""

import gc
import io
import pickle
import weakref
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import model as plain
from extra import gpt
from extra.speed import fast
from fusionroute import Router
from model import generate

SIZES = dict(vocab_size=29, d_model=16, n_layer=2, n_head=4, n_kv_head=2, head_dim=6, d_ff=20, max_len=40)
CONFIG = plain.GPTConfig(**SIZES)
LLAMA3 = gpt.GPTConfig(**SIZES, rope_factor=8.0, rope_original=12, tied=False)  # of the three rotations one is kept, one slowed in part
ONE_TO_ONE = gpt.GPTConfig(**SIZES | {"n_kv_head": 4}, query_scalar=10.0)
GEMMA = dict(gelu=True, post_norm=True, one_plus=True, embed_scaled=True, attn_cap=1.5, logit_cap=2.0, window=3)


def random(config, dtype=torch.float64):
    """A random frozen model; in float64, two orders of summation differ by 1e-13 and a mistake by much more."""
    home = gpt if isinstance(config, gpt.GPTConfig) else plain
    model = home.GPT(config).to(dtype).eval()
    if dtype == torch.float64:
        model.cos, model.sin = (x.double() for x in home.rope_table(config))
    for p in model.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)  # norms away from 1, so that a forgotten weight shows
    return model.requires_grad_(False)


def close(got, expected, tolerance=1e-12):
    for a, b in zip(got, expected, strict=True):  # logits and hidden states
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("config", [CONFIG, LLAMA3, ONE_TO_ONE], ids=["toy", "llama3", "one-to-one"])
def test_the_fast_path_equals_the_plain_one(config, monkeypatch):
    model, ids, taken, run = random(config), torch.randint(0, 29, (1, 16)), [], fast.forward
    caches = model.new_cache(1), model.new_cache(1, max_len=16)
    monkeypatch.setattr(fast, "forward", lambda model, ids, cache: taken.append(ids.size(1)) or run(model, ids, cache))
    for piece in ids.split([4, 1, 1, 8, 2], dim=1):
        close(fast.read(model, piece, caches[1]), model(piece, caches[0]))
        assert caches[0].length.tolist() == caches[1].length.tolist()
    assert taken == [4, 1, 1, 8, 2]
    close(*zip(*((b, a[..., :16, :]) for a, b in zip(caches[0].kv, caches[1].kv))))
    with pytest.raises(ValueError, match="41 tokens"):
        fast.read(model, torch.zeros(1, 41, dtype=torch.long), model.new_cache(1))


def test_a_router_and_what_calls_a_model_itself(monkeypatch):
    router, ids, taken, run = Router(random(CONFIG), 3).double().requires_grad_(False), torch.randint(0, 29, (1, 7)), [], fast.forward
    torch.nn.init.normal_(router.W.weight)
    monkeypatch.setattr(fast, "forward", lambda *args: taken.append(1) or run(*args))
    expected = router(ids)
    close(fast.read(router, ids, router.lm.new_cache(1)), expected)
    close(fast.Fast(router)(ids, fast.Fast(router).lm.new_cache(1)), expected)
    assert len(taken) == 2
    close(fast.Fast(router)(ids), expected)                             # without a cache the model itself
    close(deepcopy(fast.Fast(router))(ids), expected)
    prompts = [[3, 1, 4], [1, 5]]
    said = [generate(router.lm, [p], 12, end=7) for p in prompts]
    assert [generate(fast.Fast(router.lm), [p], 12, end=7) for p in prompts] == said and len(taken) > 14
    n = len(taken)
    assert generate(fast.Fast(router.lm), prompts, 12, end=7) == [s[0] for s in said]
    assert len(taken) == n or len({len(s[0]) for s in said}) > 1        # several rows go to the model, the last row left may not


def test_what_the_fast_path_is_for():
    model, ids = random(CONFIG), torch.zeros(1, 3, dtype=torch.long)
    cache = model.new_cache(1)
    assert fast.applies(model, ids, cache)
    assert not fast.applies(model, ids, None)                                # training and scoring have no cache
    assert not fast.applies(model, ids.repeat(2, 1), model.new_cache(2))     # several rows
    assert not fast.applies(model, ids, model.new_cache(2).select(torch.tensor([1])))
    assert not fast.applies(model, ids, cache, torch.tensor([2]))            # padding
    assert not fast.applies(model.requires_grad_(True), ids, cache)
    llama = gpt.GPTConfig(**SIZES)
    one = gpt.GPT(llama).requires_grad_(False)
    assert fast.applies(one, ids, one.new_cache(1))
    for field, value in GEMMA.items():
        one = gpt.GPT(replace(llama, **{field: value})).requires_grad_(False)
        assert not fast.applies(one, ids, one.new_cache(1)), field
        close(fast.read(one, ids, one.new_cache(1)), one(ids, one.new_cache(1)), 0.0)
    assert set(GEMMA) == set(fast.OTHER)


def test_hooks_see_every_pass():
    """A hook is only called by model(...), so a model or router that has one is read so."""
    router, ids = Router(random(CONFIG), 3).double().requires_grad_(False), torch.zeros(1, 3, dtype=torch.long)
    for module in (router, router.lm):
        for register in (module.register_forward_hook, module.register_forward_pre_hook):
            seen = []
            handle = register(lambda m, *args: seen.append(1))
            fast.read(router, ids, router.lm.new_cache(1))
            assert seen == [1]
            handle.remove()
            fast.read(router, ids, router.lm.new_cache(1))
            assert seen == [1]


def test_joined_weights_are_the_layers_own():
    """One matrix, the layers' memory: what changes a weight later changes it, a layer that gets new memory is taken up again, a copy
    has its own; the uncached forward stays the same to the bit; and a model that has decoded can still be trained."""
    model = plain.GPT(CONFIG).requires_grad_(False)
    ids, block = torch.randint(0, 29, (2, 9)), model.blocks[0]
    before, names = model(ids)[0], list(model.state_dict())
    answer = lambda m: fast.read(m, ids[:1], m.new_cache(1))[0]
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


def test_never_stale():
    """Weights that change in any way, even in the middle of an answer, count from the next pass on; a model may be moved to another
    dtype between two answers, and a cache may even change its model."""
    model, other, ids = random(CONFIG), random(CONFIG), torch.randint(0, 29, (1, 20))
    state = random(CONFIG).state_dict()

    def memory(m):
        for p in m.parameters():
            p.data = p.data * 1.01 + 0.01

    def part(m):
        m.blocks[1].w_up.weight.data = m.blocks[1].w_up.weight.data + 0.1

    changes = [lambda m: None, lambda m: [p.data.mul_(1.1) for p in m.parameters()], memory, part, lambda m: m.load_state_dict(state)]
    caches, start = (model.new_cache(1), model.new_cache(1)), 0
    for change in changes:
        change(model)
        piece = ids[:, start:start + 3]
        close(fast.read(model, piece, caches[0]), model(piece, caches[1]))
        start += 3
    close(fast.read(other, ids[:, :3], caches[0]), other(ids[:, :3], caches[1]))
    model.float()
    a, b = (read(ids, model.new_cache(1)) for read in (lambda *x: fast.read(model, *x), model))
    assert a[0].dtype == torch.float32
    close(a, b, 1e-4)


def saved_size(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())


def test_nothing_outlives_an_answer():
    """A model is copied and pickled as if it had never decoded, while its cache is there and after; its weights are not kept alive."""
    model, ids = random(CONFIG), torch.randint(0, 29, (1, 5))
    attributes, state = set(vars(model)), {k: v.clone() for k, v in model.state_dict().items()}
    gc.collect()
    entries = len(fast.ready)
    cache = model.new_cache(1)
    expected = fast.read(model, ids, cache)
    assert len(fast.ready) == entries + 1 and set(vars(model)) == attributes
    for again in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(x, state[k]) for k, x in again.state_dict().items())
        close(fast.read(again, ids, again.new_cache(1)), expected, 0.0)
    assert saved_size(model) < 1.1 * saved_size(random(CONFIG))          # no weight is saved twice
    twin = deepcopy(cache)                                               # a cache that goes on by itself
    close(fast.read(model, ids, twin), fast.read(model, ids, cache), 0.0)
    ghost = weakref.ref(model)
    del model, cache, twin, again
    gc.collect()
    assert ghost() is None and len(fast.ready) == entries


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
