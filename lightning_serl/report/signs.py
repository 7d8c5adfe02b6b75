"""The bands that the signs of a run's health should stay in, and when a warning of one is due.

The run judges by them while it trains, and the report of a run again from its metrics, without torch and Lightning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Fall of the probe's score from which on it counts as worse, where it is also above the standard error.
DROP = 0.05
#: Number of values inside the band after which a sign counts as back in it.
CALM = 5


@dataclass(frozen=True)
class Band:
    """The range that a sign should stay in, judged by its weighted mean over the latest values."""

    advice: str  # what it means if the sign leaves the band, and what to do
    low: float | None = None
    high: float | None = None
    rise: float | None = None  # the upper bound is at least this much above the mean of the sign's first values
    entries: int = 3  # fewest values to average
    weight: int = 32  # their least total weight, in groups (in steps for signs of optimizer steps)

    def upper(self, start: float) -> float | None:
        """The upper bound for a sign whose first values have the mean ``start``."""
        return self.high if self.high is None or self.rise is None else max(self.high, start + self.rise)

    def left(self, value: float, start: float) -> str | None:
        """Which bound a mean of values has crossed, in words; ``start`` is the mean of the first values."""
        high = self.upper(start)
        if self.low is not None and value < self.low:
            return f"below {self.low:g}"
        if high is not None and value > high:
            return f"above {high:.2g}"
        return None


BANDS: dict[str, Band] = {
    "same_vote_share": Band(
        "clear votes of the starting policy on the probe problems have turned, so it is forgetting what it knew; stop, "
        "go back to an earlier checkpoint and lower the learning rate",
        low=0.7, entries=1, weight=1,
    ),
    "probe_fall": Band(
        "the policy no longer gives the answers to the probe problems that it clearly gave before, so it got worse; go "
        "back to an earlier checkpoint and lower the learning rate, or let CollapseGuard do so",
        high=DROP, entries=1, weight=1,
    ),
    "kl_slope": Band(
        "the policy leaves its starting point very fast, which alone is no harm; look at the probe "
        "(docs/keep-and-stop.md), and if it got worse, lower the learning rate or raise model.objective.beta",
        high=0.2, entries=1, weight=1,
    ),
    "vote_entropy": Band(
        "the answers to a problem hardly ever agree, so the majority means little; use easier problems or a stronger "
        "model",
        high=0.95,
    ),
    "unanimous_share": Band(
        "nearly all votes are unanimous, so nothing is left to learn, or the policy has locked in on its answers; use "
        "harder problems, or go back to an earlier checkpoint",
        high=0.9,
    ),
    "top_answer_share": Band(
        "unrelated problems get the same answer; read samples.jsonl, and go back to an earlier checkpoint if it is a "
        "template",
        high=0.5, rise=0.25,
    ),
    "no_answer_share": Band(
        "more and more responses give no answer that can be read; read samples.jsonl, and check data.grader and the "
        "answer format",
        high=0.3, rise=0.2,
    ),
    "truncated_share": Band(
        "more and more responses are cut off; raise data.max_tokens, or set data.round.overlong_buffer",
        high=0.3, rise=0.2,
    ),
    "repeated_4gram_share": Band(
        "responses repeat themselves; go back to an earlier checkpoint and lower the learning rate",
        high=0.3, rise=0.2,
    ),
    "length_ratio": Band(
        "responses have another length than in the first rounds; read samples.jsonl to see what was lost or added",
        low=0.33, high=4.0,
    ),
    "entropy_ratio": Band(
        "the policy's token entropy is far from where it began, so it explores too little or writes noise; lower the "
        "learning rate or change model.objective.entropy",
        low=0.1, high=3.0, weight=3,
    ),
}  # fmt: skip


class Sign:
    """The first and the latest values of one sign of :data:`BANDS`, and whether it is outside its band."""

    def __init__(self, name: str) -> None:
        self.name, self.band = name, BANDS[name]
        self._first: list[list[float]] = []  # pairs of value and weight
        self._recent: list[list[float]] = []
        self._inside = 0  # values inside the band since the last one outside
        self.outside: str | None = None  # why it is outside its band

    def enter(self, value: float, weight: float = 1) -> str | None:
        """Add the value of a round or step, computed from ``weight`` groups; a warning if it leaves the band now."""
        if not self._enough(self._first):
            self._first.append([value, weight])
        self._recent.append([value, weight])
        while self._enough(self._recent[1:]):
            del self._recent[0]
        if not self._enough(self._recent):
            return None
        now = _mean(self._recent)
        bound = self.band.left(now, _mean(self._first))
        if bound is None:
            self._inside += 1
            if self._inside >= CALM:
                self.outside = None
            return None
        was_inside, self._inside = self.outside is None, 0
        self.outside = f"{self.name} is {now:.2g}, {bound}: {self.band.advice}"
        return self.outside if was_inside else None

    @property
    def upper(self) -> float | None:
        """The upper bound of this sign, which may depend on its first values."""
        return self.band.upper(_mean(self._first) if self._first else 0.0)

    def _enough(self, entries: list[list[float]]) -> bool:
        return len(entries) >= self.band.entries and sum(w for _, w in entries) >= self.band.weight

    def state_dict(self) -> dict[str, Any]:
        """The values and the warning, as primitives."""
        return {"first": self._first, "recent": self._recent, "inside": self._inside, "outside": self.outside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._first, self._recent = [list(e) for e in state["first"]], [list(e) for e in state["recent"]]
        self._inside, self.outside = state["inside"], state["outside"]


def _mean(entries: Sequence[Sequence[float]]) -> float:
    return sum(v * w for v, w in entries) / sum(w for _, w in entries)
