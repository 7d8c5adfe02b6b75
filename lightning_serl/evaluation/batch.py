"""One batch of graded evaluation problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lightning_serl.evaluation.metrics import GradedProblem


class EvaluationBatch:
    """Some graded problems of one set; a plain class, so that no precision plugin touches it.

    Attributes:
        set_name: Name of the set.
        k: Samples per problem.
        items: The graded problems; may be empty.
        strata: Names of the strata of each of the set's divisions.
    """

    def __init__(
        self, set_name: str, k: int, items: Sequence[GradedProblem], strata: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.set_name, self.k, self.items, self.strata = set_name, k, list(items), dict(strata or {})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvaluationBatch:
        """Nothing in it lives on a device."""
        return self
