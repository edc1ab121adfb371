"""The toy's other tokenizers, and the page."""

import json

import pytest
import torch

from docs.tools.pages import fill
from extra.tokenizers.__main__ import PAGE, RESULTS, figures
from extra.tokenizers.toy import expert, tokenizer_of
from toy_experts import experts, tokenizer


@pytest.mark.parametrize("kind", ["toy", "trailing", "pieces"])
def test_documents_in_other_tokens_say_the_same_and_teach_the_same(kind, monkeypatch):
    monkeypatch.setitem(experts.STEPS, "math", 4)
    tok = tokenizer_of(kind)
    learned = [0, 0]
    for ids, learn in experts.documents(experts.Settings(), "math"):
        new, new_learn = tok.translate((ids, learn))
        assert tok.encoding.decode(new) == tokenizer.encoding.decode(ids)
        if kind == "toy":
            assert (new, new_learn) == (ids, learn)
        for i, (words, flags) in enumerate([(ids, learn), (new, new_learn)]):
            own = tokenizer.encoding if i == 0 else tok.encoding
            learned[i] += sum(len(own.decode_bytes([t])) for t, flag in zip(words, flags) if flag)
    assert learned[1] == pytest.approx(learned[0], rel=0.05)  # bytes


def test_an_expert_shares_its_weights_with_its_own_base_only(monkeypatch, tmp_path):
    """Even on the toy's own tokens. After one step it is still near the place its base ended at."""
    for name, steps in (("base", 10), ("math", 1)):
        monkeypatch.setitem(experts.STEPS, name, steps)
    s = experts.Settings(out=str(tmp_path), device="cpu")
    math, base = (expert(s, "toy", name).embed.weight for name in ("math", "base"))
    assert torch.allclose(math, base, atol=2e-3)
    torch.manual_seed(s.seed)
    lesson = experts.new_gpt().embed.weight.detach()
    both = torch.stack([base.flatten(), lesson.flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1


def test_the_page_has_the_figures_of_its_json_file():
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page, figures(json.loads(RESULTS.read_text())).__getitem__) == page
    assert len(page.split()) <= 900
