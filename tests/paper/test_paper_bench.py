"""extra/paper/bench.py: the two decoders that it hands to extra/speed's benchmark."""

import json

import torch

from extra.common import RESULTS
from extra.paper import bench
from extra.paper.baselines import collab, sequence_selection
from extra.paper.evaluate import LOOKAHEAD
from extra.speed.fast import Fast
from fusionroute import Router
from model import GPT, GPTConfig
from toy_experts import tokenizer

CONFIG = GPTConfig(vocab_size=tokenizer.VOCAB_SIZE, d_model=16, n_layer=2, n_head=2, n_kv_head=1, head_dim=8, d_ff=24, max_len=200)


def test_they_answer_as_the_baselines_do(monkeypatch):
    """With models that read by the fast pass, as the benchmark hands them in."""
    monkeypatch.setattr(bench, "MAX_NEW", 6)
    torch.manual_seed(0)
    experts, reward = [GPT(CONFIG).requires_grad_(False) for _ in range(2)], Router(GPT(CONFIG), 1).requires_grad_(False)
    torch.nn.init.normal_(reward.W.weight)
    prompt = tokenizer.encode_prompt("What is 38 mod 5?")
    two = bench.others([Fast(e) for e in experts], Fast(reward))
    assert two["sequence_selection"](prompt) == sequence_selection(experts, reward, [prompt], tokenizer.END, 6)[0]
    assert two["collab"](prompt) == collab(experts, reward, [prompt], tokenizer.END, 6, **LOOKAHEAD)[0]
    assert len(two["collab"](prompt)) > 0


def test_what_is_published_has_both():
    for name in ("bench", "bench-gemma"):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        assert result["meta"] | LOOKAHEAD == result["meta"]
        for section in result["decode"].values():
            assert {"sequence_selection", "collab"} <= set(section["methods"])
