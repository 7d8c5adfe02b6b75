"""Metrics over graded problems: pass@1, mean@k, maj@k, pass@k, agreement and vote accuracy, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb, fsum, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

# The 97.5 % quantile of the normal distribution, for 95 % intervals.
_Z = 1.959963984540054
_RESAMPLES = 10_000
_SEED = 20250520


@dataclass(frozen=True)
class GradedProblem:
    """One problem of an evaluation set after grading.

    Attributes:
        greedy: Whether the greedy answer is right; ``None`` without a label or a greedy answer.
        right: Per sampled answer whether it is right; empty without a label.
        vote_right: Whether the majority answer is right; ``None`` without a label or when the vote abstained.
        labelled: Whether a gold answer is known.
        agreement: Share of the samples that gave the majority answer.
        samples: Sampled answers.
        no_answer: Sampled responses without a readable answer.
        index: Index of the problem in its set.
        strata: For each division of the set, the index of the problem's stratum among their names; -1 for none.
        facts: The problem's row in ``evaluation_items.jsonl``.
    """

    greedy: bool | None
    right: tuple[bool, ...]
    vote_right: bool | None
    labelled: bool
    agreement: float
    samples: int
    no_answer: int
    index: int = 0
    strata: tuple[int, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class _Row(NamedTuple):
    """A graded problem as numbers, -1 for ``None``."""

    labelled: float
    greedy: float
    right: float
    answered: float
    vote_right: float
    agreement: float
    samples: float
    no_answer: float

    @classmethod
    def of(cls, p: GradedProblem) -> _Row:
        def flag(value: bool | None) -> float:
            return -1.0 if value is None else float(value)

        answers = sum(p.right), len(p.right)
        return cls(p.labelled, flag(p.greedy), *answers, flag(p.vote_right), p.agreement, p.samples, p.no_answer)

    @property
    def mean(self) -> float:
        """Share of right answers; 0 if there are no answers."""
        return self.right / self.answered if self.answered else 0.0


class EvaluationSet(Metric):
    """Results of one evaluation set. A problem without an answer counts as wrong, never as missing.

    Results do not depend on the order of the problems or on which rank graded them, to the bit.

    Args:
        k: Samples asked for per problem.
        strata: Names of the strata of each division, such as ``by_level``; in the order of ``GradedProblem.strata``.

    Example:
        >>> one = EvaluationSet(k=2)
        >>> one.update([GradedProblem(True, (True, False), None, True, 0.5, 2, 0)])
        >>> one.compute()["mean@k"]
        0.5
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, k: int, strata: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k, self.strata = k, {division: list(names) for division, names in (strata or {}).items()}
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, problems: Sequence[GradedProblem]) -> None:
        """Add problems; the list may be empty, for ranks with fewer problems."""
        width = len(_Row._fields) + len(self.strata)
        rows = [[*_Row.of(p), *p.strata] for p in problems]
        self.rows.append(torch.tensor(rows, dtype=torch.float64, device=self.device).reshape(-1, width))

    def compute(self) -> dict[str, Any]:
        """Shares in [0, 1]; ``None`` where nothing was measured.

        Returns:
            ``n`` problems; ``correct`` greedy answers (all sampled ones where no greedy answer was asked for);
            ``pass@1``, ``mean@k``, ``maj@k``, ``pass@k`` over the labelled problems; ``agreement`` and ``no_answer``
            over all samples; ``vote_accuracy`` over the problems whose vote did not abstain; ``k``, the most samples.

            ``intervals`` holds 95 % intervals ``[low, high]`` of pass@1, mean@k, maj@k and pass@k: Wilson's for shares
            of problems, a bootstrap over problems for means. ``pass_at`` maps 1, 2, 4 ... k (as text) to pass@1, pass@2
            ..., by the unbiased estimator of Chen et al. (arXiv 2107.03374): the chance that that many of the sampled
            answers hold a right one. Each division maps its strata to the same results without intervals.
        """
        # a list of tensors, or one tensor after a reduction over ranks
        table = dim_zero_cat(self.rows).tolist() if len(self.rows) else []
        rows = [_Row(*values[: len(_Row._fields)]) for values in table]
        # recordings can hold fewer responses than k
        k = int(max((r.samples for r in rows), default=0)) or self.k
        out: dict[str, Any] = {**_results(rows, k), "intervals": _intervals(rows, k), "pass_at": _pass_at(rows, k)}
        for column, (division, names) in enumerate(self.strata.items(), len(_Row._fields)):
            parts = {
                name: [row for row, values in zip(rows, table, strict=True) if values[column] == number]
                for number, name in enumerate(names)
            }
            out[division] = {name: _results(part, k) for name, part in parts.items() if part}
        return out


def _results(rows: Sequence[_Row], k: int) -> dict[str, float | int | None]:
    labelled = [r for r in rows if r.labelled]
    asked = any(r.greedy >= 0 for r in labelled)
    # not those with samples: where every prompt was too long there are none, and all problems are wrong
    sampled = labelled if k else []
    greedy_right = sum(r.greedy > 0 for r in labelled)
    mean = _share(fsum(r.mean for r in sampled), len(sampled))
    voted = [r for r in labelled if r.vote_right >= 0]
    answered = [r for r in rows if r.samples]
    return {
        "n": len(rows),
        "labelled": len(labelled),
        "k": k,
        "correct": greedy_right if asked else int(sum(r.right for r in labelled)),
        "pass@1": _share(greedy_right, len(labelled)) if asked else mean,
        "mean@k": mean,
        "maj@k": _share(sum(r.vote_right > 0 for r in sampled), len(sampled)),
        "pass@k": _share(sum(r.right > 0 for r in sampled), len(sampled)),
        "agreement": _share(fsum(r.agreement for r in answered), len(answered)),
        "no_answer": _share(sum(r.no_answer for r in rows), sum(r.samples for r in rows)),
        "vote_accuracy": _share(sum(r.vote_right > 0 for r in voted), len(voted)),
    }


def _pass_at(rows: Sequence[_Row], k: int) -> dict[str, float]:
    """pass@n for n = 1, 2, 4 ... and k over the labelled problems; empty if nothing was sampled."""
    labelled = [r for r in rows if r.labelled]
    sizes = [*(2**power for power in range(k.bit_length()) if 2**power < k), k] if k and labelled else []
    return {str(size): fsum(_any_right(r, size) for r in labelled) / len(labelled) for size in sizes}


def _any_right(row: _Row, size: int) -> float:
    """The chance that ``size`` of a problem's answers hold a right one; of all of them if there are fewer."""
    answers, right = int(row.answered), int(row.right)
    size = min(size, answers)
    return 1.0 - comb(answers - right, size) / comb(answers, size) if answers else 0.0


def _intervals(rows: Sequence[_Row], k: int) -> dict[str, list[float]]:
    labelled = [r for r in rows if r.labelled]
    out: dict[str, list[float]] = {}
    if any(r.greedy >= 0 for r in labelled):
        out["pass@1"] = wilson(sum(r.greedy > 0 for r in labelled), len(labelled))
    if labelled and k:
        mean = bootstrap([r.mean for r in labelled])
        out.setdefault("pass@1", mean)
        out["mean@k"] = mean
        out["maj@k"] = wilson(sum(r.vote_right > 0 for r in labelled), len(labelled))
        out["pass@k"] = wilson(sum(r.right > 0 for r in labelled), len(labelled))
    return out


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def wilson(right: int, n: int) -> list[float]:
    """Wilson's 95 % interval of the share of ``right`` problems among ``n``, at least 1.

    Example:
        >>> [round(end, 4) for end in wilson(8, 10)]
        [0.4902, 0.9433]
    """
    share, square = right / n, _Z * _Z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = _Z * sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    # exact at the ends, where rounding would miss 0 or 1 by a bit
    return [0.0 if right == 0 else centre - half, 1.0 if right == n else centre + half]


def bootstrap(values: Sequence[float]) -> list[float]:
    """The 95 % interval of a mean over problems, at least one, from 10,000 resamples with a fixed seed.

    Counts of equal values are drawn from one multinomial distribution, which is equivalent and independent of order.
    Where all values are 0 or all are 1 the interval is Wilson's, since resamples of equal values have no spread.
    """
    if min(values) == max(values) and values[0] in (0, 1):
        return wilson(int(sum(values)), len(values))
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = np.random.default_rng(_SEED).multinomial(len(values), counts / len(values), size=_RESAMPLES)
    means = (draws * distinct).sum(axis=1) / len(values)
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(low), float(high)]
