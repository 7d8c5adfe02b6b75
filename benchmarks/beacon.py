"""A callback that writes the current phase of a run to a file, so that a benchmark can kill the run in that phase."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_serl.callbacks.run_folder import Phases
from lightning_serl.checkpoints.io import CheckpointFiles

_SIZE = 64


class Beacon(Phases):
    """Writes ``COUNT PHASE DETAIL`` into one file per rank, at the start of every phase and at its end.

    Args:
        folder: Where the files go.
        deadly: A phase that is over too soon to be struck from outside: the process kills itself when the work of its
            ``fatal``-th occurrence is done, before it ends.
        fatal: Which occurrence.
    """

    def __init__(self, folder: str, deadly: str = "", fatal: int = 0) -> None:
        super().__init__()
        self._deadly, self._fatal = deadly, fatal
        path = Path(folder) / f"{os.environ.get('LOCAL_RANK', '0')}-{os.getpid()}"
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY)
        self._count = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Tell of checkpoints, too."""
        super().setup(trainer, pl_module, stage)
        trainer.strategy.checkpoint_io = _Files(self)

    def show(self, name: str, detail: str = "") -> None:
        """One write, so that a reader never meets half of it."""
        self._count += 1
        os.pwrite(self._file, f"{self._count} {name} {detail}".ljust(_SIZE).encode()[:_SIZE], 0)

    @contextmanager
    def lit(self, name: str, detail: str = "") -> Iterator[None]:
        """A phase from here to the end of the block."""
        self.show(name, detail)
        try:
            yield
        finally:
            self.show("between")

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """The phases of a round, by their first word."""
        word = name.split()[0]
        with super().phase(name, total) as tick, self.lit(word):
            if word != self._deadly:
                yield tick
                return
            self._fatal -= 1
            yield tick if self._fatal else lambda done: os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Training, and where in its accumulation window."""
        accumulate = trainer.accumulate_grad_batches
        self.show("training", f"{batch_idx % accumulate + 1} of {accumulate}")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The end of a micro-batch."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.show("between")


class _Files(CheckpointFiles):
    """Tells when a checkpoint is being written, and which."""

    def __init__(self, beacon: Beacon) -> None:
        self.beacon = beacon

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        with self.beacon.lit("saving", Path(path).name):
            super().save_checkpoint(checkpoint, path, storage_options)
