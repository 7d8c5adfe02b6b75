"""Instruction sources: few-shot self-instruction, prompt sets, mixtures, methods by name, and the base of your own."""

from __future__ import annotations

from lightning_serl.datamodules.sources.bandit import CategoryBandit
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.discussion import Discussion
from lightning_serl.datamodules.sources.documents import DocumentQuestions, Reading
from lightning_serl.datamodules.sources.evolve import EvolvedPrompts
from lightning_serl.datamodules.sources.few_shot import FewShotSelfInstruction
from lightning_serl.datamodules.sources.follow_ups import FollowUps
from lightning_serl.datamodules.sources.ladder import EasierVariants
from lightning_serl.datamodules.sources.paraphrase import Paraphrase
from lightning_serl.datamodules.sources.prompt_set import Mixture, PromptSet
from lightning_serl.datamodules.sources.proposer import Proposer
from lightning_serl.datamodules.sources.variations import Variations
from lightning_serl.datamodules.sources.weak_spots import WeakSpots
from lightning_serl.datamodules.sources.writing import Writing

__all__ = [
    "CategoryBandit",
    "Discussion",
    "DocumentQuestions",
    "EasierVariants",
    "EvolvedPrompts",
    "FewShotSelfInstruction",
    "FollowUps",
    "InstructionSource",
    "Mixture",
    "Paraphrase",
    "PromptSet",
    "Proposer",
    "Reading",
    "Variations",
    "WeakSpots",
    "Writing",
]
