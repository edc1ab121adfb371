"""The toy's runs and models in both families, as bench.py and equal.py need them: see extra/models.py."""

from extra import models


def at(s, seed):
    """The settings of one run. s: settings with out, device and family."""
    return models.Settings(seed, s.out, s.device, s.family)


def folder(s, seed):
    return models.folder(at(s, seed))


def new_gpt(family):
    """An untrained model of the toy."""
    return models.new_gpt(family, models.SIZE)


def load(s, seed):
    """The router of a run after both phases, and its experts, frozen. UserError if it is not there or damaged."""
    hint = "run bash run.sh" if s.family == "llama" else "run python -m extra.paper.evaluate"
    return models.load_router(at(s, seed), "router", hint)[:2]
