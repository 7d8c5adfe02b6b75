"""What a vote could raise, estimated without labels from groups of answers to the same problems.

The estimate rests on what a vote does in training: every step makes the answer that most responses give likelier, until
each response gives it (He et al., arXiv 2603.08660, call it sharpening of the starting distribution). So a vote can
raise accuracy where two things hold: the majority is no accident of the sample, and many responses are not in it yet.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, sqrt
from statistics import fmean, stdev

from lightning_serl.types import Group

# Divisions into halves up to which all are looked at, and how many are drawn beyond that.
_ALL, _DRAWN = 1000, 400


@dataclass(frozen=True)
class ProblemVotes:
    """How the responses to one problem agree.

    Attributes:
        responses: Their number, n.
        unread: Responses that ended and have no answer that can be read.
        truncated: Responses that were cut off by length.
        classes: Distinct answers.
        share: Share of all responses in the largest class; 0 without answers.
        second: Share of the second largest class.
        vote: The answer of the largest class, if it is larger than all others.
        same_half_vote: Probability that the votes of two halves of the responses are the same answer.
    """

    responses: int
    unread: int
    truncated: int
    classes: int
    share: float
    second: float
    vote: str | None
    same_half_vote: float


@dataclass(frozen=True)
class Trainability:
    """How much of the responses a vote could bring to the majority's answer; shares, means over problems.

    Attributes:
        figure: :func:`trainability`, between 0 and 1.
        error: Its standard error over problems.
        same_half_vote: Mean of :attr:`ProblemVotes.same_half_vote`.
        by_chance: How often the votes on two different problems are the same answer.
        headroom: Share of the responses outside their problem's largest class.
        problems: Number of problems.
    """

    figure: float
    error: float
    same_half_vote: float
    by_chance: float
    headroom: float
    problems: int


def problem_votes(group: Group) -> ProblemVotes:
    """The votes on a problem whose ``answers`` and ``cluster`` are filled in."""
    answers, classes = group.answers or [], group.cluster or []
    sizes = sorted(Counter(c for c in classes if c >= 0).items(), key=lambda item: (-item[1], item[0]))
    n = len(group)
    share, second = (sizes[i][1] / n if len(sizes) > i else 0.0 for i in (0, 1))
    winner = _vote(classes)
    vote = min((a for a, c in zip(answers, classes, strict=True) if c == winner and a is not None), default=None)
    cut = sum(not completion.finished for completion in group.completions)
    unread = sum(c < 0 and one.finished for c, one in zip(classes, group.completions, strict=True))
    return ProblemVotes(n, unread, cut, len(sizes), share, second, vote, same_half_vote(classes))


def same_half_vote(classes: Sequence[int]) -> float:
    """The share of divisions into two halves in which both halves have the same majority, -1 being no answer.

    For n responses this is an unbiased estimate of the probability that two votes of n // 2 new responses give the same
    answer. A half without an answer that is more common than all others has no vote, so a vote over chatter counts as
    none. All divisions are looked at for up to 12 responses, 400 fixed ones beyond that.
    """
    n, size = len(classes), len(classes) // 2
    if size == 0:
        return 0.0
    places = range(n)
    chosen: Iterable[Sequence[int]]
    if comb(n, size) <= _ALL:
        chosen = combinations(places, size)
    else:
        rng = random.Random(n)
        chosen = [rng.sample(places, size) for _ in range(_DRAWN)]
    same = []
    for half in chosen:
        first = _vote([classes[i] for i in half])
        inside = set(half)
        same.append(first is not None and first == _vote([classes[i] for i in places if i not in inside]))
    return fmean(same)


def _vote(classes: Sequence[int]) -> int | None:
    """The class that is larger than all others; ``None`` without one."""
    sizes = Counter(c for c in classes if c >= 0).most_common(2)
    if not sizes or (len(sizes) == 2 and sizes[0][1] == sizes[1][1]):
        return None
    return sizes[0][0]


def same_by_chance(votes: Sequence[str | None]) -> float:
    """The share of pairs of different problems whose votes are the same text, up to case; 0 for fewer than two votes.

    It tells a template answer, and guessing among few options, from knowledge: who does not read the problem agrees
    with himself across problems as much as within one.
    """
    sizes = Counter(vote.strip().casefold() for vote in votes if vote is not None)
    n = sum(sizes.values())
    return sum(k * (k - 1) for k in sizes.values()) / (n * (n - 1)) if n > 1 else 0.0


def trainability(problems: Sequence[ProblemVotes]) -> Trainability:
    r"""The foretaste of trainability of a base on some problems, without labels.

    .. math:: T = \frac{1}{N} \sum_i \frac{s_i - c}{1 - c} (1 - a_i), \quad \text{at least } 0

    with :math:`s_i` the :attr:`~ProblemVotes.same_half_vote` of problem i, :math:`c` from :func:`same_by_chance` and
    :math:`a_i` the share of its largest class. It is near 0 where answers scatter (no majority to learn), where all
    agree (nothing left to learn) and where all problems get the same answer. It cannot see a majority that is stable,
    depends on the problem, and is wrong.
    """
    if not problems:
        return Trainability(0.0, 0.0, 0.0, 0.0, 0.0, 0)
    chance = same_by_chance([p.vote for p in problems])
    parts = contributions(problems, chance)
    error = stdev(parts) / sqrt(len(parts)) if len(parts) > 1 else 0.0
    same, headroom = fmean(p.same_half_vote for p in problems), 1 - fmean(p.share for p in problems)
    return Trainability(max(0.0, fmean(parts)), error, same, chance, headroom, len(problems))


def contributions(problems: Sequence[ProblemVotes], chance: float) -> list[float]:
    """The term of each problem in :func:`trainability`; 0 for all where every problem gets the same answer."""
    if chance >= 1:
        return [0.0] * len(problems)
    return [(p.same_half_vote - chance) / (1 - chance) * (1 - p.share) for p in problems]
