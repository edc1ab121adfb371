"""Every trained model of the tables: a recipe for each checkpoint, and what trains it with the ground floor's own loops.

    python -m extra.paper.train fine_tuned     trains OUT/seed0/fine_tuned.pt, and first what it starts from

A recipe is a phase (Sft, Cdpo or Reward) with the settings that differ from the ground floor's. TRAINING holds the recipes of all
checkpoints; tune.py chose their settings on validation prompts. The loops are train_sft.train and train_cdpo.train; a recipe's loss is
handed in (variants.py). Trained by either, router_sft.pt and router.pt are the same files.
"""

import contextlib
import time
from dataclasses import asdict, dataclass
from random import Random
from types import SimpleNamespace

import torch

import train_cdpo
import train_sft
from extra.common import file_stem, one_of
from extra import models
from extra.paper import variants
from extra.paper.baselines import Reward, train_reward
from extra.models import Settings
from fusionroute import Router, score
from toy_experts import pairs as toy_pairs
from toy_experts import run, tasks
from toy_experts import train as toy
from toy_experts.data import Data, batches, scored

# --- recipes ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sft:
    """Phase 1."""
    loss: str = "paper"                              # a name of variants.SFT_LOSSES
    samples: int = train_sft.Settings.samples
    epochs: int = train_sft.Settings.epochs
    lr: float = train_sft.Settings.lr
    lr_w: float = train_sft.LR_W
    lam: float = train_sft.Settings.lam
    start: str = "instruct"                          # the model that the router starts from: a checkpoint of the run

    def __post_init__(self):
        one_of(self, "loss", variants.SFT_LOSSES)
        file_stem(self, "start")
        run.positive(self, "samples", "epochs", "lr", "lr_w")
        run.positive(self, "lam", or_zero=True)


@dataclass(frozen=True)
class Cdpo:
    """Phase 2. Its SFT batches keep the samples and the loss of the phase 1 that it continues."""
    phase1: str = "router_sft"                       # the checkpoint that is trained further
    pairs_of: str = ""                               # the checkpoint whose mistakes are the pairs; "": phase1
    loss: str = "paper"                              # a name of variants.PAIR_LOSSES
    rejected: str = "fused"                          # a name of variants.SOURCES
    mix: int = 1                                     # 0 leaves the SFT batches out
    prompts: int = train_cdpo.Settings.prompts
    epochs: int = train_cdpo.Settings.epochs
    lr: float = train_cdpo.Settings.lr
    lr_w: float = train_cdpo.LR_W
    lam: float = train_cdpo.Settings.lam
    beta: float = train_cdpo.Settings.beta

    def __post_init__(self):
        one_of(self, "loss", variants.PAIR_LOSSES)
        one_of(self, "rejected", variants.SOURCES)
        one_of(self, "mix", (0, 1))
        file_stem(self, "phase1", *["pairs_of"] * bool(self.pairs_of))
        run.positive(self, "prompts", "epochs", "lr", "lr_w", "beta")
        run.positive(self, "lam", or_zero=True)


@dataclass(frozen=True)
class Union:
    """One model in the experts' place: the base, trained on all their documents for as many steps as all of them together."""


@dataclass(frozen=True)
class Double:
    """The instruction expert with about twice the parameters: a base of this size first, on the same documents, then as always."""
    size: tuple = (144, 3)                           # width and layers

    def __post_init__(self):
        if self.size[0] % 24:
            raise run.UserError(f"size is {self.size}, and its width must be a multiple of 24")


TRAINING = {  # in this order: each needs some of those before it
    "router_sft": Sft(),
    "router": Cdpo(),
    "fine_tuned_sft": Sft(loss="plain", lr=2e-3),
    "fine_tuned": Cdpo(loss="plain", lr=2.5e-5, phase1="fine_tuned_sft", pairs_of="router_sft"),
    # The same two with the budget that tune.py found for each: passes over the samples, and the rate.
    "router_sft_long": Sft(epochs=16),
    "router_long": Cdpo(phase1="router_sft_long"),
    "fine_tuned_sft_long": Sft(loss="plain", lr=1e-3, epochs=16),
    "fine_tuned_long": Cdpo(loss="plain", lr=2.5e-5, phase1="fine_tuned_sft_long", pairs_of="router_sft"),
    "union": Union(),
    "generalist": Sft(loss="plain", lr=1e-3, start="union"),
    # What decodes at the cost of router and expert: one model of twice the size, and a second fine-tuned model to add to the first.
    "double_start": Double(),
    "double": Sft(loss="plain", lr=1e-3, epochs=16, start="double_start"),
    "fine_tuned_sft_math": Sft(loss="plain", lr=1e-3, epochs=16, start="math"),
    "sft_all": Sft(loss="all"),
    "router_all": Cdpo(phase1="sft_all"),
    "co_llm": Sft(loss="co_llm"),
    "co_llm_self": Sft(loss="co_llm_self"),
    "fused_sft": Sft(loss="fused_own", lr=2e-3),
    # The budget that tune.py found for these, for the ablation "budget".
    "co_llm_self_long": Sft(loss="co_llm_self", epochs=8),
    "fused_sft_long": Sft(loss="fused_own", lr=2e-3, epochs=8),
    "generalist_long": Sft(loss="plain", lr=5e-4, epochs=16, start="union"),
    "fused_full": Cdpo(phase1="fused_sft"),
    "reward": Reward(),  # one for Sequence Selection and Collab
}


def changed(spec):
    """The settings of a recipe that differ from its phase's own, as a dict."""
    return {name: value for name, value in asdict(spec).items() if value != getattr(type(spec), name)}


# --- training -----------------------------------------------------------------------------------------------------------------------------

MEMORY = {}  # what several trainings of one process share: samples and pairs with the experts' scores on them


def once(make, *key):
    if key not in MEMORY:
        MEMORY[key] = make()
    return MEMORY[key]


def train(s, name, spec=None):
    """Train the checkpoint NAME.pt of the run s by a recipe (default: that of TRAINING), unless it is there."""
    spec = spec or TRAINING[name]
    file_stem(SimpleNamespace(name=name), "name")
    {Sft: train_phase1, Cdpo: train_phase2, Reward: train_reward, Union: train_union, Double: train_double}[type(spec)](s, name, spec)


def is_there(path, usual, recipe):
    """Whether path has been trained already. UserError if it was by another recipe. usual: for what a ground floor's file does not say."""
    if not path.exists():
        return False
    saved = models.load_model(path, "start again", router=True)[1]["recipe"]
    run.check_same(path, usual | saved, recipe)
    print(f"{path} is there already")
    return True


@contextlib.contextmanager
def rate_of_W(script, lr_w):
    """The learning rate of W is a constant of the ground floor's scripts; here it is another for a while."""
    usual, script.LR_W = script.LR_W, lr_w
    try:
        yield
    finally:
        script.LR_W = usual


@contextlib.contextmanager
def steps_of(name, steps, lr):
    """toy.train knows the steps and the rate of the ground floor's models; for a while also those of the model `name`."""
    toy.STEPS[name], toy.LR[name] = steps, lr
    try:
        yield
    finally:
        del toy.STEPS[name], toy.LR[name]


def sft_samples(s, n, experts, names):
    """Phase 1's n samples, scored. names: the experts' fingerprints, by their names."""
    return once(lambda: phase1_data(s.seed, n, experts), "sft", s.seed, n, *names.values())


def phase1_data(seed, n, experts):
    """train_sft.py's samples, scored by these experts."""
    return scored([toy.sample(item) for item in tasks.mixed("train", n, Random(f"sft {seed}"))], experts)


def train_phase1(s, name, spec):
    directory, device = run.prepare(models.place(s))
    hint = "run python -m extra.paper.evaluate" + models.flags(s)
    experts = models.load_experts(s, hint)
    gap = models.gap(s, hint)
    names = dict(zip(toy.EXPERTS, map(run.fingerprint, experts)))
    path, recipe = directory / f"{name}.pt", {"seed": s.seed, "gap": gap} | asdict(spec) | {"experts": names}
    if is_there(path, asdict(Sft()), recipe):
        return
    begun, sft = time.time(), sft_samples(s, spec.samples, experts, names)
    choices = names | ({"router": ""} if spec.loss == "co_llm_self" else {})       # what W chooses among
    start = models.load_model(directory / f"{spec.start}.pt", hint, device)[0]
    router = Router(start, len(choices)).to(device)
    settings = train_sft.Settings(seed=s.seed, samples=spec.samples, epochs=spec.epochs, lr=spec.lr, lam=spec.lam)
    with rate_of_W(train_sft, spec.lr_w):
        log = train_sft.train(settings, router.requires_grad_(True), sft, variants.sft_loss_for(spec.loss, experts))
    log.save(directory / f"{name}.log.jsonl")
    run.save_model(path, router, recipe, time.time() - begun, choices)


def train_union(s, name, spec):
    directory, device = run.prepare(models.place(s))
    path, hint = directory / f"{name}.pt", "run python -m extra.paper.evaluate" + models.flags(s)
    model, content = models.load_model(directory / "base.pt", hint, device)
    recipe = content["recipe"] | {"base": run.fingerprint(model)}
    if path.exists():
        run.check_same(path, models.load_model(path, "start again")[1]["recipe"], recipe)
        return print(f"{path} is there already")
    begun, documents = time.time(), [d for e in toy.EXPERTS for d in toy.documents(toy.Settings(**content["recipe"]), e)]
    with steps_of(name, sum(toy.STEPS[e] for e in toy.EXPERTS), toy.LR["math"]):
        toy.train(name, model.requires_grad_(True), documents, s.seed * 1000)
    run.save_model(path, model, recipe, time.time() - begun)


def train_double(s, name, spec):
    directory, device = run.prepare(models.place(s))
    path, hint = directory / f"{name}.pt", "run python -m extra.paper.evaluate" + models.flags(s)
    recipe = run.load(directory / "base.pt", ("recipe",), hint)["recipe"]
    asked = recipe | {"size": list(spec.size)}
    if path.exists():
        run.check_same(path, models.load_model(path, "start again")[1]["recipe"], asked)
        return print(f"{path} is there already")
    begun = time.time()
    torch.manual_seed(s.seed)                                             # as in models.ensure
    model = models.new_gpt(s.family, spec.size).to(device)
    for number, what in ((0, "base"), (1 + toy.EXPERTS.index("instruct"), "instruct")):
        toy.train(what, model.requires_grad_(True), toy.documents(toy.Settings(**recipe), what), s.seed * 1000 + number)
    run.save_model(path, model, asked, time.time() - begun)


def reference(lm, both):
    """log pi_ref of both answers of each pair, as phase 2 compares with: Data of the answers in turn -> (2 pairs,)."""
    return (score([lm], both.ids, both.lengths)[0][..., 0] * both.mask[:, 1:]).sum(-1)


def train_phase2(s, name, spec):
    router, experts, phase1 = models.load_router(s, spec.phase1)
    sampler = models.load_router(s, spec.pairs_of)[0] if spec.pairs_of else router
    directory, _ = run.prepare(models.place(s))
    first, second = run.fingerprint(router), run.fingerprint(sampler)
    recipe = {"seed": s.seed} | asdict(spec) | {"phase1": first, "sampler": second}
    del recipe["pairs_of"]
    path, usual = directory / f"{name}.pt", asdict(Cdpo()) | {"sampler": first}
    if is_there(path, usual, recipe):
        return
    begun, names, source = time.time(), phase1["experts"], (s.seed, spec.prompts, spec.rejected, second)
    sft = sft_samples(s, phase1["recipe"]["samples"], experts, names)
    found = once(lambda: variants.sample_pairs(sampler, experts, s.seed, spec.prompts, spec.rejected), "pairs", *source)
    both = once(lambda: scored(toy_pairs.samples(found), experts), "scored pairs", *source)  # chosen, rejected, chosen, ...
    if spec.loss == "fused":
        ref = variants.fused_reference(router, experts, both.ids, both.mask, both.lengths)                        # (2 pairs,)
    else:
        ref = reference(router.lm, both)                                                                          # (2 pairs,)
    pairs = Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
    settings = train_cdpo.Settings(seed=s.seed, prompts=spec.prompts, epochs=spec.epochs, lr=spec.lr, lam=spec.lam, beta=spec.beta)
    plan = train_cdpo.make_plan(settings, sft.lengths, pairs.lengths) if spec.mix else only_pairs(settings, pairs.lengths)
    with rate_of_W(train_cdpo, spec.lr_w):
        log = train_cdpo.train(settings, router.requires_grad_(True), sft, pairs, ref.view(-1, 2), plan,
                               variants.pair_loss_for(spec.loss, experts),
                               variants.sft_loss_for(phase1["recipe"].get("loss", "paper"), experts))
    run.write(directory / ("pairs.jsonl" if name == "router" else f"{name}.pairs.jsonl"), toy_pairs.text(found))
    log.save(directory / f"{name}.log.jsonl")
    run.save_model(path, router, recipe, time.time() - begun, names)


def only_pairs(s, lengths):
    """train_cdpo.make_plan without SFT batches. lengths (pairs, 2)."""
    plan = [("pair", rows) for e in range(s.epochs) for rows in batches(lengths.amax(1), train_cdpo.BATCH, s.seed * 1000 + e)]
    Random(f"plan {s.seed}").shuffle(plan)
    return plan


# --- the command --------------------------------------------------------------------------------------------------------------------------


def needed(name):
    """The checkpoint NAME and those that it starts from, in order."""
    spec = TRAINING[name]
    before = [spec.phase1, spec.pairs_of] if isinstance(spec, Cdpo) else ["router_sft"] if isinstance(spec, Reward) else \
        [spec.start] if isinstance(spec, Sft) and spec.start in TRAINING else []
    return [*dict.fromkeys(n for b in before if b for n in needed(b))] + [name]


def main(argv=None):
    p = run.parser(Settings, __doc__)
    p.add_argument("name", choices=TRAINING, help="the checkpoint")
    args = vars(p.parse_args(argv))
    name, s = args.pop("name"), Settings(**args)
    models.ensure(s)
    for checkpoint in needed(name):
        train(s, checkpoint)


if __name__ == "__main__":
    run.run(main)
