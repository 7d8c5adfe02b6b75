"""The evaluation hooks of a LightningModule: they take graded problems, and log what they amount to."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.evaluation.metrics import GradedProblem
from lightning_serl.evaluation.results import EvaluationBatch, EvaluationResults, figures, logged


class EvaluatesProblems(pl.LightningModule):
    """Logs the results of each evaluation set, as ``val/SET/METRIC`` or ``test/SET/METRIC``.

    Attributes:
        evaluated_at: Optimizer step of the last complete evaluation inside ``fit``.
        last_report: Results of the last evaluation by set, equal on all ranks.
        last_results: The same without intervals, levels and subjects.
        evaluation_items: The graded problems of the last ``validate`` or ``test`` by set, on rank 0; of the last
            evaluation inside ``fit`` too if a callback has a true attribute ``keeps_items``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._evaluation = EvaluationResults()
        self.evaluated_at: int | None = None
        self.last_report: dict[str, dict[str, Any]] = {}
        self.last_results: dict[str, dict[str, Any]] = {}
        self.evaluation_items: dict[str, list[GradedProblem]] = {}

    def _start_evaluation(self) -> None:
        self._evaluation, self.evaluation_items = EvaluationResults(), {}

    on_validation_epoch_start = on_test_epoch_start = _start_evaluation

    def validation_step(self, batch: EvaluationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add one batch of graded problems."""
        self._evaluation.add(batch, self.device)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The batch itself: the stream has written its rows already."""
        return batch

    def on_validation_epoch_end(self) -> None:
        """Log every set's results as ``val/SET/METRIC``."""
        self._log_results("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.evaluated_at = self.trainer.global_step

    def on_test_epoch_end(self) -> None:
        """Log every set's results as ``test/SET/METRIC``."""
        self._log_results("test")

    def _log_results(self, stage: str) -> None:
        self.last_report = self._evaluation.report()
        self.last_results = {name: figures(one) for name, one in self.last_report.items()}
        for name, one in self.last_report.items():
            self.log_dict(logged(one, f"{stage}/{name}"), batch_size=1)  # equal on all ranks: not reduced again
        # true on all ranks or on none: they gather together
        kept = any(getattr(callback, "keeps_items", False) for callback in self.trainer.callbacks)
        if kept or self.trainer.state.fn != "fit":
            self.evaluation_items = self._evaluation.gathered_items(Ranks.of(self.trainer))
