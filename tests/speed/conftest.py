import importlib

import pytest
import torch

from toy_experts.run import UserError


def mistake(name, *args):
    """What a script says about a user's mistake, in this process: to start Python and torch takes seconds each time."""
    with pytest.raises(UserError) as caught:
        importlib.import_module(name).main([str(a) for a in args])
    return str(caught.value)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
