"""Objectives as pure tensor functions: advantages, clipped losses, KL estimators, importance weights."""

from __future__ import annotations

from lightning_serl.objectives.advantages import advantages, overlong_penalty, returns, whiten
from lightning_serl.objectives.importance import ImportanceWeights, effective_sample_size, importance_weights
from lightning_serl.objectives.losses import ClipCounts, aggregate, clip_counts, kl, policy_loss
from lightning_serl.objectives.options import Objective
from lightning_serl.objectives.schedule import CosineWithFloor

__all__ = [
    "ClipCounts",
    "CosineWithFloor",
    "ImportanceWeights",
    "Objective",
    "advantages",
    "aggregate",
    "clip_counts",
    "effective_sample_size",
    "importance_weights",
    "kl",
    "overlong_penalty",
    "policy_loss",
    "returns",
    "whiten",
]
