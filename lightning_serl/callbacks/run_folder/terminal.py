"""What the terminal shows: the phase at hand with its progress, and one line per finished round."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_serl.callbacks.rollout_hooks import RolloutHooks

if TYPE_CHECKING:
    from lightning_serl.types import Round


#: Runs of at least this many seconds say after their first round how long they will take.
LONG = 600.0


class Phases(RolloutHooks):
    """Shows writing, answering, voting, training and evaluating, on rank 0.

    In a terminal each phase has a bar; under Lightning's ``RichProgressBar`` it becomes a line of that bar. Elsewhere,
    in a log file say, only the line per round is printed, and after the first round of a long run the time that is
    left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trainer: pl.Trainer | None = None
        self._own: Progress | None = None
        self._training: tuple[Progress, Any] | None = None
        self._played: Round | None = None
        self._batches = 0  # of the round at hand
        self._began: float | None = None  # until the first round is through
        self._console = Console(file=sys.stdout)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remember whose terminal it is."""
        self._trainer = trainer

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show one phase; the yielded function moves its bar.

        Args:
            name: What is being done.
            total: How many units it has.
        """
        bar = self._bar()
        if bar is None:
            yield lambda done: None
            return
        task = bar.add_task(name, total=total)
        try:
            yield lambda done: bar.advance(task, done)
        finally:
            bar.remove_task(task)

    def _bar(self) -> Progress | None:
        trainer = self._trainer
        if trainer is None or not trainer.is_global_zero:
            return None
        for callback in trainer.callbacks:
            if isinstance(callback, RichProgressBar):
                return callback.progress  # None until training starts
        if not self._console.is_terminal or trainer.progress_bar_callback is not None:
            return None
        if self._own is None:
            columns = TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            self._own = Progress(*columns, console=self._console, transient=True)
            self._own.start()
        return self._own

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first round begins, the start of the engine included."""
        self._began = time.monotonic()

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """The round's steps come next."""
        self._played, self._batches = played, 0
        bar = self._bar()
        if bar is not None and trainer.training:
            steps = getattr(pl_module, "steps_per_round", 1) * trainer.accumulate_grad_batches
            self._training = bar, bar.add_task("training", total=steps)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the training bar, and print the round's line after its last step."""
        if self._training is not None:
            self._training[0].advance(self._training[1])
        self._batches += 1
        steps = getattr(pl_module, "steps_per_round", 1) * trainer.accumulate_grad_batches
        if self._played is None or self._batches < steps:
            return
        if self._training is not None:
            self._training[0].remove_task(self._training[1])
            self._training = None
        if trainer.is_global_zero and trainer.progress_bar_callback is None:
            stats, metrics = self._played.stats, getattr(pl_module, "step_metrics", {})
            groups = stats["serl/round/groups"]
            fresh = groups - stats.get("serl/round/carried", 0.0)
            answered = fresh / max(1e-9, stats["serl/filter/yield"])
            taken = self._played.taken
            wrote = stats["serl/filter/proposed"] - taken
            brought = [f"wrote {wrote:.0f}"] * bool(wrote or not taken) + [f"took {taken}"] * bool(taken)
            agreement, no_answer = stats["serl/vote/agreement_mean"], stats["serl/vote/no_answer_frac"]
            self._console.print(
                f"round {self._played.number + 1:>4}  {', '.join(brought)}, trained on {groups:.0f} of "
                f"{answered:.0f} answered; agreement {agreement:.2f}, no answer {no_answer:.2f}, "
                f"length {stats['completions/mean_length']:.0f}"
                + (f", kl {metrics['kl']:.4f}" if "kl" in metrics else ""),
                highlight=False,
                soft_wrap=True,
            )
            self._foretell(trainer, pl_module)
        self._played = None

    def _foretell(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        began, self._began = self._began, None
        if began is None:
            return
        seconds = time.monotonic() - began
        steps = trainer.estimated_stepping_batches - trainer.global_step
        left = steps / getattr(pl_module, "steps_per_round", 1)
        if 0 < left < float("inf") and seconds * (left + 1) >= LONG:
            self._console.print(
                f"the first round took {seconds:.0f} s, {left:.0f} more take about {_spell(seconds * left)}",
                highlight=False,
                soft_wrap=True,
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._own is not None:
            self._own.stop()
        self._own = self._training = None


def _spell(seconds: float) -> str:
    """A duration to two units."""
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
