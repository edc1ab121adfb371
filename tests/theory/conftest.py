"""What the tests of theory/ share. They name nothing of tests/conftest.py."""

import json
from pathlib import Path

import pytest

from theory import __main__ as command
from theory.statements import compute

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def rows():
    """All statements, computed once."""
    return compute()


@pytest.fixture(scope="session")
def toy():
    """The numbers of the toy MDP, computed once."""
    return command.toy()


@pytest.fixture(scope="session")
def stored():
    """Both JSON files: (statements, toy MDP)."""
    return tuple(json.loads((ROOT / name).read_text()) for name in command.JSON)
