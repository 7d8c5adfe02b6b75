"""Writes checkpoint files atomically, and reads them with their checksums compared and without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_serl.checkpoints.atomic_write import write_whole
from lightning_serl.checkpoints.checks import check_sums
from lightning_serl.distributed.finite import first_not_finite, tensors_in
from lightning_serl.errors import NotFinite, StorageFailure

# Parts that must not hold NaN; in micro-batches that are not trained on yet it means an unknown log-prob.
_FINITE = ("state_dict", "optimizer_states", "serl_policy", "current_model_state")


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint atomically, and reads one only after its checksums were compared."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a file atomically; after an error the former file is unchanged.

        Raises:
            NotFinite: if a weight or the state of an optimizer is NaN or infinite.
            StorageFailure: if the file cannot be written, with the reason.
        """
        held = {part: checkpoint[part] for part in _FINITE if part in checkpoint}
        if (wrong := first_not_finite(tensors_in(held))) is not None:
            raise NotFinite(f"{wrong} holds values that are not finite, so {path} is not written and stays as it was")
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
