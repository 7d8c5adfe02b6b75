"""The two moments of a round that Lightning has no hook for; a callback takes part by defining the methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl

if TYPE_CHECKING:
    from lightning_serl.engines.base import RolloutEngine
    from lightning_serl.types import Round


class RolloutHooks(pl.Callback):
    """Base of callbacks that act around rollouts. Streams call these in the order of ``trainer.callbacks``."""

    def on_rollout_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, engine: RolloutEngine) -> None:
        """Before any stream generates, in training, validation, test and predict alike; called on every rank."""

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """After a training round was played and before its first step; called on every rank."""
