"""Where the models of a run are kept, and how they are loaded: both families, and other sizes.

A run of the toy's own architecture (llama) is the lesson's, OUT/seedN. A run of Gemma-2's is kept
in OUT/gemma/seedN. Its data, seeds and steps are the same.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from extra.paper import gemma
from model import GPT, GPTConfig
from toy_experts import experts, script, tokenizer

RESULTS = Path(__file__).parents[1] / "results"
FAMILIES = ("llama", "gemma")
SIZE = (96, 3)  # width and layers of every model, as in the lesson


@dataclass
class Settings:
    seed: int = 0  # selects the run: all random numbers follow from it
    out: str = "out"  # runs are kept in OUT/seedN/
    device: str = "auto"  # auto, cuda, mps or cpu
    family: str = "llama"  # architecture of the toy's models: llama or gemma (Gemma-2)
    prompts: int = 100  # prompts a benchmark: test prompts, or validation prompts for tuning
    general: int = 0  # general prompts; 0: as many as --prompts
    rest: int = 0  # table1: seeds on which the less important rows are measured; 0: all

    def __post_init__(self):
        script.positive(self, "prompts")
        script.positive(self, "general", "rest", or_zero=True)
        script.one_of(self, "family", FAMILIES)


def made_with(runs, split="test"):
    """What a JSON file of extra/results says of the runs (Settings, one a seed) it was made of."""
    seeds = [s.seed for s in runs]
    return {"seeds": seeds, "split": split, "prompts per benchmark": runs[0].prompts}


def place(s, gap=experts.Settings.gap):
    """The settings, as the lesson understands them, of the run of s."""
    out = s.out if s.family == "llama" else str(Path(s.out) / s.family)
    return experts.Settings(s.seed, out, s.device, gap)


def path(s, name):
    """Where the run of s keeps the checkpoint NAME.pt."""
    return script.run_dir(place(s)) / f"{name}.pt"


def new_gpt(family=FAMILIES[0], size=SIZE):
    """An untrained model of a family. size: (width, layers); each head has a width of 24."""
    width, layers = size
    heads = width // 24
    shape = {
        "vocab_size": tokenizer.VOCAB_SIZE,
        "d_model": width,
        "n_layer": layers,
        "n_head": heads,
        "n_kv_head": heads // 2 if heads % 2 == 0 else heads,
        "d_ff": width * 8 // 3,
    }
    return GPT(GPTConfig(**shape)) if family == "llama" else gemma.GPT(gemma.GPTConfig(**shape))


def build(config):
    """An untrained model from the settings in a checkpoint, a dict."""
    if "attn_cap" in config:
        return gemma.GPT(gemma.GPTConfig(**config))
    return GPT(GPTConfig(**config))


def load(s, name, router=False):
    """The frozen model NAME.pt of a run, and its checkpoint's dict without the weights."""
    family = f" --family {s.family}" if s.family != "llama" else ""
    hint = f"run python -m extra.paper table1{script.flags(s)}{family}"
    return script.load_model(path(s, name), hint, script.device(s.device), router, build)


def ensure(s, gap=experts.Settings.gap, size=SIZE):
    """Train what is missing of base and experts. What is there must have this gap and size."""
    trained = experts.ensure(place(s, gap), partial(new_gpt, s.family, size), build)
    config = trained[0].config
    folder = path(s, "").parent
    saved, asked = {"size": (config.d_model, config.n_layer)}, {"size": size}
    script.check_same(path(s, "math"), saved, asked, remove=f"the folder {folder}")


def gap(s):
    """The share of sub-skills that the experts of a run were not trained on."""
    return load(s, "base")[1]["recipe"]["gap"]


def keep(path, header):
    """What is computed once and kept in the JSON file path, for as long as its header is the same.

    Returns a function of (key, compute): what an earlier call kept under this key (a JSON value),
    else compute(), kept at once. So a killed run continues.
    """
    header, known = json.loads(json.dumps(header)), {}
    try:
        content = json.loads(path.read_text())
        known = content["rows"] if content["header"] == header else {}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or damaged: made anew

    def kept(key, compute):
        key = json.dumps(key)
        if key not in known:
            known[key] = json.loads(json.dumps(compute()))
            script.write(path, json.dumps({"header": header, "rows": known}) + "\n")
        return known[key]

    return kept
