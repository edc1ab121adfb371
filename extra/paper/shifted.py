"""(d) Prompts that no training saw: new words, larger numbers, new phrasings, a sixth benchmark.

The problems are those of toy_experts/tasks.py, changed here, and their right answers with them. A
test holds that the checkers accept these answers, that no training prompt has the new words and
phrasings, and that in each prompt with larger numbers one is larger than any that training has at
this place of this phrasing.
"""

import re
from random import Random

from toy_experts import judge, script, tasks

# --- new names and words: what is in the lists of tasks.py, by what is not -----------------------

PEOPLE = (
    "Ines Olga Greta Hanna Wilma Edith Berta Carla Yusuf Igor Karl Otto Emil Hans Jonas Felix "
    "kites balls hats keys rings spoons plates boxes ropes bells toys bricks"
)
WORDS = (
    "grey purple golden violet silver crimson amber wolf goat crow frog donkey rat cow tiger melon "
    "cherry onion carrot fig date cake honey beans salad yogurt desk shelf candle gate roof watch "
    "bush creek storm brick dusk snow planet truck wagon ship"
)
OLD = {
    "toy-gsm8k": [n for names in tasks.NAMES.values() for n in names] + tasks.ITEMS,
    "toy-mbpp": "total pick solve run check collect result work xs nums values".split(),
    "toy-humaneval": "score value compute rate combine measure apply adjust".split(),
    "toy-ifeval": tasks.WORDS,
}
NEW = {
    "toy-gsm8k": PEOPLE,
    "toy-mbpp": "output grab handle go test gather outcome task data items series",
    "toy-humaneval": "grade amount derive judge join gauge use tune",
    "toy-ifeval": WORDS,
}
NEW = {b: dict(zip(OLD[b], words.split())) for b, words in NEW.items()}


def exchange(text, words):
    """The text with its words exchanged; one in capitals stays so."""
    capitals = {old.upper(): new.upper() for old, new in words.items() if len(old) > 1}
    return re.sub(r"[A-Za-z]+", lambda m: (capitals | words).get(m[0], m[0]), text)


def renamed(item):
    """The item with names and words that are in no list of tasks.py."""
    words, gold = NEW.get(item.bench, {}), item.gold
    if item.kind == "code":
        gold = tuple(exchange(part, words) for part in gold)
    elif item.kind == "words":
        gold = [exchange(w, words) for w in gold[0]], gold[1]
    prompt, answer = exchange(item.prompt, words), exchange(item.answer, words)
    return tasks.Item(item.bench, item.skill, item.key, prompt, answer, item.kind, gold)


# --- larger numbers ------------------------------------------------------------------------------


class Larger(Random):
    """Integers up to a third beyond the range that tasks.py asks for, never inside it."""

    def randint(self, low, high):
        return super().randint(high + 1, high + max(2, high // 3))


class LargerStart(Larger):
    """The same for the first number of toy-gsm8k only; its first event is then a loss, or few of
    its problems would end below 60."""

    def randint(self, low, high):
        first = (low, high) == (3, 25)
        return super().randint(low, high) if first else Random.randint(self, low, high)

    def choice(self, options):
        return "lose" if options == ("buy", "lose") else super().choice(options)


def beyond(item):
    """Whether a number was drawn by Larger: some code has none. The checker's grid ends at 12, so
    it cannot tell `b > 12` from `b > 13`."""
    numbers = [int(n) for n in re.findall(r"\d+", item.prompt)]
    return max(numbers, default=0) > 9 and not re.search(r"if [a-z] is above 12", item.prompt)


def larger(bench, n, seed):
    """n different problems of a benchmark with larger numbers. No split has them."""
    coin = (LargerStart if bench == "toy-gsm8k" else Larger)(f"larger {bench} {seed}")
    items = {}
    for _ in range(100 * n):
        skill = coin.choice(tasks.SKILLS[bench])
        item = tasks.Item(bench, skill, *tasks.GENERATORS[bench](coin, skill))
        if beyond(item):
            items.setdefault(item.key, item)
        if len(items) == n:
            return list(items.values())
    raise script.UserError(
        f"--prompts {n}: {bench} has only {len(items)} problems with larger numbers"
    )


# --- new phrasings -------------------------------------------------------------------------------

PHRASES = {
    "toy-gsm8k": [
        (r" has (\d)", r" owns \1"),
        (r"How many (\w+) does (\w+) have now\?", r"Count the \1 that \2 owns at the end."),
        (r"How many (\w+) are there now\?", r"Count the \1 at the end."),
        (r"Then (\w+) ", r"Afterwards \1 "),
    ],
    "toy-math500": [
        (r"^(What is x if|What is|What comes next:) ", r"Tell me: "),
        (r"^(Find x if|Find x:|Find the next number:|Find) ", "Determine "),
        (r"^(Solve|Compute|Continue|Evaluate) ", "Handle "),
        (r"^(Let|Suppose) ", "Take "),
        (r"\. (What is|Find) f", r". Determine f"),
    ],
    "toy-mbpp": [(r"^(?:Write|Define)( a function .*) that returns ", r"I need\1 which gives ")],
    "toy-humaneval": [(r"^(Complete|Finish) this function\.", "The body is missing:")],
    "toy-ifeval": [(r"^(Write|List|Give) ", "Please print ")],
}


def rephrased(item):
    """The item in a phrasing that is not in tasks.py."""
    prompt = item.prompt
    for old, new in PHRASES[item.bench]:
        prompt = re.sub(old, new, prompt)
    rest = item.answer, item.kind, item.gold
    return tasks.Item(item.bench, item.skill, item.key, prompt, *rest)


# --- a sixth benchmark ---------------------------------------------------------------------------


def sixth(rng):
    """A problem of three kinds: the larger of two numbers, how many words, the last word."""
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
    shape = "last" if kind == "last" else "number"
    return tasks.Item("sixth", kind, prompt, prompt, answer, shape, gold)


def check(item, text):
    """judge.check knows only its own words: here a list of words must be right letter by letter."""
    if item.kind in ("words", "last"):
        return text.rstrip() == item.answer
    return judge.check(item, text)


def shifted(usual, s):
    """shift -> {benchmark: items}, the benchmarks that it changes. usual: the ordinary ones."""
    rng = Random(f"sixth {s.seed}")
    return {
        "as trained": usual,
        "new words": {b: list(map(renamed, usual[b])) for b in NEW},
        "numbers out of range": {
            b: larger(b, s.prompts, s.seed) for b in usual if b != "toy-ifeval"
        },
        "new phrasings": {b: list(map(rephrased, items)) for b, items in usual.items()},
        "a sixth benchmark": {"sixth": [sixth(rng) for _ in range(s.prompts)]},
    }
