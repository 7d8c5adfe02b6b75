"""Writes the checkpoints that an interrupted run continues from."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_serl.callbacks.rollout_hooks import span_of
from lightning_serl.checkpoints.atomic_write import forget_unfinished
from lightning_serl.distributed.lightning_internals import CheckpointHooks, dump_checkpoint
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import NotFinite, RankFailure, StorageFailure
from lightning_serl.protocols import module_of


class Checkpoints(CheckpointHooks):
    """Keeps the latest checkpoints of a run in ``checkpoints/`` of the run folder, ``last.ckpt`` among them.

    On Ctrl-C, SIGTERM and errors the current state is saved too, also before the first optimizer step, so that
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
        """Choose the folder, and clear it of files that a killed run left unfinished."""
        folder = self.choose_folder(trainer)
        super().setup(trainer, pl_module, stage)
        self._started = False
        if stage == "fit" and trainer.is_global_zero:
            forget_unfinished(folder)

    def choose_folder(self, trainer: pl.Trainer) -> Path:
        """``dirpath`` if it was set, else ``checkpoints/`` of the run folder; Lightning's default is its logger's."""
        folder = Path(self.dirpath or Path(trainer.default_root_dir).absolute() / "checkpoints")
        self.dirpath: str | None = str(folder)
        return folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is a state worth saving: before, a checkpoint may be half restored."""
        super().on_train_start(trainer, pl_module)
        self._started = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save the current state, at the last whole optimizer step; the checkpoint before stays where it cannot be.

        That is while the optimizer was writing weights, since half a step cannot be continued from, where weights are
        sharded and the ranks did not agree to end, and where weights or steps are not finite. Unsharded weights are
        saved by rank 0 alone if the ranks did not agree.
        """
        if trainer.state.fn != "fit" or trainer.fast_dev_run or not self._started or module_of(trainer).updating:
            return
        if isinstance(exception, NotFinite):
            return
        path = self.choose_folder(trainer) / "last.ckpt"
        try:
            if trainer.world_size == 1 or getattr(exception, "on_every_rank", False):
                save_together(trainer, path, False)
            elif trainer.is_global_zero and isinstance(trainer.strategy, DDPStrategy):
                trainer.strategy.save_checkpoint(dump_checkpoint(trainer), path)
        except (NotFinite, StorageFailure, RankFailure) as error:
            # the user must hear what ended the run; the checkpoint before this one is still there
            rank_zero_warn(f"the checkpoint of the interrupted run could not be saved: {error}")

    def write(self, trainer: pl.Trainer, path: Path) -> None:
        """Write one checkpoint; if that fails, all ranks raise the error and the earlier checkpoints stay.

        None is written after an optimizer step that was not taken: the weights may be the reason.
        """
        if module_of(trainer).steps_not_taken:
            return
        save_together(trainer, path, self.save_weights_only)
        self.note_saved(trainer, path)
        if trainer.is_global_zero and self.save_top_k >= 0:
            # a killed run could not remove some, or wrote them after the one that this run resumed from
            steps = self.choose_folder(trainer).glob("step=*.ckpt")
            for old in sorted(steps, key=lambda p: p.stat().st_mtime_ns, reverse=True)[self.save_top_k :]:
                old.unlink(missing_ok=True)


def save_together(trainer: pl.Trainer, path: Path, weights_only: bool) -> None:
    """Gather the state on all ranks, write it on rank 0, and agree that it was written."""
    with span_of(trainer.callbacks, "saving"):
        checkpoint = dump_checkpoint(trainer, weights_only)
        with Ranks.of(trainer).stage("saving the checkpoint"):
            trainer.strategy.save_checkpoint(checkpoint, path)
