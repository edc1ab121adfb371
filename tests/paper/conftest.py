"""What the tests of extra/paper share. They need nothing of the other tests."""

import importlib

import pytest
import torch

from toy_experts import run


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mistake():
    """A script's complaint about a user's mistake, in this process (starting Python and torch takes seconds each time)."""
    def complaint(name, *args):
        with pytest.raises(run.UserError) as caught:
            importlib.import_module(name).main([str(a) for a in args])
        return str(caught.value)
    return complaint
