"""Which LoRA adapters vLLM can load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Ranks that vLLM's LoRA kernels are compiled for; any other rank is rounded up to the next one.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def plain_lora(config: Mapping[str, Any]) -> bool:
    """Whether vLLM can load adapters of this peft configuration: low-rank updates of linear layers and nothing else."""
    targets = config.get("target_modules") or ()
    named = {targets} if isinstance(targets, str) else set(targets)
    unsupported = ("use_dora", "modules_to_save", "layer_replication", "alora_invocation_tokens", "target_parameters",
                   "trainable_token_indices", "use_qalora", "lora_bias")  # fmt: skip
    return (
        config.get("bias", "none") == "none"
        and not any(config.get(name) for name in unsupported)
        and config.get("init_lora_weights", True) in (True, False, "gaussian", "orthogonal")
        and not any(n.rsplit(".", 1)[-1] in ("lm_head", "embed_tokens", "embed_out", "wte") for n in named)
        and largest_rank(config) <= RANKS[-1]
    )


def largest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of any layer."""
    return max(int(config["r"]), *(int(r) for r in (config.get("rank_pattern") or {}).values()), 1)


def max_lora_rank(config: Mapping[str, Any]) -> int:
    """The value of vLLM's ``max_lora_rank`` for this configuration."""
    return next(r for r in RANKS if r >= largest_rank(config))
