"""Does it carry over? FusionRoute on real text, measured token by token.

    python -m extra.real.benchmarks --data DIR --out DIR --model smollm2

DIR of --data holds the public sets that benchmark_data.py names; --model is what
`python -m extra.real.smollm2 model` writes. Three LoRA experts are trained (math, code, general);
then, for each seed, routers and their rivals, with the trainers of this package; then every method
reads the right answers to held-out problems, and answers some itself, and prompts of IFEval. Writes
extra/results/real_text.json. Killed and started again, it goes on: trainings from their
last saved step, the evaluation from its last batch.

Code that a model wrote is executed: in a process of its own, with limits of time and memory, which
are no protection against malice.
"""

import json
import re
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from extra.real import benchmark_data, runs, smollm2, train_sft
from extra.real.benchmark_data import DOMAINS, fraction
from extra.real.benchmark_table import exact, keys_of, summary
from extra.real.data import Encoder, padded
from extra.real.loading import load, load_experts, load_tokenizer, shared_tokens
from extra.real.modeling import FusionRoute, read
from fusionroute import fuse, informative, token_logp
from toy_experts import script

RESULT = Path(__file__).parents[1] / "results" / "real_text.json"
TEMPERATURES = [0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.7, 2.0, 2.5, 3.0]
ROUTERS = ["router_sft", "router", "co_llm", "gap"]
GAP = "code"  # the domain without an expert in the rows "gap"
CHECKED = {"gsm8k-test": "math", "mbpp": "code", "humaneval": "code"}  # by a number or by tests


@dataclass
class Settings:
    data: str = ""  # DIR: the public sets
    out: str = "real_text"  # where samples, models and records lie
    model: str = "smollm2"  # the base model, see extra.real.smollm2
    step: str = ""  # one step alone, as the whole run names it
    seeds: int = 2  # seeds of phase 1, phase 2 and their rivals; the experts are shared
    expert: int = 400  # samples for each expert; the generalist gets those of all three
    router: int = 120  # SFT samples a domain, for the router and its rivals
    pairs: int = 60  # prompts for pairs, of math and of code each
    valid: int = 30  # problems a domain to choose temperatures
    tests: int = 100  # test problems a domain
    answers: int = 100  # test problems of each set to answer
    max_new: int = 96  # longest answer, in tokens
    ifeval: int = 200  # prompts of IFEval to answer; needs lm_eval[ifeval]
    max_ifeval: int = 256  # longest answer to one of them
    batch: int = 50  # problems answered together
    lr: float = 5e-4  # of the LoRA adapters; phase 2 takes a quarter
    lr_w: float = 1e-3  # of W

    def __post_init__(self):
        script.positive(self, "seeds", "expert", "router", "pairs", "valid", "tests", "batch")
        script.positive(self, "max_new", "max_ifeval", "lr", "lr_w")
        script.positive(self, "answers", "ifeval", or_zero=True)
        if not Path(self.data).is_dir() or not self.data:
            raise script.UserError(
                f"--data {self.data}: must be a directory with the sets; {benchmark_data.WHERE}"
            )


# --- the steps -----------------------------------------------------------------------------------


def own(s, step):
    """The arguments of python -m for a step of this file."""
    given = [f"--{k}={v}" for k, v in asdict(s).items() if v != getattr(Settings, k)]
    return ["extra.real.benchmarks", *given, f"--step={step}"]


def training(s, trainer, seed, name, data):
    run = [f"extra.real.{trainer}", f"--out={s.out}", f"--seed={seed}", f"--name={name}"]
    size = ["--batch=4", "--bf16", "--dtype=bfloat16", "--max_len=640", "--save_every=50"]
    return [*run, f"--data={s.out}/{data}.jsonl", *size]


def expert(s, name):
    fine_tuning = training(s, "train_sft", 0, name, name)
    return [*fine_tuning, f"--lr={s.lr}", f"--init={s.model}", "--lora_r=16"]


def phase1(s, seed, name, domains=()):
    """Phase 1 from the general expert, beside the experts of these domains."""
    sft = [*training(s, "train_sft", seed, name, "router"), f"--lr={s.lr}"]
    beside = [f"--lr_w={s.lr_w}", "--experts", *(f"{d}={s.out}/seed0/{d}" for d in domains)]
    return [*sft, f"--init={s.out}/seed0/general", *(beside if domains else ())]


def phase2(s, seed, name, first):
    cdpo = [*training(s, "train_cdpo", seed, name, "router"), f"--phase1={first}"]
    return [
        *cdpo,
        f"--pairs={s.out}/seed{seed}/pairs.jsonl",
        f"--lr={s.lr / 4}",
        f"--lr_w={s.lr_w}",
    ]


def commands(s):
    """The whole run, for smollm2.run_all: (label, arguments of python -m), some side by side."""
    yield "data", own(s, "data")
    experts = [(f"{d} expert", expert(s, d)) for d in ("general", "math", "code")]
    yield [experts, [("generalist", expert(s, "generalist"))]]
    left = [d for d in DOMAINS if d != GAP]

    def of_seed(seed):
        return [
            (f"phase 1, seed {seed}", phase1(s, seed, "router_sft", DOMAINS)),
            (f"phase 1 without the {GAP} expert, seed {seed}", phase1(s, seed, "gap", left)),
            (f"fine-tuned, seed {seed}", phase1(s, seed, "tuned_sft")),
            (f"co-llm, seed {seed}", own(s, f"co_llm{seed}")),
            (f"pairs, seed {seed}", own(s, f"pairs{seed}")),
            (f"phase 2 of router_sft, seed {seed}", phase2(s, seed, "router", "router_sft")),
            (f"phase 2 of tuned_sft, seed {seed}", phase2(s, seed, "tuned", "tuned_sft")),
        ]

    seeds = [of_seed(seed) for seed in range(s.seeds)]
    yield seeds[0].pop(0)  # it leaves the experts' scores for all others
    yield seeds
    yield "evaluation", own(s, "evaluate")  # these two, side by side, take too much memory
    if s.answers or s.ifeval:
        yield "answers", own(s, "answers")


def data(s):
    if not benchmark_data.passes("pass"):  # every program would count as wrong
        raise script.UserError("this system cannot limit what model-written code takes: use Linux")
    if s.ifeval:
        benchmark_data.ifeval_rules()  # what is missing is said before hours are spent
    found = benchmark_data.samples(s.data)
    sets = {d: benchmark_data.draw(found, "expert", s.expert, [d]) for d in DOMAINS}
    sets["generalist"] = benchmark_data.draw(found, "expert", s.expert)
    sets["router"] = benchmark_data.draw(found, "router", s.router)
    for name, some in sets.items():
        rows = [{k: x[k] for k in ("prompt", "completion")} for x in some]
        smollm2.write_lines(Path(s.out) / f"{name}.jsonl", rows)
    for seed in range(1, s.seeds):  # the experts' scores of the same samples are made once
        folder = Path(s.out) / f"seed{seed}" / "scores"
        (Path(s.out) / "seed0" / "scores").mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(exist_ok=True)
        if not folder.exists():
            folder.symlink_to("../seed0/scores", target_is_directory=True)


def answer(lm, tokenizer, some, s, longest, **how):
    items = [SimpleNamespace(prompt=x["prompt"]) for x in some]
    return smollm2.answers(lm, tokenizer, items, s.batch, max_new_tokens=longest, **how)


def merged(lm):
    """An adapter merged into its base: the same up to rounding, and it writes faster."""
    return lm.merge_and_unload().to(torch.bfloat16)


def merged_route(path):
    lm = FusionRoute.from_pretrained(path, train=True)  # in float32, without experts
    lm.router = merged(lm.router)
    lm.experts = torch.nn.ModuleList(merged(load(expert)) for _, expert in lm.config.experts)
    return lm.eval()


def pairs(s, seed):
    """Right answers against wrong ones that phase 1's fused model says at temperature 1."""
    found, rows = benchmark_data.samples(s.data), []
    lm = merged_route(f"{s.out}/seed{seed}/router_sft")
    torch.manual_seed(seed)
    for domain in ("math", "code"):  # general answers cannot be checked
        some = benchmark_data.draw(found, "pairs", s.pairs, [domain])
        said = answer(lm, lm.tokenizer, some, s, s.max_new, do_sample=True, top_k=0)
        rows += [
            {"prompt": x["prompt"], "chosen": x["completion"], "rejected": a["text"]}
            for x, a in zip(some, said)
            if not benchmark_data.right(x, a["text"])
        ]
    smollm2.write_lines(Path(s.out) / f"seed{seed}" / "pairs.jsonl", rows)


def co_llm_loss(logits, w, targets, mask, logp, choice, lam):
    """As in extra/paper/losses.py: L_LM, and the log of a mixture at all positions.

    The mixture is of the experts and the router itself. The last expert of the list is what the
    router started as; its place is the router's own.
    """
    own = token_logp(logits, targets)  # (B, t)
    choices = torch.cat([logp[..., :-1], own[..., None]], -1)  # (B, t, n + 1)
    mixture = (w.log_softmax(-1) + choices).logsumexp(-1)  # (B, t)
    pick = w[mask].argmax(-1)  # (N,)
    routing = [(pick == i).float().mean() for i in range(w.size(-1))]
    return -(own + mixture)[mask].mean(), {"loss_lm": -own[mask].mean(), "routing": routing}


def co_llm(s, seed):
    """The router as one more choice, trained as in phase 1 but by the mixture's likelihood."""
    _, *arguments = phase1(s, seed, "co_llm", DOMAINS)  # they end with the experts
    train_sft.main([*arguments, f"itself={s.out}/seed0/general"], loss_fn=co_llm_loss)


# --- what every method says at the tokens of right answers ---------------------------------------


def paths(s):
    """{name: path} of all models that read. Names of a seed's models end in its number."""
    out = {"base": s.model} | {d: f"{s.out}/seed0/{d}" for d in (*DOMAINS, "generalist")}
    for seed in range(s.seeds):
        for name in ROUTERS:
            out[f"{name} {seed}"] = f"{s.out}/seed{seed}/{name}/router"
        out[f"tuned {seed}"] = f"{s.out}/seed{seed}/tuned"
    return out


def methods(logp, w, seeds):
    """(row, seed, scores (N, V)) of each method. A method's distribution is softmax of its scores.

    logp: {model: log-probabilities (N, V)}, w: {router: (N, n)}. seed: None, where seeds share it.
    """
    experts = torch.stack([logp[d] for d in DOMAINS], 1)  # (N, n, V)
    at = torch.arange(len(experts))  # (N,)
    yield from ((d, None, logp[d]) for d in DOMAINS)
    yield "product", None, experts.sum(1)
    yield "base", None, logp["base"]
    yield "generalist", None, logp["generalist"]
    if seeds > 1:
        yield "two_tuned", None, fuse(logp["tuned 0"], logp["tuned 1"])
    for seed in range(seeds):
        own = {name: logp[f"{name} {seed}"] for name in ROUTERS}
        pick = {name: w[f"{name} {seed}"].argmax(-1) for name in own}  # (N,)
        yield "fusionroute", seed, fuse(own["router"], experts[at, pick["router"]])
        yield "phase1", seed, fuse(own["router_sft"], experts[at, pick["router_sft"]])
        yield "routing_only", seed, experts[at, pick["router"]]
        yield "router", seed, own["router"]
        choices = torch.cat([experts, own["co_llm"][:, None]], 1)  # (N, n + 1, V)
        yield "co_llm", seed, choices[at, pick["co_llm"]]
        yield "tuned", seed, logp[f"tuned {seed}"]
        left = torch.stack([logp[d] for d in DOMAINS if d != GAP], 1)[at, pick["gap"]]  # (N, V)
        yield "gap", seed, fuse(own["gap"], left)
        yield "gap_routing_only", seed, left
        yield "gap_router", seed, own["gap"]


def token_facts(logp, w, y, seeds):
    """What the theory speaks of, at each token of right answers y (N,): {name: list of N}."""
    experts = torch.stack([logp[d] for d in DOMAINS], 1)  # (N, n, V)
    at, choice = torch.arange(len(y)), experts.argmax(-1)  # (N,), (N, n)
    p = experts[at, :, y].exp()  # (N, n)
    out = {
        "S": informative(choice),
        "an expert is right": (choice == y[:, None]).any(-1),
        "loss of the best expert": 1 - p.amax(-1),
    }
    for seed in range(seeds):
        pick = w[f"router {seed}"].argmax(-1)  # (N,)
        scores = fuse(logp[f"router {seed}"], experts[at, pick])  # (N, V)
        said, picked = scores.argmax(-1), choice[at, pick]  # (N,) twice
        out[f"pick {seed}"] = pick
        out[f"overrules {seed}"] = said != picked
        out[f"overrules, right {seed}"] = (said != picked) & (said == y)
        out[f"overrules, wrong {seed}"] = (said != picked) & (picked == y)
        out[f"loss of the sum {seed}"] = 1 - scores.log_softmax(-1)[at, y].exp()
    return {name: [round(float(v), 4) for v in values] for name, values in out.items()}


@torch.no_grad()
def measured(models, Ws, batch, encoder, seeds, temperatures):
    """A record for each sample of a batch: each method's bits and right tokens, and the facts.

    temperatures: {row: [T, ...]}.
    """
    rows = [
        encoder.sample([{"role": "user", "content": x["prompt"]}], x["completion"]) for x in batch
    ]
    ids, mask = padded([r[0] for r in rows]), padded([r[1] for r in rows])[:, 1:]  # (b, T)
    y = ids[:, 1:][mask]  # (N,): the answers' tokens of the whole batch, one after the other
    size = shared_tokens({"all": encoder.tokenizer})  # a model's rows above it are padding
    logp, w = {}, {}
    for name, model in models.items():
        logits, hidden = read(model, ids[:, :-1], torch.ones_like(ids[:, :-1]), None, 0)
        logp[name] = logits[mask][:, :size].float().log_softmax(-1)  # (N, V)
        if name in Ws:
            w[name] = hidden[mask].float() @ Ws[name].T  # (N, n)
    ends = mask.sum(1).cumsum(0).tolist()
    parts = [slice(a, b) for a, b in zip([0, *ends], ends)]
    out = [
        {
            "id": fraction(x["prompt"]),
            "domain": x["domain"],
            "set": x["set"],
            "bytes": len(x["completion"].encode()),
            "tokens": part.stop - part.start,
            "bits": {},
            "right": {},
        }
        for x, part in zip(batch, parts)
    ]

    def note(row, seed, right, bits):
        key = row if seed is None else f"{row} {seed}"
        for record, part in zip(out, parts):
            record["right"][key] = int(right[part].sum())
            record["bits"][key] = {t: round(float(b[part].sum()), 4) for t, b in bits.items()}

    for row, seed, scores in methods(logp, w, seeds):
        gold, bits = scores[torch.arange(len(y)), y], {}  # (N,)
        for t in temperatures[row]:
            bits[t] = ((scores / t).logsumexp(-1) - gold / t) / log(2)  # (N,)
        note(row, seed, scores.argmax(-1) == y, bits)
    experts = torch.stack([logp[d] for d in DOMAINS], 1)  # (N, n, V)
    best = experts[torch.arange(len(y)), :, y].amax(-1)  # (N,): known only afterwards
    note("oracle", None, (experts.argmax(-1) == y[:, None]).any(-1), {1.0: -best / log(2)})
    facts = token_facts(logp, w, y, seeds)
    for record, part in zip(out, parts):
        record["facts"] = {name: values[part] for name, values in facts.items()}
    return out


ROWS = [*DOMAINS, "product", "base", "generalist", "two_tuned", "fusionroute", "phase1"]
ROWS += ["routing_only", "router", "co_llm", "tuned", "gap", "gap_routing_only", "gap_router"]


def best_temperatures(records):
    """{row: the temperature with the fewest bits per byte, mean of domains and seeds}."""
    out = {}
    for row in ROWS:
        keys = keys_of(row, records[0])
        total = {}
        for t in records[0]["bits"][keys[0]] if keys else ():
            per_domain = [
                sum(r["bits"][k][t] for k in keys for r in records if r["domain"] == d)
                / sum(r["bytes"] for r in records if r["domain"] == d)
                for d in DOMAINS
            ]
            total[t] = sum(per_domain)
        if total:
            out[row] = float(min(total, key=total.get))
    return out


def evaluate(s):
    """OUT/valid.jsonl and OUT/test.jsonl, a record a problem; then OUT/evaluation.json."""
    found, out = benchmark_data.samples(s.data), Path(s.out)
    models = dict(zip(paths(s), load_experts([*paths(s).items()], None, dtype=torch.bfloat16)))
    routers = [name for name in models if name.split()[0] in ROUTERS]
    Ws = {n: load_file(Path(paths(s)[n]).parent / "W.safetensors")["weight"] for n in routers}
    encoder = Encoder(load_tokenizer(s.model))

    def records(part, n, temperatures):
        path, done = out / f"{part}.jsonl", []
        some = benchmark_data.draw(found, part, n)
        some.sort(key=lambda x: len(x["prompt"] + x["completion"]))  # similar lengths: less padding
        if path.exists():
            done = [json.loads(line) for line in path.read_text().splitlines()]
        if [r["id"] for r in done] != [fraction(x["prompt"]) for x in some[: len(done)]]:
            raise script.UserError(f"{path} was made with other settings; remove it")
        for start in tqdm(range(len(done), len(some), 4), f"reading {part}", mininterval=1.0):
            batch = some[start : start + 4]
            done += measured(models, Ws, batch, encoder, s.seeds, temperatures)
            script.write(path, "".join(json.dumps(r) + "\n" for r in done))
        return [json.loads(line) for line in path.read_text().splitlines()]

    valid = records("valid", s.valid, dict.fromkeys(ROWS, TEMPERATURES))
    best = best_temperatures(valid)
    test = records("test", s.tests, {row: sorted({1.0, best.get(row, 1.0)}) for row in ROWS})
    result = summary(test, best)
    script.write(out / "evaluation.json", json.dumps(result, indent=1) + "\n")


def answers(s):
    """OUT/answers.json: how many test problems each method answers rightly, greedily."""
    if s.ifeval:
        benchmark_data.ifeval_rules()
    found, path = benchmark_data.samples(s.data), Path(s.out) / "answers.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    router, tuned = merged_route(f"{s.out}/seed0/router"), merged(load(f"{s.out}/seed0/tuned"))
    base = load(s.model, dtype=torch.bfloat16)
    todo = [(name, domain, "test", s.answers, s.max_new) for name, domain in CHECKED.items()]
    todo += [("ifeval", "general", "asked", s.ifeval, s.max_ifeval)]
    for name, domain, part, n, longest in todo:
        own = router.experts[DOMAINS.index(domain)]
        ways = {"fusionroute": router, "routing_only": router}
        ways |= {"own expert": own, "tuned": tuned, "base": base}
        some = [x for x in found[domain, part] if x["set"] == name][:n]
        for method, lm in ways.items():
            if f"{method}/{name}" in done or not n:
                continue
            router.use_router = method != "routing_only"
            said = answer(lm, router.tokenizer, some, s, longest, do_sample=False)
            right = [benchmark_data.right(x, a["text"]) for x, a in zip(some, said)]
            done[f"{method}/{name}"] = {
                "right": sum(right),
                "of": len(right),
                "interval": exact(sum(right), len(right)),
                "ended": sum(a["ended"] for a in said),
                "which": "".join("01"[r] for r in right),  # of each problem, to pair methods
            }
            script.write(path, json.dumps(done, indent=1) + "\n")


def run(s):
    """All commands, one after the other: extra/results/real_text.json."""
    steps = smollm2.run_all(s.out, list(commands(s)))
    result = json.loads((Path(s.out) / "evaluation.json").read_text())
    if s.answers or s.ifeval:
        result["answers"] = json.loads((Path(s.out) / "answers.json").read_text())
    lines = [
        len((Path(s.out) / f"seed{i}" / "pairs.jsonl").read_text().splitlines())
        for i in range(s.seeds)
    ]
    result["pairs"] = lines
    nowhere = ("data", "out", "model", "step")
    settings = {k: v for k, v in asdict(s).items() if k not in nowhere}
    result |= {"took": smollm2.took(steps), "settings": settings, "made_with": smollm2.made_with()}
    script.write(RESULT, json.dumps(result, indent=1) + "\n")
    print(f"saved {RESULT}")


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    Path(s.out).mkdir(parents=True, exist_ok=True)
    steps = {f.__name__: f for f in (run, data, pairs, co_llm, evaluate, answers)}
    name, seed = re.fullmatch(r"(.*?)(\d*)", s.step or "run").groups()
    if name not in steps or bool(seed) != (name in ("pairs", "co_llm")):
        names = "data, pairsN, co_llmN, evaluate, answers, with N the seed"
        raise script.UserError(f"--step is {s.step!r}, and must be one of {names}")
    steps[name](s, *map(int, seed and [seed]))


if __name__ == "__main__":
    runs.run(main)
