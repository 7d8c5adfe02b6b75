"""Checkpoints that an interrupted run continues from."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_serl.checkpoints.atomic_write import forget_unfinished
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import RankFailure, StorageFailure


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
        folder = self._settle_on_folder(trainer)
        super().setup(trainer, pl_module, stage)
        self._started = False
        if stage == "fit" and trainer.is_global_zero:
            forget_unfinished(folder)

    def _settle_on_folder(self, trainer: pl.Trainer) -> Path:
        folder = Path(self.dirpath or Path(trainer.default_root_dir).absolute() / "checkpoints")
        self.dirpath: str | None = str(folder)
        return folder

    def _find_last_checkpoints(self, trainer: pl.Trainer) -> set[str]:
        # Lightning looks for "last" before `setup`, and else among its logger's files
        self._settle_on_folder(trainer)
        return super()._find_last_checkpoints(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is a state worth saving: before, a checkpoint may be half restored."""
        super().on_train_start(trainer, pl_module)
        self._started = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save where the run stands; optimizer steps are the clock, so the last whole step counts.

        Not while the optimizer was changing the weights: half a step is no state to continue from, and the checkpoint
        before it stays. A rank that fails on its own cannot count on the others to save with it: rank 0 saves alone,
        or, where weights are sharded and nobody has all of them, the checkpoint before stays.
        """
        if trainer.state.fn != "fit" or trainer.fast_dev_run or not self._started:
            return
        if getattr(pl_module, "updating", False):
            return
        assert self.dirpath is not None
        path = Path(self.dirpath) / "last.ckpt"
        try:
            if trainer.world_size == 1 or getattr(exception, "on_every_rank", False):
                _save_together(trainer, path, False)
            elif trainer.is_global_zero and isinstance(trainer.strategy, DDPStrategy):
                checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
                trainer.strategy.save_checkpoint(checkpoint, path)
        except (StorageFailure, RankFailure) as error:
            # what ended the run is what the user must hear; the checkpoint before this one is still there
            rank_zero_warn(f"where the run stands could not be saved: {error}")

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """One checkpoint; if it cannot be written all ranks hear of it, and the ones before it stay."""
        _save_together(trainer, Path(filepath), self.save_weights_only)
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)
            self._remove_surplus()

    def _remove_surplus(self) -> None:
        """What a run that was killed had no time to remove, or wrote after the checkpoint that this one began at."""
        if self.save_top_k < 0:
            return
        assert self.dirpath is not None
        found = sorted(Path(self.dirpath).glob("step=*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for path in found[self.save_top_k :]:
            path.unlink(missing_ok=True)


def _save_together(trainer: pl.Trainer, path: Path, weights_only: bool) -> None:
    """Gather the state on all ranks, write it on rank 0, and agree that it was written."""
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only)
    with Ranks.of(trainer).stage("saving the checkpoint"):
        trainer.strategy.save_checkpoint(checkpoint, path)
