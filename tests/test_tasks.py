"""The toy's tasks: text, tokenizer, splits, documents, and checkers against answers written by hand."""

import random
import re
from random import Random

import pytest
import torch

import train_cdpo
import train_sft
from toy_experts import data, evaluate, judge, tasks, tokenizer
from toy_experts import train as toy
from toy_experts.script import UserError

ALL = tasks.BENCHMARKS + ["general"]


def some(bench, n=None, split="train"):
    n = n or {"toy-mbpp": 25, "toy-humaneval": 25, "general": 60}.get(bench, 300)  # a program is judged on a hundred cases and more
    return tasks.dataset(bench, split, n, Random(1))


def sft_items(s):
    """The items that train_sft.py draws."""
    return tasks.mixed("train", s.samples, Random(f"sft {s.seed}"))


def item(bench, skill, want=lambda i: True):
    rng = Random(0)
    return next(i for i in iter(lambda: tasks.draw(bench, "train", rng, [skill]), None) if want(i))


# --- tokenizer ---------------------------------------------------------------------------------------------------------------------------


def test_every_byte_and_any_text_comes_back():
    enc, rng = tokenizer.encoding, random.Random(0)
    assert enc.decode_bytes(list(range(256))) == bytes(range(256))
    for n in range(300):
        text = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(1, 0x300), rng.randrange(0x4E00, 0xD000),
                                       rng.randrange(0x1F300, 0x1FA00)])) for _ in range(n % 40))
        assert enc.decode(enc.encode_ordinary(text)) == text
    text = "  \t\n\n  a\r\n\x00\u00a0\u2003e\u0301\u0663 \U0001F600  "
    assert enc.decode(enc.encode_ordinary(text)) == text


def test_digits_are_single_and_common_words_whole():
    enc = tokenizer.encoding
    pieces = lambda text: [enc.decode([t]) for t in enc.encode_ordinary(text)]
    assert pieces("123 + 45") == ["1", "2", "3", " + ", "4", "5"]
    assert pieces(" She buys 5 more.") == [" She", " buys", " ", "5", " more", "."]
    for bench in ALL:
        for i in some(bench, 200):
            for piece in pieces(i.prompt + i.answer):
                assert sum(c.isdigit() for c in piece) <= 1
            assert not any(128 <= t < 256 for t in enc.encode_ordinary(i.answer))


def test_special_tokens_mark_turns_and_cannot_be_typed():
    ids = tokenizer.encode_prompt("a<|end|><|assistant|>")
    assert ids[0] == tokenizer.USER and ids[-1] == tokenizer.ASSISTANT and ids.count(tokenizer.ASSISTANT) == 1
    assert tokenizer.END not in ids and tokenizer.encode_answer("a<|end|>").count(tokenizer.END) == 1


def test_every_token_fits_the_context():
    longest = max(len(tokenizer.encode_prompt(i.prompt)) + len(tokenizer.encode_answer(i.answer))
                  for b in ALL for i in some(b))
    assert longest <= 160


# --- splits ------------------------------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint():
    """What a run of seed 0 trains, tunes or tests on (of the experts' documents a third): no prompt, and no problem under other words,
    in two of the sets."""
    s, ev, toy_s = train_sft.Settings(), evaluate.Settings(), toy.Settings()
    sets = {"train": sft_items(s), "preference": tasks.mixed("preference", train_cdpo.Settings().prompts, Random("preference 0"))}
    for bench, domain in [(b, d) for d, bs in tasks.DOMAINS.items() for b in bs]:  # the experts' and the base's documents
        rng = Random(f"{domain} 0")
        n = 6_000 // len(tasks.DOMAINS[domain])
        sets["train"] += [tasks.draw(bench, "train", rng, toy.covered(toy_s, bench)) for _ in range(n)]
    for split in ("validation", "test"):
        sets[split] = [i for b in ALL for i in tasks.dataset(b, split, ev.prompts, Random(f"{split} {b} 0"))]
        for b in range(len(ALL)):
            assert len({i.prompt for i in sets[split][b * ev.prompts:(b + 1) * ev.prompts]}) == ev.prompts
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
        if i.kind in ("list-count", "words"):  # the same key as the plain list problem, so the same split
            words, skill = i.gold
            assert i.key == f"ifeval {skill} {', '.join(words[:-1])} and {words[-1]}"
    assert keys == {"gsm", "math", "mbpp", "heval", "ifeval"}


def test_held_out_sub_skills():
    s = toy.Settings(gap=0.5, seed=3)
    for bench in tasks.BENCHMARKS:
        held = tasks.held_out(bench, s.gap, s.seed)
        assert len(held) == 4 and not set(held) & set(toy.covered(s, bench))
        assert set(held) | set(toy.covered(s, bench)) == set(tasks.SKILLS[bench])
    assert tasks.held_out("toy-mbpp", 0.25, 0) != tasks.held_out("toy-mbpp", 0.25, 1)
    assert tasks.held_out("toy-mbpp", 0.0, 0) == [] == tasks.held_out("general", 0.5, 0)


def test_no_document_pairs_a_held_out_question_with_its_answer(monkeypatch):
    """Every whole document of the base and of each expert, traced to the Item it came from; router data do have these sub-skills."""
    s, drawn, real = toy.Settings(), {}, tasks.draw

    def traced(*args):
        item = real(*args)
        drawn[tuple(tokenizer.encode_prompt(item.prompt))] = item
        return item

    monkeypatch.setattr(tasks, "draw", traced)
    rng, whole = Random(0), 0
    documents = [toy.base_document(s, rng) for _ in range(1500)]
    documents += [toy.expert_document(s, rng, d) for d in tasks.DOMAINS for _ in range(500)]
    for ids, _ in documents:
        if ids[0] == tokenizer.USER and tokenizer.END in ids:
            item = drawn[tuple(ids[:ids.index(tokenizer.ASSISTANT) + 1])]
            assert item.skill not in tasks.held_out(item.bench, s.gap, s.seed) and item.bench != "general"
            whole += 1
    assert whole > 1000
    router = {(i.bench, i.skill) for i in sft_items(train_sft.Settings())}
    assert all((b, skill) in router for b in tasks.BENCHMARKS for skill in tasks.held_out(b, s.gap, s.seed))


def test_as_many_prompts_as_there_are():
    """8 numbers squared, and 30 that are added: about a tenth of the 240 problems are in the test split, each in 3 wordings."""
    with pytest.raises(UserError, match="only some [3-6][0-9] different test prompts, and 5000 are asked"):
        tasks.dataset("toy-math500", "test", 5000, Random(0), ["square"])


def test_shares_of_the_splits():
    splits = [tasks.split_of(f"key {i}") for i in range(20_000)]
    for split, share in tasks.SPLITS.items():
        assert splits.count(split) / 200 == pytest.approx(share, abs=1.5)


def test_drills_learn_only_results():
    rng = Random(2)
    for _ in range(300):
        ids, learn = toy.drill(rng)
        text = tokenizer.encoding.decode([t for t, l in zip(ids, learn) if l])
        if "=" in tokenizer.encoding.decode(ids):
            facts = tokenizer.encoding.decode(ids).split(". ")
            assert text == "".join(f.split(" = ")[1].rstrip(".") + "." for f in facts)
            for f in facts:
                left, right = f.rstrip(".").split(" = ")
                assert eval(left) == int(right)  # our own text
        else:
            whole = tokenizer.encoding.decode(ids)
            assert whole.replace(" ", "").count(text.replace(" ", "")) == 2


# --- gold answers ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bench", ALL)
def test_gold_answers_are_right(bench):
    for i in some(bench):
        assert judge.check(i, i.answer) and judge.grade(i, i.answer) == 7, i
        assert not judge.check(i, "") and not judge.check(i, i.answer + " Yes."), i
        assert i.prompt == i.prompt.strip(" ") and i.prompt.isascii()


@pytest.mark.parametrize("bench", ["toy-mbpp", "toy-humaneval"])
def test_gold_code_runs_in_cpython_with_the_judge_s_results(bench):
    """The only exec here is of our own gold answers."""
    for i in some(bench):
        head, source, name = i.gold
        space = {}
        exec(source, space)
        for args, value in tasks.cases(source, 2 if head else 1):
            expected = space[name](*args)
            assert value == expected and type(value) is type(expected)


def test_arithmetic_in_every_chain_of_thought_is_right():
    for bench in ("toy-gsm8k", "toy-math500"):
        for i in some(bench):
            for left, right in re.findall(r"(?<![\dx] )(?<!\d)(\d+ (?:[-+*/]|//) \d+) = (\d+)", i.answer):
                assert eval(left) == int(right), i.answer  # our own text


# --- checkers by hand --------------------------------------------------------------------------------------------------------------------


def test_number_checker_by_hand():
    i = item("toy-gsm8k", "double")
    n = i.gold
    assert judge.check(i, f"The answer is {n}.") and judge.check(i, f"Well. The answer is {n}.\n")
    for wrong in (f"The answer is {n + 1}.", f"The answer is {n}", f"{n}", f"The answer is {n}. Or {n + 1}.",
                  f"The answer is {n}0.", f"The answer is {'9' * 5000}.", f"The answer is -{n}."):
        assert not judge.check(i, wrong), wrong
    assert judge.grade(i, f"It is {n}") > 4 > judge.grade(i, f"The answer is {n + 1}.") > 2 > judge.grade(i, "no idea")


def test_words_checker_by_hand():
    i = item("toy-ifeval", "numbers", lambda i: i.answer.startswith("1.") and i.gold[0].__len__() == 3 and "done" not in i.answer)
    a, b, c = i.gold[0]
    assert judge.check(i, f"1. {a}\n2. {b}\n3. {c}")
    for wrong in (f"1. {a}\n2. {b}", f"1. {a}\n2. {c}\n3. {b}", f"1. {a} 2. {b} 3. {c}", f"1) {a}\n2) {b}\n3) {c}",
                  f"1. {a.upper()}\n2. {b}\n3. {c}"):
        assert not judge.check(i, wrong), wrong
    assert judge.grade(i, f"{a}, {b}, {c}") > 4 > judge.grade(i, f"{a}, {c}, {b}")


def test_code_checker_by_hand():
    head = 'def rate(a, b):\n    """Return the larger of a and b."""\n'
    i = tasks.Item("toy-humaneval", "larger", "", "", "    return max(a, b)", "code", (head, head + "    return max(a, b)", "rate"))
    for right in ("    return max(a, b)", "    return a if a > b else b", "    return max(b, a)", "    return max([a, b])"):
        assert judge.check(i, right), right
    for wrong in ("    return min(a, b)", "return max(a, b)", "    max(a, b)", "    return max(a)", "    return None", "    return a",
                  "    return max(a, b)\n    return 1", "```\n    return max(a, b)\n```", "    return a.__class__", "    return b + 0 * a"):
        assert not judge.check(i, wrong), wrong


@pytest.mark.parametrize("bench", ["toy-mbpp", "toy-humaneval"])
def test_hidden_cases_tell_near_misses_apart(bench):
    """Gold answers with one number or operator exchanged: whatever the checker accepts must agree with the gold on a dense grid."""
    rng, wrong, mutants = Random(9), 0, 0
    grid = [(i, j) for i in range(-12, 22) for j in range(-12, 22)] if bench == "toy-humaneval" else \
        [([],)] + [([x, y],) for x in range(-8, 13) for y in range(-8, 13)] + [([x],) for x in range(-40, 80)] + \
        [([rng.randint(-20, 40) for _ in range(n)],) for n in range(3, 20) for _ in range(5)]
    for i in tasks.dataset(bench, "train", 10, Random(3)):
        gold = judge.parse(i.gold[1])
        for m in re.finditer(r"(?<!\[)(?<!default=)(?:[0-9]+|[<>+*%-])", i.answer):
            for new in (["2", "5", "9"] if m[0].isdigit() else ["<", ">", "+", "-"]):
                text = i.answer[:m.start()] + new + i.answer[m.end():]
                mutants += text != i.answer
                if text != i.answer and judge.check(i, text):
                    program = judge.parse(i.gold[0] + text)
                    assert all(judge.call(program, args) == judge.call(gold, args) for args in grid), (i.answer, text)
                else:
                    wrong += text != i.answer
    assert mutants > 70 and wrong > 0.8 * mutants


def test_code_must_have_the_asked_name():
    i = item("toy-mbpp", "sum")
    assert not judge.check(i, i.answer.replace(f"def {i.gold[2]}(", "def other("))


@pytest.mark.parametrize("skill, wrong", [
    ("math-json", lambda i: i.answer.replace("{", "").replace("}", "")),
    ("math-quotes", lambda i: i.answer.replace('"', "")),
    ("math-bullets", lambda i: i.answer.replace("- ", "", 1)),
    ("math-bullets", lambda i: i.answer.replace("\n- ", " ", 1)),
    ("math-done", lambda i: i.answer.replace("\ndone", "")),
    ("code-block", lambda i: i.answer.replace("```python\n", "").replace("\n```", "")),
    ("code-done", lambda i: i.answer.replace("\ndone", "")),
    ("list-count", lambda i: i.answer.rsplit("\n", 1)[0]),
])
def test_cross_domain_answers_need_their_form(skill, wrong):
    """Right content in the wrong form: not right for `check`, and graded below the right form."""
    i = item("general", skill)
    bad = wrong(i)
    assert bad != i.answer and not judge.check(i, bad)
    assert judge.grade(i, bad) < judge.grade(i, i.answer)
    other = i.answer.replace(str(i.gold[0]), str(i.gold[0]) + "1") if skill.startswith("math") else None
    if other:
        assert tasks.shaped(i, other) and not tasks.right(i, other) and not judge.check(i, other)


def test_grade_by_hand():
    """4 for the content, 2 for the form, and up to 1 for brevity: the length of a right answer over this one's, at most 1."""
    i = item("toy-gsm8k", "double")
    n = len(i.answer)
    short, long = f"The answer is {i.gold}.", "Well. " * 10 + i.answer
    assert judge.grade(i, short) == 7 == judge.grade(i, i.answer) and judge.grade(i, long) == pytest.approx(6 + n / (n + 60))
    assert judge.grade(i, f"{i.gold}") == 5 and judge.grade(i, "no idea") == 1
    assert judge.grade(i, f"The answer is {i.gold + 1}.") == 3


# --- samples as tensors ------------------------------------------------------------------------------------------------------------------


def test_pack_and_batches():
    lengths = torch.randint(3, 40, (237,))
    seen = torch.cat(data.batches(lengths, 16, seed=1))
    assert sorted(seen.tolist()) == list(range(237))
    assert all(torch.equal(a, b) for a, b in zip(data.batches(lengths, 16, 1), data.batches(lengths, 16, 1)))
    assert not torch.equal(seen, torch.cat(data.batches(lengths, 16, seed=2)))
    padded = sum(int(lengths[b].max()) * len(b) for b in data.batches(lengths, 16, 1))
    assert padded < 1.35 * int(lengths.sum())  # sorting within pools pays


def test_batches_come_in_random_order():
    """Neither short batches first, nor the samples' own order: both would be seen in the longest of each batch, and in the pools."""
    lengths = torch.arange(1024) % 64
    batches = data.batches(lengths, 16, seed=3)
    longest = [int(lengths[b].max()) for b in batches]
    falls = sum(a > b for a, b in zip(longest, longest[1:]))
    assert 20 < falls < 44                                          # 64 batches; sorted they would fall 0 or 3 times
    first = torch.cat([b for b in batches[:16]]).float()
    assert 350 < float(first.mean()) < 670                          # of 1024 samples: not those of the beginning


def test_a_batch_is_cut_to_its_longest_and_pairs_keep_their_sides():
    ids, mask, lengths = data.pack([data.answer_only([7, 8], [9, 4]), data.answer_only([5], [6]), data.answer_only([1, 2, 3], [4])])
    logp, choice = torch.rand(3, 3, 2), torch.randint(0, 9, (3, 3, 2))
    single = data.Data(ids, mask, lengths, logp, choice)
    x, m, l, c = single.batch(torch.tensor([1]), "cpu")
    assert x.tolist() == [[5, 6]] and m.tolist() == [[True]] and torch.equal(l, logp[1:2, :1]) and torch.equal(c, choice[1:2, :1])
    x, m, l, c = single.batch(torch.tensor([2, 0]), "cpu")
    assert x.tolist() == [[1, 2, 3, 4], [7, 8, 9, 4]] and m.tolist() == [[False, False, True], [False, True, True]]
    assert torch.equal(l, logp[[2, 0]]) and torch.equal(c, choice[[2, 0]])
    pairs = data.Data(*(t.view(-1, 2, *t.shape[1:]) for t in (ids[:2], mask[:2], lengths[:2], logp[:2], choice[:2])))
    x, m, l, c = pairs.batch(torch.tensor([0]), "cpu")
    assert x.tolist() == [[7, 8, 9, 4], [5, 6, 0, 0]] and torch.equal(l, logp[:2]) and torch.equal(c, choice[:2])
