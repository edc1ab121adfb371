"""FusionRoute with a real language model on a laptop: SmolLM2-135M, three experts fine-tuned from it, and a router over them.

    bash extra/real/run_smollm2.sh            all of it, in about half an hour; docs/real-models.md shows what comes out
    python -m extra.real.smollm2 data         SMOL/{math,code,instruct,router}.jsonl, from the generators in toy_experts/tasks.py
    python -m extra.real.smollm2 pairs        SMOL/pairs.jsonl: right answers against wrong ones that the fused model of phase 1 sampled
    python -m extra.real.smollm2 evaluate     extra/results/smollm2.json: every method on held-out test prompts
    python -m extra.real.smollm2 publish      docs/real-models.md from it

The training is train_sft's and train_cdpo's here: see run_smollm2.sh. As in the toy, a quarter of the sub-skills is kept from
every expert's data and is in the router's, and a problem's split is a hash of its content: no test problem was ever trained on.
"""

import contextlib
import io
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm

from extra import common
from extra.common import RESULTS, fill, percent, table
from extra.gpt import Router
from extra.real import decode, own
from toy_experts import run, tasks
from toy_experts.run import write

ROOT = Path(__file__).parents[2]
RESULT, PAGE = RESULTS / "smollm2.json", ROOT / "docs" / "real-models.md"
SCRIPT = Path(__file__).parent / "run_smollm2.sh"
COMMAND = "python -m extra.real.smollm2 publish"
EXPERTS = list(tasks.DOMAINS)  # math, code, instruct
MAX_NEW = 64  # longest answer, in tokens
METHODS = {  # whom they need -> method -> how decode.decode_batch computes it
    "alone": {name: {"use_router": False, "only": i} for i, name in enumerate([*EXPERTS, "smollm2"])},
    "router_sft": {"sft_only": {}},
    "router": {"fusionroute": {}, "routing_only": {"use_router": False}, "router": {"use_expert": False}},
}
NAMES = {"sft_only": "phase 1 only", "fusionroute": "**FusionRoute**", "routing_only": "routing only", "router": "the router alone",
         "smollm2": "SmolLM2 as it comes"}
LABELS = {"router_sft": "scoring and phase 1", "router": "scoring and phase 2", "pairs": "sampling pairs", "evaluation": "evaluation"}


@dataclass
class Settings:
    seed: int = 0              # of the data: which problems, and which sub-skills no expert is trained on
    out: str = "smol"          # where data, experts and routers lie
    model: str = "smollm2"     # the directory that convert_smollm2.py wrote
    gap: float = 0.25          # share of each benchmark's sub-skills that no expert is trained on
    expert: int = 320          # samples for each expert, of its own domain
    router: int = 240          # SFT samples for the router, of all domains and sub-skills
    prompts: int = 60          # prompts to sample pairs from, of the preference split
    tests: int = 10            # test prompts a benchmark
    batch: int = 20            # prompts decoded together

    def __post_init__(self):
        run.positive(self, "expert", "router", "prompts", "tests", "batch")


def write_lines(path, records):
    write(path, "".join(json.dumps(r) + "\n" for r in records))
    print(f"saved {path}, {len(records)} lines")


def data(s):
    """The experts' and the router's samples as {"prompt", "completion"} lines."""
    sets = {"router": tasks.mixed("train", s.router, Random(f"smollm2 router {s.seed}"), tasks.BENCHMARKS)}
    for name, benches in tasks.DOMAINS.items():
        rng, items = Random(f"smollm2 {name} {s.seed}"), []
        for bench in benches:
            covered = [skill for skill in tasks.SKILLS[bench] if skill not in tasks.held_out(bench, s.gap, s.seed)]
            items += tasks.dataset(bench, "train", s.expert // len(benches), rng, covered)
        sets[name] = items
    for name, items in sets.items():
        write_lines(Path(s.out) / f"{name}.jsonl", [{"prompt": item.prompt, "completion": item.answer} for item in items])


def fused(s, name):
    """own.Setup, Router and experts, all in memory. name: of a router in SMOL/seed0; "alone": none, and SmolLM2 as a fourth expert."""
    experts, start = [f"{e}={Path(s.out) / 'seed0' / e}" for e in EXPERTS], {"init": s.model}
    if name != "alone":
        start = {"router": str(Path(s.out) / "seed0" / name)}
    setup = own.Setup(own.Flags(**start, experts=experts, max_new=MAX_NEW), torch.device("cpu"))
    if name != "alone":
        return setup, *setup.models()
    experts = [setup.load(path).requires_grad_(False) for path in [*setup.directories.values(), setup.first]]
    return setup, Router(experts[-1], len(experts)), experts


def answers(setup, router, experts, items, batch, **how):
    """decode.decode_batch on the items' prompts, those of similar length together: a Trace and a text each, in the items' order."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    traces, texts = [None] * len(items), [None] * len(items)
    for k in tqdm(range(0, len(items), batch), desc="answering", mininterval=1.0):
        rows = order[k:k + batch]
        prompts = [setup.encode_prompt(items[i].prompt) for i in rows]
        for i, trace in zip(rows, decode.decode_batch(router, experts, prompts, setup.ends, MAX_NEW, **how)):
            traces[i], texts[i] = trace, setup.tokenizer.decode(decode.answer_ids(trace, setup.ends))
    return traces, texts


def pairs(s):
    """Preference pairs: on prompts where the fused model of phase 1, at temperature 1, says something wrong, that against the answer."""
    begun, (setup, router, experts) = time.process_time(), fused(s, "router_sft")

    def sample():
        items = tasks.mixed("preference", s.prompts, Random(f"smollm2 pairs {s.seed}"), tasks.BENCHMARKS)
        _, texts = answers(setup, router, experts, items, s.batch, temperature=1.0, seed=1000 * s.seed)
        wrong = [(item, text) for item, text in zip(items, texts) if not tasks.check(item, text)]
        return {"cpu": time.process_time() - begun, "pairs": [
            {"prompt": item.prompt, "chosen": item.answer, "rejected": text} for item, text in wrong]}

    made_from = [own.fingerprint(setup.first), setup.fingerprints, common.fingerprints(["W"], [router.W])]
    key = [s.seed, s.prompts, s.batch, MAX_NEW, made_from]
    write_lines(Path(s.out) / "pairs.jsonl", common.cached(Path(s.out) / "pairs.json", key, sample)["pairs"])


# --- what came out --------------------------------------------------------------------------------------------------------------------


def said(s, name, items):
    """What the methods that need `name` (see METHODS) answer; it is kept in SMOL, so that an interrupted evaluation goes on."""
    setup, router, experts = fused(s, name)
    made_from = [own.fingerprint(s.model), own.fingerprint(setup.first), setup.fingerprints, common.fingerprints(["W"], [router.W])]
    key = [s.seed, s.tests, MAX_NEW, made_from]
    out = {}
    for method, how in METHODS[name].items():
        def compute():
            begun = time.process_time()
            traces, texts = answers(setup, router, experts, items, s.batch, **how)
            return {"cpu": time.process_time() - begun, "texts": texts, "picks": [[EXPERTS[i] for i in t.pick if i < 3] for t in traces],
                    "changed": [sum(a != b for a, b in zip(t.tokens, t.expert_choice)) for t in traces],
                    "ended": [decode.ended(t, setup.ends) for t in traces]}
        out[method] = common.cached(Path(s.out) / f"answers-{method}.json", key, compute)
    return out, (setup, router, experts)


def tests(s):
    return [item for bench in tasks.BENCHMARKS for item in tasks.dataset(bench, "test", s.tests, Random(f"smollm2 test {s.seed}"))]


def evaluate(s):
    """extra/results/smollm2.json."""
    items, answered, cpu, memory = tests(s), {}, {}, {}
    for name in METHODS:
        more, (setup, router, experts) = said(s, name, items)
        answered |= more
    for name in [*EXPERTS, "router_sft", "router"]:
        left = setup.read(Path(s.out) / "seed0" / name / own.FILE, "bash extra/real/run_smollm2.sh")
        cpu[name], memory[name] = round(left["cpu"]), left["memory"]
    sampled = json.loads((Path(s.out) / "pairs.json").read_text())["result"]
    cpu |= {"pairs": round(sampled["cpu"]), "evaluation": round(sum(r["cpu"] for r in answered.values()))}
    gone = {bench: tasks.held_out(bench, s.gap, s.seed) for bench in tasks.BENCHMARKS}
    groups = {bench: lambda item, bench=bench: item.bench == bench for bench in tasks.BENCHMARKS} | {
        "average": lambda item: True, "covered": lambda item: item.skill not in gone[item.bench],
        "uncovered": lambda item: item.skill in gone[item.bench]}
    mean = lambda values: round(sum(values) / max(1, len(values)), 4)
    result = {"meta": {"settings": asdict(s), "held_out": gone, "cpu_seconds": cpu, "memory": memory, "pairs": len(sampled["pairs"]),
                       "prompts": {g: sum(map(member, items)) for g, member in groups.items()}, "torch": torch.__version__,
                       "machine": machine()}}
    for kind, judge in (("accuracy", tasks.check), ("content", tasks.right)):
        right = {method: [judge(item, text) for item, text in zip(items, r["texts"])] for method, r in answered.items()}
        result[kind] = {method: {group: mean([ok for ok, item in zip(oks, items) if member(item)]) for group, member in groups.items()}
                        for method, oks in right.items()}
    picks = answered["fusionroute"]["picks"]
    result["routing"] = {b: {e: mean([p == e for item, row in zip(items, picks) if item.bench == b for p in row]) for e in EXPERTS}
                         for b in tasks.BENCHMARKS}
    result["changed"] = mean(answered["fusionroute"]["changed"]) / (sum(map(len, picks)) / len(picks))
    result["ended"] = {method: mean(r["ended"]) for method, r in answered.items()}
    result["examples"] = [example(next(item for item in items if item.bench == b).prompt, setup, router, experts) for b in tasks.BENCHMARKS]
    result["meta"]["memory"]["answering"] = common.peak_memory()
    write(RESULT, json.dumps(result, indent=1) + "\n")
    print(f"saved {RESULT}\n\n{report(result)}")


def example(prompt, setup, router, experts):
    """A prompt and its answer as decode.py shows them where there are no colours."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        decode.respond(prompt, router, experts, decode.Settings(), False, setup)
    return f"prompt> {prompt.strip()}\n{out.getvalue().rstrip()}"


def machine():
    return f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)} of {os.cpu_count()} CPU cores"


def report(r):
    """What extra/results/smollm2.json says, as Markdown."""
    meta, short = r["meta"], lambda b: b.removeprefix("toy-")
    s, cpu, memory = meta["settings"], meta["cpu_seconds"], meta["memory"]
    columns = [*tasks.BENCHMARKS, "average", "covered", "uncovered"]
    rows = [["method", *map(short, columns), "content"]]
    for method, row in sorted(r["accuracy"].items(), key=lambda item: -item[1]["average"]):
        rows.append([NAMES.get(method, f"{method} expert"), *(percent(row[c]) for c in columns), percent(r["content"][method]["average"])])
    routing = [["answers to", *EXPERTS]] + [[short(b), *(percent(row[e]) for e in EXPERTS)] for b, row in r["routing"].items()]
    gib = lambda name: f"{memory[name] / 2**30:.1f}"
    return "\n".join([
        f"{s['tests']} test prompts per benchmark, {meta['prompts']['average']} in all, one run; per cent right in content and form. "
        f"`covered`: the {meta['prompts']['covered']} prompts of sub-skills that the experts were trained on; `uncovered`: the "
        f"{meta['prompts']['uncovered']} others. `content`: right whatever the form, of all prompts.", "", *table(rows), "",
        f"Of {s['prompts']} prompts, {meta['pairs']} gave a preference pair. FusionRoute ended {percent(r['ended']['fusionroute'])}% of "
        f"its answers by itself within {MAX_NEW} tokens, and SmolLM2 as it comes {percent(r['ended']['smollm2'])}%. "
        f"{100 * r['changed']:.1f}% of the tokens are not what the picked expert wanted. The share of each expert in them all:", "",
        *table(routing), "",
        f"Minutes of CPU time, with {meta['machine']}: " + ", ".join(
            f"{LABELS.get(name, name + ' expert')} {x / 60:.1f}" for name, x in cpu.items())
        + f"; {sum(cpu.values()) / 60:.0f} in all. Peak memory of a process: {gib('router_sft')} GiB in phase 1, {gib('router')} in "
        f"phase 2, {gib('answering')} in the evaluation, with four models loaded."])


def publish(s):
    result, page = json.loads(RESULT.read_text()), PAGE.read_text()
    write(PAGE, fill(page, blocks(result), COMMAND))
    print(f"saved {PAGE}")


def answer_in(shown):
    """The text of an answer from what decode.show printed of it: a line without a name goes on in a new line of the answer."""
    text = ""
    for line in re.split(r"\n\(\d+ tokens", shown)[0].split("\n"):
        name, _, said = line.partition(" | ")
        text += said if name.strip() else f"\n{said}"
    return text.replace("«", "").replace("»", "")


def judged(result):
    """Which of the examples are right in content and form, by the checkers; of the others, a right answer."""
    right, wrong, items = [], [], tests(Settings(**result["meta"]["settings"]))
    for bench, shown in zip(tasks.BENCHMARKS, result["examples"]):
        item, name = next(item for item in items if item.bench == bench), bench.removeprefix("toy-")
        if tasks.check(item, answer_in(shown.removeprefix(f"prompt> {item.prompt.strip()}\n"))):
            right.append(name)
        else:
            wrong.append(f"{name} (a right answer: `{item.answer}`)".replace("\n", " / "))
    return f"Right in content and form: {', '.join(right) or 'none'}. Wrong: {', '.join(wrong) or 'none'}."


def blocks(result):
    return {"smollm2": report(result), "examples": judged(result) + "\n\n```\n" + "\n\n".join(result["examples"]) + "\n```",
            "commands": "```bash\n" + SCRIPT.read_text().partition("set -euo pipefail\n")[2].strip() + "\n```"}


def main(argv=None):
    p = run.parser(Settings, __doc__)
    p.add_argument("what", choices=["data", "pairs", "evaluate", "publish"], help="see above")
    args = vars(p.parse_args(argv))
    what, s = args.pop("what"), Settings(**args)
    Path(s.out).mkdir(parents=True, exist_ok=True)
    {"data": data, "pairs": pairs, "evaluate": evaluate, "publish": publish}[what](s)


if __name__ == "__main__":
    run.run(main)
