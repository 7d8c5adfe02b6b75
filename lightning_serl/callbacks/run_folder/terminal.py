"""Progress of a round's phases, as a table on a terminal or as lines of a log file, and one line for each round."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import Progress

from lightning_serl.callbacks.rollout_hooks import RolloutHooks, Tick
from lightning_serl.callbacks.run_folder.live_table import LiveTable
from lightning_serl.callbacks.run_folder.phase_clock import PhaseClock, Written, counts_answers, duration, plain
from lightning_serl.protocols import data_of, module_of
from lightning_serl.types import Round

#: Longest silence of a run whose output is no terminal, in seconds.
EVERY = 29.0
#: Longest line of a round, in characters.
_WIDTH = 100


class RoundProgress(RolloutHooks):
    """Shows on rank 0 how far writing, answering, voting, training and evaluating have come.

    In a terminal a table shows the phase that runs, what is done of it, tokens per second, the time left, and the last
    vote; under Lightning's ``RichProgressBar`` a phase is a line of that bar. Where stdout is no terminal, whatever
    takes longer than half a minute prints a line every half minute: what is done, the total, tokens per second and the
    time left. Each round prints one line, and the first one when the run will end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trainer: pl.Trainer | None = None
        self._table: LiveTable | None = None  # on a terminal where Lightning shows no bar
        self._bar_of_training: tuple[Progress, Any] | None = None  # in Lightning's bar, and its task
        self._clock: PhaseClock | None = None  # of the innermost phase, outside of Lightning's bar
        self._trained = 0  # tokens of the micro-batches so far
        self._played: Round | None = None  # until the last optimizer step of the round
        self._batches = 0  # micro-batches of this round so far
        self._began = time.monotonic()  # of the round
        self._first = True  # whether no round was finished yet
        self._said = self._idle = time.monotonic()  # the last line, and the end of the last phase
        self._silence: threading.Event | None = None  # set to end the thread that writes to a log file
        self._console = Console(file=sys.stdout)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the Trainer for :meth:`phase`, which is called without one, and begin to write to a log file."""
        self._trainer = trainer
        self._stop()
        if not trainer.is_global_zero or trainer.progress_bar_callback is not None:
            return
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._table = LiveTable(self._console, self._written)
        else:
            self._said = self._idle = time.monotonic()
            self._silence = threading.Event()
            threading.Thread(target=self._write_log, args=(self._silence,), daemon=True, name="progress").start()

    def _write_log(self, ended: threading.Event) -> None:
        """Print a line whenever nothing was printed for :data:`EVERY` seconds; runs in a thread."""
        while not ended.wait(max(0.01, self._said + EVERY - time.monotonic())):
            if time.monotonic() - self._said < EVERY:
                continue
            clock = self._clock
            try:
                if clock is None:
                    idle = duration(time.monotonic() - self._idle)
                    self._print(f"outside the phases of a round (loading, saving, code of yours): {idle} so far")
                else:
                    self._print(clock.line(self._written(clock.name)))
            except (OSError, ValueError):  # standard output was closed, which ends the run elsewhere
                return

    def _written(self, phase: str) -> Written:
        """What was written so far, or trained on."""
        if phase == "training":
            return Written(self._trained)
        engine = data_of(self._trainer).engine
        return Written(getattr(engine, "tokens_written", 0), getattr(engine, "completions_written", 0))

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Tick]:
        """Show one phase; the yielded function advances it."""
        bar = self._bar()
        if bar is not None:
            task = bar.add_task(name, total=total)
            try:
                yield lambda done: bar.advance(task, done)
            finally:
                bar.remove_task(task)
            return
        outer = self._clock  # phases may have others inside
        clock = self._begin(name, total)
        try:
            yield lambda done: clock.advance(done, self._written(name))
        finally:
            self._end(clock, outer)

    def _begin(self, name: str, total: int) -> PhaseClock:
        clock = self._clock = self._make_clock(name, total)
        if self._table is not None:
            self._table.open(clock)
        return clock

    def _end(self, clock: PhaseClock, outer: PhaseClock | None = None) -> None:
        self._clock, self._idle = outer, time.monotonic()
        if self._table is not None:
            self._table.close(clock)

    def _make_clock(self, name: str, total: int) -> PhaseClock:
        data: Any = getattr(self._trainer, "datamodule", None)
        longest = getattr(getattr(data, "sampling", None), "longest", None)
        return PhaseClock(name, total, self._written(name), longest if counts_answers(name) else None)

    def _bar(self) -> Progress | None:
        """Lightning's bar, if there is one and training has started."""
        trainer = self._trainer
        if trainer is None or not trainer.is_global_zero:
            return None
        return next((c.progress for c in trainer.callbacks if isinstance(c, RichProgressBar)), None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the first round, which includes the start of the engine."""
        self._began, self._first = time.monotonic(), True
        if self._table is not None:
            self._table.tell_run(data_of(trainer).rounds + 1, _rounds_left(trainer) - 1, None)

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Show the progress of the round's optimizer steps."""
        self._played, self._batches = played, 0
        if not trainer.training:
            return
        bar, total = self._bar(), _batches_per_round(trainer)
        if self._table is not None:
            self._table.tell_vote(played)
        if bar is not None:
            self._bar_of_training = bar, bar.add_task("training", total=total)
        else:
            self._begin("training", total)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the training, and print the round's line after its last step."""
        self._trained += getattr(batch, "positions", 0)
        if self._bar_of_training is not None:
            self._bar_of_training[0].advance(self._bar_of_training[1])
        elif self._clock is not None:
            self._clock.advance(1, Written(self._trained))
        self._batches += 1
        if self._played is None or self._batches < _batches_per_round(trainer):
            return
        if self._bar_of_training is not None:
            self._bar_of_training[0].remove_task(self._bar_of_training[1])
            self._bar_of_training = None
        elif self._clock is not None:
            self._end(self._clock)
        self._idle = time.monotonic()
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        if trainer.is_global_zero and trainer.progress_bar_callback is None:
            left = _rounds_left(trainer)
            width = min(_WIDTH, self._console.width) if self._console.is_terminal else _WIDTH
            self._print(_round_line(self._played, module_of(trainer).step_metrics, left, seconds, width))
            if self._first:
                self._print(_estimate(seconds, left, datetime.now()))
            if self._table is not None:
                self._table.tell_run(self._played.number + 2, left - 1, seconds)
        self._played, self._first = None, False

    def _print(self, line: str) -> None:
        self._said = time.monotonic()
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the table from the screen."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the table from the screen."""
        self._stop()

    def _stop(self) -> None:
        if self._silence is not None:
            self._silence.set()
        if self._table is not None:
            self._table.stop()
        self._table = self._bar_of_training = self._clock = self._silence = None


class Phases(RoundProgress):
    """The former name of :class:`RoundProgress`, for configurations that list it."""


def _batches_per_round(trainer: pl.Trainer) -> int:
    return module_of(trainer).steps_per_round * trainer.accumulate_grad_batches


def _rounds_left(trainer: pl.Trainer) -> float:
    """Rounds that are still to come; infinite for a run without end."""
    return (trainer.estimated_stepping_batches - trainer.global_step) / module_of(trainer).steps_per_round


def _round_line(played: Round, metrics: dict[str, float], left: float, seconds: float, width: int = _WIDTH) -> str:
    """A round in at most ``width`` characters; what matters less is left out where they do not suffice."""
    stats = played.stats
    groups = stats["serl/round/groups"]
    answered = (groups - stats.get("serl/round/carried", 0.0)) / max(1e-9, stats["serl/filter/yield"])
    written = stats["serl/filter/proposed"] - played.taken - played.given
    number, unread = played.number + 1, stats["serl/vote/no_answer_frac"]
    total = f"/{number + left:.0f}" if left < float("inf") else ""
    parts = {
        "round": f"round {number:>{max(1, len(total) - 1)}}{total}: ",
        "written": f"wrote {written:.0f}, " if written or not answered else "",
        "seeds": f"took {played.taken} seeds, " if played.taken else "",
        "given": f"got {played.given} from the source, " if played.given else "",
        "queue": f"{answered:.0f} from queue, " if answered and not (written or played.taken or played.given) else "",
        "kept": f"kept {groups:.0f} of {answered:.0f}; ",
        "reward": f"reward {plain(stats['reward'], 2)}, ",
        "agreement": f"agreement {plain(stats['serl/vote/agreement_mean'], 2)}, ",
        "unread": f"unread {100 * unread:.0f} %, " if unread >= 0.005 else "",
        "length": f"{stats['completions/mean_length']:.0f} tokens, ",
        "kl": f"kl {plain(metrics['kl'], 4)}, " if "kl" in metrics else "",
        "time": duration(seconds),
    }
    for name in ("", "kl", "length", "unread", "reward", "written"):
        parts.pop(name, None)
        line = "".join(parts.values())
        if len(line) <= width:
            break
    return line


def _estimate(seconds: float, left: float, now: datetime) -> str:
    """The time of the first round, and what it means for those to come."""
    said = f"the first round took {duration(seconds)}"
    if not 0 < left < float("inf"):
        return said
    end = now + timedelta(seconds=seconds * left)
    day = "" if end.date() == now.date() else f"{end:%a %d %b} "
    take = "takes" if round(left) == 1 else "take"
    return f"{said}; {left:.0f} more {take} about {duration(seconds * left)}, until {day}{end:%H:%M}"
