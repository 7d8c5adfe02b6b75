"""Callbacks: filters, reference sync, rollout refresh and the run folder."""

from lightning_serl.callbacks.checkpoints import Checkpoints
from lightning_serl.callbacks.export import Export
from lightning_serl.callbacks.filters import (
    DifficultyFilter,
    GroupFilter,
    InstructionFilter,
    NoveltyFilter,
    QualityFilter,
    ZeroSpread,
)
from lightning_serl.callbacks.health import Health
from lightning_serl.callbacks.hooks import RolloutHooks
from lightning_serl.callbacks.ledger import Ledger
from lightning_serl.callbacks.progress import Phases
from lightning_serl.callbacks.reference_sync import ReferenceSync
from lightning_serl.callbacks.rollout_refresh import RolloutRefresh
from lightning_serl.callbacks.summary import Summary

__all__ = [
    "Checkpoints",
    "DifficultyFilter",
    "Export",
    "GroupFilter",
    "Health",
    "InstructionFilter",
    "Ledger",
    "NoveltyFilter",
    "Phases",
    "QualityFilter",
    "ReferenceSync",
    "RolloutHooks",
    "RolloutRefresh",
    "Summary",
    "ZeroSpread",
]
