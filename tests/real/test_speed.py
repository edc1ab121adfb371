"""extra/real/speed.py on tiny models: both sides compute the same, and passes are counted."""

import pytest

from tests.real.conftest import WORDS, make, refused

pytest.importorskip("trl", reason="the comparison needs requirements-trl.txt")

from extra.real import speed
from extra.real.modeling import FusionRoute


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make("start", vocab_size=WORDS, max_position_embeddings=1024)


def test_both_sides_of_the_training_have_equal_losses(start):
    found = speed.training(speed.Settings(model=start, rounds=1, steps=2, batch=2))
    for kind in ("sft", "dpo"):
        assert found[kind]["losses_apart"] < 1e-4


def test_losses_that_differ_stop_it(start, monkeypatch):
    s = speed.Settings(model=start, rounds=1, steps=2, batch=2)
    other = lambda s, out, *_: (out.logits.mean(), {})
    monkeypatch.setattr(speed.train_sft, "phase1_loss", other)
    assert "do not compute the same" in refused(speed.training, s)


def test_passes_of_each_way_of_answering(start):
    """All models are the same, so every draft is right; drafts are as long as they can be."""
    fused = FusionRoute.start(start, {"a": start, "b": start})
    fused.router.generation_config.assistant_confidence_threshold = 1e-9
    found = speed.decoding(speed.Settings(model=start, prompts=2, new=12), fused)
    ways = found["ways"]
    assert ways["one model"]["passes"] == {"router": 0, "expert": 0}
    assert ways["fused"]["passes"] == {"router": 1, "expert": 1}
    drafts = ways["fused, the router drafts"]["passes"]
    assert drafts["router"] == 1 and drafts["expert"] < 0.2


def test_a_way_that_writes_something_else_stops_it(start, monkeypatch):
    fused = FusionRoute.start(start, {"a": start})
    greedy = fused.generate

    def wrong(x, assistant_model=None, **how):
        out = greedy(x, **how)
        return out + (assistant_model is not None)

    monkeypatch.setattr(fused, "generate", wrong)
    s = speed.Settings(model=start, prompts=1, new=4)
    assert "writes another answer" in refused(speed.decoding, s, fused)
