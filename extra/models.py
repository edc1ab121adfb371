"""The models of a run: both families, other sizes, and every checkpoint that the tables need.

A run of the default family (llama) is the ground floor's, OUT/seedN. A run of Gemma-2's architecture is kept in OUT/gemma/seedN; its
data, seeds and steps are the same.
"""

import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch

from extra import gpt
from extra.common import FAMILIES, one_of
from fusionroute import Router
from model import GPT, GPTConfig
from toy_experts import run, tokenizer
from toy_experts import train as toy
from toy_experts.train import EXPERTS

SIZE = (96, 3)  # width and layers of every model, as on the ground floor
# Gemma-2's options, in the proportions of its checkpoints: heads wider than the width shares out, a window that most documents outgrow.
GEMMA = dict(gelu=True, post_norm=True, one_plus=True, embed_scaled=True, head_dim=32, query_scalar=24.0, attn_cap=50.0, logit_cap=30.0,
             window=32)


@dataclass
class Settings:
    seed: int = 0          # selects the run: all random numbers follow from it
    out: str = "out"       # runs are kept in OUT/seedN/
    device: str = "auto"   # auto, cuda, mps or cpu
    family: str = "llama"  # architecture of the toy's models: llama or gemma (Gemma-2)


def place(s):
    """Where the run of the settings s is kept, as toy_experts.run understands it: settings with seed, out and device."""
    one_of(s, "family", FAMILIES)
    return toy.Settings(s.seed, s.out if s.family == "llama" else str(Path(s.out) / s.family), s.device)


def folder(s):
    return run.run_dir(place(s))


def gap(s, hint="train the run first"):
    """The share of sub-skills that the experts of a run were not trained on."""
    return run.load(folder(s) / "base.pt", ("recipe",), hint)["recipe"]["gap"]


def flags(s):
    """The flags of another command of extra/paper that works on the same run; defaults are left out."""
    return run.flags(s) + (f" --family {s.family}" if s.family != "llama" else "")


def new_gpt(family, size):
    """An untrained model with the random numbers that torch has now. size: (width, layers); each head has a width of 24."""
    width, layers = size
    heads = width // 24
    shape = dict(vocab_size=tokenizer.VOCAB_SIZE, d_model=width, n_layer=layers, n_head=heads, d_ff=width * 8 // 3,
                 n_kv_head=heads // 2 if heads % 2 == 0 else heads)
    return GPT(GPTConfig(**shape)) if family == "llama" else gpt.GPT(gpt.GPTConfig(**shape, **GEMMA))


def ensure(s, gap=toy.Settings.gap, size=None):
    """Train what is missing of base and experts: toy_experts.train.ensure for both families and other sizes.

    What is there already must have been trained with this gap and size.
    """
    where, (width, layers) = place(s), size or SIZE
    documents = toy.Settings(s.seed, where.out, s.device, gap)
    directory, device = run.prepare(where)
    asked, base = {"seed": s.seed, "gap": gap, "d_model": width, "n_layer": layers}, None
    for i, name in enumerate(["base"] + EXPERTS):
        path = directory / f"{name}.pt"
        if not path.exists():
            print(f"there is no {path} yet: training it")
            begun = time.time()
            torch.manual_seed(s.seed)
            model = new_gpt(s.family, (width, layers)) if name == "base" else deepcopy(base).requires_grad_(True)
            toy.train(name, model.to(device), toy.documents(documents, name), s.seed * 1000 + i)
            run.save_model(path, model, run.recipe(documents), time.time() - begun)
        model, content = load_model(path, "start again", device)
        run.check_same(path, content["recipe"] | content["config"], asked, remove=f"the folder {directory}")
        base = base or model


def load_model(path, hint, device="cpu", router=False):
    """toy_experts.run.load_model for both families: the frozen GPT (or Router) in a checkpoint, and its dict without the weights."""
    content = run.load(path, ("config", "vocabulary", "experts", "model"), hint)
    if not isinstance(content["config"], dict) or "gelu" not in content["config"]:
        return run.load_model(path, hint, device, router)
    if content["vocabulary"] != tokenizer.FINGERPRINT or bool(content["experts"]) != router:
        raise run.UserError(f"{path} is {'not ' if router else ''}a router, or was made with another vocabulary: remove it, then {hint}")
    try:
        model = gpt.GPT(gpt.GPTConfig(**content["config"]))
        model = Router(model, len(content["experts"])) if router else model
        model.load_state_dict(content.pop("model"))
    except (TypeError, RuntimeError, AttributeError, ValueError, ZeroDivisionError) as e:
        raise run.UserError(f"{path}: its weights do not fit its settings ({str(e)[:120]}); remove it, then {hint}") from e
    return model.to(device).eval().requires_grad_(False), content


def load_experts(s, hint):
    return [load_model(folder(s) / f"{name}.pt", hint, run.device(s.device))[0] for name in EXPERTS]


def load_router(s, name, hint="run python -m extra.paper.evaluate"):
    """The router NAME.pt of a run, frozen, what it chooses among, and its checkpoint's dict without the weights.

    It chooses among the experts; one of the loss co_llm_self also among itself, which is then the last in the list.
    UserError unless router and experts belong together.
    """
    hint += flags(s)
    experts = load_experts(s, hint)
    path = folder(s) / f"{name}.pt"
    router, content = load_model(path, hint, run.device(s.device), router=True)
    for e, expert in zip(EXPERTS, experts):
        if expert.config != router.lm.config:
            raise run.UserError(f"{e}.pt and {path} are models of different sizes or vocabularies: their logits cannot be added")
    if [e for e in content["experts"] if e != "router"] != EXPERTS:
        raise run.UserError(f"{path} routes among {', '.join(map(str, content['experts']))}, not among {', '.join(EXPERTS)}")
    run.check_same(path, content["experts"], dict(zip(EXPERTS, map(run.fingerprint, experts))))
    return router, experts + [router.lm] * ("router" in content["experts"]), content
