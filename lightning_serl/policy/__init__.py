"""The policy: a causal language model, its log-probabilities, adapters and frozen copies."""

from __future__ import annotations

from lightning_serl.policy.loading import load_policy
from lightning_serl.policy.logprobs import token_logprobs
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.policy import Policy

__all__ = ["LoraOptions", "Policy", "load_policy", "token_logprobs"]
