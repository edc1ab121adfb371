"""Does block decoding write what the plain loop writes? Both, token for token, on every test prompt of extra/paper, of every run.

    python -m extra.speed.equal                                              eight minutes or so; writes extra/results/equality.json
    python -m extra.speed.equal --family gemma --prompts 150 --general 250    the other family's runs

Compared are tokens, picks and the experts' own choices. The plain loop works in batches (toy_experts.batch.answers) and so by model.py
alone; a mistake in fast.py would show up here, too. Beside them is how near they came: a token can only change where the two best of
Eq. (1) are closer together than rounding moves them, and a pick where two w are. In bfloat16 that can happen: the same models, rounded to
it, show how often. With other runs or prompts than those of extra/results/table1.json the result goes to OUT/equality.json; otherwise
docs/speed.md is written, too.
"""

import json
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from extra.common import RESULTS, fill
from extra.speed.block import BLOCK, block_decode, known_texts, read_block
from extra.speed.page import COMMAND, equal_lines
from extra.speed.runs import folder, load
from fusionroute import fuse
from toy_experts import run, tasks, tokenizer
from toy_experts.batch import MAX_NEW, answers

PAGE = Path(__file__).parents[2] / "docs" / "speed.md"
BENCHES = tasks.BENCHMARKS + ["general"]


@dataclass
class Settings:
    out: str = "out"                           # runs are in OUT/seedN/, and all of them are read
    device: str = "cpu"                        # auto, cuda, mps or cpu
    family: str = "llama"                      # architecture of the toy's models: llama or gemma (Gemma-2)
    prompts: int = 300                         # test prompts a benchmark
    general: int = 500                         # general test prompts

    def __post_init__(self):
        run.positive(self, "prompts", "general")


def seeds(s):
    """Of all runs that have a router."""
    return sorted(int(path.parent.name.removeprefix("seed")) for path in folder(s, 0).parent.glob("seed*/router.pt"))


def values(router, experts, prompt, trace, at_once):
    """What decides each token of an answer, computed anew: Eq. (1) (T, V) and w (T, n), read in one pass or token by token."""
    text, n, outputs = prompt + trace.tokens[:-1], len(trace.tokens), []
    for model, lm in zip([router, *experts], [router.lm, *experts]):
        cache = lm.new_cache(1)
        parts = [read_block(model, cache, text, n)] if at_once else [read_block(model, cache, text[:len(prompt) + t], 1) for t in range(n)]
        outputs.append([torch.cat(x) for x in zip(*parts)])                                 # (T, V), (T, n) or (T, d)
    (logits, w), *others = outputs
    picked = torch.stack([x for x, _ in others])[torch.tensor(trace.pick), torch.arange(n)]  # (T, V)
    return fuse(logits, picked), w


def items_of(b, n, seed):
    return tasks.dataset(b, "test", n, Random(f"test {b} {seed}"))  # as extra/paper has them


@torch.no_grad()
def equality(router, experts, seed, prompts, general):
    """A run's answers to so many test prompts of each benchmark, and general ones, decoded both ways."""
    lookup = known_texts()
    blocks, pairs, gaps, errors = [], [], [], []
    for b in BENCHES:
        items = items_of(b, general if b == "general" else prompts, seed)
        for j, (item, plain) in enumerate(zip(items, answers(router, experts, items, max_new=MAX_NEW))):
            p = tokenizer.encode_prompt(item.prompt)
            blocks.append(block_decode(router, experts, p, tokenizer.END, MAX_NEW, BLOCK, lookup))
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
    prompts = [tokenizer.encode_prompt(item.prompt) for b in BENCHES for item in items_of(b, n, seed)]
    tokens = [[block_decode(router, experts, p, tokenizer.END, MAX_NEW, k, lookup).tokens for p in prompts]
              for k, lookup in ((1, None), (BLOCK, known_texts()))]
    return len(prompts), sum(x != y for x, y in zip(*tokens))


def counted(traces):
    """What block decoding did, summed over its Traces."""
    tokens, blocks = sum(len(t.tokens) for t in traces), sum(t.blocks for t in traces)
    drafted, router, expert = (sum(getattr(t, name) for t in traces) for name in ("drafted", "router_passes", "expert_passes"))
    return {"kept_of_drafted": round(tokens / drafted, 4), "tokens_a_block": round(tokens / blocks, 3),
            "router_passes": round(router / tokens, 4), "expert_passes": round(expert / tokens, 4)}


def main(argv=None):
    s, begun, result = run.settings(Settings, __doc__, argv), time.time(), {"seeds": {}}
    if not seeds(s):
        raise run.UserError(f"no run in {folder(s, 0).parent}/: run bash run.sh first")
    for seed in seeds(s):
        models = load(s, seed)
        e = result["seeds"][str(seed)] = equality(*models, seed, s.prompts, s.general)
        e["bfloat16"] = in_bfloat16(*models, seed)
        print(f"seed {seed}: {e['prompts'] - e['different']} of {e['prompts']} equal, {time.time() - begun:.0f} s", flush=True)
    result["meta"] = {"prompts": s.prompts, "general": s.general, "torch": torch.__version__.split("+")[0], "device": s.device,
                      "threads": torch.get_num_threads(), "seconds": round(time.time() - begun)}
    table = json.loads((RESULTS / "table1.json").read_text())["meta"][s.family]
    if [s.prompts, s.general, *result["seeds"]] != [table["prompts per benchmark"], table["general prompts"], *map(str, table["seeds"])]:
        run.write(Path(s.out) / "equality.json", json.dumps(result, indent=1) + "\n")
        return print(f"saved {s.out}/equality.json: published are the runs and prompts of extra/results/table1.json")
    everything = json.loads((RESULTS / "equality.json").read_text()) | {s.family: result}
    run.write(RESULTS / "equality.json", json.dumps(everything, indent=1) + "\n")
    run.write(PAGE, fill(PAGE.read_text(), {"equality": equal_lines(everything)}, COMMAND["equality"]))
    print("saved extra/results/equality.json and docs/speed.md")


if __name__ == "__main__":
    run.run(main)
