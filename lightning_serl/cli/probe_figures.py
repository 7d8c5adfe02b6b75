"""From the answers of a probe to figures: how they were read, how they agree, and what a round would keep of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from lightning_serl.datamodules.probing import Judged, Probed
from lightning_serl.evaluation.trainability import (
    ProblemVotes,
    Trainability,
    contributions,
    problem_votes,
    same_by_chance,
    trainability,
)
from lightning_serl.types import Group


@dataclass(frozen=True)
class Answers:
    """Figures of some problems' answers; shares are of all responses unless another whole is named.

    Attributes:
        problems: Number of problems.
        answers: Number of responses.
        readable: Share that has an answer.
        unread: Share that ended without an answer that can be read.
        truncated: Share that was cut off by length.
        agreement: Share in the largest class of equal answers, mean over problems.
        second: Share in the second largest class, mean over problems.
        classes: Distinct answers to a problem, mean.
        top_answer: Share of the votes that are the most common answer of all problems.
        mean_tokens: Mean length of a response.
        longest_ended: Length up to which 95 % of the responses that ended are; 0 if none ended.
        trainability: What a vote could raise.
    """

    problems: int
    answers: int
    readable: float
    unread: float
    truncated: float
    agreement: float
    second: float
    classes: float
    top_answer: float
    mean_tokens: float
    longest_ended: int
    trainability: Trainability


def answers_figures(groups: Sequence[Group]) -> Answers:
    """The figures of groups whose answers are filled in."""
    votes = [problem_votes(group) for group in groups]
    n = max(1, sum(p.responses for p in votes))
    unread, cut = sum(p.unread for p in votes), sum(p.truncated for p in votes)
    read = sum(c >= 0 for g in groups for c in g.cluster or [])
    lengths = [len(c.token_ids) for g in groups for c in g.completions]
    ended = sorted(len(c.token_ids) for g in groups for c in g.completions if c.finished)
    common = Counter(p.vote.strip().casefold() for p in votes if p.vote is not None)
    return Answers(
        problems=len(groups),
        answers=len(lengths),
        readable=read / n,
        unread=unread / n,
        truncated=cut / n,
        agreement=_mean([p.share for p in votes]),
        second=_mean([p.second for p in votes]),
        classes=_mean([float(p.classes) for p in votes]),
        top_answer=max(common.values(), default=0) / max(1, sum(common.values())),
        mean_tokens=_mean([float(n) for n in lengths]),
        longest_ended=ended[min(len(ended) - 1, int(0.95 * len(ended)))] if ended else 0,
        trainability=trainability(votes),
    )


@dataclass(frozen=True)
class Yield:
    """What a round would train on.

    Attributes:
        kept: Share of the answered problems that the group filters keep.
        reasons: Shares of the answered problems that they drop, by reason.
        trained: Groups that a round trains on.
        asked: Problems that it answers for them.
        accepted: Share of the source's problems that pass the filters; ``None`` where none were written.
        proposals: Problems that are written for a round; 0 where none are.
    """

    kept: float
    reasons: dict[str, float]
    trained: float
    asked: float
    accepted: float | None
    proposals: float


def round_yield(probed: Probed, prompts: int, attempts: int, from_seeds: float) -> Yield:
    """What a round of ``prompts`` groups would train on, in at most ``attempts`` attempts.

    ``from_seeds`` is the share of its problems that are seeds. Where only one kind of problems was answered, the other
    is taken to be like it.
    """
    parts: list[tuple[float, Judged]] = [(from_seeds, probed.seeds), (1 - from_seeds, probed.written)]
    parts = [(share, one) for share, one in parts if one.groups and (share or not _has(parts))]
    whole = sum(share for share, _ in parts)
    kept = sum(share * one.kept for share, one in parts) / whole if whole else _mean([one.kept for _, one in parts])
    reasons: dict[str, float] = {}
    for share, one in parts:
        weight = share / whole if whole else 1 / len(parts)
        for reason, count in Counter(r for r in one.reasons if r is not None).items():
            reasons[reason] = reasons.get(reason, 0.0) + weight * count / len(one.reasons)
    most = prompts * attempts
    asked = min(most, prompts / kept) if kept else float(most)
    accepted = None
    if probed.proposed:
        accepted = 1 - sum(probed.rejected.values()) / probed.proposed
    written = asked * (1 - from_seeds) / accepted if accepted else 0.0
    return Yield(kept, dict(sorted(reasons.items())), min(prompts, kept * most), asked, accepted, written)


def _has(parts: Sequence[tuple[float, Judged]]) -> bool:
    """Whether problems of a kind that the run trains on were answered."""
    return any(share and one.groups for share, one in parts)


@dataclass(frozen=True)
class AtTemperature:
    """One temperature of the sweep, on the same problems as the others.

    Attributes:
        temperature: Of the answers.
        answers: Their figures.
        same_vote: Share of the problems whose vote is that of the run's temperature, among those with a vote at both.
        gain: Rise of the trainability figure over the run's temperature.
        error: Standard error of the gain over problems.
    """

    temperature: float
    answers: Answers
    same_vote: float | None
    gain: float
    error: float


def sweep(probed: Probed) -> list[AtTemperature]:
    """The temperatures of a probe, the run's among them, from the lowest on; empty without others."""
    if not probed.other:
        return []
    count = min(len(groups) for groups in probed.other.values())
    own = probed.seeds.groups[:count]
    by = {temperature: groups[:count] for temperature, groups in probed.other.items()} | {probed.temperature: own}
    here = [problem_votes(group) for group in own]
    return [_at_temperature(t, by[t], here) for t in sorted(by)]


def _at_temperature(temperature: float, groups: Sequence[Group], here: Sequence[ProblemVotes]) -> AtTemperature:
    votes = [problem_votes(group) for group in groups]
    both = [(a.vote, b.vote) for a, b in zip(votes, here, strict=True) if a.vote is not None and b.vote is not None]
    same = fmean(a.strip().casefold() == b.strip().casefold() for a, b in both) if both else None
    terms = [contributions(one, same_by_chance([p.vote for p in one])) for one in (votes, here)]
    changes = [a - b for a, b in zip(*terms, strict=True)]
    error = stdev(changes) / sqrt(len(changes)) if len(changes) > 1 else 0.0
    return AtTemperature(temperature, answers_figures(groups), same, _mean(changes), error)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


@dataclass(frozen=True)
class Setting:
    """The options of the run that figures and advice depend on.

    Attributes:
        prompts: ``data.round.prompts_per_round``.
        attempts: ``data.round.max_attempts``.
        from_seeds: Share of the problems that are seeds.
        answer_format: ``data.solve.answer_format``.
        writing_tokens: ``data.writing.sampling.max_tokens``, or what stands for it.
        writing_temperature: ``data.writing.sampling.temperature``.
    """

    prompts: int
    attempts: int
    from_seeds: float
    answer_format: str | None
    writing_tokens: int
    writing_temperature: float


@dataclass(frozen=True)
class Figures:
    """All figures of a probe."""

    probed: Probed
    setting: Setting
    seeds: Answers
    written: Answers
    yields: Yield
    sweep: list[AtTemperature]

    @property
    def judged(self) -> Answers:
        """The answers that the verdict is about: those to seeds, or to other problems where there are no seeds."""
        return self.seeds if self.seeds.problems else self.written

    @property
    def colder(self) -> AtTemperature | None:
        """The coldest other temperature below the run's."""
        below = [w for w in self.sweep if w.temperature < self.probed.temperature]
        return below[0] if below else None


def figures_of(probed: Probed, setting: Setting) -> Figures:
    """The figures of what a probe has so far."""
    return Figures(
        probed,
        setting,
        answers_figures(probed.seeds.groups),
        answers_figures(probed.written.groups),
        round_yield(probed, setting.prompts, setting.attempts, setting.from_seeds),
        sweep(probed),
    )


def _row(group: Group, reason: str | None, origin: str = "seed") -> dict[str, Any]:
    """One problem: how many answers are in each class, from the largest on, and whether it would be trained on."""
    sizes = Counter(c for c in group.cluster or [] if c >= 0)
    return {
        "problem": group.instruction.prompt,
        "origin": origin,
        "vote": problem_votes(group).vote,
        "classes": sorted(sizes.values(), reverse=True),
        "no_answer": len(group) - sum(sizes.values()),
        "dropped": reason,
    }


def values_of(figures: Figures) -> dict[str, Any]:
    """The figures as values that JSON can hold."""
    probed = figures.probed
    found: dict[str, Any] = {
        "tokens": probed.tokens,
        "temperature": probed.temperature,
        "max_tokens": probed.longest,
        "samples": probed.samples,
        "seeds": asdict(figures.seeds),
        "round": asdict(figures.yields),
        "temperatures": [asdict(one) for one in figures.sweep],
        "cut_short": list(probed.stopped),
        "problems": [_row(*one) for one in zip(probed.seeds.groups, probed.seeds.reasons, strict=True)]
        + [_row(*one, "written") for one in zip(probed.written.groups, probed.written.reasons, strict=True)],
    }
    if probed.proposed or figures.written.problems:
        found["written"] = asdict(figures.written) | {
            "proposed": probed.proposed,
            "rejected": dict(sorted(probed.rejected.items())),
            "tokens": probed.texts,
        }
    return found
