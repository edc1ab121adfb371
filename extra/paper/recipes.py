"""A recipe for every trained model of the tables.

A recipe says what differs from the lesson; a recipe with no settings is the lesson's own. It may
contain other recipes: what a model starts from, the experts beside it, whose mistakes its pairs
are. TRAINING has names for the recipes of the tables; tune.py chose their settings on validation
prompts. Any other recipe gets a name made of its settings.
"""

import re
from dataclasses import dataclass, fields, is_dataclass, replace

import train_cdpo
import train_sft
from extra.paper.checkpoints import SIZE
from toy_experts import script

EXPERTS = tuple(script.EXPERTS)


@dataclass(frozen=True)
class Expert:
    """A language model in an expert's place."""

    data: str  # whose documents: base, an expert's, union (all experts'), or a name of train.PARTS
    start: object = "base"  # what it starts from: a name, a recipe, or None for a new model
    size: tuple = SIZE  # of a new one: width and layers
    family: str = ""  # of a new one; "": the run's


@dataclass(frozen=True)
class Sft:
    """Phase 1."""

    loss: str = "paper"  # a name of losses.SFT_LOSSES
    samples: int = train_sft.Settings.samples
    epochs: int = train_sft.Settings.epochs
    lr: float = train_sft.Settings.lr
    lr_w: float = train_sft.Settings.lr_w
    lam: float = train_sft.Settings.lam
    start: object = "instruct"  # what the router's language model starts from
    experts: tuple = EXPERTS  # what it chooses among: names or recipes
    items: str = ""  # other shares of the domains: "without math", ... (altered.sft_items)
    share: float = 1.0  # how much of S is in L_expert; above 1: the rest too (altered.with_share)
    changed: str = ""  # what the math expert's logits become: a name of altered.CHANGES


@dataclass(frozen=True)
class Update:
    """A router that more experts join: W gets a row of zeros for each. One pass trains it again."""

    router: Sft
    experts: tuple = EXPERTS  # from now on
    theta: bool = False  # whether theta_LM is trained too, or W only


@dataclass(frozen=True)
class Cdpo:
    """Phase 2. Its SFT batches keep the samples and the loss of the phase 1 that it continues."""

    phase1: Sft = Sft()
    sampler: Sft = None  # whose mistakes the pairs are; None: phase1's
    loss: str = "paper"  # a name of losses.PAIR_LOSSES
    rejected: str = "fused"  # a name of train.SOURCES
    mix: int = 1  # 0 leaves the SFT batches out
    prompts: int = train_cdpo.Settings.prompts
    epochs: int = train_cdpo.Settings.epochs
    lr: float = train_cdpo.Settings.lr
    lr_w: float = train_cdpo.Settings.lr_w
    lam: float = train_cdpo.Settings.lam
    beta: float = train_cdpo.Settings.beta
    flipped: float = 0.0  # share of the pairs in which chosen and rejected are exchanged
    without: str = ""  # leaves out the pairs of a domain, or of the general prompts


@dataclass(frozen=True)
class Reward:
    """A reward model for Sequence Selection and Collab: a router with one output, its score."""

    rejected: str = "experts"  # a name of train.SOURCES
    prompts: int = 2000
    epochs: int = 4
    lr: float = 1e-3
    lr_w: float = 1e-2
    prefixes: int = 1  # 1: train on answers cut short as well, which Collab scores; 0: whole ones
    start: str = "instruct"
    sampler: Sft = Sft()


PLAIN = Sft(loss="plain", lr=2e-3)
PLAIN_LONG = Sft(loss="plain", lr=1e-3, epochs=16)
UNION = Expert("union")
# The Fine-tuned Model has FusionRoute's start, data and pairs. The union needs the experts' own
# data, which the paper's premise denies: what starts from it is a bound, not a rival.
TRAINING = {  # in this order: each needs some of those before it
    "router_sft": Sft(),
    "router": Cdpo(),
    "fine_tuned_sft": PLAIN,
    "fine_tuned": Cdpo(PLAIN, Sft(), loss="plain", lr=2.5e-5),
    # With the budget that tune.py found for each: passes over the samples, and the rate.
    "router_sft_long": Sft(epochs=16),
    "router_long": Cdpo(Sft(epochs=16)),
    "fine_tuned_sft_long": PLAIN_LONG,
    "fine_tuned_long": Cdpo(PLAIN_LONG, Sft(), loss="plain", lr=2.5e-5),
    "union": UNION,
    "generalist": replace(PLAIN, lr=1e-3, start=UNION),
    "fine_tuned_sft_math": replace(PLAIN_LONG, start="math"),
    "sft_all": Sft(loss="all"),
    "router_all": Cdpo(Sft(loss="all")),
    "co_llm": Sft(loss="co_llm"),
    "co_llm_self": Sft(loss="co_llm_self"),
    "fused_sft": Sft(loss="fused_own", lr=2e-3),
    "co_llm_self_long": Sft(loss="co_llm_self", epochs=8),
    "fused_sft_long": Sft(loss="fused_own", lr=2e-3, epochs=8),
    "generalist_long": replace(PLAIN, lr=5e-4, epochs=16, start=UNION),
    "fused_full": Cdpo(Sft(loss="fused_own", lr=2e-3)),
    "reward": Reward(),
}


def changed(recipe):
    """The settings of a recipe that differ from its class's own. A recipe in it: its name."""
    values = {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    values = {f.name: values[f.name] for f in fields(recipe) if values[f.name] != f.default}
    one = lambda x: name_of(x) if is_dataclass(x) else x
    many = lambda x: [one(y) for y in x] if isinstance(x, tuple) else one(x)
    return {name: many(value) for name, value in values.items()}


def name_of(recipe):
    """The name of a recipe's checkpoint. A name is its own."""
    if isinstance(recipe, str):
        return recipe
    for name, known in TRAINING.items():
        if known == recipe:
            return name
    words = [f"{name}_{value}" for name, value in changed(recipe).items()]
    return re.sub(r"[^\w.-]+", "-", "_".join([type(recipe).__name__.lower(), *words]))


MODELS = ("start", "experts", "router", "phase1", "sampler")  # settings that name other models


def models_of(recipe):
    """The recipes, and names, of the models that a recipe's training needs."""
    values = [getattr(recipe, f.name) for f in fields(recipe) if f.name in MODELS]
    return [x for v in values for x in (v if isinstance(v, tuple) else [v]) if x]


def needed(recipe):
    """The names of the checkpoints that a recipe's needs, and its own, in order."""
    if isinstance(recipe, str):
        return [recipe]
    before = [name for model in models_of(recipe) for name in needed(model)]
    return [*dict.fromkeys(before), name_of(recipe)]
