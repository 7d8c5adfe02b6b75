"""Which LoRA adapters vLLM's loader takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What vLLM's LoRA kernels are built for; a rank is rounded up to the next.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def plain_lora(config: Mapping[str, Any]) -> bool:
    """Whether vLLM's loader takes an adapter of this peft configuration: low-rank updates of linear layers only."""
    targets = config.get("target_modules") or ()
    named = {targets} if isinstance(targets, str) else set(targets)
    odd = ("use_dora", "modules_to_save", "layer_replication", "alora_invocation_tokens", "target_parameters",
           "trainable_token_indices", "use_qalora", "lora_bias")  # fmt: skip
    return (
        config.get("bias", "none") == "none"
        and not any(config.get(name) for name in odd)
        and config.get("init_lora_weights", True) in (True, False, "gaussian", "orthogonal")
        and not any(n.rsplit(".", 1)[-1] in ("lm_head", "embed_tokens", "embed_out", "wte") for n in named)
        and largest_rank(config) <= RANKS[-1]
    )


def largest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of any layer."""
    return max(int(config["r"]), *(int(r) for r in (config.get("rank_pattern") or {}).values()), 1)


def served_rank(config: Mapping[str, Any]) -> int:
    """The ``max_lora_rank`` that an engine needs for it."""
    return next(r for r in RANKS if r >= largest_rank(config))
