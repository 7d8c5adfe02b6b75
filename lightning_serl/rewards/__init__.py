"""Rewards: majority votes, checks against gold labels, controls, and the protocol for your own."""

from __future__ import annotations

from lightning_serl.rewards.base import Reward, check_reward, fill_answers
from lightning_serl.rewards.children import ChildReward
from lightning_serl.rewards.confidence import NegativeEntropy, SelfCertainty
from lightning_serl.rewards.covo import CoVo
from lightning_serl.rewards.cross_vote import CrossVote
from lightning_serl.rewards.dual import DualReward
from lightning_serl.rewards.format import FormatReward
from lightning_serl.rewards.harmonic import HarmonicVote
from lightning_serl.rewards.interaction import InteractionReward
from lightning_serl.rewards.judge import SelfJudge
from lightning_serl.rewards.majority import MajorityVote
from lightning_serl.rewards.mix import Mix
from lightning_serl.rewards.novelty import NoveltyVote
from lightning_serl.rewards.plausible import PlausibleVote
from lightning_serl.rewards.random import RandomReward
from lightning_serl.rewards.restrain import RestrainVote
from lightning_serl.rewards.rubric import RubricJudge
from lightning_serl.rewards.selective import SelectiveVote
from lightning_serl.rewards.self_aligned import SelfAligned
from lightning_serl.rewards.serl import PairwiseVote, RuleReward
from lightning_serl.rewards.teacher import TeacherVote
from lightning_serl.rewards.verifiable import LabelElseVote, VerifiableReward

__all__ = [
    "ChildReward",
    "CoVo",
    "CrossVote",
    "DualReward",
    "FormatReward",
    "HarmonicVote",
    "InteractionReward",
    "LabelElseVote",
    "MajorityVote",
    "Mix",
    "NegativeEntropy",
    "NoveltyVote",
    "PairwiseVote",
    "PlausibleVote",
    "RandomReward",
    "RestrainVote",
    "Reward",
    "RubricJudge",
    "RuleReward",
    "SelectiveVote",
    "SelfAligned",
    "SelfCertainty",
    "SelfJudge",
    "TeacherVote",
    "VerifiableReward",
    "check_reward",
    "fill_answers",
]
