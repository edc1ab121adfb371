"""Both phases with experts of other tokenizers, and the table of docs/tokenizers.md.

    python -m extra.tokenizers             trains what is missing of a seed, answers test prompts
    python -m extra.tokenizers --prompts 0     only fills the page from the JSON file

Both trainings are the lesson's, on scores of bytes. Phase 2's pairs are written by the fused model,
byte by byte. The router starts as a copy of the toy's instruction expert, as in the lesson. Departs
from the lesson in the number of prompts that pairs are made from: 600 in place of 2000.
"""

import json
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

import train_cdpo
import train_sft
from extra.tokenizers import decode, spans
from extra.tokenizers.bytewise import END, ByteModel, Reader
from extra.tokenizers.scores import scored
from extra.tokenizers.toy import expert, roomy, tokenizer_of
from fusionroute import Router, score
from toy_experts import decode_batch, experts, judge, pairs, script, tasks
from toy_experts.data import Data
from toy_experts.script import EXPERTS

RESULTS = Path(__file__).parent.parent / "results" / "tokenizers.json"
PAGE = Path(__file__).parents[2] / "docs" / "tokenizers.md"
# Which experts are replaced, and by which tokenizer. "toy": the same tokens, but a base of its own.
WORLDS = {
    "same": {},
    "one": {"math": "trailing"},
    "all": {"math": "trailing", "code": "pieces", "instruct": "pieces"},
    "own": {"math": "toy"},
}
MAX_BYTES = 200  # longest answer; the tasks' longest has 94


@dataclass
class Settings:
    seed: int = 0  # selects the run: all random numbers follow from it
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "cpu"  # the models are tiny, and read one text at a time
    prompts: int = 40  # test prompts of each benchmark
    worlds: str = "same,one,all,own"  # which experts are replaced, see WORLDS
    split: str = "test"  # test, or validation (the split to tune on)


class World:
    """A router, its experts and their tokenizers."""

    def __init__(self, s, name):
        self.s, self.name, self.tokenizer = s, name, tokenizer_of("toy")
        self.kinds = [WORLDS[name].get(e, "toy") for e in EXPERTS]
        here = experts.Settings(s.seed, s.out, s.device)
        shipped = script.WEIGHTS if s.seed == 0 else script.run_dir(s)
        load = lambda e: script.load_model(shipped / f"{e}.pt", "run bash run.sh", build=roomy)[0]
        self.experts = [
            expert(here, WORLDS[name][e], e) if e in WORLDS[name] else load(e) for e in EXPERTS
        ]
        self.folder, self.start = script.run_dir(s) / name, load("instruct")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.models = [
            (Reader(m, m.new_cache(1)), tokenizer_of(kind))
            for m, kind in zip(self.experts, self.kinds)
        ]
        if name == "same":
            self.use(script.load_model(shipped / "router.pt", "", router=True, build=roomy)[0])
        else:
            self.trained("router_sft", self.phase1)
            self.trained("router", self.phase2)

    def use(self, router):
        self.router, self.reader = router, Reader(router, router.lm.new_cache(1))

    def trained(self, name, train):
        """Load a router, or train it and save it."""
        path, begun = self.folder / f"{name}.pt", time.time()
        if not path.exists():
            router, recipe = train()
            names = dict(zip(EXPERTS, map(script.fingerprint, self.experts)))
            script.save_model(path, router, recipe, time.time() - begun, names)
        self.use(script.load_model(path, "start again", router=True, build=roomy)[0])

    def phase1(self):
        s = train_sft.Settings(self.s.seed)
        router = Router(deepcopy(self.start), len(EXPERTS)).requires_grad_(True)
        train_sft.train(s, router, self.sft(s.samples))
        return router, script.recipe(s)

    def phase2(self):
        s = train_cdpo.Settings(self.s.seed, prompts=600)
        found = pairs.sample(None, None, s.seed, s.prompts, self.write)
        both = [(p["prompt"], p[side]) for p in found for side in ("chosen", "rejected")]
        both = scored(both, self.tokenizer, self.models)
        logp, _ = score([self.router.lm], both.ids, both.lengths)
        ref = (logp[..., 0] * both.mask[:, 1:]).sum(-1).view(-1, 2)  # (pairs, 2)
        both = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
        sft, router = self.sft(train_sft.Settings.samples), self.router.requires_grad_(True)
        plan = train_cdpo.make_plan(s, sft.lengths, both.lengths)
        train_cdpo.train(s, router, sft, both, ref, plan)
        return router, script.recipe(s) | {"pairs": len(found)}

    def sft(self, n):
        items = tasks.mixed("train", n, Random(f"sft {self.s.seed}"))  # as experts.sft_samples
        return scored([(item.prompt, item.answer) for item in items], self.tokenizer, self.models)

    def behind(self, prompt):
        """ByteModels behind a prompt: the router's, and the experts'."""
        models = [(self.reader, self.tokenizer), *self.models]
        return [ByteModel(m, tok.vocabulary, tok.prompt(prompt)) for m, tok in models]

    def by_bytes(self, prompt, **how):
        router, *models = self.behind(prompt)
        found = decode.decode(router, models, MAX_BYTES, **how)
        return bytes(symbol for symbol, _ in found if symbol != END).decode(errors="replace")

    def by_spans(self, prompt):
        _, *models = self.behind(prompt)
        ids = self.tokenizer.prompt(prompt)
        found = spans.decode(self.reader, self.tokenizer.vocabulary, ids, models, MAX_BYTES // 3)
        words = [self.tokenizer.words.get(token, b"") for token, _ in found]
        return b"".join(words).decode(errors="replace")

    def write(self, items, seed):
        """Sampled answers for pairs.sample."""
        prompts = [item.prompt for item in items for _ in range(pairs.TRIES)]
        how = {"temperature": pairs.TEMPERATURE}
        return [self.by_bytes(p, **how, seed=seed + i) for i, p in enumerate(prompts)]

    def answers(self, items):
        """{method: the answers' texts}, {method: (seconds, passes) of one answer}."""
        limits = {"routing_only": {"use_router": False}, "router": {"use_expert": False}}
        limits |= {e: {"use_router": False, "only": i} for i, e in enumerate(EXPERTS)}
        methods = {"bytes": self.by_bytes, "spans": self.by_spans}
        for name, how in limits.items():
            methods[name] = lambda prompt, how=how: self.by_bytes(prompt, **how)
        texts, cost = {}, {}
        readers = [self.reader] + [reader for reader, _ in self.models]
        for method, answer in methods.items():
            begun, before = time.process_time(), sum(r.passes for r in readers)
            texts[method] = [answer(item.prompt) for item in items]
            passes = sum(r.passes for r in readers) - before
            seconds = time.process_time() - begun
            cost[method] = {"seconds": seconds / len(items), "passes": passes / len(items)}
        if set(self.kinds) == {"toy"}:
            traces = decode_batch.answers(self.router, self.experts, items)
            texts["tokens"] = [trace.text() for trace in traces]
            cost["tokens"] = {"passes": 2 * sum(len(t.tokens) for t in traces) / len(items)}
        return texts, cost


def changed(texts, items):
    """Tokens against bytes: how many answers differ, and how many of these first by a space."""
    spaces, right, differ = 0, 0, 0
    for a, b, item in zip(texts["tokens"], texts["bytes"], items):
        if a != b:
            i = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            differ += 1
            spaces += b[i : i + 1] == " "
            right += judge.check(item, a) and not judge.check(item, b)
    return {"answers": len(items), "differ": differ, "space": spaces, "became_wrong": right}


def measure(s, name):
    """What the page says of one world, a dict; kept beside the world's router."""
    path = script.run_dir(s) / name / f"{s.split}{s.prompts}.json"
    if path.exists():
        return json.loads(path.read_text())
    world, items = World(s, name), []
    for b in tasks.BENCHMARKS:
        items += tasks.dataset(b, s.split, s.prompts, Random(f"{s.split} {b} {s.seed}"))
    texts, cost = world.answers(items)
    right = {m: sum(map(judge.check, items, t)) / len(items) for m, t in texts.items()}
    result = {"right": right, "cost": cost, "prompts": len(items)}
    if "tokens" in texts:
        result["changed"] = changed(texts, items)
    script.write(path, json.dumps(result))
    return result


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    script.prepare(s)
    torch.set_num_threads(1)
    found = {name: measure(s, name) for name in s.worlds.split(",") if name}
    if s.split == "test":
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[f"seed {s.seed}"] = results.get(f"seed {s.seed}", {}) | found
        script.write(RESULTS, json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    else:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    script.run(main)
