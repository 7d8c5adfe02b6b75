"""The check of a user's reward."""

import pytest
import torch

from lightning_serl.errors import InputError
from lightning_serl.rewards import MajorityVote, check_reward
from lightning_serl.types import Verdict


def good(groups, ctx):
    return [Verdict(torch.zeros(len(g))) for g in groups]


class Needy:
    needs = frozenset({"entropy"})

    def __call__(self, groups, ctx, factor=1.0):
        return good(groups, ctx)


def test_rewards_that_pass():
    for reward in (good, Needy(), MajorityVote(), lambda groups, _ctx: [], lambda *args: []):
        assert check_reward(reward) is reward


class Wrong:
    needs = frozenset({"magic"})

    def __call__(self, groups, ctx):
        return []


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (lambda prompts, completions: [], "'prompts'"),
        (lambda groups: [], "'ctx'"),
        (lambda groups, ctx, extra: [], "'extra'"),
        (lambda groups, ctx, *, key: [], "'key'"),
        (Needy, r"Needy\(\)"),
        (Wrong(), "magic"),
        ("majority", "cannot be called"),
    ],
)
def test_rewards_that_do_not(reward, words):
    with pytest.raises(InputError, match=words):
        check_reward(reward)
