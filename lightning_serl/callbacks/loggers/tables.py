"""Sends to the Trainer's loggers what is no number: completions, health warnings, the curves and the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_serl.callbacks.health import Health
from lightning_serl.callbacks.loggers.sinks import send_alert, send_file, send_picture, send_table
from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.callbacks.run_folder.summary import PICTURE
from lightning_serl.errors import check_range, said_by
from lightning_serl.objectives.experience import rows_of, set_advantages
from lightning_serl.protocols import module_of
from lightning_serl.types import Round

#: Columns of the table of completions.
COLUMNS = ("step", "round", "problem", "response", "answer", "label", "score", "advantage", "trained")
_REPORT = "report.html"


class TrackerTables(RolloutHooks):
    """Sends tables of completions, health warnings and pictures to the loggers that have a place for them.

    ``completions`` has a row per response to the first two problems of a round and to the first two that are trained
    on: step, round, problem, response, answer, label, score, advantage and whether it is trained on. The advantage
    lacks the part that depends on the KL divergence. A health warning is an alert. At the end of a ``fit`` come
    ``curves.png`` and ``report.html``, if they were made. ``docs/sharing.md`` says what each logger gets. A tracker
    that fails brings one warning and gets no further tables; the run goes on.

    Args:
        every: Send the completions of every such round; 0 sends none.
        responses: Responses to show of each problem.

    Raises:
        InputError: if an option is out of range.
    """

    def __init__(self, every: int = 1, responses: int = 8) -> None:
        super().__init__()
        check_range("TrackerTables.every", every, at_least=0)
        check_range("TrackerTables.responses", responses, at_least=1)
        self.every, self.responses = every, responses
        self._failed: set[int] = set()  # loggers by identity
        self._outside: set[str] = set()  # health signs that were outside their bands

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Send the table of the round."""
        if not trainer.is_global_zero or not trainer.loggers or not self.every or played.number % self.every:
            return
        if trainer.training and played.samples:
            rows = completion_rows(played, trainer, self.responses)
            self._send(trainer, lambda one: send_table(one, "completions", COLUMNS, rows, trainer.global_step))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Send the warnings of signs that left their bands since the last micro-batch."""
        if not trainer.is_global_zero or not trainer.loggers:
            return
        warnings = [w for c in trainer.callbacks if isinstance(c, Health) for w in c.outside]
        now = {warning.partition(" is ")[0]: warning for warning in warnings}
        for sign in sorted(now.keys() - self._outside):
            self._alert(trainer, sign, now[sign])
        self._outside = set(now)

    def _alert(self, trainer: pl.Trainer, sign: str, said: str) -> None:
        self._send(trainer, lambda one: send_alert(one, sign, said, trainer.global_step))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Send what was made at the end, before Lightning closes the loggers."""
        if stage == "fit":
            self.finish(trainer)

    def finish(self, trainer: pl.Trainer, close: bool = False) -> None:
        """Send curves and report, from rank 0; ``close`` the loggers again where Lightning has closed them before."""
        root = Path(trainer.default_root_dir)
        found = [name for name in (PICTURE, _REPORT) if (root / name).exists()]
        if not found or not trainer.is_global_zero or not trainer.loggers or trainer.fast_dev_run:
            return
        step = trainer.global_step
        if PICTURE in found:
            self._send(trainer, lambda one: send_picture(one, "curves", root / PICTURE, step))
        if _REPORT in found:
            self._send(trainer, lambda one: send_file(one, root / _REPORT, "report"))
        if close:
            self._send(trainer, lambda one: one.finalize("success"))

    def _send(self, trainer: pl.Trainer, send: Callable[[Any], None]) -> None:
        for logger in trainer.loggers:
            if id(logger) in self._failed:
                continue
            try:
                send(logger)
            except Exception as error:  # of a tracker, which may raise anything
                self._failed.add(id(logger))
                rank_zero_warn(f"{type(logger).__name__} gets no more tables and reports: {said_by(error)[:200]}")


def completion_rows(played: Round, trainer: pl.Trainer, responses: int) -> list[list[Any]]:
    """The rows of the round's sampled groups under :data:`COLUMNS`."""
    advantages = _advantages(played, trainer)
    out: list[list[Any]] = []
    for group, verdict in played.samples:
        answers = group.answers or [None] * len(group)
        scores = verdict.scores.tolist()
        for k, completion in list(enumerate(group.completions))[:responses]:
            advantage = advantages.get(id(completion))
            facts = [trainer.global_step, played.number, group.instruction.prompt, completion.text]
            facts += [answers[k], verdict.label, round(scores[k], 6)]
            out.append([*facts, None if advantage is None else round(advantage, 6), advantage is not None])
    return out


def _advantages(played: Round, trainer: pl.Trainer) -> dict[int, float]:
    """The mean advantage of each response that is trained on, by the identity of its completion."""
    objective = module_of(trainer).objective
    if objective is None:
        return {}
    pairs = [*zip(played.groups, played.verdicts, strict=True), *played.dropped]
    rows = rows_of([group for group, _ in pairs], [verdict for _, verdict in pairs])
    set_advantages(rows, objective)
    return {id(row.completion): float(row.advantage.mean()) for row in rows if not row.verdict.dropped}
