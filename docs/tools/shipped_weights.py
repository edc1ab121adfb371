"""Makes toy_experts/weights/: a trained run in half precision, so that the first answer needs no
training.

    python -m docs.tools.shipped_weights              from OUT/seed0, after both trainings
    python -m docs.tools.shipped_weights --seed 3     from another run

Besides the weights it copies the trainings' logs and one preference pair, and it writes check.json:
digests of 100 answers by the run itself, in single precision. A test compares.
"""

import hashlib
import json
from dataclasses import dataclass
from random import Random

import torch

from toy_experts import script, tasks
from toy_experts.decode_batch import answers
from toy_experts.script import EXPERTS

ROUTERS = ["router_sft", "router"]


@dataclass
class Settings:
    seed: int = 0  # selects the run
    out: str = "out"  # runs are kept in OUT/seedN/


def half(content):
    """A checkpoint's content with its tensors in half precision; the tied head is stored once."""
    done = {}
    model = {name: done.setdefault(p.data_ptr(), p.half()) for name, p in content["model"].items()}
    return content | {"model": model}


def digests(folder, seed):
    """Of what a run's FusionRoute answers to 100 test prompts, 20 of each benchmark."""
    router, experts, _ = script.load_router(folder, "router", "cpu", "run bash run.sh")
    items = []
    for b in tasks.BENCHMARKS:
        items += tasks.dataset(b, "test", 200, Random(f"weights {b} {seed}"))[::10]
    texts = [trace.text() for trace in answers(router, experts, items)]
    return [hashlib.sha256(text.encode()).hexdigest()[:6] for text in texts]


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    folder, hint = script.run_dir(s), f"run bash run.sh{script.flags(s)}"
    script.load_router(folder, "router", "cpu", hint)  # are all files there, do they fit?
    script.WEIGHTS.mkdir(exist_ok=True)
    contents = {
        name: script.load(folder / f"{name}.pt", ("model",), hint) for name in EXPERTS + ROUTERS
    }
    for name, content in contents.items():
        script.write(script.WEIGHTS / f"{name}.pt", lambda f: torch.save(half(content), f))
    # A router's checkpoint names its experts by their exact weights, which rounding has changed.
    experts = {name: script.load_model(script.WEIGHTS / f"{name}.pt", hint)[0] for name in EXPERTS}
    names = {name: script.fingerprint(expert) for name, expert in experts.items()}
    for name in ROUTERS:
        content = half(contents[name]) | {"experts": names}
        script.write(script.WEIGHTS / f"{name}.pt", lambda f: torch.save(content, f))
        script.write(
            script.WEIGHTS / f"{name}.log.jsonl", (folder / f"{name}.log.jsonl").read_text()
        )
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    script.write(script.WEIGHTS / "pair.json", json.dumps(pairs[len(pairs) // 2], indent=1) + "\n")
    check = {"seed": s.seed, "answers of the run": digests(folder, s.seed)}
    script.write(script.WEIGHTS / "check.json", json.dumps(check) + "\n")
    size = sum(p.stat().st_size for p in script.WEIGHTS.glob("*.pt"))
    print(f"saved {script.WEIGHTS}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    script.run(main)
