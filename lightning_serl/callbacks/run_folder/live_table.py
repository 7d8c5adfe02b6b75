"""The live table of a terminal: the phases that run now, how long the run still takes, and the last vote."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightning_serl.callbacks.run_folder.phase_clock import PhaseClock, Written, duration
from lightning_serl.types import Round

# Columns between the cells of a row, and the narrowest and widest bar.
_GAP, _NARROWEST, _WIDEST = 2, 8, 40
# On a screen now; weak, since a table that is dropped is no longer there to be stopped.
_shown_tables: weakref.WeakSet[LiveTable] = weakref.WeakSet()


def stop_live_tables() -> None:
    """Take every table from the screen, before a handler of Ctrl-C lets others write there."""
    for table in tuple(_shown_tables):
        table.stop()


class LiveTable:
    """What rich draws several times a second; shown while a phase is open.

    Args:
        console: The terminal.
        written: What was written so far, or trained on, by the name of a phase.
    """

    def __init__(self, console: Console, written: Callable[[str], Written]) -> None:
        self._console, self._written = console, written
        self._clocks: list[PhaseClock] = []
        self._live: Live | None = None
        self._run = self._vote = ""

    @property
    def shown(self) -> bool:
        """Whether the table is on the screen."""
        return self._live is not None

    def open(self, clock: PhaseClock) -> None:
        """Add the row of a phase."""
        self._clocks.append(clock)
        if self._live is None:
            self._live = Live(self, console=self._console, transient=True, refresh_per_second=4)
            self._live.start()
            _shown_tables.add(self)
        self._live.refresh()  # so that a short phase is seen too

    def close(self, clock: PhaseClock) -> None:
        """Remove the row of a phase; the last one takes the table from the screen, before anything else is written."""
        if clock in self._clocks:
            self._clocks.remove(clock)
        if not self._clocks:
            self.stop()

    def stop(self) -> None:
        """Take the table from the screen and show the cursor again."""
        live, self._live = self._live, None
        self._clocks = []
        _shown_tables.discard(self)
        if live is not None:
            live.stop()

    def tell_run(self, number: int, left: float, seconds: float | None) -> None:
        """Say which round is being played, how many follow it, and how many seconds the one before took."""
        if left < 0:  # the last one is over
            self._run = ""
            return
        more = "" if left == float("inf") else f"/{number + left:.0f}"
        still = "" if seconds is None or not more else duration(seconds * (left + 1))
        self._run = f"round {number}{more}{f', about {still} left' if still else ''}"

    def tell_vote(self, played: Round) -> None:
        """Show the last group of a round that has a voted answer."""
        voted = [(g, v) for g, v in played.answered if v.label is not None and g.instruction.role == "solve"]
        if voted:
            group, verdict = voted[-1]
            agree = f"{100 * verdict.confidence:.0f} % of {len(group)}"
            problem = _shown(group.instruction.prompt, 400)
            self._vote = f"last vote: {_shown(str(verdict.label), 40)} ({agree}) for {problem}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw the table for the terminal's present width."""
        rows = []
        for clock in tuple(self._clocks):
            now = self._written(clock.name)
            rows.append((clock, clock.finished(now), [f"{clock.name} ", *clock.cells(now)]))
        columns = [max((len(cells[i]) for _, _, cells in rows), default=0) for i in range(4)]
        room = options.max_width - sum(columns) - _GAP * len(columns)
        # whole cells go before any is cut: tokens per second, then what is done
        for place in (2, 1):
            if room < -_GAP:  # the last column needs no gap behind it
                rows = [(clock, done, [c for i, c in enumerate(cells) if i != place]) for clock, done, cells in rows]
                room += columns[place] + _GAP
        table = Table.grid(padding=(0, _GAP, 0, 0))
        for clock, done, (name, *cells) in rows:
            bar = [ProgressBar(max(1, clock.total), done, min(room, _WIDEST))] if room >= _NARROWEST else []
            table.add_row(Text(name, no_wrap=True), *bar, *(Text(cell, no_wrap=True) for cell in cells))
        run, vote = (_cut(line, options.max_width, options.encoding) for line in (self._run, self._vote))
        yield Group(*(part for part in (run, table, vote) if part is not None))


def _cut(line: str, width: int, encoding: str) -> Text | None:
    """A line that fits the terminal's width, in the characters that its encoding has; ``None`` if empty."""
    text = Text(line.encode(encoding, "replace").decode(encoding), no_wrap=True, overflow="crop")
    if text.cell_len > width:
        text.truncate(max(0, width - 3), overflow="crop")
        text.append("...")
    return text if line else None


def _shown(text: str, longest: int) -> str:
    """The beginning of a model's text in one line, without characters that a terminal obeys."""
    words = "".join(c if c.isprintable() else " " for c in text[: 4 * longest]).split()
    line = " ".join(words)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
