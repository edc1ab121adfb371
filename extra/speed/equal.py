"""Does block decoding write what the plain loop writes? Both, token for token, on every test prompt of evaluate.py, of every run.

    python -m speed.equal                                              eight minutes or so; writes results/equality.json and docs/speed.md
    python -m speed.equal --family gemma --prompts 150 --general 250    the other family's runs

Compared are tokens, picks and the experts' own choices. The plain loop works in batches, as in evaluate.py, and so by the other half
of model.py and fast.py: a disagreement between them would show up here. Beside them stands how near it came: a token can only change where
the two best of Eq. (1) lie closer together than rounding moves them, and a pick where two w do. In bfloat16 that may be: the same
models, rounded to it, show how often. Fewer runs or prompts than those of results/table1.json go to OUT/equality.json.
"""

import json
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

import common
import decode
import evaluate
from decode import block_decode, known_texts, read_block
from fusionroute import fuse
from report import fill
from speed.page import COMMAND, equal_lines
from toy_experts import tasks, tokenizer

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"


@dataclass
class Settings:
    out: str = "out"                           # runs are in OUT/seedN/, and all of them are read
    device: str = "cpu"                        # auto, cuda, mps or cpu
    family: str = "llama"                      # architecture of the toy's models: llama or gemma (Gemma-2)
    prompts: int = evaluate.Settings.prompts   # test prompts a benchmark
    general: int = evaluate.Settings.general   # general test prompts

    def __post_init__(self):
        common.positive(self, "prompts", "general")


def run_of(s, seed):
    """decode.py's settings for one run."""
    return decode.Settings(seed=seed, out=s.out, device=s.device, family=s.family)


def seeds(s):
    """Of all runs that have a router."""
    return sorted(int(path.parent.name.removeprefix("seed")) for path in common.run_dir(run_of(s, 0)).parent.glob("seed*/router.pt"))


def values(router, experts, prompt, trace, at_once):
    """What decides each token of an answer, computed anew: Eq. (1) (T, V) and w (T, n), read in one pass or token by token."""
    text, n, outputs = prompt + trace.tokens[:-1], len(trace.tokens), []
    for model, lm in zip([router, *experts], [router.lm, *experts]):
        cache = lm.new_cache(1)
        parts = [read_block(model, cache, text[:end]) for end in ([len(text)] if at_once else range(len(prompt), len(text) + 1))]
        outputs.append([torch.cat(x)[-n:] for x in zip(*parts)])                            # (T, V), (T, n) or (T, d)
    (logits, w), *others = outputs
    picked = torch.stack([x for x, _ in others])[torch.tensor(trace.pick), torch.arange(n)]  # (T, V)
    return fuse(logits, picked), w


def items_of(b, n, seed):
    return tasks.dataset(b, "test", n, Random(f"test {b} {seed}"))  # as evaluate.py has them


@torch.no_grad()
def equality(router, experts, seed, prompts, general):
    """A run's answers to so many test prompts of each benchmark, and general ones, decoded both ways."""
    end, max_new, lookup = tokenizer.END, decode.MAX_NEW, known_texts()
    blocks, pairs, gaps, errors = [], [], [], []
    for b in evaluate.BENCHES:
        items = items_of(b, general if b == "general" else prompts, seed)
        for j, (item, plain) in enumerate(zip(items, evaluate.in_batches(evaluate.traces(router, experts), items))):
            p = tokenizer.encode_prompt(item.prompt)
            blocks.append(block_decode(router, experts, p, end, max_new, decode.Settings.block, lookup))
            pairs.append((plain, blocks[-1]))
            whole = values(router, experts, p, plain, at_once=True)
            gaps.append([float(-x.topk(2).values.diff().max()) for x in whole])
            if j % 10 == 0:
                single = values(router, experts, p, plain, at_once=False)
                errors.append([float((x - y).abs().max()) for x, y in zip(whole, single)])
    different = {name: sum(getattr(x, name) != getattr(y, name) for x, y in pairs) for name in ("tokens", "pick", "expert_choice")}
    return {"prompts": len(pairs), "tokens": sum(len(t.tokens) for t in blocks), "different": sum(
                x.tokens != y.tokens or x.pick != y.pick or x.expert_choice != y.expert_choice for x, y in pairs),
            "different_in": different, "least_gap": [min(x) for x in zip(*gaps)], "largest_rounding": [max(x) for x in zip(*errors)],
            **counted(blocks)}


def in_bfloat16(router, experts, seed, n=20):
    """The same of models rounded to bfloat16, n prompts of each kind, one by one: (answers, those with other tokens)."""
    router, experts = deepcopy(router).bfloat16(), [deepcopy(e).bfloat16() for e in experts]
    prompts = [tokenizer.encode_prompt(item.prompt) for b in evaluate.BENCHES for item in items_of(b, n, seed)]
    tokens = [[block_decode(router, experts, p, tokenizer.END, decode.MAX_NEW, k, lookup).tokens for p in prompts]
              for k, lookup in ((1, None), (decode.Settings.block, known_texts()))]
    return len(prompts), sum(x != y for x, y in zip(*tokens))


def counted(traces):
    """What block decoding did, summed over its Traces."""
    tokens, blocks = sum(len(t.tokens) for t in traces), sum(t.blocks for t in traces)
    drafted, router, expert = (sum(getattr(t, name) for t in traces) for name in ("drafted", "router_passes", "expert_passes"))
    return {"kept_of_drafted": round(tokens / drafted, 4), "tokens_a_block": round(tokens / blocks, 3),
            "router_passes": round(router / tokens, 4), "expert_passes": round(expert / tokens, 4)}


def main(argv=None):
    s, begun, result = common.settings(Settings, __doc__, argv), time.time(), {"seeds": {}}
    if not seeds(s):
        raise common.UserError(f"no run in {common.run_dir(run_of(s, 0)).parent}/: run bash run.sh first")
    for seed in seeds(s):
        models = decode.load(run_of(s, seed), "router")
        e = result["seeds"][str(seed)] = equality(*models, seed, s.prompts, s.general)
        e["bfloat16"] = in_bfloat16(*models, seed)
        print(f"seed {seed}: {e['prompts'] - e['different']} of {e['prompts']} equal, {time.time() - begun:.0f} s", flush=True)
    result["meta"] = {"prompts": s.prompts, "general": s.general, "torch": torch.__version__.split("+")[0], "device": s.device,
                      "threads": torch.get_num_threads(), "seconds": round(time.time() - begun)}
    table = json.loads((RESULTS / "table1.json").read_text())["meta"][s.family]
    if [s.prompts, s.general, *result["seeds"]] != [table["prompts per benchmark"], table["general prompts"], *map(str, table["seeds"])]:
        common.write(Path(s.out) / "equality.json", json.dumps(result, indent=1) + "\n")
        return print(f"saved {s.out}/equality.json: published are the runs and prompts of results/table1.json")
    everything = json.loads((RESULTS / "equality.json").read_text()) | {s.family: result}
    common.write(RESULTS / "equality.json", json.dumps(everything, indent=1) + "\n")
    page = ROOT / "docs" / "speed.md"
    common.write(page, fill(page.read_text(), {"equality": equal_lines(everything)}, COMMAND["equality"]))
    print("saved results/equality.json and docs/speed.md")


if __name__ == "__main__":
    common.run(main)
