"""Rollout engines: what writes the completions of a round."""

from lightning_serl.engines.base import Receipt, Request, RolloutEngine, Sampling, WeightUpdate
from lightning_serl.engines.replay import ReplayEngine
from lightning_serl.engines.transformers import TransformersEngine
from lightning_serl.engines.vllm.engine import VLLMEngine  # vllm itself is imported when the engine starts
from lightning_serl.engines.vllm.server_engine import VLLMServerEngine

__all__ = [
    "Receipt",
    "ReplayEngine",
    "Request",
    "RolloutEngine",
    "Sampling",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServerEngine",
    "WeightUpdate",
]
