"""Synthetic benchmarks like the paper's: generators of problems. judge.py checks the answers.

    toy-gsm8k      word problems with a worked chain of thought       (math expert)
    toy-math500    harder algebra, modular arithmetic, sequences      (math expert)
    toy-mbpp       a specification in words -> a Python function      (code expert)
    toy-humaneval  signature and docstring -> the body                (code expert)
    toy-ifeval     words in a given format, checked strictly          (instruction expert)
    general        all of these, and cross-domain prompts: a calculation or a function whose answer
                   must have a given format

Every benchmark has eight sub-skills. Some of them are left out of every expert's data on purpose:
this is the coverage gap, as the paper assumes that no expert covers every prefix. The router's data
has them. See `held_out`.

A problem's `key` is its content without its wording, and the hash of the key alone decides its
split. So two wordings of one problem are always in the same split, and a cross-domain problem is in
the split of the calculation inside it.
"""

import hashlib
import re
from dataclasses import dataclass
from random import Random

from toy_experts.script import UserError

DOMAINS = {
    "math": ["toy-gsm8k", "toy-math500"],
    "code": ["toy-mbpp", "toy-humaneval"],
    "instruct": ["toy-ifeval"],
}
BENCHMARKS = [bench for benches in DOMAINS.values() for bench in benches]
SPLITS = {"train": 70, "preference": 10, "validation": 10, "test": 10}  # per cent of all problems


@dataclass
class Item:
    bench: str
    skill: str  # one of SKILLS[bench]; for general prompts the kind of prompt
    key: str  # the problem's content, without its wording
    prompt: str
    answer: str  # a right answer
    kind: str  # how an answer is checked: number, code, words, or a cross-domain format
    # number: the result; math-*: (result, worked answer); words, list-count: (words, format);
    # code*: (the prompt's first lines, or "", the right program, the function's name)
    gold: object


def pick(rng, *options):
    return rng.choice(options)


# --- toy-gsm8k: a first event (buying or losing), then the event that names the sub-skill --------

NAMES = {
    "She": "Maya Anna Emma Lucy Nina Sara Kate Rosa".split(),
    "He": "Tom Ben Leo Max Sam Paul Omar Hugo".split(),
}
ITEMS = "apples books coins pens cards stamps shells eggs cups cakes stickers marbles".split()


EVENTS = {  # skill: (two wordings, noun for the chain of thought)
    "buy": ("buys {n} more", "finds {n} more", "buying"),
    "lose": ("loses {n} of them", "gives {n} away", "losing"),
    "double": ("doubles the number", "gets as many again", "doubling"),
    "triple": ("triples the number", "gets three times as many", "tripling"),
    "halve": ("sells half of them", "gives half away", "halving"),
    "share": ("keeps one of {n} equal parts", "splits them by {n} and keeps one part", "sharing"),
    "trade": ("trades each one for {m}", "gets {m} for each one", "trading"),
    "bags": ("buys {n} bags of {m}", "finds {n} bags with {m} each", "the bags"),
}


def event(rng, skill, a):
    """One event on a count a: (wordings, noun for the chain of thought, equations, new count).

    None where a cannot be divided.
    """
    n, m = rng.randint(2, 9), rng.randint(2, 5)
    if skill == "bags":
        n = rng.randint(2, 5)
    sign, b = {
        "buy": ("+", n),
        "lose": ("-", n),
        "double": ("*", 2),
        "triple": ("*", 3),
        "halve": ("/", 2),
        "share": ("/", n),
        "trade": ("*", m),
        "bags": ("+", n * m),
    }[skill]
    if sign == "/" and a % b:
        return None
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
    equation = f"{a} {sign} {b} = {result}"
    if skill == "bags":
        equation = f"{n} * {m} = {b} and {equation}"
    *wordings, noun = EVENTS[skill]
    return [wording.format(n=n, m=m) for wording in wordings], noun, equation, result


def gsm8k(rng, skill):
    first = pick(rng, "buy", "lose")
    while True:
        a = rng.randint(3, 25)
        e1 = event(rng, first, a)
        e2 = event(rng, skill, e1[3]) if e1[3] > 0 else None
        if e2 and 0 < e2[3] < 60:
            break
    pronoun = pick(rng, "She", "He")
    name, items = rng.choice(NAMES[pronoun]), rng.choice(ITEMS)
    if rng.random() < 0.1:  # sometimes a name and a thing that are in no list, as a user's may be
        name, items = invented(rng).capitalize(), invented(rng) + "s"
    question = pick(
        rng, f"How many {items} does {name} have now?", f"How many {items} are there now?"
    )
    prompt = (
        f"{name} has {a} {items}. {pronoun} {rng.choice(e1[0])}. "
        f"Then {pronoun.lower()} {rng.choice(e2[0])}. {question}"
    )
    answer = f"After {e1[1]}, {e1[2]}. After {e2[1]}, {e2[2]}. The answer is {e2[3]}."
    return f"gsm {a} {e1[2]} {skill} {e2[2]}", prompt, answer, "number", e2[3]


def invented(rng):
    return "".join(
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))
    )


# --- toy-math500 ---------------------------------------------------------------------------------


def math500(rng, skill):
    a, b, m, x = rng.randint(2, 9), rng.randint(2, 15), rng.randint(3, 9), rng.randint(2, 9)
    match skill:
        case "linear":
            c = a * x + b
            prompt = f"{pick(rng, 'Solve', 'Find x:', 'What is x if')} {a}x + {b} = {c}"
            work, gold = f"{a}x = {c} - {b} = {c - b}. x = {c - b} / {a} = {x}.", x
        case "mod":
            y = rng.randint(10, 45)
            q = y // m
            prompt = f"{pick(rng, 'What is', 'Find', 'Compute')} {y} mod {m}"
            work, gold = f"{y} // {m} = {q}. {m} * {q} = {m * q}. {y} - {m * q} = {y % m}.", y % m
        case "sequence":
            b = rng.randint(1, 30)
            s = [b + i * x for i in range(4)]
            prompt = (
                f"{pick(rng, 'What comes next:', 'Find the next number:', 'Continue')} "
                f"{s[0]}, {s[1]}, {s[2]}"
            )
            work, gold = f"{s[1]} - {s[0]} = {x}. {s[2]} + {x} = {s[3]}.", s[3]
        case "function":
            prompt = (
                f"{pick(rng, 'Let', 'Suppose')} f(x) = {a}x + {b}. "
                f"{pick(rng, 'What is', 'Find')} f({x})"
            )
            work, gold = f"{a} * {x} = {a * x}. {a * x} + {b} = {a * x + b}.", a * x + b
        case "brackets":
            a, m = rng.randint(1, 5), rng.randint(1, 4)
            b = min(b, (a + m) * x)
            prompt = f"{pick(rng, 'Compute', 'Evaluate', 'What is')} ({a} + {m}) * {x} - {b}"
            s = a + m
            work = f"{a} + {m} = {s}. {s} * {x} = {s * x}. {s * x} - {b} = {s * x - b}."
            gold = s * x - b
        case "square":
            b = rng.randint(1, 30)
            prompt = f"{pick(rng, 'What is', 'Find', 'Compute')} {x} squared plus {b}"
            work, gold = f"{x} * {x} = {x * x}. {x * x} + {b} = {x * x + b}.", x * x + b
        case "system":
            x = rng.randint(2, 15)
            s, d = b + x, abs(b - x)
            prompt = (
                f"{pick(rng, 'Find x if', 'Solve', 'What is x if')} x + y = {s} and x - y = {d}"
            )
            work = f"2x = {s} + {d} = {s + d}. x = {s + d} / 2 = {(s + d) // 2}."
            gold = (s + d) // 2
        case "modsum":
            y = rng.randint(5, 30)
            s = y + b
            q = s // m
            prompt = f"{pick(rng, 'What is', 'Find', 'Compute')} ({y} + {b}) mod {m}"
            work = (
                f"{y} + {b} = {s}. {s} // {m} = {q}. {m} * {q} = {m * q}. {s} - {m * q} = {s % m}."
            )
            gold = s % m
    key = f"math {skill} {' '.join(re.findall('[0-9]+', prompt))}"
    prompt += "?" if "What is" in prompt else "."
    return key, prompt, f"{work} The answer is {gold}.", "number", gold


# --- toy-mbpp: reducer(map(filter(xs))); the reducer names the sub-skill -------------------------

REDUCERS = {  # skill: (words, expression; {e} is the generator "f(x) for x in xs if ...")
    "sum": ("the sum of", "sum({e})"),
    "list": ("a list of", "[{e}]"),
    "max": ("the largest of", "max(({e}), default=0)"),
    "min": ("the smallest of", "min(({e}), default=0)"),
    "sorted": ("a sorted list of", "sorted({e})"),
    "reversed": ("a reversed list of", "[{e}][::-1]"),
    "distinct": ("how many different values are among", "len(set({e}))"),
    "first": ("the first two of", "[{e}][:2]"),
}


def mbpp(rng, skill):
    words, expression = REDUCERS[skill]
    f = pick(rng, *"total pick solve run check collect result work".split())
    xs, c, d = pick(rng, "xs", "nums", "values"), rng.randint(2, 9), rng.randint(2, 9)
    filter_words, test = pick(
        rng,
        ("all numbers", ""),
        ("the even numbers", "x % 2 == 0"),
        ("the odd numbers", "x % 2 == 1"),
        *[
            (f"the numbers above {c}", f"x > {c}"),
            (f"the numbers below {c}", f"x < {c}"),
            (f"the numbers divisible by {c}", f"x % {c} == 0"),
        ]
        * 2,
    )
    map_words, value = pick(
        rng,
        ("", "x"),
        (", each squared", "x ** 2"),
        (", each negated", "-x"),
        *[
            (f", each plus {d}", f"x + {d}"),
            (f", each minus {d}", f"x - {d}"),
            (f", each times {d}", f"x * {d}"),
        ]
        * 2,
    )
    inner = f"{value} for x in {xs}" + (f" if {test}" if test else "")
    verb = pick(rng, "Write", "Define")
    empty = ", or 0 if there are none" if skill in ("max", "min") else ""
    prompt = (
        f"{verb} a function {f}({xs}) that returns {words} {filter_words} in {xs}"
        f"{map_words}{empty}."
    )
    answer = f"def {f}({xs}):\n    return {expression.format(e=inner)}"
    key = f"mbpp {skill} {test} {value}"
    return key, prompt, answer, "code", ("", answer, f)


# --- toy-humaneval: a function of two integers; its kind names the sub-skill ---------------------


def humaneval(rng, skill):
    a, b = pick(rng, ("a", "b"), ("x", "y"), ("m", "n"), ("p", "q"))
    f = pick(rng, *"score value compute rate combine measure apply adjust".split())
    c, d, j, k = (rng.randint(2, 9) for _ in range(4))
    u_words, u = pick(rng, (a, a), (f"{k} times {a}", f"{k} * {a}"))
    v_words, v = pick(rng, (b, b), (f"{j} times {b}", f"{j} * {b}"))
    match skill:
        case "add":
            words, e = f"{u_words} plus {v_words}", f"{u} + {v}"
        case "larger":
            words, e = f"the larger of {u_words} and {v_words}", f"max({u}, {v})"
        case "smaller":
            words, e = f"the smaller of {u_words} and {v_words}", f"min({u}, {v})"
        case "distance":
            words, e = f"the distance between {u_words} and {v_words}", f"abs({u} - {v})"
        case "remainder":
            words = f"the remainder of {u_words} plus {v_words} divided by {c}"
            e = f"({u} + {v}) % {c}"
        case "quotient":
            words = f"how often {c} fits into {u_words} plus {v_words}"
            e = f"({u} + {v}) // {c}"
        case "above":
            words, e = f"whether {u_words} plus {v_words} is above {c}", f"{u} + {v} > {c}"
        case "choose":
            words = f"{u_words} if {v_words} is above {c}, otherwise {v_words}"
            e = f"{u} if {v} > {c} else {v}"
    if skill not in ("above", "choose"):
        op_words, op = pick(
            rng, ("", ""), (f", then add {d}", f" + {d}"), (f", then subtract {d}", f" - {d}")
        )
        words, e = words + op_words, e + op
    verb = pick(rng, "Complete", "Finish")
    head = f'def {f}({a}, {b}):\n    """Return {words}."""\n'
    prompt, answer = f"{verb} this function.\n{head}", f"    return {e}"
    key = "heval " + re.sub(rf"\b[{a}{b}]\b", lambda v: "ab"[v[0] == b], f"{skill} {e}")
    return key, prompt, answer, "code", (head, head + answer, f)


# --- toy-ifeval: the words of the prompt, in the format that it asks for -------------------------

WORDS = (
    "red green blue black white pink brown cat dog bird fish horse mouse sheep lion apple "
    "pear plum lemon peach grape bread milk rice soup cheese chair table lamp door window "
    "clock tree river cloud stone sun moon star car train boat"
).split()
FORMATS = {  # skill: (wordings, words -> text)
    "commas": (("separated by commas", "with commas between them"), ", ".join),
    "bullets": (
        ("as a bulleted list", "as bullet points"),
        lambda ws: "\n".join(f"- {w}" for w in ws),
    ),
    "numbers": (
        ("as a numbered list", "with a number before each"),
        lambda ws: "\n".join(f"{i}. {w}" for i, w in enumerate(ws, 1)),
    ),
    "capitals": (("in capital letters", "in upper case"), lambda ws: " ".join(ws).upper()),
    "quotes": (
        ("in double quotes", "with quotes around each"),
        lambda ws: " ".join(f'"{w}"' for w in ws),
    ),
    "json": (("as a JSON list", "in JSON"), lambda ws: "[" + ", ".join(f'"{w}"' for w in ws) + "]"),
    "reverse": (("in reverse order", "from last to first"), lambda ws: " ".join(ws[::-1])),
    "brackets": (
        ("in brackets", "with brackets around each"),
        lambda ws: " ".join(f"({w})" for w in ws),
    ),
}


def ifeval(rng, skill):
    words = rng.sample(WORDS, rng.randint(2, 4))
    wordings, render = FORMATS[skill]
    extra, wrap = pick(
        rng,
        ("", "{}"),
        ("", "{}"),
        (" Begin with the word ready.", "ready\n{}"),
        (" Finish with the word done.", "{}\ndone"),
    )
    listed = ", ".join(words[:-1]) + " and " + words[-1]
    prompt = f"{pick(rng, 'Write', 'List', 'Give')} {listed} {rng.choice(wordings)}.{extra}"
    return f"ifeval {skill} {listed}", prompt, wrap.format(render(words)), "words", (words, skill)


# --- general: prompts of the five benchmarks, and prompts across domains -------------------------


def steps(answer):
    return re.findall(r"[^.]+\.", answer)


CROSS_MATH = {  # skill: (instruction, worked answer and result -> text)
    "math-json": (
        "Give the answer as JSON.",
        lambda text, n: text.replace(f"The answer is {n}.", f'{{"answer": {n}}}'),
    ),
    "math-quotes": (
        "Put the answer in double quotes.",
        lambda text, n: text.replace(f"is {n}.", f'is "{n}".'),
    ),
    "math-bullets": (
        "Write each step as a bullet point.",
        lambda text, n: "\n".join(f"- {s.strip()}" for s in steps(text)),
    ),
    "math-done": ("Finish with the word done.", lambda text, n: text + "\ndone"),
}
CROSS_CODE = {
    "code-block": ("Put the code in a code block.", lambda text: f"```python\n{text}\n```"),
    "code-done": ("Finish with the word done.", lambda text: text + "\ndone"),
}


def general(rng, skill):
    bench = {
        "math": pick(rng, "toy-gsm8k", "toy-math500"),
        "code": "toy-mbpp",
        "list": "toy-ifeval",
    }.get(skill.split("-")[0], skill)
    inner = rng.choice(SKILLS[bench])
    if skill == "list-count":
        inner = pick(rng, "bullets", "numbers", "commas")
    key, prompt, answer, kind, gold = GENERATORS[bench](rng, inner)
    if skill in CROSS_MATH:
        instruction, render = CROSS_MATH[skill]
        return key, f"{prompt} {instruction}", render(answer, gold), skill, (gold, answer)
    if skill in CROSS_CODE:
        instruction, render = CROSS_CODE[skill]
        return key, f"{prompt} {instruction}", render(answer), skill, gold
    if skill == "list-count":
        words = gold[0]
        text = FORMATS[inner][1](words)
        prompt = re.sub(r" (Begin|Finish) .*", "", prompt) + " Then count them."
        return key, prompt, f"{text}\nThere are {len(words)}.", skill, (words, inner)
    return key, prompt, answer, kind, gold


GENERATORS = {
    "toy-gsm8k": gsm8k,
    "toy-math500": math500,
    "toy-mbpp": mbpp,
    "toy-humaneval": humaneval,
    "toy-ifeval": ifeval,
    "general": general,
}
SKILLS = {
    "toy-gsm8k": list(EVENTS),
    "toy-math500": "linear mod sequence function brackets square system modsum".split(),
    "toy-mbpp": list(REDUCERS),
    "toy-humaneval": "add larger smaller distance remainder quotient above choose".split(),
    "toy-ifeval": list(FORMATS),
    "general": list(CROSS_MATH) + list(CROSS_CODE) + ["list-count"] + BENCHMARKS,
}


# --- splits and data sets ------------------------------------------------------------------------


def split_of(key):
    """The split that a problem belongs to. It depends on the key alone, so splits are disjoint."""
    x = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % 100
    for split, share in SPLITS.items():
        x -= share
        if x < 0:
            return split


def held_out(bench, gap, seed):
    """The sub-skills of a benchmark that no expert's data has: a share `gap` of the eight.

    The seed chooses them. The experts keep the first two: toy-gsm8k's first events need them.
    """
    if bench == "general":
        return []
    skills = SKILLS[bench]
    return Random(f"{bench} {seed}").sample(skills[2:], round(gap * len(skills)))


def draw(bench, split, rng, skills=None):
    """One random Item of a split, its sub-skill uniform over `skills` (default: all of them)."""
    while True:
        skill = rng.choice(skills or SKILLS[bench])
        key, *rest = GENERATORS[bench](rng, skill)
        if split_of(key) == split:
            return Item(bench, skill, key, *rest)


def dataset(bench, split, n, rng, skills=None):
    """n Items with n different prompts. UserError if there are not so many."""
    items, misses = {}, 0
    while len(items) < n:
        item = draw(bench, split, rng, skills)
        misses = misses + 1 if item.prompt in items else 0
        if misses > 1000:
            raise UserError(
                f"{bench} has only some {len(items)} different {split} prompts, and {n} are asked"
            )
        items.setdefault(item.prompt, item)
    return list(items.values())


def mixed(split, n, rng, benches=tuple(BENCHMARKS + ["general"])):
    """n Items with different prompts, equal shares of the benchmarks, in random order."""
    items = [
        item
        for i, bench in enumerate(benches)
        for item in dataset(bench, split, n // len(benches) + (i < n % len(benches)), rng)
    ]
    rng.shuffle(items)
    return items
