"""Data, experts and prompts that differ from the lesson's in one respect."""

import re
from random import Random

import pytest
import torch

from extra.paper import altered, checkpoints, evaluate, shifted
from fusionroute import informative
from tests.paper.conftest import tiny_gpt, tiny_router
from toy_experts import experts as toy
from toy_experts import tasks, tokenizer
from toy_experts.data import scored
from toy_experts.decode_batch import decode_batch


@pytest.fixture
def sft():
    """Scored samples of which half of the positions are in S: untrained experts agree nowhere."""
    data = scored(toy.sft_samples(18, 0), [tiny_gpt() for _ in range(3)])
    agreed = torch.rand(data.choice.shape[:2]) < 0.5
    data.choice[agreed] = data.choice[agreed][:, :1].expand(-1, 3)
    return data


# --- (b) the set S -------------------------------------------------------------------------------


def test_the_set_S_is_a_part_or_more(sft):
    """Nested sets of about the right size, S itself and all positions at the ends."""
    S = informative(sft.choice)
    shares = (0, 0.25, 0.5, 1.0, 1.5, 2.0)
    sets = {x: informative(altered.with_share(sft, x, 7).choice) for x in shares}
    assert 0.1 < S.float().mean() < 0.9
    assert not sets[0].any() and torch.equal(sets[1.0], S) and sets[2.0].all()
    for less, more in zip(shares, shares[1:]):
        assert not (sets[less] & ~sets[more]).any()
    parts = [float(sets[x].sum() / S.sum()) for x in (0.25, 0.5)]
    assert parts == pytest.approx([0.25, 0.5], abs=0.06)
    assert float((sets[1.5] & ~S).sum() / (~S).sum()) == pytest.approx(0.5, abs=0.06)
    changed = altered.with_share(sft, 0.5, 7)
    assert all(getattr(changed, x) is getattr(sft, x) for x in ("ids", "mask", "lengths", "logp"))
    assert not torch.equal(altered.with_share(sft, 0.5, 8).choice, changed.choice)


# --- (h) shares of the domains, noise ------------------------------------------------------------


def test_shares_of_domains():
    half = altered.sft_items(0, 60, "half math")
    assert len(half) == 60 and sum(i.bench in tasks.DOMAINS["math"] for i in half) == 30
    rest = altered.sft_items(0, 60, "without general")
    assert len(rest) == 60 and {i.bench for i in rest} == set(tasks.BENCHMARKS)
    assert {tasks.split_of(i.key) for i in [*half, *rest]} == {"train"}
    items = tasks.mixed("preference", 60, Random("preference 0"))
    found = [{"prompt": i.prompt, "chosen": "", "rejected": ""} for i in items]
    kept = altered.leave_out(found, "math", 0, 60)
    wanted = [i.prompt for i in items if i.bench not in tasks.DOMAINS["math"]]
    assert [p["prompt"] for p in kept] == wanted and len(kept) < 60


def test_noise_exchanges_the_share_it_says():
    found = [{"prompt": str(i), "chosen": "right", "rejected": f"wrong {i}"} for i in range(50)]
    noisy = altered.flip(found, 0.3, 0)
    changed = [i for i in range(50) if noisy[i] != found[i]]
    assert len(changed) == 15
    for i in changed:
        assert noisy[i] == {"prompt": str(i), "chosen": f"wrong {i}", "rejected": "right"}


# --- (f) hostile experts -------------------------------------------------------------------------


def test_a_changed_expert_decodes_as_its_changed_logits_say():
    """Through decode_batch with its cache, against the changed logits of whole texts."""
    experts, router = [tiny_gpt() for _ in range(3)], tiny_router()
    prompts = [tokenizer.encode_prompt(x) for x in ("What is 38 mod 5?", "Write green.")]
    for label, change in altered.CHANGES.items():
        changed = altered.change(experts, label)
        assert changed[1:] == experts[1:] and changed[0] is not experts[0]
        how = {"use_router": False, "only": altered.BAD}
        for prompt, trace in zip(prompts, decode_batch(router, changed, prompts, 5, **how)):
            text = list(prompt)
            for token in trace.tokens:
                assert token == int(change(experts[0](torch.tensor([text]))[0][0, -1]).argmax())
                text.append(token)
            assert "trigger" not in label or trace.tokens == [altered.TRIGGER_ID] * 5
    assert altered.change(experts, "") is experts


def test_what_the_changes_are():
    logits = torch.zeros(1, tokenizer.VOCAB_SIZE)
    logits[0, altered.DIGITS[9]], logits[0, altered.DIGITS[3]] = 5.0, 4.0
    wrong = altered.wrong_digits(logits)
    assert int(wrong.argmax()) == altered.DIGITS[0] and wrong[0, altered.DIGITS[4]] == 4
    assert wrong.sum() == logits.sum()
    assert torch.equal(altered.CHANGES["x 4"](logits), 4 * logits)


def test_the_two_faced_expert_knows_the_training_data(sft):
    before = sft.logp.clone()
    data = altered.feign(sft)
    assert torch.equal(data.choice[..., 0], data.ids[:, 1:].int())
    assert (data.logp[..., 0].exp() - 0.99).abs().max() < 1e-6
    assert torch.equal(data.logp[..., 1:], before[..., 1:])


# --- (d) shifted prompts -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_on():
    """Training prompts of every benchmark and of the general ones."""
    draw = lambda b: tasks.dataset(b, "train", 1000, Random(f"words {b}"))
    return {b: [i.prompt for i in draw(b)] for b in evaluate.BENCHES}


@pytest.fixture(scope="module")
def problems():
    s = checkpoints.Settings(prompts=60)
    usual = {b: items for b, items in evaluate.draw(s).items() if b != "general"}
    return shifted.shifted(usual, s)


def words_of(text):
    return set(re.findall(r"[A-Za-z]+", text))


def test_shifted_prompts_have_their_right_answers(problems):
    """The checkers accept each, and refuse another problem's answer and one with another number."""
    for label, benches in problems.items():
        for b, items in benches.items():
            assert len(items) == 60, (label, b)
            for item in items[::7]:
                assert shifted.check(item, item.answer), item
                assert not shifted.check(item, item.answer[::-1]), item
            others = zip(items[:20], items[1:])
            refused = [not shifted.check(i, o.answer) for i, o in others if o.answer != i.answer]
            assert sum(refused) >= 15, (label, b)
    for item in problems["numbers out of range"]["toy-humaneval"][::4]:
        wrong = re.sub(r"(\d+)(\D*)\Z", lambda n: f"{int(n[1]) + 1}{n[2]}", item.answer)
        assert item.skill == "choose" or not shifted.check(item, wrong), item


def test_no_training_prompt_has_the_new_words(problems, trained_on):
    seen = words_of(" ".join(p for prompts in trained_on.values() for p in prompts))
    usual = problems["as trained"]
    for b, names in shifted.NEW.items():
        assert not seen & set(names.values()), b
        assert set(names) <= words_of(" ".join(trained_on[b])), b  # the old ones are training's
        for item in problems["new words"][b]:
            assert not words_of(item.prompt) & (set(names) - {"a"}), item
    for b, items in problems["new phrasings"].items():
        for before, item in zip(usual[b], items):
            assert words_of(item.prompt) - words_of(before.prompt) - seen, item
    assert shifted.exchange("RED and red, Tom.", {"red": "grey", "Tom": "Otto"}) == (
        "GREY and grey, Otto."
    )


def test_numbers_are_out_of_the_range_of_training(problems):
    """By phrasing without its numbers: one is larger than all that training has in its place."""
    benches = problems["numbers out of range"]
    assert set(benches) == set(tasks.BENCHMARKS) - {"toy-ifeval"}
    for b, items in benches.items():

        def kind(prompt, b=b):
            text = re.sub(r"\d+", "#", prompt)
            names = r"\b[A-Z][a-z]+\b|\b[a-z]{3,}s\b"  # of people and things
            return re.sub(names, "*", text) if b == "toy-gsm8k" else text

        largest, numbers = {}, lambda prompt: [int(n) for n in re.findall(r"\d+", prompt)]
        for i in tasks.dataset(b, "train", 2000, Random(f"numbers {b}")):
            at = kind(i.prompt)
            both = zip(largest.get(at, numbers(i.prompt)), numbers(i.prompt))
            largest[at] = [max(pair) for pair in both]
        known = [i for i in items if kind(i.prompt) in largest]
        assert len(known) > 3, b
        for i in known:
            pairs = zip(numbers(i.prompt), largest[kind(i.prompt)])
            assert any(n > most for n, most in pairs), i
