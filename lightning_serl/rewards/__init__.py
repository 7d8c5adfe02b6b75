"""Rewards: majority votes, checks against gold labels, controls, and the protocol for your own."""

from __future__ import annotations

from lightning_serl.rewards.base import Reward, check_reward, fill_answers
from lightning_serl.rewards.format import FormatReward
from lightning_serl.rewards.majority import MajorityVote
from lightning_serl.rewards.random import RandomReward
from lightning_serl.rewards.serl import PairwiseVote, RuleReward
from lightning_serl.rewards.verifiable import LabelElseVote, VerifiableReward

__all__ = [
    "FormatReward",
    "LabelElseVote",
    "MajorityVote",
    "PairwiseVote",
    "RandomReward",
    "Reward",
    "RuleReward",
    "VerifiableReward",
    "check_reward",
    "fill_answers",
]
