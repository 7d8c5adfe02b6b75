"""Lightning's own callbacks that cannot take part in a fit, and what to use in their place."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch import callbacks

from lightning_serl.callbacks.averaging import check_averaging
from lightning_serl.errors import InputError

_UNSUPPORTED: dict[type[pl.Callback], str] = {
    callbacks.GradientAccumulationScheduler: "cannot be used, because a round is divided into a fixed number of "
    "micro-batches; remove it and set trainer.accumulate_grad_batches",
    callbacks.LearningRateFinder: "searches with steps on one and the same batch, but every step here needs new "
    "completions; remove it and set model.lr (1e-6 for all weights, 1e-4 for an adapter)",
    callbacks.BatchSizeFinder: "searches for a batch size that this run does not have; remove it, since "
    "model.micro_batch auto already divides a step so that it fits the free memory",
    callbacks.ModelPruning: "looks for weights before they are loaded, and rollouts would be written by other weights "
    "than those that train; remove it",
    callbacks.BaseFinetuning: "freezes parts of a module that has a backbone; remove it and train an adapter with "
    "model.lora.r",
}
_LOGGED = (callbacks.LearningRateMonitor, callbacks.DeviceStatsMonitor, callbacks.ThroughputMonitor)


def check_callbacks(trainer: pl.Trainer) -> None:
    """Refuse Lightning's own callbacks that cannot work in a fit, with an InputError that says what to use instead."""
    check_averaging(trainer)
    for callback in trainer.callbacks:
        name = f"trainer.callbacks: {type(callback).__name__}"
        for kind, why in _UNSUPPORTED.items():
            if isinstance(callback, kind):
                raise InputError(f"{name} {why}")
        if isinstance(callback, _LOGGED) and not trainer.loggers:
            raise InputError(f"{name} needs a logger; give trainer.logger CSVLogger or TensorBoardLogger, or remove it")
