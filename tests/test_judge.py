"""The judge against answers written by hand: content, form, and the grade between them."""

import re
from random import Random

import pytest

from toy_experts import interpreter, judge, tasks

ALL = tasks.BENCHMARKS + ["general"]


def item(bench, skill, want=lambda i: True):
    """The first train item of a sub-skill that has what the test wants."""
    rng = Random(0)
    return next(i for i in iter(lambda: tasks.draw(bench, "train", rng, [skill]), None) if want(i))


@pytest.mark.parametrize("bench", ALL)
def test_gold_answers_are_right(bench):
    """Of every sub-skill; and nothing that is cut short or goes on."""
    n = {"toy-mbpp": 25, "toy-humaneval": 25, "general": 60}.get(bench, 300)
    for i in tasks.dataset(bench, "train", n, Random(1)):
        assert judge.check(i, i.answer) and judge.grade(i, i.answer) == 7, i
        assert judge.check(i, i.answer + "\n"), i
        for wrong in ("", i.answer + " Yes.", i.answer[:-1], i.answer[: len(i.answer) // 2]):
            # x + 1 for x + 12 may be right
            plain_code = i.kind == "code" and wrong == i.answer[:-1]
            assert plain_code or not judge.check(i, wrong), (i, wrong)
        assert i.prompt == i.prompt.strip(" ") and i.prompt.isascii()
        assert ("word done" in i.prompt) == i.answer.endswith("\ndone"), i
        assert ("word ready" in i.prompt) == i.answer.startswith("ready\n"), i


@pytest.mark.parametrize("bench", ["toy-mbpp", "toy-humaneval"])
def test_gold_code_runs_in_cpython_with_the_same_results(bench):
    """The only exec here is of our own gold answers."""
    for i in tasks.dataset(bench, "train", 25, Random(1)):
        head, source, name = i.gold
        space = {}
        exec(source, space)
        for args, value in judge.cases(source, 2 if head else 1):
            expected = space[name](*args)
            assert value == expected and type(value) is type(expected)


def test_arithmetic_in_every_chain_of_thought_is_right():
    fact = r"(?<![\dx] )(?<!\d)(\d+ (?:[-+*/]|//) \d+) = (\d+)"
    for bench in ("toy-gsm8k", "toy-math500"):
        for i in tasks.dataset(bench, "train", 300, Random(1)):
            facts = re.findall(fact, i.answer)
            assert all(eval(left) == int(right) for left, right in facts), i.answer  # our own text


def test_numbers_by_hand():
    i = item("toy-gsm8k", "double")
    n, m = i.gold, i.gold + 1
    assert judge.check(i, f"The answer is {n}.") and judge.check(i, f"Well. The answer is {n}.\n")
    for wrong in (m, f"{n}0", "9" * 5000, f"-{n}", f"{n}. Or {m}"):
        assert not judge.check(i, f"The answer is {wrong}."), wrong
    assert not judge.check(i, f"The answer is {n}") and not judge.check(i, str(n))


def test_words_by_hand():
    three = lambda i: len(i.gold[0]) == 3 and "done" not in i.answer and "ready" not in i.answer
    i = item("toy-ifeval", "numbers", three)
    a, b, c = i.gold[0]
    assert judge.check(i, f"1. {a}\n2. {b}\n3. {c}")
    assert judge.right(i, f"{a}, {b}, {c}") and not judge.right(i, f"{a}, {c}, {b}")
    for wrong in (
        f"1. {a}\n2. {b}",
        f"1. {a}\n2. {c}\n3. {b}",
        f"1. {a} 2. {b} 3. {c}",
        f"1) {a}\n2) {b}\n3) {c}",
        f"1. {a.upper()}\n2. {b}\n3. {c}",
    ):
        assert not judge.check(i, wrong), wrong
    i = item("toy-ifeval", "reverse")  # its words are right backwards only
    assert judge.right(i, " ".join(i.gold[0][::-1])) and not judge.right(i, " ".join(i.gold[0]))
    i = item("general", "list-count")
    assert not judge.check(i, i.answer.replace(f"are {len(i.gold[0])}.", "are 9."))
    i = item("general", "list-count", lambda i: i.gold[1] == "numbers")
    assert judge.check(i, i.answer) and not judge.shaped(i, i.answer.replace("1. ", "1) "))


def test_code_by_hand():
    head = 'def rate(a, b):\n    """Return the larger of a and b."""\n'
    body = "    return max(a, b)"
    i = tasks.Item("toy-humaneval", "larger", "", "", body, "code", (head, head + body, "rate"))
    for right in ("max(a, b)", "a if a > b else b", "max(b, a)", "max([a, b])"):
        assert judge.check(i, f"    return {right}"), right
    for wrong in ("min(a, b)", "max(a)", "None", "a", "max(a, b)\n    return 1", "max(a, b, 0)"):
        assert not judge.check(i, f"    return {wrong}"), wrong
    assert judge.right(i, body + "  # `") and not judge.check(i, body + "  # `")
    assert not judge.check(i, "return max(a, b)") and not judge.check(i, f"```\n{body}\n```")
    i = item("toy-mbpp", "sum")
    assert not judge.check(i, i.answer.replace(f"def {i.gold[2]}(", "def other("))
    assert not judge.check(i, i.answer + " if xs else 1")  # of an empty list


def test_hidden_cases_tell_near_misses_apart():
    """Gold answers with one number or operator exchanged: few pass, and these mean the same."""
    changed, passed, grid = 0, [], [[x] for x in range(-40, 80)] + [[x, -x, 9] for x in range(50)]
    for i in tasks.dataset("toy-mbpp", "train", 15, Random(3)):
        for m in re.finditer(r"(?<!\[)(?<!default=)(?:[0-9]+|[<>+*%-])", i.answer):
            for new in ["2", "5", "9"] if m[0].isdigit() else ["<", ">", "+", "-"]:
                text = i.answer[: m.start()] + new + i.answer[m.end() :]
                changed += text != i.answer
                if text != i.answer and judge.check(i, text):
                    passed.append((i.answer, text))
    assert changed > 70 and len(passed) < 0.2 * changed
    for pair in passed:
        a, b = ([interpreter.run(source, (xs,)) for xs in grid] for source in pair)
        assert a == b, pair


@pytest.mark.parametrize(
    "skill, old, new",
    [
        ("math-json", "{", ""),
        ("math-quotes", '"', ""),
        ("math-bullets", "- ", ""),
        ("math-bullets", "\n- ", " "),
        ("math-done", "\ndone", ""),
        ("code-block", "```python\n", ""),
        ("code-block", "\n```", ""),
        ("code-done", "\ndone", ""),
        ("code-done", "\ndone", "\n done"),
        ("list-count", "\nThere", " There"),
    ],
)
def test_cross_domain_answers_need_their_form(skill, old, new):
    """Right content in the wrong form is not right, and is graded below the right form.

    The right form around a wrong number is no better.
    """
    i = item("general", skill)
    bad = i.answer.replace(old, new, 1)
    assert bad != i.answer and not judge.check(i, bad) and not judge.shaped(i, bad)
    assert judge.grade(i, bad) < judge.grade(i, i.answer)
    if skill.startswith("math"):
        other = i.answer.replace(str(i.gold[0]), f"{i.gold[0]}1")
        assert judge.shaped(i, other) and not judge.right(i, other) and not judge.check(i, other)


def test_bullets_are_as_many_as_the_worked_answer_has_sentences():
    i = item("general", "math-bullets", lambda i: i.answer.count("\n") > 1)
    fewer = i.answer.partition("\n")[2]
    assert judge.shaped(i, "- One more.\n" + i.answer) and judge.right(i, fewer)
    assert not judge.shaped(i, fewer)


def test_grade_by_hand():
    """4 for the content, 2 for the form, 1 for an answer no longer than the worked one."""
    i = item("toy-gsm8k", "double")
    n, long = len(i.answer), "Well. " * 10 + i.answer
    assert judge.grade(i, f"The answer is {i.gold}.") == 7 == judge.grade(i, i.answer)
    assert judge.grade(i, long) == pytest.approx(6 + n / (n + 60))
    assert judge.grade(i, f"{i.gold}") == 5 and judge.grade(i, "no idea") == 1
    assert judge.grade(i, f"The answer is {i.gold + 1}.") == 3
