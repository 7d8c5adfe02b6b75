"""Writes checkpoint files atomically, and reads them with their checksums compared and without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_serl.checkpoints.atomic_write import write_whole
from lightning_serl.checkpoints.checks import check_sums
from lightning_serl.errors import StorageFailure


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint atomically, and reads one only after its checksums were compared."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a file atomically; after a StorageFailure, which gives the reason, the former file is unchanged."""
        try:
            write_whole(Path(path), lambda file: torch.save(checkpoint, file))
        except RuntimeError as error:  # torch's writer hides the OSError of a full disk
            if isinstance(error.__context__, OSError) or "writ" in str(error):
                raise StorageFailure(
                    f"{path} cannot be written (disk full, or the folder is gone); free space, then continue the run"
                ) from error
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file of tensors and plain values; an InputError if a byte has changed since it was written."""
        check_sums(Path(path), f"checkpoint {path}")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return checkpoint


def use_our_files(trainer: pl.Trainer) -> None:
    """Let a Trainer's strategy use :class:`CheckpointFiles` in place of Lightning's own; a user's own stays."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = CheckpointFiles()
