"""Every private name of Lightning that this package needs, behind public functions and one base class.

Lightning promises nothing about these names. ``tests/test_lightning_contract.py`` holds each of them with a test of its
name, so that an upgrade which changes one fails there first. The command line's own are in ``cli/parser_internals.py``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher


def attached_trainer(module: pl.LightningModule) -> pl.Trainer | None:
    """The Trainer of a module; ``None`` outside one, where the public ``module.trainer`` raises an error."""
    return module._trainer


def dump_checkpoint(trainer: pl.Trainer, weights_only: bool = False) -> dict[str, Any]:
    """The content of a checkpoint; ``Trainer.save_checkpoint`` also writes it and then waits for all ranks."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only)


def callback_state_key(callback: pl.Callback, *options: str) -> str:
    """The name of a callback's state in checkpoints: its class and the named options that tell instances apart."""
    return callback._generate_state_key(**{name: getattr(callback, name) for name in options})


class CheckpointHooks(ModelCheckpoint):
    """A ``ModelCheckpoint`` that lets its subclasses choose the folder and write the file.

    Checkpoints name the state of a callback by its class, so the class that a run uses keeps its own name.
    """

    def choose_folder(self, trainer: pl.Trainer) -> Path:
        """Set ``dirpath`` and return it; asked for before ``setup`` where a fit continues from ``last``."""
        raise NotImplementedError

    def write(self, trainer: pl.Trainer, path: Path) -> None:
        """Write a checkpoint on all ranks and call :meth:`note_saved`."""
        raise NotImplementedError

    def note_saved(self, trainer: pl.Trainer, path: Path) -> None:
        """Tell Lightning that this step is saved, so that it is not saved again, and tell the loggers."""
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, str(path)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

    def _find_last_checkpoints(self, trainer: pl.Trainer) -> set[str]:
        self.choose_folder(trainer)
        return super()._find_last_checkpoints(trainer)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self.write(trainer, Path(filepath))


@dataclass(frozen=True)
class FitCounters:
    """``total`` and ``current`` counts inside the saved state of a fit loop, each a dict that is changed in place."""

    epochs: dict[str, Any]
    batches: dict[str, Any]  # micro-batches, and ``is_last_batch``
    evaluation: dict[str, Any]  # validation batches
    optimizer_steps: dict[str, Any]
    loop: dict[str, Any]  # further state of the epoch loop

    @classmethod
    def of(cls, state: dict[str, Any]) -> FitCounters:
        """The counters of ``checkpoint["loops"]["fit_loop"]``."""
        return cls(
            epochs=state["epoch_progress"],
            batches=state["epoch_loop.batch_progress"],
            evaluation=state["epoch_loop.val_loop.batch_progress"],
            optimizer_steps=state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"],
            loop=state["epoch_loop.state_dict"],
        )

    def set_logged_steps(self, steps: int) -> None:
        """Set the step that loggers are given, which Lightning counts apart from optimizer steps."""
        self.loop["_batches_that_stepped"] = steps


def validation_is_due(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after the micro-batch that was just trained on; ``False`` outside an epoch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def replace_sigterm_handler(trainer: pl.Trainer, handler: Callable[[int, Any], None]) -> None:
    """Answer SIGTERM with ``handler``; call it in ``setup``, before Lightning registers its own."""
    connector: Any = trainer._signal_connector
    connector._sigterm_notifier_fn = handler


def started_processes(trainer: pl.Trainer) -> list[subprocess.Popen[bytes]]:
    """The ranks that this process started, as the list that Lightning watches; emptying it ends the watch."""
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []


def spawns_workers(strategy: Strategy) -> bool:
    """Whether training runs in spawned or forked workers, as under ``ddp_spawn``, ``ddp_fork`` and ``ddp_notebook``."""
    return isinstance(strategy.launcher, _MultiProcessingLauncher)


def mesh_sizes(strategy: ModelParallelStrategy) -> tuple[int | str, int | str]:
    """Data-parallel and tensor-parallel size as they were asked for; ``"auto"`` until processes are set up."""
    return strategy._data_parallel_size, strategy._tensor_parallel_size


def set_data_parallel_size(strategy: ModelParallelStrategy, size: int) -> None:
    """Set the data-parallel size of a strategy whose processes are not set up yet."""
    strategy._data_parallel_size = size


def saves_shards(strategy: ModelParallelStrategy) -> bool:
    """Whether checkpoints are folders with a file per rank."""
    return strategy._save_distributed_checkpoint
