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

# Number of halves up to which all are looked at, and how many are drawn beyond that.
_ALL, _DRAWN = 1000, 400
# Responses from which on an answer can be a majority.
_LEAST = 2


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
        half_vote: Share of halves of the responses whose vote is that of all of them.
    """

    responses: int
    unread: int
    truncated: int
    classes: int
    share: float
    second: float
    vote: str | None
    half_vote: float


@dataclass(frozen=True)
class Trainability:
    """How much of the responses a vote could bring to the majority's answer; shares, means over problems.

    Attributes:
        figure: :func:`trainability`, between 0 and 1.
        error: Its standard error over problems.
        half_vote: Mean of :attr:`ProblemVotes.half_vote`.
        by_chance: How often the votes on two different problems are the same answer.
        headroom: Share of the responses outside their problem's largest class.
        problems: Number of problems.
    """

    figure: float
    error: float
    half_vote: float
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
    return ProblemVotes(n, unread, cut, len(sizes), share, second, vote, half_vote(classes))


def half_vote(classes: Sequence[int]) -> float:
    """The share of halves of the responses whose majority is that of all of them, -1 being no answer.

    It is near 1 where the majority is the policy's and near 0 where it is an accident of the sample; 0 where no answer
    is more common than all others, or it was given once. All halves (of n // 2) are looked at for up to 12 responses,
    400 fixed ones beyond that.
    """
    n, size, whole = len(classes), len(classes) // 2, _vote(classes)
    if whole is None or list(classes).count(whole) < _LEAST or size == 0:
        return 0.0
    chosen: Iterable[Sequence[int]]
    if comb(n, size) <= _ALL:
        chosen = combinations(classes, size)
    else:
        rng = random.Random(n)
        chosen = [rng.sample(list(classes), size) for _ in range(_DRAWN)]
    return fmean(_vote(half) == whole for half in chosen)


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

    with :math:`s_i` the :attr:`~ProblemVotes.half_vote` of problem i, :math:`c` from :func:`same_by_chance` and
    :math:`a_i` the share of its largest class. It is near 0 where answers scatter (no majority to learn), where all
    agree (nothing left to learn) and where all problems get the same answer. It cannot see a majority that is stable,
    depends on the problem, and is wrong.
    """
    if not problems:
        return Trainability(0.0, 0.0, 0.0, 0.0, 0.0, 0)
    chance = same_by_chance([p.vote for p in problems])
    parts = contributions(problems, chance)
    error = stdev(parts) / sqrt(len(parts)) if len(parts) > 1 else 0.0
    same, headroom = fmean(p.half_vote for p in problems), 1 - fmean(p.share for p in problems)
    return Trainability(max(0.0, fmean(parts)), error, same, chance, headroom, len(problems))


def contributions(problems: Sequence[ProblemVotes], chance: float) -> list[float]:
    """The term of each problem in :func:`trainability`; 0 for all where every problem gets the same answer."""
    if chance >= 1:
        return [0.0] * len(problems)
    return [(p.half_vote - chance) / (1 - chance) * (1 - p.share) for p in problems]
