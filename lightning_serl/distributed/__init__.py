"""Several processes: collectives and agreement between ranks, seeds, sharded weights, supported strategies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_serl.distributed.strategies import ShardedStrategy

__all__ = ["ShardedStrategy"]


def __getattr__(name: str) -> Any:
    if name == "ShardedStrategy":  # loads Lightning, which :mod:`lightning_serl.distributed.seeding` does without
        from lightning_serl.distributed.strategies import ShardedStrategy

        return ShardedStrategy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
