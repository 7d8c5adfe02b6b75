"""Rollout engines: what writes the completions of a round."""

from lightning_serl.engines.base import Receipt, Request, RolloutEngine, Sampling, WeightUpdate
from lightning_serl.engines.replay import ReplayEngine
from lightning_serl.engines.transformers import TransformersEngine

__all__ = ["Receipt", "ReplayEngine", "Request", "RolloutEngine", "Sampling", "TransformersEngine", "WeightUpdate"]
