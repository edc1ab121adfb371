"""The interpreter never runs generated code: attacks are "wrong", and quickly."""

import random
import re
import time

import pytest

from toy_experts import interpreter, judge, tasks, tokenizer

F = "def f(xs):\n    return "


@pytest.mark.parametrize(
    "expression, xs, expected",
    [
        ("sum(x * 2 for x in xs if x > 1)", [1, 2, 3], 10),
        ("max((x for x in xs), default=0)", [], 0),
        ("[x ** 2 for x in xs][::-1]", [1, 2, 3], [9, 4, 1]),
        ("sorted(xs, reverse=True)[:2]", [3, 1, 2], [3, 2]),
        ("len(set(xs))", [1, 1, 2], 2),
        ("-xs[0] % 3 if len(xs) > 0 else 7", [4], 2),
        ("1 < xs[0] < 5 and not xs[0] == 3", [4], True),
        ("xs[0] or 9", [0], 9),
        ("any(x in [1, 2] for x in xs)", [5, 2], True),
        ("xs[-1] // 2", [7], 3),
        ("xs[0] // -2 + -7 % 3", [7], -2),
        ("[xs[1:], 9][1] if 0 else xs[::2][-1]", [1, 2, 3], 3),
        ("sorted(set(x % 2 for x in xs))", [5, 2, 7], [0, 1]),
        ("min(xs, default=4) if xs else abs(-4)", [], 4),
        ("xs != [1] and 3 >= 2 > 1 != 0", [1], False),
        ("sum([x for x in xs if x not in [2]], 10)", [1, 2], 11),
        ("all(x == 1 or x for x in xs)", [1, 0], False),
    ],
)
def test_language_means_what_python_means(expression, xs, expected):
    got = interpreter.run(F + expression, (xs,))
    assert got == expected and type(got) is type(expected)
    assert eval(expression, {"xs": xs}) == expected  # our own text: CPython agrees


def unescaped(text):
    """The texts between &&, in which \\n and the like are escaped."""
    return [x.encode().decode("unicode_escape") for x in re.split(r"\s*&&\s*", text.strip())]


ATTACKS = unescaped(r"""
__import__('os').system('touch owned') && open('/etc/passwd').read() &&
().__class__.__bases__[0].__subclasses__() && xs.__class__ && xs.append(1) && exec('1') &&
(lambda: 1)() && f(xs) && [f(xs) for x in xs] && print(1) && 9 ** 9 ** 9 ** 9 && 10 ** 1000000 &&
(2 ** 8) ** 8 ** 8 * 10 ** 8 && list(range(10 ** 9)) && [0] * 10 ** 12 && 'a' * 10 ** 12 &&
xs + xs && xs * 1000000 && [x for x in xs for y in xs for z in xs] &&
[[x for x in xs] for y in xs] && sum(sum(sum(1 for a in xs) for b in xs) for c in xs) &&
[x for x in iter(int, 1)] && {x: x for x in xs} && {x for x in xs} && f'{xs}' &&
'%1000000000d' % 1 && '{:>999999999}'.format(1) && b'a' && 1j && 1.5 && None && ... && 1 / 0 &&
1 // 0 && 1 % 0 && xs[10 ** 9] && xs[0][0] && max(xs, key=abs) && max(*xs) && max(**xs) &&
sorted(xs, key=xs) && (y := 5) && await xs && yield && *xs && xs if &&  && return 1 &&
(x for x in xs) && len(x for x in xs) && 0 if xs is xs else 1 && \x00 && \ud800 &&
1\n    return 2 && 1\nimport os && 1; import os && xs\n\ndef g():\n    pass && sum && unknown &&
1 << 40 && ~1 && 1 @ 1 && sum([[1], [2]], []) && 2 ** -1 && list(xs, xs) && set(1) && abs(xs) &&
xs < 1 && 1 in 1 && -xs && xs[1.0] && xs[::0]""") + [
    "9" * 500,
    "len([" + "1," * 250 + "])",
    "-" * 550 + "1",
    "(" * 150 + "1" + ")" * 150,
    "[" * 90 + "]" * 90,
    "not " * 130 + "1",
    "1" + "+1" * 280,
    "+".join(["sum(sum(1 for b in xs) for a in xs)"] * 15),
]


@pytest.mark.parametrize("expression", ATTACKS, ids=lambda e: repr(e[:30]))
def test_attacks_are_wrong_and_fast(expression):
    start = time.process_time()
    for xs in (list(range(12)), list(range(200))):
        with pytest.raises(interpreter.Wrong):
            interpreter.run(F + expression, (xs,))
        assert not interpreter.passes(F + expression, [((xs,), 1)], "f")
    assert time.process_time() - start < 0.5


NOT_ONE_FUNCTION = unescaped(r"""
f && def f(xs): pass && def f(xs):\n    xs = 1\n    return xs &&
import os\ndef f(xs):\n    return 1 && @abs\ndef f(xs):\n    return 1 &&
def f(*xs):\n    return 1 && def f(xs=[]):\n    return 1 && def f(xs, /):\n    return 1 &&
def f(**xs):\n    return 1 && def f(xs: int):\n    return 1 && def f(xs) -> int:\n    return 1 &&
async def f(xs):\n    return 1 && class f:\n    pass && lambda xs: 1 && def f(xs):\n    return &&
def f(xs):\n    'doc' && def f(xs):\n    while True: pass &&
def f(xs):\n    def g():\n        return 1\n    return 1 && def f():\n    return 1 &&
def f(a, b):\n    return 1 && def g(xs):\n    return 1""")


@pytest.mark.parametrize("source", NOT_ONE_FUNCTION)
def test_only_one_plain_function(source):
    assert not interpreter.passes(source, [(([1],), 1)], "f")
    assert interpreter.passes("def f(xs):\n    return 1", [(([1],), 1)], "f")


def test_a_truth_value_is_not_a_number():
    assert interpreter.passes("def f(a):\n    return a > 1", [((2,), True)], "f")
    assert not interpreter.passes("def f(a):\n    return a > 1", [((2,), 1)], "f")
    assert not interpreter.passes("def f(a):\n    return set(a)", [(([2],), [2])], "f")


def test_random_token_soup_never_raises():
    """2000 texts of random tokens, half of them after a good beginning: always a verdict."""
    rng, right = random.Random(0), 0
    items = [i for b in ("mbpp", "humaneval") for i in tasks.dataset(f"toy-{b}", "train", 20, rng)]
    start = time.process_time()
    for n in range(2000):
        item = rng.choice(items)
        keep = rng.randrange(len(item.answer)) if n % 2 else 0
        soup = [rng.randrange(tokenizer.VOCAB_SIZE - 3) for _ in range(rng.randrange(1, 60))]
        right += judge.check(item, item.answer[:keep] + tokenizer.encoding.decode(soup))
    assert time.process_time() - start < 20 and right < 30
