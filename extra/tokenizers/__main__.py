"""Both phases with experts of other tokenizers, and the table of docs/tokenizers.md.

    python -m extra.tokenizers --seed 1       needs the lesson's run of this seed: bash run.sh
    python -m extra.tokenizers --worlds ""    only fills the page from the JSON file

The trainings are the lesson's, on scores of bytes. Phase 2's pairs are written by the fused model,
byte by byte, from fewer prompts than in the lesson: PROMPTS.
"""

import json
import time
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import torch

import train_cdpo
import train_sft
from decode import METHODS
from docs.tools.pages import fill, percent, table
from extra.tokenizers import decode, spans
from extra.tokenizers.bytewise import END, ByteModel, Reader
from extra.tokenizers.scores import scored
from extra.tokenizers.toy import expert, roomy, tokenizer_of
from fusionroute import Router, score
from toy_experts import decode_batch, experts, judge, pairs, script, tasks
from toy_experts.data import Data
from toy_experts.script import EXPERTS

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "extra" / "results" / "tokenizers.json", ROOT / "docs" / "tokenizers.md"
# Which experts are replaced, and by which tokenizer. "toy": the same tokens, other random weights.
# "same" and "swap" keep the lesson's router; for the others a router is trained.
WORLDS = {
    "same": {},
    "swap": {"math": "trailing"},
    "one": {"math": "trailing"},
    "all": {"math": "trailing", "code": "pieces", "instruct": "pieces"},
    "own": {"math": "toy"},
}
PROMPTS = 300  # from which pairs are made
MAX_BYTES = 200  # longest answer; the longest right one has 94


@dataclass
class Settings:
    seed: int = 0  # selects the run: all random numbers follow from it
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "cpu"  # the models are tiny, and read one text at a time
    prompts: int = 20  # test prompts of each benchmark
    worlds: str = "same,swap,one,all,own"  # which experts are replaced, see WORLDS


class World:
    """A router and its experts, each with its tokenizer. What is missing is trained."""

    def __init__(self, s, name):
        self.s, self.folder, self.tokenizer = s, script.run_dir(s) / name, tokenizer_of("toy")
        self.folder.mkdir(parents=True, exist_ok=True)
        lesson = script.run_dir(s) if s.seed else script.WEIGHTS
        load = lambda n, **how: script.load_model(lesson / n, "bash run.sh", build=roomy, **how)[0]
        here = experts.Settings(s.seed, s.out, s.device)
        self.kinds = [WORLDS[name].get(e, "toy") for e in EXPERTS]
        self.experts = [
            expert(here, WORLDS[name][e], e) if e in WORLDS[name] else load(f"{e}.pt")
            for e in EXPERTS
        ]
        readers = [Reader(e, e.new_cache(1)) for e in self.experts]
        self.models = list(zip(readers, map(tokenizer_of, self.kinds)))
        if name in ("same", "swap"):
            return self.use(load("router.pt", router=True))
        self.use(Router(load("instruct.pt"), len(EXPERTS)))  # as in the lesson
        self.trained("router_sft", self.phase1)
        self.trained("router", self.phase2)

    def use(self, router):
        self.router, self.reader = router, Reader(router, router.lm.new_cache(1))

    def trained(self, name, phase):
        """Load a router, or train the one that is in use further, and save it."""
        path, begun = self.folder / f"{name}.pt", time.time()
        if not path.exists():
            router = deepcopy(self.router).requires_grad_(True)
            recipe = phase(router)
            names = dict(zip(EXPERTS, map(script.fingerprint, self.experts)))
            script.save_model(path, router, recipe, time.time() - begun, names)
        self.use(script.load_model(path, "start again", router=True, build=roomy)[0])

    def scored(self, samples):
        return scored(samples, self.tokenizer, self.models)

    @cached_property
    def sft(self):
        n = train_sft.Settings.samples
        items = tasks.mixed("train", n, Random(f"sft {self.s.seed}"))  # as experts.sft_samples
        return self.scored([(item.prompt, item.answer) for item in items])

    def phase1(self, router):
        s = train_sft.Settings(self.s.seed)
        train_sft.train(s, router, self.sft)
        return script.recipe(s)

    def phase2(self, router):
        s, sft = train_cdpo.Settings(self.s.seed, prompts=PROMPTS), self.sft
        found = pairs.sample(None, None, s.seed, s.prompts, self.write)
        both = [(p["prompt"], p[side]) for p in found for side in ("chosen", "rejected")]
        both = self.scored(both)
        logp, _ = score([self.router.lm], both.ids, both.lengths)
        ref = (logp[..., 0] * both.mask[:, 1:]).sum(-1).view(-1, 2)  # (pairs, 2), log pi_ref
        both = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
        plan = train_cdpo.make_plan(s, sft.lengths, both.lengths)
        train_cdpo.train(s, router, sft, both, ref, plan)
        return script.recipe(s) | {"pairs": len(found)}

    def behind(self, prompt):
        """ByteModels behind a prompt: the router's, and the experts'."""
        models = [(self.reader, self.tokenizer), *self.models]
        return [ByteModel(r, tok.vocabulary, tok.prompt(prompt)) for r, tok in models]

    def by_bytes(self, prompt, **how):
        router, *models = self.behind(prompt)
        symbols = [symbol for symbol, _ in decode.decode(router, models, MAX_BYTES, **how)]
        return bytes(symbol for symbol in symbols if symbol != END).decode(errors="replace")

    def by_spans(self, prompt):
        router, *models = self.behind(prompt)
        args = self.tokenizer.vocabulary, router.prompt, models, MAX_BYTES // 3
        words = [self.tokenizer.words.get(t, b"") for t, _ in spans.decode(self.reader, *args)]
        return b"".join(words).decode(errors="replace")

    def write(self, items, seed):
        """Sampled answers for pairs.sample."""
        prompts, how = [i.prompt for i in items for _ in range(pairs.TRIES)], pairs.TEMPERATURE
        return [self.by_bytes(p, temperature=how, seed=seed + i) for i, p in enumerate(prompts)]

    def answers(self, items):
        """{method: the answers' texts}, {method: forward passes per answer}."""
        texts, passes = {}, {}
        ways = {"by spans": self.by_spans}
        for method, how in METHODS.items():
            if method != "sft_only":
                ways[method] = lambda prompt, how=how: self.by_bytes(prompt, **how)
        readers = [self.reader, *(reader for reader, _ in self.models)]
        for method, answer in ways.items():
            before = sum(r.passes for r in readers)
            texts[method] = [answer(item.prompt) for item in items]
            passes[method] = (sum(r.passes for r in readers) - before) / len(items)
        if set(self.kinds) == {"toy"}:
            traces = decode_batch.answers(self.router, self.experts, items)
            texts["by tokens"] = [trace.text() for trace in traces]
            passes["by tokens"] = 2 * sum(len(t.tokens) for t in traces) / len(items)
        return texts, passes


def changed(tokens, by_bytes, items):
    """How many answers by tokens and by bytes differ, and how many became wrong or right."""
    both = [(judge.check(i, a), judge.check(i, b)) for a, b, i in zip(tokens, by_bytes, items)]
    differ = sum(a != b for a, b in zip(tokens, by_bytes))
    counts = {"answers": len(items), "differ": differ}
    return counts | {"worse": both.count((True, False)), "better": both.count((False, True))}


def measure(s, name):
    """What the page says of one world, a dict; kept beside the world's router."""
    path = script.run_dir(s) / name / f"answers{s.prompts}.json"
    if path.exists():
        return json.loads(path.read_text())
    world, items = World(s, name), []
    for b in tasks.BENCHMARKS:
        items += tasks.dataset(b, "test", s.prompts, Random(f"test {b} {s.seed}"))
    texts, passes = world.answers(items)
    right = {m: sum(map(judge.check, items, t)) / len(items) for m, t in texts.items()}
    result = {"right": right, "passes": passes, "prompts": len(items)}
    if "by tokens" in texts:
        result["changed"] = changed(texts["by tokens"], texts["fusionroute"], items)
    script.write(path, json.dumps(result))
    return result


def figures(results):
    """The page's marked places, {key: text}, from {seed: {world: what measure found}}.

    results["smollm2"]: probabilities of its first token, and of first bytes, read once by hand.
    """
    smollm2 = {f"smollm2 {key}": str(value) for key, value in results["smollm2"].items()}
    results = {key: r for key, r in results.items() if key.startswith("seed")}
    methods = ["by tokens", "by spans", *(m for m in METHODS if m != "sft_only")]
    worlds = [world for world in WORLDS if any(world in r for r in results.values())]
    out, rows = {}, [["", *worlds], *([m] for m in methods), ["seeds"]]
    for world in worlds:
        found = [r[world] for r in results.values() if world in r]
        for row in rows[1:-1]:
            shares = [f["right"][row[0]] for f in found if row[0] in f["right"]]
            mean = percent(sum(shares) / len(shares) if shares else None)
            spread = f" ({percent(min(shares))}-{percent(max(shares))})" if shares[1:] else ""
            row.append(mean + spread)
            out[f"{world} {row[0]}"] = mean
            passes = [f["passes"][row[0]] for f in found if row[0] in f["passes"]]
            out[f"{world} {row[0]} passes"] = f"{sum(passes) / max(1, len(passes)):.0f}"
        rows[-1].append(str(len(found)))
        out[f"{world} prompts"] = str(sum(f["prompts"] for f in found))
        for key in ("answers", "differ", "worse", "better"):
            out[f"{world} {key}"] = str(sum(f["changed"][key] for f in found if "changed" in f))
    return out | smollm2 | {"table": "\n".join(table(rows))}


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    script.prepare(s)
    torch.set_num_threads(1)
    found = {name: measure(s, name) for name in s.worlds.split(",") if name}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[f"seed {s.seed}"] = results.get(f"seed {s.seed}", {}) | found
    script.write(RESULTS, json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    script.write(PAGE, fill(PAGE.read_text(), figures(results).__getitem__))


if __name__ == "__main__":
    script.run(main)
