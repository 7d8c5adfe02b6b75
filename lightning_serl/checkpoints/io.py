"""How checkpoint files are written and read: in one step, checked, and never as code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_serl.checkpoints.atomic_write import write_whole
from lightning_serl.checkpoints.checks import check_sums
from lightning_serl.errors import StorageFailure

if TYPE_CHECKING:
    import lightning.pytorch as pl


class CheckpointFiles(TorchCheckpointIO):
    """Replaces a checkpoint in one step, and reads one only after its checksums were compared.

    The module gives it to the Trainer's strategy in place of Lightning's own.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a file; the one that stood there before survives any failure.

        Raises:
            StorageFailure: if it cannot be written, with the reason.
        """
        target = Path(path)
        try:
            write_whole(target, lambda file: torch.save(checkpoint, file))
        except RuntimeError as error:  # torch's writer has words of its own for a file that takes no more
            if isinstance(error.__context__, OSError) or "writ" in str(error):
                raise StorageFailure(
                    f"{target} cannot be written (no room, or the folder is gone); make room, then continue the run"
                ) from error
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file of tensors and plain values.

        Raises:
            InputError: if a byte of it was changed since it was written.
        """
        check_sums(Path(path), f"checkpoint {path}")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return checkpoint


def use_our_files(trainer: pl.Trainer) -> None:
    """Checkpoints of this Trainer are written in one step and read with a look at their checksums."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = CheckpointFiles()
