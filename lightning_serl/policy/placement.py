"""Shards a policy with FSDP2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import (
    ModelParallelStrategy,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from lightning_serl.distributed import sharding
from lightning_serl.distributed.ranks import Ranks

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_serl.policy.policy import Policy
from lightning_serl.distributed.strategies import ShardedStrategy


def shard(policy: Policy, trainer: pl.Trainer, mesh: Any) -> None:
    """Shard a freshly loaded policy as the Trainer's strategy and precision ask for.

    Args:
        policy: With weights on rank 0; other ranks need none.
        trainer: Its strategy is a ``ModelParallelStrategy``.
        mesh: The strategy's device mesh.
    """
    strategy = trainer.strategy
    if type(strategy) is ModelParallelStrategy:
        strategy.__class__ = ShardedStrategy
    plugin = trainer.precision_plugin
    half = plugin.precision == "bf16-mixed"
    precision = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if half else MixedPrecisionPolicy()
    )
    plugin.convert_module(policy)
    placement = sharding.Placement(
        mesh["data_parallel"], precision, strategy.root_device, sharding.blank_copy(policy.model)
    )
    policy.shard(placement, Ranks.of(trainer))
