"""Writes ``report.html`` into the run folder at the end of a run, also where it was interrupted or failed."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_serl.errors import reason
from lightning_serl.report import PAGE, write_report
from lightning_serl.report.folder import is_run


class ReportPage(pl.Callback):
    """Writes the report of the run on rank 0, after all other files; a fault in it is a warning, never an error.

    The page is that of ``lightning-serl report RUN``, which also works while the run goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.deferred = False  # set it to write further files after the fit, and then call `write`
        self._fitting = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Move to the end of the Trainer's list, since other callbacks write what the page shows."""
        trainer.callbacks = [*(c for c in trainer.callbacks if c is not self), self]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on the folder is that of this run."""
        self._fitting = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page of a run that has ended."""
        if not self.deferred:
            self.write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the page of a run that was interrupted or failed."""
        if self._fitting and trainer.state.fn == "fit":
            self.write(trainer, _ending(exception))

    def write(self, trainer: pl.Trainer, state: str | None = None) -> None:
        """Write the page; ``state`` says how the run ended where it is not finished."""
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        root = Path(trainer.default_root_dir)
        if not is_run(root):  # interrupted before there was anything to show
            return
        try:
            write_report([root], root / PAGE, {} if state is None else {root: state})
        except Exception as error:  # whatever it is, the run and its files are worth more than the page
            rank_zero_warn(f"{PAGE} was not written ({reason(error)}); make it with: lightning-serl report {root}")


def _ending(exception: BaseException) -> str:
    if isinstance(exception, KeyboardInterrupt):
        return "interrupted"
    if isinstance(exception, SIGTERMException):
        return "stopped by SIGTERM"
    return f"ended with an error: {reason(exception)}"
