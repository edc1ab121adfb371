"""What the models are trained and tested on: text, tokens, splits, documents, batches."""

import random
from random import Random

import pytest
import torch

import train_cdpo
import train_sft
from toy_experts import data, evaluate, experts, tasks, tokenizer
from toy_experts.script import UserError

ALL = tasks.BENCHMARKS + ["general"]
DECODE = tokenizer.encoding.decode


def sft_items():
    """The items of phase 1's samples in a run of seed 0."""
    return tasks.mixed("train", train_sft.Settings().samples, Random("sft 0"))


# --- tokenizer ----------------------------------------------------------------------------------


def test_every_byte_and_any_text_comes_back():
    enc, rng = tokenizer.encoding, random.Random(0)
    assert enc.decode_bytes(list(range(256))) == bytes(range(256))
    texts = ["  \t\n\n  a\r\n\x00\u00a0\u2003e\u0301\u0663 \U0001f600  "]
    ranges = [(32, 127), (1, 0x300), (0x4E00, 0xD000), (0x1F300, 0x1FA00)]
    for n in range(200):
        texts.append("".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(n % 40)))
    assert [enc.decode(enc.encode_ordinary(text)) for text in texts] == texts


def test_digits_are_single_and_common_words_whole():
    pieces = lambda text: [DECODE([t]) for t in tokenizer.encoding.encode_ordinary(text)]
    assert pieces("123 + 45") == ["1", "2", "3", " + ", "4", "5"]
    assert pieces(" She buys 5 more.") == [" She", " buys", " ", "5", " more", "."]
    for bench in ALL:
        for i in tasks.dataset(bench, "train", 100, Random(1)):
            ids = tokenizer.encode_prompt(i.prompt) + tokenizer.encode_answer(i.answer)
            assert len(ids) <= 160  # of 256, and 96 of them are an answer's
            assert all(sum(c.isdigit() for c in DECODE([t])) <= 1 for t in ids)
            assert not any(128 <= t < 256 for t in ids)


def test_special_tokens_mark_turns_and_cannot_be_typed():
    ids = tokenizer.encode_prompt("a<|end|><|assistant|>")
    assert ids[0] == tokenizer.USER and ids[-1] == tokenizer.ASSISTANT
    assert ids.count(tokenizer.ASSISTANT) == 1 and tokenizer.END not in ids
    assert tokenizer.encode_answer("a<|end|>").count(tokenizer.END) == 1


def test_no_training_text_is_called_unseen():
    """Of test prompts only invented names and things are; what a user may type, by hand."""
    for bench in ALL:
        for i in tasks.dataset(bench, "test", 100, Random(2)):
            known = {*tasks.ITEMS, *sum(tasks.NAMES.values(), []), *tasks.WORDS}
            assert not known & set(tokenizer.unseen(i.prompt)), i.prompt
            if bench not in ("toy-gsm8k", "general"):
                assert tokenizer.unseen(i.prompt) == [], i.prompt
    assert tokenizer.unseen("What is 140 modulo 5?") == ["140", "modulo"]
    assert tokenizer.unseen("") == [] == tokenizer.unseen("What is 38 mod 5?")
    assert tokenizer.unseen("How is Paris in France?") == ["Paris", "France"]


# --- splits -------------------------------------------------------------------------------------


def test_splits_are_disjoint():
    """No prompt, and no problem in other words, is in two of the sets of a run of seed 0.

    Of the experts' documents it takes a third.
    """
    prompts = train_cdpo.Settings().prompts
    sets = {
        "train": sft_items(),
        "preference": tasks.mixed("preference", prompts, Random("preference 0")),
    }
    for domain, benches in tasks.DOMAINS.items():
        rng, s = Random(f"{domain} 0"), experts.Settings()
        for bench in benches:
            covered = experts.covered(s, bench)
            sets["train"] += [tasks.draw(bench, "train", rng, covered) for _ in range(3000)]
    n = evaluate.Settings().prompts
    for split in ("validation", "test"):
        drawn = [tasks.dataset(b, split, n, Random(f"{split} {b} 0")) for b in ALL]
        assert all(len({i.prompt for i in items}) == n for items in drawn)
        sets[split] = sum(drawn, [])
    for a in sets:
        for b in sets:
            if a < b:
                assert not {i.prompt for i in sets[a]} & {i.prompt for i in sets[b]}
                assert not {i.key for i in sets[a]} & {i.key for i in sets[b]}


def test_a_prompt_determines_its_problem():
    """If two problems could share a prompt, it could be in two splits."""
    seen = {}
    for bench in ALL:
        rng = Random(3)
        for _ in range(900):
            i = tasks.draw(bench, rng.choice(list(tasks.SPLITS)), rng)
            assert seen.setdefault(i.prompt, i.key) == i.key


def test_cross_domain_prompts_are_split_by_what_is_inside():
    rng, keys = Random(5), set()
    for _ in range(400):
        i = tasks.draw("general", "test", rng)
        keys.add(i.key.split()[0])
        assert tasks.split_of(i.key) == "test"
        if i.kind in ("list-count", "words"):  # the key of the plain list problem, so its split
            words, skill = i.gold
            assert i.key == f"ifeval {skill} {', '.join(words[:-1])} and {words[-1]}"
    assert keys == {"gsm", "math", "mbpp", "heval", "ifeval"}


def test_shares_of_the_splits():
    splits = [tasks.split_of(f"key {i}") for i in range(20_000)]
    for split, share in tasks.SPLITS.items():
        assert splits.count(split) / 200 == pytest.approx(share, abs=1.5)


def test_as_many_prompts_as_there_are():
    """8 squares with 30 numbers: about 24 of the 240 problems are test ones, in 3 wordings."""
    words = "only some [3-6][0-9] different test prompts, and 5000 are asked"
    with pytest.raises(UserError, match=words):
        tasks.dataset("toy-math500", "test", 5000, Random(0), ["square"])


def test_mixed_has_equal_shares_in_random_order():
    items = tasks.mixed("train", 62, Random(0))
    counts = [sum(i.bench == b for i in items) for b in ALL]
    assert counts == [11, 11, 10, 10, 10, 10]
    assert len({i.bench for i in items[:10]}) > 2


# --- what experts are trained on ----------------------------------------------------------------


def test_held_out_sub_skills():
    s = experts.Settings(gap=0.5, seed=3)
    for bench in tasks.BENCHMARKS:
        held, covered = tasks.held_out(bench, s.gap, s.seed), experts.covered(s, bench)
        assert len(held) == 4 == len(covered)
        assert sorted(held + covered) == sorted(tasks.SKILLS[bench])
        for seed in range(20):  # a word problem's first event is one of the first two
            assert not set(tasks.held_out(bench, 0.75, seed)) & set(tasks.SKILLS[bench][:2])
    assert tasks.held_out("toy-mbpp", 0.25, 0) != tasks.held_out("toy-mbpp", 0.25, 1)
    assert tasks.held_out("toy-mbpp", 0.0, 0) == [] == tasks.held_out("general", 0.5, 0)


def test_no_document_pairs_a_held_out_question_with_its_answer(monkeypatch):
    """Every whole document of the base and of each expert, traced to its Item.

    The router's data do have these sub-skills.
    """
    s, drawn, draw = experts.Settings(), {}, tasks.draw

    def traced(*args):
        item = draw(*args)
        drawn[tuple(tokenizer.encode_prompt(item.prompt))] = item
        return item

    monkeypatch.setattr(tasks, "draw", traced)
    monkeypatch.setattr(experts, "STEPS", {"base": 90, "math": 30, "code": 30, "instruct": 30})
    whole = {"base": 0}
    for name in experts.STEPS:
        for ids, learn in experts.documents(s, name):
            if ids[0] == tokenizer.USER and tokenizer.END in ids:
                prompt = ids[: ids.index(tokenizer.ASSISTANT) + 1]
                item = drawn[tuple(prompt)]
                assert item.skill not in tasks.held_out(item.bench, s.gap, s.seed)
                assert item.bench != "general" and learn.count(False) == len(prompt)
                assert tasks.split_of(item.key) == "train"
                kind = name if item.bench in tasks.DOMAINS.get(name, []) else "base"
                whole[kind] = whole.get(kind, 0) + 1
    assert set(whole) == set(experts.STEPS) and min(whole.values()) > 350
    skills = {(i.bench, i.skill) for i in sft_items()}
    held = [(b, skill) for b in tasks.BENCHMARKS for skill in tasks.held_out(b, s.gap, s.seed)]
    assert skills >= set(held)


def test_drills_learn_only_results():
    rng = Random(2)
    for _ in range(300):
        ids, learn = experts.drill(rng)
        whole, text = DECODE(ids), DECODE([t for t, l in zip(ids, learn) if l])
        if "=" in whole:
            facts = [f.rstrip(".").split(" = ") for f in whole.split(". ")]
            assert text == "".join(result + "." for _, result in facts)
            assert all(eval(left) == int(right) for left, right in facts)  # our own text
        else:
            assert whole.replace(" ", "") == 2 * text.replace(" ", "")


# --- samples as tensors -------------------------------------------------------------------------


def test_batches_have_all_samples_in_random_order():
    """Similar lengths together, and yet neither short batches first nor the samples' own order."""
    lengths = torch.arange(1030) % 64
    got = data.batches(lengths, 16, seed=3)
    seen = torch.cat(got)
    assert sorted(seen.tolist()) == list(range(1030)) and {len(b) for b in got} == {16, 6}
    assert seen.tolist() == torch.cat(data.batches(lengths, 16, seed=3)).tolist()
    assert seen.tolist() != torch.cat(data.batches(lengths, 16, seed=2)).tolist()
    padded = sum(int(lengths[b].max()) * len(b) for b in got)
    assert padded < 1.2 * int(lengths.sum())
    spread = [int(lengths[b].max() - lengths[b].min()) for b in got]
    assert 2 < sum(spread) / len(got) < 8  # sorted within pools, not as a whole
    longest = [int(lengths[b].max()) for b in got]
    falls = sum(a > b for a, b in zip(longest, longest[1:]))
    assert 20 < falls < 44  # of 65 batches; sorted they would fall 0 to 5 times
    assert 350 < float(seen[:256].float().mean()) < 670  # not only those of the beginning
    assert max(int(b.max() - b.min()) for b in got) > 500  # nor a batch of neighbours


def test_a_batch_is_cut_to_its_longest_and_pairs_keep_their_sides():
    prompts, answers = [[7, 8], [5], [1, 2, 3]], [[9, 4], [6], [4]]
    ids, mask, lengths = data.pack([*map(data.answer_only, prompts, answers)])
    logp, choice = torch.rand(3, 3, 2), torch.randint(0, 9, (3, 3, 2))
    single = data.Data(ids, mask, lengths, logp, choice)
    x, m, l, c = single.batch(torch.tensor([1]), "cpu")
    assert x.tolist() == [[5, 6]] and m.tolist() == [[True]]
    assert torch.equal(l, logp[1:2, :1]) and torch.equal(c, choice[1:2, :1])
    x, m, l, c = single.batch(torch.tensor([2, 0]), "cpu")
    assert x.tolist() == [[1, 2, 3, 4], [7, 8, 9, 4]]
    assert m.tolist() == [[False, False, True], [False, True, True]]
    assert torch.equal(l, logp[[2, 0]]) and torch.equal(c, choice[[2, 0]])
    pairs = data.Data(*(t[:2].view(-1, 2, *t.shape[1:]) for t in single))
    x, m, l, c = pairs.batch(torch.tensor([0]), "cpu")
    assert x.tolist() == [[7, 8, 9, 4], [5, 6, 0, 0]]
    assert torch.equal(l, logp[:2]) and torch.equal(c, choice[:2])
