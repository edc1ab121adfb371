"""What the tests of extra/paper share: tiny models, and small recipes."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from extra.paper import checkpoints, train
from extra.paper.recipes import Cdpo, Expert, Reward, Sft
from fusionroute import Router
from toy_experts import script

SIZE = (24, 1)  # width and layers of the tiny models
SMALL = {
    Expert: {"size": (48, 1)},
    Sft: {"samples": 36, "epochs": 2},
    Cdpo: {"prompts": 24, "epochs": 2},
    Reward: {"prompts": 24, "epochs": 1},
}


def tiny_gpt():
    """An untrained model whose answers depend on more than the last token."""
    model = checkpoints.new_gpt("llama", SIZE).eval().requires_grad_(False)
    for p in model.blocks.parameters():
        p.mul_(3)
    return model


def tiny_router(n=3):
    router = Router(tiny_gpt(), n).requires_grad_(False)
    torch.nn.init.normal_(router.W.weight)
    return router


def small(value):
    """A recipe, with those in it, that trains in a moment. (epochs of a long one: 3)"""
    if isinstance(value, tuple):
        return tuple(map(small, value))
    if not is_dataclass(value):
        return value
    inner = {f.name: small(getattr(value, f.name)) for f in fields(value)}
    inner |= SMALL.get(type(value), {})
    if isinstance(value, Sft) and value.epochs > Sft.epochs:
        inner["epochs"] = 3
    return replace(value, **inner)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    train.MEMORY.clear()


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Settings of a run with a tiny base and experts, which tests may add checkpoints to."""
    s = checkpoints.Settings(seed=3, out=str(tmp_path_factory.mktemp("run")), device="cpu")
    script.prepare(checkpoints.place(s))
    torch.manual_seed(3)
    for name in ("base", *script.EXPERTS):
        script.save_model(checkpoints.path(s, name), tiny_gpt(), {"seed": 3, "gap": 0.25}, 1)
    return s
