"""Shards a freshly loaded policy with FSDP2, and gathers it for export."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import MixedPrecisionPolicy

from lightning_serl.distributed import sharding
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.distributed.strategies import ShardedStrategy
from lightning_serl.policy.policy import Policy


def shard(policy: Policy, trainer: pl.Trainer, mesh: Any) -> None:
    """Shard a policy over all ranks of a ``ModelParallelStrategy``, in its precision; only rank 0 needs weights."""
    strategy = trainer.strategy
    if type(strategy) is ModelParallelStrategy:
        # processes and mesh are set up and the Trainer holds this object, so it cannot be replaced by another one
        strategy.__class__ = ShardedStrategy
    plugin = trainer.precision_plugin
    precision = MixedPrecisionPolicy()
    if plugin.precision == "bf16-mixed":
        precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    plugin.convert_module(policy)
    device, ranks = strategy.root_device, Ranks.of(trainer)
    placement = sharding.Placement(mesh["data_parallel"], precision, device, sharding.blank_copy(policy.model))
    sharding.agree_on_structure(policy, ranks)
    weights = {n: p.detach() for n, p in policy.named_parameters()} if ranks.leads else None
    policy.placement = placement
    sharding.place(policy, policy.model, placement)
    if ranks.size > 1:
        sharding.spread_weights(policy, weights, ranks, device)
    policy.become_root()


def whole(policy: Policy, ranks: Ranks) -> Policy | None:
    """The policy on one device, for export: itself if it is not sharded, else a copy on the CPU of rank 0.

    All ranks must call this; under sharding those other than 0 get ``None``.
    """
    if policy.placement is None:
        return policy
    state = sharding.gathered_state(policy, ranks)
    if not ranks.leads:
        return None
    copied = policy.around(copy.deepcopy(policy.placement.blank))
    sharding.materialise(copied)
    with torch.no_grad():
        for own, other in zip(policy.buffers(), copied.buffers(), strict=True):
            other.copy_(own)
    sharding.load_state(copied, state)
    return copied
