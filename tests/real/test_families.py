"""Any family of transformers: generate() gives what the definition of decoding gives."""

import pytest
import torch

from extra.real import FusionRoute, modeling
from fusionroute import fuse
from tests.real.conftest import FAMILIES, WORDS, by_definition, hidden, make, prompts, routed

NEW = 14
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family, tmp_path):
    """Greedy, in a left-padded batch, drafted by the router, and saved and loaded again."""
    for seed, name in enumerate(("start", "math", "code")):
        make(tmp_path / name, family, seed)
    experts = {"zebra": tmp_path / "math", "ant": tmp_path / "code"}  # names are not sorted
    model = routed(FusionRoute.start(tmp_path / "start", experts))
    ids = prompts(3)
    padding = torch.tensor([0, 3, 1])
    mask = (torch.arange(7) >= padding[:, None]).long()
    ids[mask == 0] = 0

    out = model.generate(ids, attention_mask=mask, **GREEDY)
    trace, seen = model.trace, set()
    for row, pad in enumerate(padding.tolist()):
        want, picks = by_definition(model, ids[row : row + 1, pad:], NEW)
        assert out[row, pad : pad + want.size(1)].tolist() == want[0].tolist()
        assert trace.picks[row, : len(picks)].tolist() == picks
        seen |= set(picks)
    assert seen == {0, 1}

    want, picks = by_definition(model, ids[:1], NEW)
    model.router.generation_config.assistant_confidence_threshold = 1e-9  # it drafts on
    drafted = model.generate(ids[:1], assistant_model=model.router, **GREEDY)
    assert torch.equal(drafted, want) and model.trace.picks[0].tolist() == picks
    looked_up = model.generate(ids[:1], prompt_lookup_num_tokens=2, **GREEDY)
    assert torch.equal(looked_up, want) and model.trace.picks[0].tolist() == picks

    model.save_pretrained(tmp_path / "out")
    again = FusionRoute.from_pretrained(tmp_path / "out")
    assert again.tokenizer.padding_side == "left"
    assert [name for name, _ in again.config.experts] == ["zebra", "ant"]
    assert torch.equal(again.generate(ids, attention_mask=mask, **GREEDY), out)


def test_beams_sampling_and_stop_strings(tmp_path):
    """As without caches; the trace belongs to the rows that are returned."""
    families = ("Gemma2", "Qwen2", "Mistral")  # mixed, two of them with a sliding window
    paths = [make(tmp_path / f, f, seed) for seed, f in enumerate(families)]
    model = routed(FusionRoute.start(paths[0], {"a": paths[1], "b": paths[2]}))
    ids = prompts(2)
    how = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    with_cache, trace = model.generate(ids, **how), model.trace
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **how))
    check_trace(model, with_cache, trace, 7)

    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "max_new_tokens": 8}
    outs = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        outs.append(model.generate(ids, use_cache=use_cache, num_return_sequences=2, **sampling))
        if use_cache:
            check_trace(model, outs[0], model.trace, 7)
    assert torch.equal(*outs)

    text = model.generate(ids[:1], **GREEDY)
    third = model.tokenizer.decode(text[0, 9])
    stopped = model.generate(ids[:1], stop_strings=[third], tokenizer=model.tokenizer, **GREEDY)
    assert stopped.size(1) <= 10 and torch.equal(stopped, text[:, : stopped.size(1)])


@torch.no_grad()
def check_trace(model, sequences, trace, start):
    """A trace is what one pass over the whole sequences says."""
    w = model.W(hidden(model, sequences))[:, start - 1 : -1]
    own = torch.stack(
        [e(input_ids=sequences).logits[..., :WORDS].argmax(-1) for e in model.experts], -1
    )
    choices = own[:, start - 1 : -1].gather(-1, w.argmax(-1, keepdim=True))[..., 0]
    ended = (sequences[:, start:] == 2).cumsum(-1) - (sequences[:, start:] == 2).long() > 0
    alive = ~ended
    assert torch.equal(trace.picks[alive], w.argmax(-1)[alive])
    assert torch.equal(trace.choices[alive], choices[alive])
    assert torch.equal(trace.changed[alive], (choices != sequences[:, start:])[alive])
    assert torch.allclose(trace.weights[alive], w.softmax(-1)[alive], atol=1e-4)
    assert 0 < trace.changed[alive].sum()


def test_methods_are_limits_of_one_forward(world):
    """As decode.py's: routing only, the router alone, one expert alone."""
    model = routed(FusionRoute.start(world / "start", {n: world / n for n in ("math", "code")}))
    ids = prompts(2)
    router, *experts = [m(ids).logits[..., :266] for m in (model.router, *model.experts)]
    out = model(ids)
    picked = torch.where(out.w.argmax(-1, True) == 0, *experts)
    assert torch.allclose(out.logits, fuse(router, picked), atol=1e-5)
    model.use_router = False
    assert torch.equal(model(ids).logits, picked)
    model.only = 1
    assert torch.equal(model(ids).logits, experts[1])
    model.use_expert = False
    assert torch.equal(model(ids).logits, router)


def test_fuse_is_the_ground_floor_s():
    logits = torch.randn(2, 3, 4, 9)
    assert torch.equal(modeling.fuse(*logits), fuse(*logits))


def test_an_argument_that_forward_does_not_know_is_refused(world):
    model = FusionRoute.start(world / "start", {"math": world / "math"})
    with pytest.raises(TypeError, match="past_key_values"):
        model(prompts(), past_key_values=None)
    with pytest.raises(ValueError, match="inputs_embed"):
        model.generate(prompts(), inputs_embed=1)
