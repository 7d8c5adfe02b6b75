"""Rewinds Lightning's saved loop counters to the last whole optimizer step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_serl.distributed.lightning_internals import FitCounters, validation_is_due


def settle(loops: dict[str, Any], trainer: pl.Trainer, evaluated_at: int | None) -> None:
    """Put the saved counters at the last whole optimizer step, whenever they were saved.

    The gradients of an unfinished accumulation window are not in the checkpoint, so its micro-batches must come again.
    Lightning's own counters, saved in the middle of an epoch, also lose an evaluation that was due, or a whole epoch
    that had just begun.

    Args:
        loops: State of the fit loop; changed in place.
        trainer: The trainer that is being saved.
        evaluated_at: Optimizer step of the last complete evaluation.
    """
    counters = FitCounters.of(loops)
    epochs, batches, steps = counters.epochs, counters.batches, counters.optimizer_steps["current"]
    current, total = batches["current"], batches["total"]
    due = False
    if epochs["total"]["started"] == epochs["total"]["processed"]:  # between two epochs
        for span in ("current", "total"):
            epochs[span]["ready"] = epochs[span]["started"]
        _set_all(current, 0)
        _set_all(total, total["processed"])
        steps["ready"] = steps["completed"] = 0
        batches["is_last_batch"] = False
    else:
        accumulate = trainer.accumulate_grad_batches
        whole = int(min(steps["completed"] * accumulate, trainer.num_training_batches))
        surplus = current["processed"] - whole
        if abs(surplus) > accumulate:  # optimizer steps do not come once in `accumulate` batches: not counters of ours
            return
        if current["ready"] > whole:
            batches["is_last_batch"] = False  # it describes a batch that will come again
        elif whole and evaluated_at != trainer.global_step:
            due = validation_is_due(trainer)
        if whole >= trainer.num_training_batches and not due:  # Lightning would fetch a batch beyond the last one
            for span in ("current", "total"):
                epochs[span]["processed"] = epochs[span]["completed"] = epochs[span]["started"]
            steps["ready"] = steps["completed"] = 0
            whole, batches["is_last_batch"] = 0, False
        _set_all(total, total["processed"] - surplus)
        _set_all(current, whole)
    # one validation batch started and none finished makes Lightning evaluate at once, from the first batch on
    _set_all(counters.evaluation["current"], 0)
    _set_all(counters.evaluation["total"], 0)
    if due:
        counters.evaluation["total"]["ready"] = counters.evaluation["total"]["started"] = 1
    counters.set_logged_steps(trainer.global_step - due)


def rescale(loops: dict[str, Any], accumulate: int) -> None:
    """Count the micro-batches of the current epoch in accumulation windows of another size.

    Args:
        loops: State of the fit loop, as :func:`settle` left it; changed in place.
        accumulate: Micro-batches per optimizer step from here on.
    """
    counters = FitCounters.of(loops)
    batches = counters.batches
    change = counters.optimizer_steps["current"]["completed"] * accumulate - batches["current"]["ready"]
    if change and batches["current"]["ready"]:
        for span in ("current", "total"):
            _set_all(batches[span], batches[span]["ready"] + change)
        batches["is_last_batch"] = False


def _set_all(counters: dict[str, int], value: int) -> None:
    for name in counters:
        counters[name] = value
