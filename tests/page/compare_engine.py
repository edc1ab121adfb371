"""Compares page/engine.js with decode_batch on 500 test prompts: the same picks and tokens?

    python tests/page/compare_engine.py     takes a minute; writes page/engine_equals_decode.json

A test checks that the record belongs to today's engine.js and weights, and repeats 25 prompts.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "page" / "engine_equals_decode.json"
sys.path.insert(0, str(ROOT))

from decode import METHODS  # noqa: E402
from page.__main__ import collect  # noqa: E402
from toy_experts import script, tasks, tokenizer  # noqa: E402
from toy_experts.decode_batch import decode_batch  # noqa: E402
from toy_experts.script import EXPERTS, WEIGHTS, load_router  # noqa: E402


def prompts_of(n):
    """n prompts of the test split, equal shares of the benchmarks."""
    return [item.prompt for item in tasks.mixed("test", n, Random("page"))]


def made_of(data):
    """What a comparison depends on: the engine's text and the weights' checksums."""
    text = (ROOT / "page" / "engine.js").read_bytes()
    return {
        "engine.js": hashlib.sha256(text).hexdigest()[:16],
        "weights": [model["crc"] for model in data["models"].values()],
    }


def load_models():
    """{name: GPT or Router} of the shipped run's five models."""
    router, experts, _ = load_router(WEIGHTS, "router", "cpu", "")
    router_sft, _, _ = load_router(WEIGHTS, "router_sft", "cpu", "")
    return dict(zip(EXPERTS, experts)) | {"router_sft": router_sft, "router": router}


def call_node(command, data_file, name, argument):
    """What the function `name` of engine_check.js returns for an argument."""
    job_file = data_file.with_name("job.json")
    job_file.write_text(json.dumps(argument))  # ASCII, so that lone surrogates survive
    file = Path(__file__).with_name("engine_check.js")
    p = subprocess.run([command, file, data_file, name, job_file], capture_output=True, text=True)
    if p.returncode:
        raise RuntimeError(p.stderr[-3000:])
    return json.loads(p.stdout)


def different(node, models, prompts, methods):
    """The (prompt, method) for which tokens or picks differ. node: see conftest.py."""
    jobs = [(prompt, method) for method in methods for prompt in prompts]
    found = dict(zip(jobs, node("two_models", jobs)))
    ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    wrong = []
    for method in methods:
        router = models["router_sft" if method == "sft_only" else "router"]
        traces = decode_batch(router, [models[e] for e in EXPERTS], ids, **METHODS[method])
        for prompt, theirs in zip(prompts, traces):
            ours = found[prompt, method]
            if (ours["tokens"], ours["picks"]) != (theirs.tokens, theirs.pick):
                wrong.append((prompt, method))
    return wrong


def main():
    data = collect(WEIGHTS, 0, "run python -m docs.tools.shipped_weights")
    prompts = prompts_of(500)
    with tempfile.TemporaryDirectory() as folder:
        data_file = Path(folder) / "data.json"
        data_file.write_text(json.dumps(data))
        node = lambda name, argument: call_node("node", data_file, name, argument)
        wrong = different(node, load_models(), prompts, ["fusionroute"])
    for prompt, _ in wrong:
        print(f"different: {prompt!r}")
    equal = len(prompts) - len(wrong)
    record = {"prompts": len(prompts), "equal": equal, "made of": made_of(data)}
    script.write(RECORD, json.dumps(record, indent=1) + "\n")
    print(f"saved {RECORD.name}: {equal} of {len(prompts)} equal")


if __name__ == "__main__":
    script.run(main)
