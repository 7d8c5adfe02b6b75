"""Checkpoints that an interrupted run continues from."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Checkpoints(ModelCheckpoint):
    """Keeps the latest checkpoints of a run in ``checkpoints/`` of the run folder, ``last.ckpt`` among them.

    On Ctrl-C, SIGTERM and errors the present state is saved too, before the first optimizer step as well, so that
    ``--ckpt_path last`` always has something to continue from.

    Args:
        every_n_train_steps: Optimizer steps between checkpoints.
        keep: How many of them stay on disk, ``last.ckpt`` not counted.
    """

    def __init__(self, every_n_train_steps: int = 10, keep: int = 1) -> None:
        super().__init__(
            filename="step={step}",
            auto_insert_metric_name=False,
            every_n_train_steps=every_n_train_steps,
            save_top_k=keep,
            monitor="step" if keep > 0 else None,
            mode="max",
            save_last=True,
            enable_version_counter=False,
        )
        self._started = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Settle on the folder."""
        if self.dirpath is None:
            self.dirpath: str | None = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        super().setup(trainer, pl_module, stage)
        self._started = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is a state worth saving: before, a checkpoint may be half restored."""
        super().on_train_start(trainer, pl_module)
        self._started = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save where the run stands; optimizer steps are the clock, so the last whole step counts.

        Not while the optimizer was changing the weights: half a step is no state to continue from, and the checkpoint
        before it stays. A rank that fails on its own cannot count on the others to save with it: rank 0 saves alone.
        """
        if trainer.state.fn != "fit" or trainer.fast_dev_run or not self._started:
            return
        if getattr(pl_module, "updating", False):
            return
        assert self.dirpath is not None
        path = Path(self.dirpath) / "last.ckpt"
        together = getattr(exception, "on_every_rank", False) or isinstance(exception, SIGTERMException)
        if trainer.world_size == 1 or together:
            trainer.save_checkpoint(path, weights_only=False)
        elif trainer.is_global_zero and isinstance(trainer.strategy, DDPStrategy):
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, path)
