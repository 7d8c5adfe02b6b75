"""How far a phase of a run has come, how fast it goes and how long it will still take; numbers in words."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

#: What the phases count.
_UNITS = {
    "writing problems": "problems", "answering": "answers", "probing": "answers", "evaluating": "answers",
    "voting": "prompts", "filtering": "problems", "scoring": "prompts", "training": "micro-batches",
}  # fmt: skip


def counts_answers(phase: str) -> bool:
    """Whether the units of a phase are completions of the engine."""
    return _UNITS.get(phase) == "answers"


class Written(NamedTuple):
    """What an engine has written since it was made; under training, what was trained on."""

    tokens: int
    completions: int = 0  # finished


@dataclass
class PhaseClock:
    """One phase of a run.

    Tokens are counted while units are unfinished, so that a phase whose units all end together shows its speed too.
    Answers are counted when the engine has finished them: a problem is handed on with its last one, which may be long.
    """

    name: str
    total: int  # units of work
    start: Written  # when the phase began
    longest: int | None = None  # most tokens of a unit, where a limit is known
    done: int = 0  # units that were handed on
    per_unit: float | None = None  # tokens of a unit on average, when the last one was handed on
    began: float = field(default_factory=time.monotonic)

    def advance(self, done: int, now: Written) -> None:
        """Count units that were handed on."""
        self.done += done
        if self.done and now.tokens > self.start.tokens:
            self.per_unit = (now.tokens - self.start.tokens) / self.done

    def line(self, now: Written) -> str:
        """The phase in one line: done, total, tokens per second and time left, as far as they are known."""
        counts, rate, left = self.cells(now)
        return f"{self.name}: {', '.join(filter(None, (counts, rate, left)))}"

    def cells(self, now: Written) -> tuple[str, str, str]:
        """Done and total, tokens per second, and the time left or so far; empty where something is not known."""
        elapsed = max(1e-9, time.monotonic() - self.began)
        tokens, done = max(0, now.tokens - self.start.tokens), self.finished(now)
        counts = f"{done} of {self.total} {_UNITS.get(self.name, '')}".rstrip()
        left = self._left(elapsed, tokens, done)
        return counts, f"{tokens / elapsed:,.0f} tokens/s" if tokens else "", left or f"{duration(elapsed)} so far"

    def finished(self, now: Written) -> int:
        """Units that are done; answers that the engine has finished count before they are handed on."""
        if not counts_answers(self.name):
            return self.done
        return max(self.done, min(self.total, now.completions - self.start.completions))

    def _left(self, elapsed: float, tokens: int, done: int) -> str | None:
        if done and (not tokens or (done == self.done and self.per_unit is None)):
            return f"{duration(elapsed / done * max(0, self.total - done))} left"
        rate = tokens / elapsed
        longest = None if self.longest is None else max(0, self.total * self.longest - tokens)
        if done:
            # the unfinished have tokens too, so that the average of all is above that of the finished
            per_unit = self.per_unit if done == self.done and self.per_unit is not None else tokens / done
            likely = max(0.0, self.total * per_unit - tokens)
            return f"{duration((likely if longest is None else min(likely, longest)) / rate)} left"
        return f"at most {duration(longest / rate)} left" if rate and longest is not None else None


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
