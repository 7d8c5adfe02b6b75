"""Filters of instructions and groups: quality, novelty and difficulty as in SeRL, and groups without spread."""

from lightning_serl.callbacks.filters.difficulty import DifficultyFilter, ZeroSpread
from lightning_serl.callbacks.filters.novelty import NoveltyFilter
from lightning_serl.callbacks.filters.quality import QualityFilter
from lightning_serl.callbacks.rollout_hooks import GroupFilter, InstructionFilter

__all__ = ["DifficultyFilter", "GroupFilter", "InstructionFilter", "NoveltyFilter", "QualityFilter", "ZeroSpread"]
