"""What became of every problem of a run, from its ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lightning_serl.report.folder import Row
from lightning_serl.report.reasons import MEANINGS

#: Ends of a problem, in the order of a round.
OUTCOMES = ("rejected", "dropped", "waiting", "answered", "kept", "trained")
#: Classes of agreement in the histogram of difficulty.
BINS = 10
_EXAMPLES = 3


@dataclass
class Problem:
    """One problem of the ledger.

    Attributes:
        uid: Its uid.
        round: The round in which it was proposed, from 0.
        prompt: Its text; ``None`` where the row of its proposal is missing.
        outcome: One of :data:`OUTCOMES`.
        reason: Why it was rejected or dropped.
        label: The label that its answers were scored against.
        confidence: Share of its answers that agree with the label; ``None`` before the vote.
        voted: The round of the vote.
        role: Another role than ``solve``.
        mean_score: Mean score of its answers.
    """

    uid: str
    round: int
    prompt: str | None = None
    outcome: str = "waiting"
    reason: str | None = None
    label: str | None = None
    confidence: float | None = None
    voted: int | None = None
    role: str | None = None
    mean_score: float | None = None


@dataclass
class Story:
    """The problems of a run by uid, in the order of their proposals, and counts by round."""

    problems: dict[str, Problem] = field(default_factory=dict)
    rounds: dict[int, Counter[str]] = field(default_factory=dict)
    histogram: dict[int, list[int]] = field(default_factory=dict)  # voted problems by class of agreement
    answered: Counter[int] = field(default_factory=Counter)  # voted problems of any role
    reasons: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)  # by kind and reason, counts by round
    rolled_back: list[Row] = field(default_factory=list)  # events of the whole run: it went back to earlier weights


def read_story(ledger: Iterable[Row]) -> Story:
    """Follow every problem through the rows of a ledger; rows without uid and event are passed over."""
    story = Story()
    for row in ledger:
        uid, event, number = row.get("uid"), row.get("event"), row.get("round")
        if event == "rolled_back":
            story.rolled_back.append(row)
        if not isinstance(uid, str) or not isinstance(event, str) or not isinstance(number, int):
            continue
        problem = story.problems.setdefault(uid, Problem(uid, number))
        story.rounds.setdefault(number, Counter())[event] += 1
        if event == "proposed":
            problem.prompt, problem.round = _text(row.get("prompt")) or "", number
            problem.role = _text(row.get("role"))
        elif event in ("rejected", "dropped"):
            problem.outcome, problem.reason = event, _text(row.get("reason")) or "unknown"
            story.reasons.setdefault((event, problem.reason), Counter())[number] += 1
        elif event == "voted":
            _vote(story, problem, row, number)
        elif event in ("kept", "trained"):
            problem.outcome = event
    return story


def _vote(story: Story, problem: Problem, row: Row, number: int) -> None:
    problem.outcome, problem.voted, problem.label = "answered", number, _text(row.get("label"))
    confidence, scores = row.get("confidence"), row.get("scores")
    if isinstance(scores, list) and scores and all(isinstance(s, (int, float)) for s in scores):
        problem.mean_score = sum(scores) / len(scores)
    if isinstance(confidence, (int, float)):
        problem.confidence = float(confidence)
        if problem.role is None and 0 <= confidence <= 1:
            bins = story.histogram.setdefault(number, [0] * BINS)
            bins[min(BINS - 1, int(confidence * BINS))] += 1
    story.answered[number] += 1


def reason_table(story: Story) -> list[dict[str, Any]]:
    """Why problems were left out, the most common reasons first, with some problems of each, spread over the run."""
    by_reason: dict[tuple[str, str], list[Problem]] = {}
    for problem in story.problems.values():
        if problem.reason is not None and problem.outcome in ("rejected", "dropped"):
            by_reason.setdefault((problem.outcome, problem.reason), []).append(problem)
    out = []
    for (kind, reason), counts in sorted(story.reasons.items(), key=lambda item: (-item[1].total(), item[0])):
        found = [p for p in by_reason.get((kind, reason), []) if p.prompt]
        step = max(1, len(found) // _EXAMPLES)
        examples = [
            {"uid": p.uid, "round": p.round, "prompt": shortened(p.prompt or "", 240), "confidence": p.confidence}
            for p in found[::step][:_EXAMPLES]
        ]
        out.append(
            {
                "kind": kind,
                "reason": reason,
                "meaning": MEANINGS.get(reason, ""),
                "count": counts.total(),
                "examples": examples,
            }
        )
    return out


def shortened(text: str, most: int) -> str:
    """A text of at most ``most`` characters; an ellipsis says that some were left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
