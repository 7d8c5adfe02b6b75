"""torchmetrics over graded problems: pass@1, mean@k, maj@k, pass@k, agreement, vote accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


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
        no_answer: Sampled answers that answer nothing.
    """

    greedy: bool | None
    right: tuple[bool, ...]
    vote_right: bool | None
    labelled: bool
    agreement: float
    samples: int
    no_answer: int


class EvaluationSet(Metric):
    """Results of one labelled or unlabelled set. A problem without an answer counts as wrong, never as missing.

    Args:
        k: Samples per problem, for the names of the results.

    Example:
        >>> one = EvaluationSet(k=2)
        >>> one.update([GradedProblem(True, (True, False), None, True, 0.5, 2, 0)])
        >>> one.compute()["mean@k"]
        0.5
    """

    full_state_update = False
    _SUMS = (
        "problems", "labelled", "greedy_asked", "greedy_right", "mean_right", "maj_right", "any_right",
        "voted", "vote_right", "agreement", "samples", "no_answer", "sampled", "sample_right",
    )  # fmt: skip

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k
        for name in self._SUMS:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, problems: Sequence[GradedProblem]) -> None:
        """Count some problems; an empty list is fine, so that ranks with fewer problems keep step."""
        for p in problems:
            self._add("problems", 1)
            self._add("samples", p.samples)
            self._add("no_answer", p.no_answer)
            if p.samples:
                self._add("sampled", 1)
                self._add("agreement", p.agreement)
            if not p.labelled:
                continue
            self._add("labelled", 1)
            if p.greedy is not None:
                self._add("greedy_asked", 1)
                self._add("greedy_right", p.greedy)
            if p.right:
                self._add("sample_right", sum(p.right))
                self._add("mean_right", sum(p.right) / len(p.right))
                self._add("any_right", any(p.right))
                self._add("maj_right", bool(p.vote_right))
            if p.vote_right is not None:
                self._add("voted", 1)
                self._add("vote_right", p.vote_right)

    def _add(self, name: str, value: float) -> None:
        setattr(self, name, getattr(self, name) + value)

    def compute(self) -> dict[str, float | int | None]:
        """Shares in [0, 1]; ``None`` where nothing was measured.

        Returns:
            ``n`` problems; ``correct`` greedy answers (all sampled ones where no greedy answer was asked for);
            ``pass@1``, ``mean@k``, ``maj@k``, ``pass@k`` over the labelled problems; ``agreement`` and ``no_answer``
            over all samples; ``vote_accuracy`` over the problems whose vote did not abstain; ``k``.
        """

        def share(part: Tensor, whole: Tensor) -> float | None:
            return float(part / whole) if whole > 0 else None

        greedy = bool(self.greedy_asked > 0)  # type: ignore[operator]
        # not the samples there are: where every prompt was too long there are none, and all problems are wrong
        sampled_labelled = self.labelled if self.k else torch.zeros(())
        return {
            "n": int(self.problems),  # type: ignore[arg-type]
            "labelled": int(self.labelled),  # type: ignore[arg-type]
            "k": self.k,
            "correct": int(self.greedy_right if greedy else self.sample_right),  # type: ignore[arg-type]
            "pass@1": share(self.greedy_right, self.labelled) if greedy else share(self.mean_right, sampled_labelled),  # type: ignore[arg-type]
            "mean@k": share(self.mean_right, sampled_labelled),  # type: ignore[arg-type]
            "maj@k": share(self.maj_right, sampled_labelled),  # type: ignore[arg-type]
            "pass@k": share(self.any_right, sampled_labelled),  # type: ignore[arg-type]
            "agreement": share(self.agreement, self.sampled),  # type: ignore[arg-type]
            "no_answer": share(self.no_answer, self.samples),  # type: ignore[arg-type]
            "vote_accuracy": share(self.vote_right, self.voted),  # type: ignore[arg-type]
        }
