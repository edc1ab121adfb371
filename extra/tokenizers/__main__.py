"""Both phases with experts of other tokenizers, and the table of docs/tokenizers.md.

    python -m extra.tokenizers --seed 1       needs the lesson's run of this seed: bash run.sh
    python -m extra.tokenizers --worlds ""    only fills the page from the JSON file

The trainings are the lesson's, on scores of bytes. Phase 2's pairs are written by the fused model,
byte by byte, from fewer prompts than in the lesson: PROMPTS.
"""

import json
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean, stdev

import torch

import train_cdpo
import train_sft
from decode import METHODS
from docs.tools.pages import fill, table
from extra.paper.stats import exact_interval
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
# Which experts are replaced, and by which tokenizer. "same" has the lesson's router; in the others
# a router is trained on scores of bytes.
WORLDS = {
    "same": {},
    "own": {},
    "one": {"math": "trailing"},
    "all": {"math": "trailing", "code": "pieces", "instruct": "pieces"},
}
PROMPTS = 300  # from which pairs are made
LEAD = "{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
MAX_BYTES = 200  # longest answer; the longest right one has 94
ROWS = ["tokens", "spans", *METHODS]  # all but the first two are by bytes
LABELS = {"fusionroute": "bytes", "sft_only": "phase 1 only", "routing_only": "routing only"}


@dataclass
class Settings:
    seed: int = 0  # selects the run: all random numbers follow from it
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "cpu"  # the models are tiny, and read one text at a time
    prompts: int = 20  # test prompts of each benchmark
    worlds: str = ",".join(WORLDS)  # which experts are replaced, see WORLDS

    def __post_init__(self):
        script.positive(self, "prompts")
        if unknown := set(self.worlds.split(",")) - {"", *WORLDS}:
            raise script.UserError(f"--worlds {unknown.pop()}: must be of {', '.join(WORLDS)}")


def reader(model):
    return Reader(model, getattr(model, "lm", model).new_cache(1))


class World:
    """A router and its experts, each with its tokenizer."""

    def __init__(self, s, name):
        lesson = script.run_dir(s) if s.seed else script.WEIGHTS
        hint = f"run bash run.sh{script.flags(s)}"
        load = lambda n, **how: script.load_model(lesson / n, hint, build=roomy, **how)[0]
        here, replaced = experts.Settings(s.seed, s.out, s.device), WORLDS[name]
        get = lambda e: expert(here, replaced[e], e) if e in replaced else load(f"{e}.pt")
        self.experts, self.tokenizer = list(map(get, EXPERTS)), tokenizer_of("toy")  # the router's
        tokenizers = [tokenizer_of(replaced.get(e, "toy")) for e in EXPERTS]
        self.models = list(zip(map(reader, self.experts), tokenizers))
        if name == "same":
            self.routers = [load(f"{phase}.pt", router=True) for phase in ("router_sft", "router")]
        else:
            router = Router(load("instruct.pt"), len(EXPERTS))  # as in the lesson
            self.routers = self.train(s, router.requires_grad_(True))

    def train(self, s, router):
        """The routers of both phases."""
        how = train_sft.Settings(s.seed)
        items = tasks.mixed("train", how.samples, Random(f"sft {s.seed}"))  # experts.sft_samples
        score_all = partial(scored, tokenizer=self.tokenizer, experts=self.models)
        sft = score_all([(item.prompt, item.answer) for item in items])
        train_sft.train(how, router, sft)
        first = deepcopy(router)

        how = train_cdpo.Settings(s.seed, prompts=PROMPTS)
        found = pairs.make_pairs(None, None, s.seed, PROMPTS, partial(self.write, reader(first)))
        both = score_all([(p["prompt"], p[k]) for p in found for k in ("chosen", "rejected")])
        logp, _ = score([first.lm], both.ids, both.lengths)
        ref = (logp[..., 0] * both.mask[:, 1:]).sum(-1).view(-1, 2)  # (pairs, 2), log pi_ref
        both = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
        plan = train_cdpo.make_plan(how, sft.lengths, both.lengths)
        train_cdpo.train(how, router, sft, both, ref, plan)
        return [first, router]

    def behind(self, router, prompt):
        """ByteModels behind a prompt: the router's (of its Reader), and the experts'."""
        models = [(router, self.tokenizer), *self.models]
        return [ByteModel(r, tok.vocabulary, tok.prompt(prompt)) for r, tok in models]

    def by_bytes(self, router, prompt, **how):
        mine, *models = self.behind(router, prompt)
        symbols = [symbol for symbol, _ in decode.decode(mine, models, MAX_BYTES, **how)]
        return bytes(symbol for symbol in symbols if symbol != END).decode(errors="replace")

    def by_spans(self, router, prompt):
        mine, *models = self.behind(router, prompt)
        words, limit = self.tokenizer.words, MAX_BYTES // 3
        found = spans.decode(router, self.tokenizer.vocabulary, mine.prompt, models, limit)
        return b"".join(words.get(token, b"") for token, _ in found).decode(errors="replace")

    def write(self, router, items, seed):
        """Sampled answers for pairs.make_pairs."""
        prompts = [item.prompt for item in items for _ in range(pairs.TRIES)]
        how = {"temperature": pairs.TEMPERATURE}
        return [self.by_bytes(router, p, seed=seed + i, **how) for i, p in enumerate(prompts)]

    def answers(self, items):
        """{row of ROWS: the answers' texts}, {row: forward passes per answer}."""
        first, router = map(reader, self.routers)
        texts, passes, all_readers = {}, {}, [first, router, *(r for r, _ in self.models)]
        for row in ROWS[1:]:
            before = sum(r.passes for r in all_readers)
            way = partial(self.by_bytes, **METHODS[row]) if row in METHODS else self.by_spans
            model = first if row == "sft_only" else router
            texts[row] = [way(model, item.prompt) for item in items]
            passes[row] = (sum(r.passes for r in all_readers) - before) / len(items)
        if all(tok is self.tokenizer for _, tok in self.models):
            traces = decode_batch.answers(self.routers[1], self.experts, items)
            texts["tokens"] = [trace.text() for trace in traces]
            passes["tokens"] = 2 * sum(len(t.tokens) for t in traces) / len(items)
        return texts, passes


def measure(s, name):
    """What the page says of one world, a dict; kept in OUT/seedN/WORLD, so a run can be resumed."""
    path = script.run_dir(s) / name / f"answers{s.prompts}.json"
    if path.exists():
        return json.loads(path.read_text())
    items = []
    for b in tasks.BENCHMARKS:
        items += tasks.dataset(b, "test", s.prompts, Random(f"test {b} {s.seed}"))
    texts, passes = World(s, name).answers(items)
    right = {row: list(map(judge.check, items, found)) for row, found in texts.items()}
    shares = {row: mean(found) for row, found in right.items()}
    result = {"prompts": len(items), "passes": passes, "right": shares}
    if "tokens" in texts:
        tokens, by_bytes = texts["tokens"], texts["fusionroute"]
        both = list(zip(right["tokens"], right["fusionroute"]))
        result["differ"] = sum(a != b for a, b in zip(tokens, by_bytes))
        result |= {"worse": both.count((True, False)), "better": both.count((False, True))}
    path.parent.mkdir(parents=True, exist_ok=True)
    script.write(path, json.dumps(result))
    return result


def figures(results):
    """The page's marked places, {key: text}, from {seed: {world: what measure found}}.

    "WORLD:lead:ROW": the world minus "own", with a 95% interval over seeds.
    """
    out, seeds = {}, list(results.values())
    for world in WORLDS:
        found = [r[world] for r in seeds if world in r]
        both = [(r[world], r["own"]) for r in seeds if world in r and "own" in r]
        out[f"{world}:seeds"] = str(len(found))
        for key in ("prompts", "differ", "worse", "better"):
            out[f"{world}:{key}"] = str(sum(f.get(key, 0) for f in found))
        for row in ROWS:
            if shares := [100 * f["right"][row] for f in found if row in f["right"]]:
                spread = f"±{stdev(shares):.0f}" if shares[1:] else ""
                out[f"{world}:{row}"] = f"{mean(shares):.0f}{spread}"
                out[f"{world}:{row}:passes"] = f"{mean(f['passes'][row] for f in found):.0f}"
                if both[1:]:
                    leads = [100 * (f["right"][row] - own["right"][row]) for f, own in both]
                    out[f"{world}:lead:{row}"] = LEAD.format(**exact_interval(leads))
    cells = lambda row: [out.get(f"{world}:{row}", "-") for world in WORLDS]
    rows = [[LABELS.get(row, row), *cells(row)] for row in ROWS if row not in EXPERTS]
    alone = ["/".join(EXPERTS), *map("/".join, zip(*map(cells, EXPERTS)))]
    return out | {"table": "\n".join(table([["", *WORLDS], *rows, alone]))}


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    script.prepare(s)
    torch.set_num_threads(1)
    found = {name: measure(s, name) for name in s.worlds.split(",") if name}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if found:
        results[f"seed {s.seed}"] = results.get(f"seed {s.seed}", {}) | found
    script.write(RESULTS, json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    script.write(PAGE, fill(PAGE.read_text("utf-8"), figures(results).__getitem__))


if __name__ == "__main__":
    script.run(main)
