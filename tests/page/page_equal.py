"""Compare page/engine.js with PyTorch on 500 test prompts: the same picks and tokens?

    python tests/page/page_equal.py     takes a minute; writes page/equal.json

A test checks that the record belongs to today's engine.js and weights, and repeats 25 of the prompts.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from fusionroute import fuse  # noqa: E402
from page.__main__ import SHIPPED, collect  # noqa: E402
from toy_experts import script, tasks, tokenizer  # noqa: E402
from toy_experts.batch import MAX_NEW, METHODS  # noqa: E402
from toy_experts.script import EXPERTS, load_router  # noqa: E402


def prompts_of(n):
    """n prompts of the test split, equal shares of the benchmarks."""
    return [i.prompt for i in tasks.mixed("test", n, Random("page"))]


def made_of(data):
    """What a comparison depends on: the engine's text and the weights' checksums."""
    text = (ROOT / "page" / "engine.js").read_bytes()
    return {"engine.js": hashlib.sha256(text).hexdigest()[:16],
            "weights": [model["crc"] for model in data["models"].values()]}


def load_models(folder=SHIPPED):
    """{name: GPT or Router} of a run's five models in PyTorch."""
    router, experts, _ = load_router(folder, "router", "cpu", "")
    router_sft, _, _ = load_router(folder, "router_sft", "cpu", "")
    return dict(zip(EXPERTS, experts)) | {"router_sft": router_sft, "router": router}


@torch.no_grad()
def replay(models, prompts, answers, method):
    """What PyTorch writes after each beginning of the answers: tokens and picks, for each answer.

    If an answer agrees with that everywhere, it is what greedy decoding gives in PyTorch.
    """
    router = models["router_sft" if method == "sft_only" else "router"]
    how, tokens, picks = METHODS[method], {}, {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
    for rows in (order[i:i + 50] for i in range(0, len(order), 50)):
        ids = [torch.tensor(prompts[i] + answers[i][:-1]) for i in rows]
        x = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)           # (b, T)
        router_logits, w = router(x)                                         # (b, T, V), (b, T, n)
        said = torch.stack([models[e](x)[0] for e in EXPERTS], 2)            # (b, T, n, V)
        pick = w.argmax(-1)                                                  # (b, T)
        if "only" in how:
            pick = torch.full_like(pick, how["only"])
        own = said.take_along_dim(pick[..., None, None], 2)[:, :, 0]         # (b, T, V)
        logits = fuse(router_logits, own)
        if "use_expert" in how:
            logits = router_logits
        if "use_router" in how:
            logits = own
        for b, i in enumerate(rows):
            here = slice(len(prompts[i]) - 1, len(prompts[i]) - 1 + len(answers[i]))
            tokens[i], picks[i] = logits[b, here].argmax(-1).tolist(), pick[b, here].tolist()
    return [(tokens[i], picks[i]) for i in range(len(prompts))]


def compare(node, models, prompts, method):
    """The prompts whose tokens or picks differ. node: see conftest.py."""
    found = node("two_models", [[p, method] for p in prompts])
    ids = [tokenizer.encode_prompt(p) for p in prompts]
    theirs = replay(models, ids, [f["tokens"] for f in found], method)
    ended = [f["tokens"][-1] == tokenizer.END or len(f["tokens"]) == MAX_NEW for f in found]
    return [p for p, f, (t, i), e in zip(prompts, found, theirs, ended)
            if not e or f["tokens"] != t or f["picks"] != i]


def call_node(command, data_file, job_file, name, argument):
    """What the function `name` of engine_check.js returns."""
    job_file.write_text(json.dumps(argument))  # ASCII, so that lone surrogates survive
    script = Path(__file__).with_name("engine_check.js")
    p = subprocess.run([command, script, data_file, name, job_file], capture_output=True, text=True)
    if p.returncode:
        raise RuntimeError(p.stderr[-3000:])
    return json.loads(p.stdout)


def main():
    data, models, prompts = collect(SHIPPED, 0, "run python -m toy_experts.weights"), load_models(), prompts_of(500)
    with tempfile.TemporaryDirectory() as folder:
        data_file, job_file = Path(folder) / "data.json", Path(folder) / "job.json"
        data_file.write_text(json.dumps(data))
        different = compare(lambda *job: call_node("node", data_file, job_file, *job), models, prompts, "fusionroute")
    for prompt in different:
        print(f"different: {prompt!r}")
    record = {"prompts": len(prompts), "equal": len(prompts) - len(different), "made of": made_of(data)}
    script.write(ROOT / "page" / "equal.json", json.dumps(record, indent=1) + "\n")
    print(f"saved page/equal.json: {record['equal']} of {record['prompts']} equal")


if __name__ == "__main__":
    script.run(main)
