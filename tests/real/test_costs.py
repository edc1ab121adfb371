"""costs.py: what it computes, against sizes published elsewhere and against real training steps of small models."""

from dataclasses import replace

import pytest
import torch

from extra.common import fill
from extra.gpt import GPT
from extra.real import costs
from fusionroute import token_logp
from tests.real.conftest import GEMMA, LLAMA


def test_parameters_are_the_published_ones():
    """As the model cards and Hugging Face's pages count them."""
    assert [costs.parameters(name) for name in costs.MODELS] == [
        8_030_261_248, 3_212_749_824, 1_235_814_400, 2_614_341_888, 134_515_008]
    assert costs.outside("Llama-3.1-8B") == 2 * 128256 * 4096 + 4096 and costs.outside("Llama-3.2-1B") == 128256 * 2048 + 2048


@pytest.mark.parametrize("config", [LLAMA, replace(LLAMA, tied=False), GEMMA], ids=["tied", "untied", "gemma"])
@pytest.mark.parametrize("long", [256, 19])  # attention by hand, and by torch's kernel
def test_what_a_real_step_holds(config, long, monkeypatch):
    """16 bytes a parameter, by the tensors themselves; and the meta device counts what autograd keeps of a real forward pass."""
    monkeypatch.setattr("extra.gpt.LONG", long)
    model, ids = GPT(config), torch.randint(0, config.vocab_size, (3, 20))
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t):
        logits, _ = model(ids)
        loss = token_logp(logits, ids).sum()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    real = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    assert costs.held(config, 20, 3) == pytest.approx(real + 2 * logits.numel() * 4, rel=0.02)
    deep = replace(config, n_layer=7)  # counted on few layers, as on all
    assert costs.held(deep, 20, 3) == costs.held_by(deep, 20, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    loss.backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    tensors = [*model.parameters(), *(p.grad for p in model.parameters()), *moments]
    assert sum(t.numel() * t.element_size() for t in tensors) == 16 * sum(p.numel() for p in model.parameters())


def test_time_and_memory_by_hand():
    one, eight = costs.hours("H100", 1, "Llama-3.1-8B", "Llama-3.1-8B"), costs.hours("H100", 8, "Llama-3.1-8B", "Llama-3.1-8B")
    assert one == pytest.approx([8 * h for h in eight])
    P, tokens = 8.030261248e9, 8e7                                      # 200 000 samples of 400 tokens; as many answers in 100 000 pairs
    assert one[0] == pytest.approx(3 * 2 * P * tokens / (0.4 * 989e12) / 3600)
    assert one[1] == pytest.approx(6 * P * tokens / (0.4 * 67e12) / 3600)
    assert one[2] == pytest.approx(one[0] + one[1] / 3) and one[3] == pytest.approx(1.5 * one[1])
    assert costs.memory("Llama-3.1-8B", 1, 64)[0] == 16 * P
    block = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336 + 2 * 4096
    assert costs.memory("Llama-3.1-8B", 8, 64)[0] == pytest.approx(2 * P + 8 * (2 * 128256 * 4096 + 4096 + 2 * block))
    a, b = (costs.memory("Llama-3.2-1B", 1, T)[1] for T in (64, 128))
    assert 2 * a < b < 4 * a  # the scores of short inputs are kept, and grow with the square
    a, b = (costs.memory("Llama-3.2-1B", 1, T)[1] for T in (512, 1024))
    assert b == pytest.approx(2 * a)  # those of long ones are not


def test_the_page_says_what_is_computed():
    page = costs.PAGE.read_text()
    assert fill(page, costs.blocks(), costs.COMMAND) == page
