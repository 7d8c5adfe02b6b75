"""Rollout engines on vLLM: in this process, and over HTTP."""

from lightning_serl.engines.vllm.engine import VLLMEngine
from lightning_serl.engines.vllm.server_engine import VLLMServerEngine

__all__ = ["VLLMEngine", "VLLMServerEngine"]
