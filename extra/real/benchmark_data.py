"""Real text for benchmarks.py: public sets -> samples of three domains, in parts nobody shares.

A sample's part follows from a hash of its prompt, or from its set's own split:

    expert    what one expert is trained on; the generalist gets all three
    router    phase 1, all domains; no expert saw it
    pairs     prompts for phase 2, which can be checked; no expert and no phase 1 saw them
    valid     for the temperatures
    test      for the figures: GSM8K's and MBPP's own test, HumanEval, a share of general samples
    asked     IFEval: prompts without a right answer, whose instructions lm-eval checks

Model-written code is run by `passes`: in a process of its own, in an empty directory, with limits
of time, memory and file size. That is no sandbox against malice.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from toy_experts.script import UserError

DOMAINS = ["math", "code", "general"]  # the order of W's rows
LONGEST = 1500  # characters of prompt and answer together; longer samples are left out
SHARES = {  # of a set without splits of its own, part -> share
    "gsm8k-train.jsonl": {"expert": 0.65, "router": 0.2, "pairs": 0.1, "valid": 0.05},
    "mbpp.jsonl": {"expert": 0.5, "router": 0.2, "pairs": 0.3},  # of its train part
    "codegen-instruct.json": {"expert": 0.8, "router": 0.2},
    "general": {"expert": 0.5, "router": 0.2, "valid": 0.1, "test": 0.2},
}
SETS = [  # domain, file; in a part of several sets, the first come first
    ("math", "gsm8k-train.jsonl"),
    ("math", "gsm8k-test.jsonl"),
    ("code", "mbpp.jsonl"),
    ("code", "humaneval.jsonl"),
    ("code", "codegen-instruct.json"),
    ("general", "roleplay.json"),
    ("general", "seed-tasks.jsonl"),
    ("general", "ifeval.jsonl"),
]
# Instructions whose checks need data that nltk downloads: prompts with them are left out.
DOWNLOADS = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
WHERE = (
    "GSM8K is openai/gsm8k on the Hub (also openai/grade-school-math on GitHub), MBPP is "
    "google-research-datasets/mbpp, HumanEval openai/openai_humaneval, IFEval google/IFEval; "
    "codegen-instruct and roleplay are in teknium1/GPTeacher, seed-tasks in yizhongw/self-instruct"
)


def fraction(text):
    """A number in [0, 1) that a text always has."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def by_hash(prompt, shares):
    at = fraction(prompt)
    for part, share in shares.items():
        if at < share:
            return part
        at -= share
    return part  # the shares add up to 1, up to rounding


def gsm8k_train(row):
    prompt, answer = row["question"], re.sub(r"<<.*?>>", "", row["answer"])
    return by_hash(prompt, SHARES["gsm8k-train.jsonl"]), prompt, answer, answer


def gsm8k_test(row):
    return "test", *gsm8k_train(row)[1:]


def mbpp(row):
    prompt = f"{row['text']}\nYour code should pass this test:\n{row['test_list'][0]}"
    number = row["task_id"]
    part = None if number <= 10 else "test" if number <= 510 else "valid"
    if number > 600:
        part = by_hash(prompt, SHARES["mbpp.jsonl"])
    check = "\n".join([row["test_setup_code"], *row["test_list"]])
    return part, prompt, row["code"].replace("\r", ""), check


def humaneval(row):
    prompt = f"Write the body of this Python function.\n\n{row['prompt']}"
    check = f"{row['test']}\ncheck({row['entry_point']})"
    return "test", prompt, row["canonical_solution"].rstrip(), check


def instruction(row, kind):
    prompt = "\n".join(x for x in (row["instruction"], row["input"]) if x)
    return by_hash(prompt, SHARES[kind]), prompt, row["response"], None


def seed_task(row):
    first = row["instances"][0]
    row = {"instruction": row["instruction"], "input": first["input"], "response": first["output"]}
    return instruction(row, "general")


def ifeval(row):
    kinds = [kind.removeprefix("en:") for kind in row["instruction_id_list"]]
    part = "asked" if DOWNLOADS.isdisjoint(kinds) else None
    return part, row["prompt"], "", {"instruction_id_list": kinds, "kwargs": row["kwargs"]}


READERS = {  # row -> part, prompt, answer, what `right` needs
    "gsm8k-train.jsonl": gsm8k_train,
    "gsm8k-test.jsonl": gsm8k_test,
    "mbpp.jsonl": mbpp,
    "humaneval.jsonl": humaneval,
    "codegen-instruct.json": lambda row: instruction(row, "codegen-instruct.json"),
    "roleplay.json": lambda row: instruction(row, "general"),
    "seed-tasks.jsonl": seed_task,
    "ifeval.jsonl": ifeval,
}


def rows(path):
    """The rows of a file, JSON Lines or one JSON array."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; {WHERE}")
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text) if path.suffix == ".json" else list(map(json.loads, lines(text)))
    except ValueError as e:
        raise UserError(f"{path} is no {path.suffix[1:]} file: {e}") from e


def lines(text):
    return [line for line in text.split("\n") if line.strip()]


def samples(folder):
    """{(domain, part): samples}, each {"set", "prompt", "completion", "check"}.

    Their order is that of the hashes, so the first n are a random draw, the same for everybody.
    """
    found, seen = {}, set()
    for domain, file in SETS:
        new = {}
        for number, row in enumerate(rows(Path(folder) / file), 1):
            try:
                part, prompt, answer, check = READERS[file](row)
            except (KeyError, IndexError, TypeError) as e:
                raise UserError(
                    f"{folder}/{file}, row {number}: has not the set's fields: {e}"
                ) from e
            useful = answer.strip() or part == "asked"
            if part and useful and len(prompt + answer) <= LONGEST and prompt not in seen:
                seen.add(prompt)
                sample = {"set": file.partition(".")[0], "prompt": prompt, "completion": answer}
                new.setdefault(part, []).append(sample | {"check": check})
        for part, some in new.items():
            some.sort(key=lambda x: fraction("order" + x["prompt"]))
            found.setdefault((domain, part), []).extend(some)
    for part in SHARES["general"]:  # two sets, mixed
        found["general", part].sort(key=lambda x: fraction("order" + x["prompt"]))
    return found


def draw(found, part, n, domains=DOMAINS):
    """The first n of each domain's part, HumanEval as many as MBPP. Each knows its domain."""
    out = []
    for domain in domains:
        some = found[domain, part]
        if part == "test" and domain == "code":
            sets = [[x for x in some if x["set"] == name] for name in ("mbpp", "humaneval")]
            some = [x for pair in zip(*sets) for x in pair]
        out += [x | {"domain": domain} for x in some[:n]]
    return out


# --- is an answer right? -------------------------------------------------------------------------


def final_number(text):
    """The number after ####, or None."""
    found = re.search(r"####\s*\$?(-?[\d,]*\.?\d+)", text)
    return float(found[1].replace(",", "")) if found else None


def passes(code, seconds=5, megabytes=512):
    """Whether Python code runs to its end, in a process of its own with limits."""
    limits = (
        "import resource as r, signal\n"
        f"r.setrlimit(r.RLIMIT_CPU, ({seconds}, {seconds}))\n"
        f"r.setrlimit(r.RLIMIT_AS, ({megabytes} << 20, {megabytes} << 20))\n"
        "r.setrlimit(r.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "exec(compile(open('code.py').read(), 'code.py', 'exec'), {'__name__': 'code'})\n"
        "open('ended', 'w').close()\n"  # an exit(0) in the middle is no success
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "code.py").write_text(code, encoding="utf-8", errors="replace")
        how = {"cwd": folder, "stdin": subprocess.DEVNULL, "env": {}, "timeout": seconds + 5}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            subprocess.run([sys.executable, "-I", "-c", limits], **how, **quiet)
        except subprocess.TimeoutExpired:
            return False
        return Path(folder, "ended").exists()


def ifeval_rules():
    try:
        import langdetect
        from lm_eval.tasks.ifeval import utils
    except ImportError as e:
        hint = 'pip install "lm_eval[ifeval]==0.4.13", or say --ifeval 0'
        raise UserError(f"IFEval's rules are in another package: {hint}") from e
    langdetect.DetectorFactory.seed = 0  # else it guesses the language of a short answer by chance
    return utils


def right(sample, answer):
    """Whether an answer to a sample of GSM8K, MBPP or HumanEval is right.

    To one of IFEval: whether it follows all instructions, by the strict rules.
    """
    if sample["set"] == "ifeval":
        rules = ifeval_rules()
        asked = rules.InputExample(0, prompt=sample["prompt"], **sample["check"])
        return rules.test_instruction_following_strict(asked, answer).follow_all_instructions
    if sample["set"].startswith("gsm8k"):
        return final_number(answer) == final_number(sample["check"])
    fenced = re.search(r"```(?:python)?\n(.*?)(?:```|$)", answer, re.S)
    code = fenced[1] if fenced else answer
    if sample["set"] == "humaneval":  # a body, or the whole function again
        start = sample["prompt"].partition("\n\n")[2]
        name = re.search(r"check\((\w+)\)$", sample["check"])[1]
        code = f"{start}    pass\n\n{code}" if f"def {name}(" in code else start + code
    return passes(f"{code}\n{sample['check']}")
