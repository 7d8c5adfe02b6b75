"""The run's books: what became of every instruction, every step's metrics, and some samples to read."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.callbacks.run_folder.jsonl_file import RunFile

if TYPE_CHECKING:
    from lightning_serl.types import Group, Round, Verdict

_FILES = ("ledger", "metrics", "samples")


class Ledger(RolloutHooks):
    """Writes ``ledger.jsonl``, ``metrics.jsonl`` and ``samples.jsonl`` into the run folder, from rank 0.

    The ledger has one row per event of an instruction: proposed, rejected, accepted, voted, kept, carried, dropped,
    trained; it holds no clock, so equal runs write equal ledgers. ``metrics.jsonl`` has one row per optimizer step or
    evaluation; what a clock measured stands under ``time/``. A resumed run first forgets the rows written after its
    checkpoint, then writes them again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, RunFile] = {}
        self._seen_before = False
        self._restored: dict[str, Any] | None = None
        self._state: dict[str, Any] = {}  # what a checkpoint holds: the books as they were last closed
        self._previous: dict[str, Any] | None = None  # the same before the round at hand
        self._last_step: int | None = None  # the last step with a row; None until training starts
        self._last_evaluation: int | None = None  # the same of evaluations
        self._open: dict[str, Any] | None = None  # the round whose steps are being made
        self._fresh: dict[str, float] = {}
        self._clock = time.monotonic()
        #: Events, and reasons of rejected instructions and dropped groups, counted over the run.
        self.counts: dict[str, int] = {}
        self.reasons: dict[str, dict[str, int]] = {"rejected": {}, "dropped": {}}
        self.last_metrics: dict[str, float] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the files of the run folder."""
        if trainer.is_global_zero and not trainer.fast_dev_run:
            root = Path(trainer.default_root_dir)
            if stage != "fit" and (root / "ledger.jsonl").exists():
                return  # the books of a run are its own
            self._files = {name: RunFile(root / f"{name}.jsonl") for name in _FILES}
        self._last_step = self._last_evaluation = None
        self._commit()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut the files back to the checkpoint, if there is one."""
        self._clock = time.monotonic()
        self._last_step = trainer.global_step
        if self._restored is not None:
            checksums = self._restored.get("checksums", {})
            for name, offset in self._restored["offsets"].items():
                if name in self._files:
                    self._files[name].truncate(offset, checksums.get(name))
            self._restored = None
            self._commit()
            return
        if not getattr(trainer.datamodule, "rounds", 0):  # else another fit of the same datamodule goes on
            for file in self._files.values():
                file.set_aside()
            self._commit()
        if self._seen_before:  # measured by a `validate` just before this fit
            self.enter_evaluation(trainer.global_step, pl_module)
        self._seen_before = False

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Write the round's events, and a few of its groups to read."""
        self._previous = self._state
        for event in played.events:
            self.counts[event["event"]] = self.counts.get(event["event"], 0) + 1
            if event["event"] in self.reasons:
                mine = self.reasons[event["event"]]
                mine[event["reason"]] = mine.get(event["reason"], 0) + 1
        self._write("ledger", played.events)
        self._write("samples", [_sample(played.number, g, v) for g, v in played.samples])
        if not played.stats:
            return  # a round that failed: its rows stay to be read, but no checkpoint counts them
        self._open = {
            "round": played.number,
            "uids": [g.instruction.uid for g in played.groups if g.instruction.train],
            "steps": getattr(pl_module, "steps_per_round", 1),
        }
        self._fresh = dict(played.stats)
        self.last_metrics.update(played.stats)
        self._commit()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Hand the round's numbers to the user's loggers: logging is not allowed inside the stream."""
        if self._fresh:
            pl_module.log_dict(self._fresh, on_step=True, on_epoch=False, batch_size=1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: its metrics, and the trained instructions once their round is through."""
        self._enter_step(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Catch up with a step or an evaluation that was done before another callback failed."""
        if getattr(trainer.datamodule, "playing", False) and self._previous is not None:
            self._state = self._previous  # another callback failed over a round that will be played again
        elif trainer.state.fn == "fit" and self._last_step is not None:
            self._enter_step(trainer, pl_module)
            if getattr(pl_module, "evaluated_at", None) is not None:
                self.enter_evaluation(pl_module.evaluated_at, pl_module)

    def _enter_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._last_step is None or trainer.global_step == self._last_step:
            return
        self._last_step, self._previous = trainer.global_step, None
        now = time.monotonic()
        metrics = {**getattr(pl_module, "step_metrics", {}), **self._fresh}
        self.last_metrics.update(metrics)
        self._write("metrics", [{"step": trainer.global_step, **metrics, "time/step": round(now - self._clock, 4)}])
        self._clock, self._fresh = now, {}
        if self._open is not None:
            self._open["steps"] -= 1
            if self._open["steps"] <= 0:
                number = self._open["round"]
                self._write("ledger", [{"uid": uid, "event": "trained", "round": number} for uid in self._open["uids"]])
                self.counts["trained"] = self.counts.get("trained", 0) + len(self._open["uids"])
                self._open = None
        self._commit()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One row per evaluation inside a fit."""
        if trainer.state.fn != "fit":
            # no row: the folder may hold a finished run whose books are closed
            self._seen_before = True
        elif not trainer.sanity_checking:
            self.enter_evaluation(trainer.global_step, pl_module)

    def enter_evaluation(self, step: int, pl_module: pl.LightningModule) -> None:
        """One row of ``metrics.jsonl`` with the module's last results; the same step is not written twice."""
        if step == self._last_evaluation:
            return
        self._last_evaluation = step
        results = getattr(pl_module, "last_results", {})
        row = {f"val/{name}/{k}": v for name, result in results.items() for k, v in result.items()}
        if row:
            self._write("metrics", [{"step": step, **row}])
        self._commit()

    def state_dict(self) -> dict[str, Any]:
        """How far the files count, what was counted, and what waits for the next step's row."""
        for file in self._files.values():
            file.sync()
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        state = copy.deepcopy(state_dict)
        self._state, self._restored = state_dict, state
        self.counts, self.reasons, self._open = state["counts"], state["reasons"], state["open"]
        self._fresh, self.last_metrics = state["fresh"], state["last_metrics"]
        self._last_evaluation = state["last_evaluation"]

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        if name in self._files:
            self._files[name].append(rows)

    def _commit(self) -> None:
        """Close the books: a checkpoint counts what was written so far."""
        state = {
            "offsets": {name: f.offset for name, f in self._files.items()},
            "checksums": {name: f.checksum for name, f in self._files.items()},
            "counts": self.counts,
            "reasons": self.reasons,
            "open": self._open,
            "fresh": self._fresh,
            "last_metrics": self.last_metrics,
            "last_evaluation": self._last_evaluation,
        }
        self._state = copy.deepcopy(state)


def _sample(number: int, group: Group, verdict: Verdict) -> dict[str, Any]:
    answers = group.answers or [None] * len(group)
    return {
        "round": number,
        "uid": group.instruction.uid,
        "prompt": group.instruction.prompt,
        "label": verdict.label,
        "confidence": round(verdict.confidence, 6),
        "responses": [
            {"text": c.text, "answer": a, "score": round(s, 6), "finished": c.finished}
            for c, a, s in zip(group.completions[:4], answers, verdict.scores.tolist(), strict=False)
        ],
    }
