"""A batch of graded evaluation problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lightning_serl.evaluation.metrics import GradedProblem


class EvaluationBatch:
    """Some graded problems of one set; a plain class, so that precision plugins leave it alone.

    Attributes:
        set_name: Name of the set.
        k: Samples per problem.
        items: The graded problems; may be empty.
        strata: Names of the strata of each division of the set, such as the levels of ``by_level``.
    """

    def __init__(
        self, set_name: str, k: int, items: Sequence[GradedProblem], strata: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.set_name, self.k, self.items, self.strata = set_name, k, list(items), dict(strata or {})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvaluationBatch:
        """Return the batch itself: it has no tensors."""
        return self
