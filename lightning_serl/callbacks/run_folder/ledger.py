"""Writes ``ledger.jsonl``, ``metrics.jsonl`` and ``samples.jsonl`` of a run."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.callbacks.run_folder.jsonl_file import RunFile
from lightning_serl.callbacks.run_folder.profile import RoundProfile
from lightning_serl.callbacks.run_folder.transcripts import sample_rows
from lightning_serl.evaluation.results import details
from lightning_serl.protocols import data_of, module_of
from lightning_serl.types import Round

# Steps between two points in the loggers, unless the user sets ``Trainer(log_every_n_steps=...)`` to another number.
_LIGHTNING_INTERVAL = 50


class Ledger(RolloutHooks):
    """Writes what became of every instruction, the metrics of every step, and some samples, from rank 0.

    The metrics go to the Trainer's loggers too, one point per optimizer step: ``log_every_n_steps`` becomes 1 where it
    has Lightning's default, 50.

    ``ledger.jsonl`` has one row per event of an instruction: proposed, rejected, accepted, voted, kept, carried,
    dropped, trained; the event rolled_back is one of the whole run. It holds no times, so equal runs write equal
    ledgers. ``metrics.jsonl`` has one row per optimizer step or evaluation; measured times are under ``time/``.
    ``samples.jsonl`` has every answered group of a round, with as many texts as ``transcripts.ROUND_CHARACTERS`` leaves
    room for. A resumed run removes the rows written after its checkpoint and writes them again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, RunFile] = {}
        self._validated_before = False  # by a `validate` before this fit
        self._restored: dict[str, Any] | None = None
        self._state: dict[str, Any] = {}  # state at the last commit, which a checkpoint holds
        self._previous: dict[str, Any] | None = None  # state before the current round
        self._last_step: int | None = None  # the last step with a row; None until training starts
        self._last_evaluation: int | None = None  # the last step with a row of an evaluation
        self._open: dict[str, Any] | None = None  # the round that is being trained on
        self._fresh: dict[str, float] = {}  # the round's metrics, until the row of its first step
        self._clock = time.monotonic()
        self.counts: dict[str, int] = {}  # events of the run by kind
        self.reasons: dict[str, dict[str, int]] = {"rejected": {}, "dropped": {}}  # numbers by reason
        self.last_metrics: dict[str, float] = {}  # the latest value of each

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the files of the run folder, and let the user's loggers have a point per optimizer step."""
        if stage == "fit" and trainer.log_every_n_steps == _LIGHTNING_INTERVAL:
            trainer.log_every_n_steps = 1  # a step is a round or a part of one: there are few
        if trainer.is_global_zero and not trainer.fast_dev_run:
            root = Path(trainer.default_root_dir)
            if stage != "fit" and (root / "ledger.jsonl").exists():
                return  # the files of a finished run are not appended to by an evaluation
            self._files = {name: RunFile(root / f"{name}.jsonl") for name in ("ledger", "metrics", "samples")}
        self._last_step = self._last_evaluation = None
        self._commit()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut the files back to the checkpoint, or rename those of an earlier run in this folder."""
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
        if not data_of(trainer).rounds:  # otherwise this fit continues an earlier one of the same datamodule
            for file in self._files.values():
                file.set_aside()
            self._commit()
        if self._validated_before:
            self.enter_evaluation(trainer.global_step, pl_module)
        self._validated_before = False

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Write the round's events and samples."""
        self._previous = self._state
        for event in played.events:
            kind = event["event"]
            self.counts[kind] = self.counts.get(kind, 0) + 1
            if kind in self.reasons:
                counts = self.reasons[kind]
                counts[event["reason"]] = counts.get(event["reason"], 0) + 1
        self._write("ledger", played.events)
        if "samples" in self._files:
            module = module_of(trainer)
            tokenizer = getattr(module.policy, "tokenizer", None) if module.has_policy else None
            self._write("samples", sample_rows(played, tokenizer))
        if not played.stats:
            return  # a failed round: its rows are left for the user to read, but no checkpoint counts them
        self._open = {
            "round": played.number,
            "uids": [g.instruction.uid for g in played.groups if g.instruction.train],
            "steps": module_of(trainer).steps_per_round,
        }
        self._fresh = dict(played.stats)
        self.last_metrics.update(played.stats)
        self._commit()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Send the round's metrics to the user's loggers; Lightning does not allow this inside the stream."""
        if self._fresh:
            pl_module.log_dict(self._fresh, on_step=True, on_epoch=False, batch_size=1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step, write its metrics; after the round's last one, its ``trained`` events."""
        self._enter_step(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the row of a step or an evaluation that was finished before another callback raised."""
        if data_of(trainer).playing and self._previous is not None:
            self._state = self._previous  # another callback raised in `on_round_end`: the round is played again
        elif trainer.state.fn == "fit" and self._last_step is not None:
            self._enter_step(trainer)
            evaluated_at = module_of(trainer).evaluated_at
            if evaluated_at is not None:
                self.enter_evaluation(evaluated_at, pl_module)

    def _enter_step(self, trainer: pl.Trainer) -> None:
        if self._last_step is None or trainer.global_step == self._last_step:
            return
        self._last_step, self._previous = trainer.global_step, None
        now = time.monotonic()
        metrics = {**module_of(trainer).step_metrics, **self._fresh}
        self.last_metrics.update(metrics)
        parts = [c.row() for c in trainer.callbacks if isinstance(c, RoundProfile)]
        times = {name: value for row in parts for name, value in row.items()}
        times["time/step"] = round(now - self._clock, 4)
        self._write("metrics", [{"step": trainer.global_step, **metrics, **times}])
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
        """Write a row per evaluation inside a fit."""
        if trainer.state.fn != "fit":
            # no row yet: the folder may hold a finished run
            self._validated_before = True
        elif not trainer.sanity_checking:
            self.enter_evaluation(trainer.global_step, pl_module)

    def enter_evaluation(self, step: int, pl_module: pl.LightningModule) -> None:
        """Write the module's last evaluation results, made at optimizer step ``step``; once per step."""
        if step == self._last_evaluation:
            return
        self._last_evaluation = step
        module = module_of(pl_module.trainer)
        row = {f"val/{name}/{k}": v for name, result in module.last_results.items() for k, v in result.items()}
        row |= {f"val/{name}/{k}": v for name, one in module.last_report.items() for k, v in details(one).items()}
        if row:
            self._write("metrics", [{"step": step, **row}])
        self._commit()

    def enter_event(self, event: dict[str, Any]) -> None:
        """Write a row of ``ledger.jsonl`` about the run itself, between two rounds."""
        self.counts[event["event"]] = self.counts.get(event["event"], 0) + 1
        self._write("ledger", [event])
        self._commit()

    def state_dict(self) -> dict[str, Any]:
        """Sizes and checksums of the files, counts, and metrics not yet written, as of the last commit."""
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
        """Take the present state for the next checkpoint, which then counts all rows written so far."""
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
