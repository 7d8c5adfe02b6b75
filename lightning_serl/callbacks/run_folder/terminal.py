"""Progress bars of a round's phases, and one line on stdout per finished round."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_serl.callbacks.rollout_hooks import RolloutHooks, Tick
from lightning_serl.protocols import module_of
from lightning_serl.types import Round

#: Runs that will take at least this many seconds print an estimate after their first round.
LONG = 600.0


class RoundProgress(RolloutHooks):
    """Shows on rank 0 how far writing, answering, voting, training and evaluating have come.

    In a terminal each phase has a progress bar; under Lightning's ``RichProgressBar`` it is a line of that bar. Where
    stdout is no terminal, only the line per round is printed, and after the first round of a long run an estimate of
    the time left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trainer: pl.Trainer | None = None
        self._own: Progress | None = None  # our own bars, where Lightning shows none
        self._training: tuple[Progress, Any] | None = None  # the bar of the optimizer steps and its task
        self._played: Round | None = None  # until the last optimizer step of the round
        self._batches = 0  # micro-batches of this round so far
        self._began: float | None = None  # start of the first round, until it is finished
        self._console = Console(file=sys.stdout)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the Trainer for :meth:`phase`, which is called without one."""
        self._trainer = trainer

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Tick]:
        """Show the bar of one phase; the yielded function advances it."""
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
        """Lightning's bar if there is one, else our own; ``None`` where no bar can be shown."""
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
        """Start the clock of the first round, which includes the start of the engine."""
        self._began = time.monotonic()

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Show the bar of the round's optimizer steps."""
        self._played, self._batches = played, 0
        bar = self._bar()
        if bar is not None and trainer.training:
            self._training = bar, bar.add_task("training", total=_batches_per_round(trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the training bar, and print the round's line after its last step."""
        if self._training is not None:
            self._training[0].advance(self._training[1])
        self._batches += 1
        if self._played is None or self._batches < _batches_per_round(trainer):
            return
        if self._training is not None:
            self._training[0].remove_task(self._training[1])
            self._training = None
        if trainer.is_global_zero and trainer.progress_bar_callback is None:
            self._print(_round_line(self._played, module_of(trainer).step_metrics))
            self._print_estimate(trainer)
        self._played = None

    def _print_estimate(self, trainer: pl.Trainer) -> None:
        """After the first round: print how long the others will take, if that is long."""
        began, self._began = self._began, None
        if began is None:
            return
        seconds = time.monotonic() - began
        steps = trainer.estimated_stepping_batches - trainer.global_step
        left = steps / module_of(trainer).steps_per_round
        if 0 < left < float("inf") and seconds * (left + 1) >= LONG:
            self._print(f"the first round took {seconds:.0f} s, {left:.0f} more take about {_duration(seconds * left)}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bars."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the bars."""
        self._stop()

    def _stop(self) -> None:
        if self._own is not None:
            self._own.stop()
        self._own = self._training = None


class Phases(RoundProgress):
    """The former name of :class:`RoundProgress`, for configurations that list it."""


def _batches_per_round(trainer: pl.Trainer) -> int:
    return module_of(trainer).steps_per_round * trainer.accumulate_grad_batches


def _round_line(played: Round, metrics: dict[str, float]) -> str:
    stats = played.stats
    groups = stats["serl/round/groups"]
    answered = (groups - stats.get("serl/round/carried", 0.0)) / max(1e-9, stats["serl/filter/yield"])
    written = stats["serl/filter/proposed"] - played.taken - played.given
    proposed = [f"wrote {written:.0f}"] * bool(written or not (played.taken or played.given))
    proposed += [f"took {played.taken}"] * bool(played.taken)
    proposed += [f"got {played.given} from the source"] * bool(played.given)
    return (
        f"round {played.number + 1:>4}  {', '.join(proposed)}, trained on {groups:.0f} of {answered:.0f} answered; "
        f"agreement {stats['serl/vote/agreement_mean']:.2f}, no answer {stats['serl/vote/no_answer_frac']:.2f}, "
        f"length {stats['completions/mean_length']:.0f}" + (f", kl {metrics['kl']:.4f}" if "kl" in metrics else "")
    )


def _duration(seconds: float) -> str:
    """Hours and minutes."""
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
