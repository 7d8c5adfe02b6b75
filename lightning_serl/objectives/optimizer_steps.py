"""What becomes of an optimizer step: its metrics, and whether it can be taken, since it may hold NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_serl.distributed.finite import first_not_finite
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import NotFinite
from lightning_serl.objectives.options import ResolvedObjective
from lightning_serl.objectives.step_metrics import StepTotals, gap_warning, step_metrics
from lightning_serl.objectives.surrogate import Surrogate
from lightning_serl.types import TokenStats

#: What to change where values are not finite, as the user types it.
ADVICE = (
    "begin a new run with a lower model.optimizer.lr, trainer.precision bf16-mixed or 32-true, or "
    "model.attn_implementation eager"
)


class StepFacts(NamedTuple):
    """What an optimizer step is judged by besides the totals of its micro-batches."""

    number: int  # from 1
    round: int  # from 1
    grad_norm: float  # of the whole gradient, before clipping
    learning_rate: float
    dtype: torch.dtype  # that forward passes compute in
    loss_scale: Callable[[], float]  # the factor of a loss scaler, 1 without one


class OptimizerSteps:
    """Reduces the totals of optimizer steps, and decides equally on all ranks whether each can be taken.

    Args:
        most: So many steps in a row that were not taken end the run.

    Attributes:
        metrics: Of the last step, under TRL's names.
        in_a_row: Steps not taken since the last one that was.
        total: Steps not taken.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.metrics: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Forget an earlier run."""
        self._totals, self._warned_of_gap = StepTotals(), False
        self.in_a_row = self.total = 0

    def add(self, surrogate: Surrogate, loss: Tensor, stats: TokenStats) -> None:
        """Add a micro-batch to the present step, see :meth:`StepTotals.add`."""
        self._totals.add(surrogate, loss, stats)

    def finish(self, facts: StepFacts, objective: ResolvedObjective, ranks: Ranks) -> bool:
        """Whether the step can be taken; all ranks must call it before the optimizer writes weights.

        Raises:
            NotFinite: at the ``most``-th step in a row that cannot be taken.
        """
        self._totals.add_norm(facts.grad_norm)
        totals, self._totals = self._totals.reduced(ranks), StepTotals()
        fault = _fault(totals, facts, ranks)
        self.in_a_row = self.in_a_row + 1 if fault else 0
        self.total += bool(fault)
        self.metrics = step_metrics(totals, objective, facts.grad_norm, facts.learning_rate)
        if self.total:
            self.metrics["serl/nonfinite_steps"] = float(self.total)
        if fault:
            self._refuse(f"{fault} is not finite", f"step {facts.number} (round {facts.round})", ranks)
        elif not self._warned_of_gap and (warning := gap_warning(totals, facts.dtype)) is not None:
            self._warned_of_gap = True
            rank_zero_warn(warning)
        return not fault

    def _refuse(self, why: str, which: str, ranks: Ranks) -> None:
        if self.in_a_row < self.most:
            bound = f"model.max_nonfinite_steps: {self.most} in a row end the run"
            rank_zero_warn(f"optimizer {which} was not taken: {why} ({bound})")
            return
        with ranks.stage("checking an optimizer step"):
            row = f"{self.most} optimizer steps in a row, the last" if self.most > 1 else "optimizer"
            raise NotFinite(f"not taken: {row} {which}, because {why}; {ADVICE}")

    @property
    def not_taken(self) -> list[int]:
        """The two counts, for a checkpoint; equal on all ranks."""
        return [self.in_a_row, self.total]

    @not_taken.setter
    def not_taken(self, counts: list[int]) -> None:
        self.in_a_row, self.total = counts


def _fault(totals: StepTotals, facts: StepFacts, ranks: Ranks) -> str:
    """What is not finite in a step, in words; empty if it can be taken, or is the loss scaler's to skip.

    A scaler with a factor above 1 skips steps whose gradient is not finite: so it finds the largest factor that works.
    """
    if totals.sums["faults"]:
        return next(filter(None, ranks.gather(totals.fault)))
    return "the gradient" if totals.sums["wild_norms"] and facts.loss_scale() <= 1 else ""


def check_weights(weights: Iterable[tuple[str, Tensor]], ranks: Ranks, when: str) -> None:
    """Raise a NotFinite on all ranks, which must all call it, if a weight of one of them is NaN or infinite."""
    wrong = first_not_finite(weights)
    if ranks.any(wrong is not None):
        with ranks.stage("checking the weights"):
            name = next(filter(None, ranks.gather(wrong)))
            raise NotFinite(f"weights are not finite {when} (first: {name}); {ADVICE}")
