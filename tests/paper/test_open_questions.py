"""The pages of the open questions: the mechanism of each on tiny models, and docs/open-questions.md against its JSON."""

import pytest
import torch

from extra.gpt import GPT, GPTConfig
from extra.paper.open_questions import decoding
from fusionroute import Router, naive_fused_greedy
from model import generate

V, END = 11, 10
CONFIG = GPTConfig(vocab_size=V, d_model=24, n_layer=1, n_head=1, n_kv_head=1, d_ff=32, max_len=64, tied=False)
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 1], [2]]


def gpt(seed):
    torch.manual_seed(seed)
    return GPT(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def models():
    router = Router(gpt(4), 3).requires_grad_(False)
    torch.nn.init.normal_(router.W.weight, std=3)
    return router, [gpt(i) for i in range(3)]


# --- (c) decoding ---------------------------------------------------------------------------------------------------------------------------


def test_a_beam_of_one_is_greedy(models):
    router, experts = models
    search = lambda **how: decoding.beam_search(router, experts, PROMPTS, 1, END, 8, **how)
    assert search() == [naive_fused_greedy(router, experts, p, END, 8)[0] for p in PROMPTS]
    assert search(use_expert=False) == generate(router.lm, PROMPTS, 8, END)


def test_a_wide_beam_finds_the_likeliest_answer(models):
    """Three tokens of eleven kinds: all answers can be listed."""
    router, experts = models

    def everything(text, left):
        """(log-probability, tokens) of each answer of at most `left` tokens that ends, or is cut there."""
        logp = decoding.next_logp(router, experts, [text])[0].tolist()
        for token, value in enumerate(logp):
            if token == END or left == 1:
                yield value, [token]
            else:
                for rest, tokens in everything(text + [token], left - 1):
                    yield value + rest, [token] + tokens

    for prompt in PROMPTS:
        best = max(everything(prompt, 3))[1]
        assert decoding.beam_search(router, experts, [prompt], V**3, END, 3) == [[t for t in best if t != END]]


def test_the_nucleus_is_narrower_for_a_while():
    logits, u = torch.log(torch.tensor([[0.6, 0.3, 0.1]])), torch.tensor([0.95])
    with decoding.nucleus(0.5):
        assert int(decoding.batch.sample(logits, 1.0, u=u)) == 0
    assert int(decoding.batch.sample(logits, 1.0, u=u)) == 2
