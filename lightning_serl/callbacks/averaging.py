"""Lightning's callbacks that average weights: which ones work, and what an engine must be told of them."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_serl.errors import InputError
from lightning_serl.protocols import module_of


def averages(trainer: pl.Trainer | None) -> bool:
    """Whether a callback of the Trainer averages weights."""
    return trainer is not None and any(isinstance(c, WeightAveraging) for c in trainer.callbacks)


def check_averaging(trainer: pl.Trainer) -> None:
    """Refuse callbacks that average weights where they would not, with an InputError."""
    if any(isinstance(c, StochasticWeightAveraging) for c in trainer.callbacks):
        raise InputError(
            "trainer.callbacks: StochasticWeightAveraging copies the module before its weights are loaded, so that it "
            "would average nothing; use WeightAveraging or EMAWeightAveraging"
        )
    if averages(trainer) and isinstance(trainer.strategy, ModelParallelStrategy):
        raise InputError(
            "trainer.callbacks: WeightAveraging and EMAWeightAveraging cannot copy sharded weights; remove them, or "
            "use --trainer.strategy ddp"
        )


class AveragedWeights(pl.Callback):
    """Gives the policy another version whenever ``WeightAveraging`` exchanges its weights, so that engines get them.

    A validation inside a fit runs on the averaged weights, and so does everything after the fit. It stands behind the
    callback that averages.
    """

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The averaged weights are in place."""
        if trainer.state.fn == "fit":
            module_of(trainer).policy.version += 1

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The trained weights are back."""
        if trainer.state.fn == "fit":
            module_of(trainer).policy.version += 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The averaged weights stay."""
        module_of(trainer).policy.version += 1
