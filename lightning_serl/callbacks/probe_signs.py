"""What the health probe says of a policy without labels: its signs, and whether it got worse since its best probe."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log, sqrt
from statistics import stdev
from typing import Any, NamedTuple, TypeAlias

from lightning_serl.report.signs import DROP
from lightning_serl.types import Probed, Vote

#: Whether two answers are equal.
Same: TypeAlias = Callable[[str, str], bool]
#: Answered prompts, or clear votes, below which a share over them is not computed.
LEAST_PROMPTS = 8
#: Share of all responses from which on a vote of the probe is clear.
CLEAR = 0.5
# The same for problems whose vote became clear in training: a policy is surer of what it was trained on.
_CLEAR_LATER = 0.75
#: A probe got worse if its change is below minus DROP, and below 0 by more than so many standard errors.
ERRORS = 3.0
#: Metrics of a probe, logged as ``serl/probe/NAME`` with the round that follows it.
SIGNS = (
    "score", "change", "agreement", "vote_entropy", "halves_agreement", "pass@k", "no_answer", "truncated", "length",
    "top_answer",
)  # fmt: skip


def vote_of(answers: Sequence[str | None]) -> Vote:
    """The vote of the responses to a problem, from their (n,) answers, of which equal ones have one text."""
    sizes = _sizes(answers)
    if not sizes:
        return None, 0.0
    tie = len(sizes) > 1 and sizes[0][1] == sizes[1][1]
    return None if tie else sizes[0][0], sizes[0][1] / len(answers)


def _sizes(answers: Iterable[str | None]) -> list[tuple[str, int]]:
    return Counter(a for a in answers if a is not None).most_common()


def match_share(label: str, answers: Sequence[str | None], same: Same) -> float:
    """Share of the (n,) responses whose answer is the label."""
    equal = {answer: answer == label or same(answer, label) for answer, _ in _sizes(answers)}
    return sum(equal[a] for a in answers if a is not None) / max(1, len(answers))


def entropy_of(sizes: Iterable[int], n: int) -> float | None:
    """Entropy of the answer classes of n responses, divided by log n, from their sizes.

    0 if all votes agree, 1 if all responses differ; ``None`` without votes or with a single response.
    """
    sizes = list(sizes)
    votes = sum(sizes)
    return None if not votes or n < 2 else sum(-k / votes * log(k / votes) for k in sizes) / log(n)


def spread_signs(probed: Mapping[str, Probed]) -> dict[str, float]:
    """The signs of one probe that need no earlier one.

    ``halves_agreement`` is the share of problems on which the first and the second half of the responses have the same
    majority; a vote that chance decides has a low one.
    """
    rows = list(probed.values())
    votes = [vote_of(row.answers) for row in rows]
    n = sum(len(row.answers) for row in rows)
    entropies = [entropy_of((k for _, k in _sizes(row.answers)), len(row.answers)) for row in rows]
    known = [h for h in entropies if h is not None]
    halves = [
        (vote_of(row.answers[: len(row.answers) // 2])[0], vote_of(row.answers[len(row.answers) // 2 :])[0])
        for row in rows
    ]
    tops = Counter(label for label, _ in votes if label is not None)
    signs = {
        "agreement": sum(share for _, share in votes) / len(rows),
        "halves_agreement": sum(a is not None and a == b for a, b in halves) / len(rows),
        "no_answer": sum(row.answers.count(None) for row in rows) / n,
        "truncated": sum(row.cut for row in rows) / n,
        "length": sum(row.tokens for row in rows) / n,
    }
    if known:
        signs["vote_entropy"] = sum(known) / len(known)
    if tops.total() >= LEAST_PROMPTS:
        signs["top_answer"] = max(tops.values()) / tops.total()
    return signs


class Reading(NamedTuple):
    """What a probe says of the weights that answered it.

    Attributes:
        signs: Values by names from :data:`SIGNS`.
        change: Mean change, over the problems with a reference answer, of the share of responses that give it, against
            the best probe so far; ``None`` if fewer than :data:`LEAST_PROMPTS` problems have one.
        error: Standard error of this mean.
    """

    signs: dict[str, float]
    change: float | None
    error: float

    @property
    def as_good(self) -> bool:
        """Whether the change is not below 0 by more than half its standard error, or cannot be told."""
        return self.change is None or self.change >= -self.error / 2

    def fell(self, drop: float = DROP, errors: float = ERRORS) -> bool:
        """Whether the change is below ``-drop``, and below 0 by more than so many standard errors."""
        return self.change is not None and self.change < -drop and self.change < -errors * self.error


class ProbeHistory:
    """Compares each probe with the best one before it, by reference answers that the policy itself gave.

    Agreement alone cannot tell a policy that masters its problems from one that agrees on wrong answers. But a policy
    that gives a problem's answer clearly and later clearly gives another one was wrong once, and the later answer comes
    from weights that were trained on their own votes. So the first clear answers to each problem become its references:
    those of at least half of the responses at the first probe, later of three quarters. A probe is compared with the
    best one problem by problem, so that neither the number of references nor their difficulty matters. ``score`` is
    chained from these changes: the best probe's score and the change against it.

    Each half of a problem's responses gives a reference, and the other half says how often it is given. From the same
    responses the share would be too high, and the next probe of an unchanged policy would seem worse.
    """

    def __init__(self) -> None:
        self._labels: dict[str, list[str]] = {}  # reference answers by uid, at most one of each half
        self._best: dict[str, float] = {}  # mean share of the best probe's responses that give them
        self._score: float | None = None  # of the best probe

    def enter(self, probed: Mapping[str, Probed], same: Same) -> Reading:
        """Read one more probe; ``same`` is the grader's."""
        signs = spread_signs(probed)
        if self._score is None:
            self._adopt(probed, CLEAR, same)
            self._score = sum(self._best.values()) / max(1, len(self._best))
            enough = len(self._best) >= LEAST_PROMPTS
            return Reading(signs | {"score": self._score, "change": 0.0}, 0.0 if enough else None, 0.0)
        now = {
            uid: sum(match_share(label, probed[uid].answers, same) for label in labels) / len(labels)
            for uid, labels in self._labels.items()
            if uid in probed
        }
        if now:
            signs["pass@k"] = sum(share > 0 for share in now.values()) / len(now)
        if len(now) < LEAST_PROMPTS:
            self._adopt(probed, _CLEAR_LATER, same)
            return Reading(signs, None, 0.0)
        changes = [share - self._best[uid] for uid, share in now.items()]
        change, error = sum(changes) / len(changes), stdev(changes) / sqrt(len(changes))
        signs |= {"score": self._score + change, "change": change}
        if change > 0:  # half-way within the error: the best of many equal probes is better than they are by chance
            weight = 1.0 if change > error else 0.5
            self._best.update({uid: self._best[uid] + weight * (share - self._best[uid]) for uid, share in now.items()})
            self._score += weight * change
        reading = Reading(signs, change, error)
        if reading.as_good:
            self._adopt(probed, _CLEAR_LATER, same)
        return reading

    def _adopt(self, probed: Mapping[str, Probed], clear: float, same: Same) -> None:
        """Take the clear answers to problems without a reference as theirs."""
        for uid, row in probed.items():
            half = len(row.answers) // 2
            parts = row.answers[:half], row.answers[half:]
            if uid in self._labels or not half:
                continue
            found = []
            for part, other in zip(parts, reversed(parts), strict=True):
                label, share = vote_of(part)
                if label is not None and share >= clear and len(part) > 1:
                    found.append((label, match_share(label, other, same)))
            if found:
                self._labels[uid] = [label for label, _ in found]
                self._best[uid] = sum(share for _, share in found) / len(found)

    def state_dict(self) -> dict[str, Any]:
        """Reference answers, shares and score, as primitives."""
        return copy.deepcopy({"labels": self._labels, "best": self._best, "score": self._score})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._labels = {uid: list(labels) for uid, labels in state["labels"].items()}
        self._best, self._score = dict(state["best"]), state["score"]
