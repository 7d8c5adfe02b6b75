"""Keeps the rollout engine's weights up to date."""

from __future__ import annotations

import time

import lightning.pytorch as pl

from lightning_serl.callbacks.hooks import RolloutHooks
from lightning_serl.engines.base import RolloutEngine, WeightUpdate


class RolloutRefresh(RolloutHooks):
    """Pushes the policy's weights whenever the engine holds another version, just before it is asked to write.

    Pulling at the last moment covers resume, validation and a replaced engine by the same line; the stream refuses to
    generate while the versions differ. Under LoRA only the adapter travels.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Seconds and number of pushes so far.
        self.seconds, self.pushes = 0.0, 0

    def on_rollout_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, engine: RolloutEngine) -> None:
        """Push if the versions differ."""
        if not engine.samples_policy:
            return  # recordings; there may be no policy at all
        policy = pl_module.policy
        if engine.version == policy.version:
            return
        began = time.monotonic()
        if policy.has_adapter:
            state = policy.adapter_state()
            config = policy.model.peft_config["default"].to_dict()
            update = WeightUpdate("adapter", lambda: iter(state.items()), policy.version, config)
        else:
            update = WeightUpdate("full", policy.named_weights, policy.version)
        engine.push(update)
        self.seconds += time.monotonic() - began
        self.pushes += 1
