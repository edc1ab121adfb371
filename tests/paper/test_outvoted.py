"""Where two answers part, and which token each model wanted there: worked by hand."""

import pytest
import torch

from extra.paper import outvoted, report


def says(token, w=(0.0, 0.0), after=()):
    """A model whose first choice is `token` after the text `after`, and token 0 elsewhere."""

    def model(ids):
        logits = torch.zeros(1, ids.size(1), 9)
        logits[0, -1, token if tuple(ids[0].tolist()) == after else 0] = 1
        return logits, torch.tensor(w).expand(1, ids.size(1), 2)

    return model


def test_the_token_at_which_two_answers_part():
    assert outvoted.parting([5, 6, 7], [5, 6, 8]) == 2
    assert outvoted.parting([5], [4, 6]) == 0


def test_what_each_model_wanted_there():
    """Prompt 1 2, answer 5 6 7, parting at its last token: all have read 1 2 5 6."""
    read = (1, 2, 5, 6)
    models = [says(7, w=(0.1, 0.9), after=read), says(3, after=read), says(8, after=read)]
    assert outvoted.wanted(models, [1, 2], [5, 6, 7], 2) == ([7, 3, 8], 1)


@pytest.mark.parametrize("votes, who", [((1, 0), 0), ((0, 1), 1), ((0, 0), 2)])
def test_who_wanted_the_right_token(votes, who):
    named = [rule(*map(bool, votes)) for rule in outvoted.LOST.values()]
    assert named.index(True) == who and sum(named) == 1


def test_shares_of_the_prompts():
    rows = report.of_outvoted({"lost": {"a": [1, 3], "b": [3, 3]}})
    assert rows["lost"] == {"prompts": [4, 6]}
    assert rows["lost, a"] == {"average": [0.25, 0.5]}
