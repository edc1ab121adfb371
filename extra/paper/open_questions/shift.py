"""(d) Domain shift: prompts that no training saw.

    python -m extra.paper.open_questions.shift --seeds 2 3

Varied, one at a time: the names and words of a prompt, the size of its numbers, its phrasing; and a sixth benchmark that neither experts nor
router know. Held fixed: the models of the run, after both phases. Lines: FusionRoute, the picked expert alone, the router alone, and for each
benchmark the expert that is best on it (it is known only afterwards).

The problems are those of toy_experts/tasks.py, changed here. Their right answers change with them, and a test holds that the checkers
accept these, that no training prompt has the new words and phrasings, and that in each prompt with larger numbers one is larger than any
that training has at this place of this phrasing (it may have it at another place).
"""

import functools
import re
from random import Random

import numpy as np

from extra import models
from extra.paper.open_questions import frame
from toy_experts import run, tasks

# --- new names and words: what is in the lists of tasks.py, by what is not ------------------------------------------------------------------

NEW = {
    "toy-gsm8k": dict(zip([n for names in tasks.NAMES.values() for n in names] + tasks.ITEMS,
                          "Ines Olga Greta Hanna Wilma Edith Berta Carla Yusuf Igor Karl Otto Emil Hans Jonas Felix "
                          "kites balls hats keys rings spoons plates boxes ropes bells toys bricks".split())),
    "toy-mbpp": dict(zip("total pick solve run check collect result work xs nums values".split(),
                         "output grab handle go test gather outcome task data items series".split())),
    "toy-humaneval": dict(zip("score value compute rate combine measure apply adjust".split(), "grade amount derive judge join gauge use tune".split())),
    "toy-ifeval": dict(zip(tasks.WORDS, (
        "grey purple golden violet silver crimson amber wolf goat crow frog donkey rat cow tiger melon cherry onion carrot fig "
        "date cake honey beans salad yogurt desk shelf candle gate roof watch bush creek storm brick dusk snow planet truck "
        "wagon ship").split())),
}


def exchange(text, words):
    return re.sub(r"[A-Za-z]+", lambda m: next((new.upper() if m[0].isupper() and len(m[0]) > 1 and m[0] == old.upper() else new
                                                for old, new in words.items() if m[0] in (old, old.upper())), m[0]), text)


def renamed(item):
    """The item with names and words that are in no list of tasks.py."""
    words = NEW.get(item.bench, {})
    gold = item.gold
    if item.kind == "code":
        gold = tuple(exchange(part, words) for part in gold)
    elif item.kind == "words":
        gold = [exchange(w, words) for w in gold[0]], gold[1]
    return tasks.Item(item.bench, item.skill, item.key, exchange(item.prompt, words), exchange(item.answer, words), item.kind, gold)


# --- larger numbers -------------------------------------------------------------------------------------------------------------------------


class Larger(Random):
    """Integers up to a third beyond the range that tasks.py asks for, never inside it."""

    def randint(self, low, high):
        return super().randint(high + 1, high + max(2, high // 3))


class LargerStart(Larger):
    """The same for the first number of toy-gsm8k only; its first event is then a loss, or few of its problems would end below 60."""

    def randint(self, low, high):
        return super().randint(low, high) if (low, high) == (3, 25) else Random.randint(self, low, high)

    def choice(self, options):
        return "lose" if options == ("buy", "lose") else super().choice(options)


def beyond(item):
    """Whether one of the numbers was drawn by Larger: some code has none. The checker's grid ends at 12, so it cannot tell `b > 12` from `b > 13`."""
    numbers = [int(n) for n in re.findall(r"\d+", item.prompt)]
    return max(numbers, default=0) > 9 and not re.search(r"if [a-z] is above 12", item.prompt)


def larger(bench, n, seed):
    """n different problems of a benchmark with larger numbers. No split has them, so they are drawn without one."""
    coin, items = (LargerStart if bench == "toy-gsm8k" else Larger)(f"larger {bench} {seed}"), {}
    for _ in range(100 * n):
        skill = coin.choice(tasks.SKILLS[bench])
        item = tasks.Item(bench, skill, *tasks.GENERATORS[bench](coin, skill))
        if beyond(item):
            items.setdefault(item.key, item)
        if len(items) == n:
            return list(items.values())
    raise run.UserError(f"--prompts {n}: {bench} has only some {len(items)} different problems with larger numbers")


# --- new phrasings --------------------------------------------------------------------------------------------------------------------------

PHRASES = {
    "toy-gsm8k": [(r" has (\d)", r" owns \1"), (r"How many (\w+) does (\w+) have now\?", r"Count the \1 that \2 owns at the end."),
                  (r"How many (\w+) are there now\?", r"Count the \1 at the end."), (r"Then (\w+) ", r"Afterwards \1 ")],
    "toy-math500": [(r"^(What is x if|What is|What comes next:) ", r"Tell me: "), (r"^(Find x if|Find x:|Find the next number:|Find) ", "Determine "),
                    (r"^(Solve|Compute|Continue|Evaluate) ", "Handle "), (r"^(Let|Suppose) ", "Take "), (r"\. (What is|Find) f", r". Determine f")],
    "toy-mbpp": [(r"^(Write|Define) a function (.*) that returns ", r"I need a function \2 which gives ")],
    "toy-humaneval": [(r"^(Complete|Finish) this function\.", "The body is missing:")],
    "toy-ifeval": [(r"^(Write|List|Give) ", "Please print ")],
}


def rephrased(item):
    prompt = item.prompt
    for old, new in PHRASES.get(item.bench, []):
        prompt = re.sub(old, new, prompt)
    return tasks.Item(item.bench, item.skill, item.key, prompt, item.answer, item.kind, item.gold)


# --- a sixth benchmark ----------------------------------------------------------------------------------------------------------------------


def sixth(rng):
    """One problem of three kinds that no data has: the larger of two numbers, how many words, the last of some words."""
    kind = rng.choice(["larger", "count", "last"])
    words = rng.sample(tasks.WORDS, rng.randint(2, 5))
    if kind == "larger":
        a, b = rng.sample(range(2, 60), 2)
        prompt, gold = f"Which number is larger, {a} or {b}?", max(a, b)
    elif kind == "count":
        prompt, gold = f"How many words are in the list {', '.join(words)}?", len(words)
    else:
        prompt, gold = f"Write the last word of {', '.join(words)}.", words[-1]
    answer = words[-1] if kind == "last" else f"The answer is {gold}."
    return tasks.Item("sixth", kind, prompt, prompt, answer, "last" if kind == "last" else "number", gold)


def check(item, text):
    """tasks.check, which knows only its own words: here a list of words must be the right answer letter by letter."""
    return text.rstrip() == item.answer if item.kind in ("words", "last") else tasks.check(item, text)


# --- the page -------------------------------------------------------------------------------------------------------------------------------


def shifted(s):
    """shift -> {benchmark: items}: the benchmarks that it changes. The general prompts are left out."""
    usual = {b: drawn for b, drawn in frame.items(s).items() if b != "general"}
    rng = Random(f"sixth {s.seed}")
    return {"as trained": usual, "new words": {b: list(map(renamed, usual[b])) for b in NEW},
            "numbers out of range": {b: larger(b, s.prompts, s.seed) for b in usual if b != "toy-ifeval"},
            "new phrasings": {b: list(map(rephrased, drawn)) for b, drawn in usual.items()},
            "a sixth benchmark": {"sixth": [sixth(rng) for _ in range(s.prompts)]}}


def measure(s, cell):
    """`usual` is the same as `average` on the same benchmarks as trained."""
    router, experts, _ = models.load_router(s, "router")
    drawn = shifted(s)
    how = {"fusionroute": {}, "routing_only": {"use_router": False}, "router": {"use_expert": False}}

    @functools.cache
    def judged(label, line, b):
        items = drawn[label][b]
        if line != "best expert":
            return frame.judged(s, frame.fused(router, experts, **how[line]), {b: items}, check)
        return frame.best_expert(s, router, experts, b, items, check)

    for label, problems in drawn.items():
        def compute(line):
            rows = {b: judged(label, line, b) for b in problems}
            out = {k: np.mean([row[k] for row in rows.values() if k in row]) for k in ("average", "covered", "uncovered") if any(k in r for r in rows.values())}
            known = [judged("as trained", line, b)["average"] for b in problems if b in drawn["as trained"]]
            return {k: round(float(v), 4) for k, v in (out | ({"usual": np.mean(known)} if known else {})).items()}

        for line in [*how, "best expert"]:
            cell(label, line, lambda: compute(line))


if __name__ == "__main__":
    run.run(lambda: frame.main("shift", measure, __doc__, "what is new"))
