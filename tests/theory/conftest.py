"""What the tests of theory/ share. They use nothing of tests/conftest.py."""

import json
from pathlib import Path

import pytest

from theory import __main__ as command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def rows():
    """All statements, computed once."""
    return command.compute()


@pytest.fixture(scope="session")
def small():
    """The numbers of the toy MDP, computed once."""
    return command.toy()


@pytest.fixture(scope="session")
def stored():
    """All statements as extra/results/theory.json has them."""
    return json.loads((ROOT / "extra" / "results" / "theory.json").read_text())


@pytest.fixture(scope="session")
def stored_small():
    """The numbers of the toy MDP as extra/results/toy_mdp.json has them."""
    return json.loads((ROOT / "extra" / "results" / "toy_mdp.json").read_text())
