"""Collects the graded problems of an evaluation and computes its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.evaluation.metrics import EvaluationSet, GradedProblem


class EvaluationBatch:
    """Graded problems, or none, of a set with ``k`` samples each; a plain class, which precision plugins leave alone.

    ``strata`` are names by division of the set, such as the levels of ``by_level``.
    """

    def __init__(
        self, set_name: str, k: int, items: Sequence[GradedProblem], strata: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.set_name, self.k, self.items, self.strata = set_name, k, list(items), dict(strata or {})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvaluationBatch:
        """The batch itself: it has no tensors."""
        return self


class EvaluationResults:
    """The metrics of one evaluation and this rank's graded problems, by set."""

    def __init__(self) -> None:
        self.sets: dict[str, EvaluationSet] = {}
        self.items: dict[str, list[GradedProblem]] = {}

    def add(self, batch: EvaluationBatch, device: torch.device) -> None:
        """Add a batch of graded problems; the metric's state is kept on ``device``."""
        if batch.set_name not in self.sets:
            self.sets[batch.set_name] = EvaluationSet(batch.k, batch.strata).to(device)
        self.sets[batch.set_name].update(batch.items)
        self.items.setdefault(batch.set_name, []).extend(batch.items)

    def report(self) -> dict[str, dict[str, Any]]:
        """What :meth:`EvaluationSet.compute` returns for each set; every rank must call it, and gets the same."""
        return {name: one.compute() for name, one in sorted(self.sets.items())}

    def gathered_items(self, ranks: Ranks) -> dict[str, list[GradedProblem]]:
        """All graded problems by set, each in the order of its set, on rank 0; empty on other ranks."""
        everything = ranks.gather(self.items)
        if not ranks.leads:
            return {}
        return {
            name: sorted((p for part in everything for p in part.get(name, ())), key=lambda p: p.index)
            for name in sorted(self.items)
        }


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of one set, without intervals and strata."""
    return {name: value for name, value in report.items() if not isinstance(value, dict)}


def details(report: Mapping[str, Any]) -> dict[str, float]:
    """The ends of one set's intervals, as ``NAME_low`` and ``NAME_high``, and ``pass@2``, ``pass@4`` ... below k."""
    ends = {
        f"{name}_{end}": value
        for name, interval in report.get("intervals", {}).items()
        for end, value in zip(("low", "high"), interval, strict=True)
    }
    between = list(report.get("pass_at", {}).items())[1:-1]  # the first is mean@k and the last pass@k
    return ends | {f"pass@{size}": value for size, value in between}


def logged(report: dict[str, Any], prefix: str) -> dict[str, float]:
    """The figures of one set and their :func:`details`, as ``PREFIX/NAME``; what was not measured is absent."""
    return {f"{prefix}/{k}": float(v) for k, v in {**figures(report), **details(report)}.items() if v is not None}
