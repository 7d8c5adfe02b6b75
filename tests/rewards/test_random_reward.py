"""The random control."""

import torch

from lightning_serl.rewards import RandomReward
from lightning_serl.types import Group


def test_random_reward_knows_nothing_and_repeats_itself():
    groups = [Group.from_texts(f"p{i}", ["a"] * 16) for i in range(200)]
    forward = RandomReward(seed=3)(groups, None)
    other = [Group.from_texts(f"p{i}", ["b"] * 16) for i in reversed(range(200))]
    backward = RandomReward(seed=3)(other, None)
    assert [v.scores.tolist() for v in forward] == [v.scores.tolist() for v in reversed(backward)]
    assert 0.47 < torch.stack([v.scores for v in forward]).mean().item() < 0.53
    assert forward[0].scores.tolist() != RandomReward(seed=4)(groups, None)[0].scores.tolist()
