"""Signs of a run's health that need no labels: how they are computed, and the bands they should stay in.

``docs/health.md`` says what each sign means and what to do when it leaves its band.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import median
from typing import Any

from lightning_serl.types import Group, Vote

#: Answered prompts, or clear votes, below which a share over them is not computed.
LEAST_PROMPTS = 8
#: Share of all responses from which on a vote of the probe is clear.
CLEAR = 0.5
#: Least and greatest number of steps whose KL divergence :func:`slope` is computed over.
SLOPE_STEPS = (4, 6)

# -- one group -------------------------------------------------------------------------------------------------------


def vote_entropy(classes: Sequence[int]) -> float | None:
    """Entropy of the answer classes, divided by the logarithm of the number of responses.

    Args:
        classes: Answer class of each of n responses; -1 for no answer, which is no vote.

    Returns:
        0 if all votes agree, 1 if all n responses differ; ``None`` without votes or with a single response.
    """
    sizes = Counter(c for c in classes if c >= 0)
    votes = sum(sizes.values())
    if not votes or len(classes) < 2:
        return None
    return sum(-k / votes * log(k / votes) for k in sizes.values()) / log(len(classes))


def unanimous(classes: Sequence[int]) -> bool:
    """Whether every response gives the same answer."""
    return len(set(classes)) == 1 and classes[0] >= 0


def majority(answers: Sequence[str | None], classes: Sequence[int]) -> str | None:
    """Smallest answer of the largest class, of the first class at a tie; ``None`` without answers."""
    sizes = Counter(c for c in classes if c >= 0)
    if not sizes:
        return None
    winner = min(sizes, key=lambda c: (-sizes[c], c))
    return min(a for a, c in zip(answers, classes, strict=True) if c == winner and a is not None)


def repeated_ngrams(tokens: Sequence[Hashable], n: int = 4) -> tuple[int, int]:
    """Number of n-grams that occurred earlier in the same sequence, and number of all its n-grams."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


# -- one round -------------------------------------------------------------------------------------------------------


def round_signs(groups: Sequence[Group]) -> dict[str, float]:
    """The signs of one round.

    Args:
        groups: All answered groups of the round, dropped ones too. Groups whose ``answers`` are not filled enter the
            signs of their tokens alone.

    Returns:
        Values by names from :data:`BANDS`, and ``length``, the mean number of tokens (words of recorded text).
    """
    out: dict[str, float] = {}
    voted = [(g.answers, g.cluster) for g in groups if g.answers and g.cluster]
    entropies = [h for _, classes in voted if (h := vote_entropy(classes)) is not None]
    if entropies:
        out["vote_entropy"] = sum(entropies) / len(entropies)
    if voted:
        out["unanimous_share"] = sum(unanimous(classes) for _, classes in voted) / len(voted)
        out["no_answer_share"] = _share(a is None for answers, _ in voted for a in answers)
    tops = Counter(top for answers, classes in voted if (top := majority(answers, classes)) is not None)
    if tops.total() >= LEAST_PROMPTS:
        out["top_answer_share"] = max(tops.values()) / tops.total()
    written = [c for g in groups for c in g.completions]
    if written:
        tokens: list[Sequence[Hashable]] = [c.token_ids or c.text.split() for c in written]
        counts = [repeated_ngrams(t) for t in tokens]
        out["truncated_share"] = _share(not c.finished for c in written)
        out["repeated_4gram_share"] = sum(r for r, _ in counts) / max(1, sum(total for _, total in counts))
        out["length"] = sum(map(len, tokens)) / len(tokens)
    return out


def same_share(start: Mapping[str, Vote], now: Mapping[str, Vote], same: Callable[[str, str], bool]) -> float | None:
    """Share of the problems with a clear vote at the start on which the vote is still the same.

    Only clear votes count, since a policy that learns changes its unclear ones.

    Args:
        start: Vote on each problem at the start, by uid.
        now: Vote on each problem now, by uid.
        same: Whether two answers are equal.

    Returns:
        The share; ``None`` if fewer than :data:`LEAST_PROMPTS` votes were clear.
    """
    clear = {uid: label for uid, (label, share) in start.items() if label is not None and share >= CLEAR}
    pairs = [(then, now[uid][0]) for uid, then in clear.items() if uid in now]
    if len(pairs) < LEAST_PROMPTS:
        return None
    return _share(new is not None and (then == new or same(then, new)) for then, new in pairs)


def slope(values: Sequence[float]) -> float:
    """Median slope over all pairs of values (Theil-Sen estimator), which is robust to a single outlier."""
    size = len(values)
    return median((values[j] - values[i]) / (j - i) for i in range(size) for j in range(i + 1, size))


def _share(flags: Any) -> float:
    flags = list(flags)
    return sum(flags) / len(flags)


# -- bands -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """The range that a sign should stay in, judged by its weighted mean over the latest values.

    Attributes:
        advice: What it means if the sign leaves the band, and what to do.
        low: Lower bound.
        high: Upper bound.
        rise: If given, the upper bound is at least this much above the mean of the sign's first values.
        entries: Minimum number of values to average.
        weight: Their minimum total weight, in groups (in steps for signs of optimizer steps).
    """

    advice: str
    low: float | None = None
    high: float | None = None
    rise: float | None = None
    entries: int = 3
    weight: int = 32

    def left(self, value: float, start: float) -> str | None:
        """Which bound a mean of values has crossed, in words; ``start`` is the mean of the first values."""
        high = self.high if self.high is None or self.rise is None else max(self.high, start + self.rise)
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
    "kl_slope": Band(
        "the policy leaves its starting point faster than its votes can guide it; lower the learning rate (or raise "
        "model.objective.beta) before accuracy falls",
        high=0.01, entries=1, weight=1,
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
    """The first and the latest values of one sign of a run, and whether it is outside its band.

    Args:
        name: One of :data:`BANDS`.
        calm: Number of values inside the band after which the sign counts as back in it.

    Attributes:
        outside: Why the sign is outside its band; ``None`` while it is inside.
    """

    def __init__(self, name: str, calm: int = 5) -> None:
        self.name, self.band, self.calm = name, BANDS[name], calm
        self._first: list[list[float]] = []  # pairs of value and weight
        self._recent: list[list[float]] = []
        self._inside = 0  # values inside the band since the last one outside
        self.outside: str | None = None

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
            if self._inside >= self.calm:
                self.outside = None
            return None
        was_inside, self._inside = self.outside is None, 0
        self.outside = f"{self.name} is {now:.2g}, {bound}: {self.band.advice}"
        return self.outside if was_inside else None

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
