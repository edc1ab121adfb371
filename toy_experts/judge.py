"""Checks answers: right in content and in form. Code is checked by running it on hidden cases.

`check` is what every benchmark counts. `grade` gives a score to compare two answers with.
"""

import re
from functools import lru_cache
from random import Random

from toy_experts import interpreter
from toy_experts.tasks import FORMATS, WORDS, steps

SHAPES = {  # how an answer must end, the number in the group
    "number": r"The answer is (-?[0-9]+)\.",
    "math-json": r'\{"answer": (-?[0-9]+)\}',
    "math-quotes": r'The answer is "(-?[0-9]+)"\.',
    "math-done": r"The answer is (-?[0-9]+)\.\ndone",
}


@lru_cache(maxsize=10_000)
def cases(source, n_args):
    """Hidden cases of a right program, ((args, its value), ...). Enough to notice small mistakes.

    Two integers: a grid around the constants in the tasks. A list: the empty one, every single
    value, [x, -x, x], and some long ones whose numbers depend on the program's text.
    """
    if n_args == 2:
        args = [(i, j) for i in range(-3, 13) for j in range(-3, 13)]
    else:
        rng = Random(source)
        lists = [[], *([x] for x in range(-12, 31)), *([x, -x, x] for x in range(1, 10))]
        lists += [[*range(-12, 31)]]
        lists += [[rng.randint(-12, 30) for _ in range(n)] for n in (3, 4, 5, 7, 9, 12, 16, 20)]
        args = [(xs,) for xs in lists]
    return tuple((a, interpreter.run(source, a)) for a in args)


def code_right(gold, source):
    head, gold_source, name = gold
    return interpreter.passes(head + source, cases(gold_source, 2 if head else 1), name)


def shaped(item, text):
    """Whether the answer has exactly the form that the prompt asks for, whatever its content."""
    text = text.rstrip()
    if item.kind == "words":
        return text == item.answer
    if item.kind == "list-count":
        words, skill = item.gold
        listed = re.escape(FORMATS[skill][1](words))
        return bool(re.fullmatch(listed + r"\nThere are [0-9]+\.", text))
    if item.kind in SHAPES:
        return bool(re.search(f"(?:{SHAPES[item.kind]})\\Z", text))
    if item.kind == "math-bullets":  # one sentence a bullet, no fewer than in the worked answer
        enough = len(steps(item.gold[1])) - 1
        pattern = rf"(?:- [^.\n]+\.\n){{{enough},}}- The answer is -?[0-9]+\."
        return bool(re.fullmatch(pattern, text))
    if item.kind == "code-block":
        return bool(re.fullmatch(r"```python\n[^`]+\n```", text))
    if item.kind == "code-done":
        return text.endswith("\ndone")
    return "`" not in text  # plain code: nothing but code


def right(item, text):
    """Whether the content of the answer is right, whatever its form."""
    text = text.rstrip()
    if item.kind == "number" or item.kind.startswith("math"):
        gold = item.gold if item.kind == "number" else item.gold[0]
        return re.findall(r"-?[0-9]+", text)[-1:] == [str(gold)]
    if item.kind in ("words", "list-count"):
        words, skill = item.gold
        said = [w for w in re.findall(r"[a-z]+", text.lower()) if w in WORDS]
        counted = item.kind == "words" or re.findall(r"[0-9]+", text)[-1:] == [str(len(words))]
        return counted and said == (words[::-1] if skill == "reverse" else words)
    if item.kind == "code-block":
        text = re.sub(r"\A```python\n|\n```\Z", "", text)
    if item.kind == "code-done":
        text = text.removesuffix("\ndone")
    return code_right(item.gold, text)


def check(item, text):
    """Strict: right in content and in form. What every benchmark counts."""
    return shaped(item, text) and right(item, text)


def grade(item, text):
    """A score in [0, 7] to compare answers with: correctness first, then form, then brevity."""
    brevity = min(1.0, len(item.answer) / max(1, len(text)))
    return 4 * right(item, text) + 2 * shaped(item, text) + brevity
