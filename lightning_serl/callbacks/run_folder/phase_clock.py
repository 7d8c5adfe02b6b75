"""How far a phase of a run has come, how fast it goes and how long it will still take; numbers in words."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

#: What the phases count.
_UNITS = {
    "writing problems": "problems", "answering": "answers", "probing": "answers", "evaluating": "answers",
    "voting": "prompts", "filtering": "problems", "scoring": "prompts", "training": "micro-batches",
}  # fmt: skip


@dataclass
class PhaseClock:
    """One phase of a run.

    Tokens are counted while units are unfinished, so that a phase whose units all end together shows its speed too.
    """

    name: str
    total: int  # units of work
    start: int  # tokens that the engine had written when the phase began
    longest: int | None = None  # most tokens of a unit, where a limit is known
    done: int = 0  # finished units
    per_unit: float | None = None  # tokens of a finished unit on average
    began: float = field(default_factory=time.monotonic)

    def advance(self, done: int, tokens: int) -> None:
        """Count finished units; the engine, or the trainer, has come to so many tokens."""
        self.done += done
        if self.done and tokens > self.start:
            self.per_unit = (tokens - self.start) / self.done

    def line(self, tokens: int) -> str:
        """The phase in one line: done, total, tokens per second and time left, as far as they are known."""
        counts, rate, left = self.cells(tokens)
        return f"{self.name}: {', '.join(filter(None, (counts, rate, left)))}"

    def cells(self, tokens: int) -> tuple[str, str, str]:
        """Done and total, tokens per second, and the time left or so far; empty where something is not known."""
        elapsed = max(1e-9, time.monotonic() - self.began)
        rate = max(0, tokens - self.start) / elapsed
        counts = f"{self.done} of {self.total} {_UNITS.get(self.name, '')}".rstrip()
        left = self._left(elapsed, tokens - self.start, rate)
        return counts, f"{rate:,.0f} tokens/s" if rate else "", left or f"{duration(elapsed)} so far"

    def _left(self, elapsed: float, tokens: int, rate: float) -> str | None:
        if self.done and (self.per_unit is None or not rate):
            return f"{duration(elapsed / self.done * max(0, self.total - self.done))} left"
        if rate and self.per_unit is not None:
            return f"{duration(max(0.0, self.total * self.per_unit - tokens) / rate)} left"
        if rate and self.longest is not None:
            return f"at most {duration(max(0, self.total * self.longest - tokens) / rate)} left"
        return None


def duration(seconds: float) -> str:
    """A time in the two largest units that say something: ``41 s``, ``12 min``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def plain(value: float, digits: int) -> str:
    """A number without the sign of a negative zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if not float(text) else text
