"""Lightning's progress counters, brought to a state that a checkpoint can be resumed from."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


def settle(loops: dict[str, Any], trainer: pl.Trainer, evaluated_at: int | None) -> None:
    """Put Lightning's saved counters at the last whole optimizer step, whatever was going on when they were saved.

    The gradients of an unfinished accumulation window are not in the checkpoint, so its micro-batches must come again.
    Lightning's own counters, taken in mid-flight, also lose an evaluation that was due, or a whole epoch if it had just
    begun.

    Args:
        loops: State of the fit loop; changed in place.
        trainer: The trainer that is being saved.
        evaluated_at: Step of the last evaluation that came to its end.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    current, total = batches["current"], batches["total"]
    evaluation = loops["epoch_loop.val_loop.batch_progress"]
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    due = False
    if epochs["total"]["started"] == epochs["total"]["processed"]:  # between two epochs
        for span in ("current", "total"):
            epochs[span]["ready"] = epochs[span]["started"]
        _count(current, 0)
        _count(total, total["processed"])
        steps["current"]["ready"] = steps["current"]["completed"] = 0
        batches["is_last_batch"] = False
    else:
        accumulate = trainer.accumulate_grad_batches
        whole = int(min(steps["current"]["completed"] * accumulate, trainer.num_training_batches))
        surplus = current["processed"] - whole
        if abs(surplus) > accumulate:  # not a clock that ticks once in `accumulate` batches: leave it alone
            return
        fetcher, loop = trainer.fit_loop._data_fetcher, trainer.fit_loop.epoch_loop
        if current["ready"] > whole:
            batches["is_last_batch"] = False  # it speaks of a batch that will come again
        elif whole and fetcher is not None and evaluated_at != trainer.global_step:
            due = loop._should_check_val_fx(fetcher)
        if whole >= trainer.num_training_batches and not due:  # Lightning would fetch a batch beyond its end
            for span in ("current", "total"):
                epochs[span]["processed"] = epochs[span]["completed"] = epochs[span]["started"]
            steps["current"]["ready"] = steps["current"]["completed"] = 0
            whole, batches["is_last_batch"] = 0, False
        _count(total, total["processed"] - surplus)
        _count(current, whole)
    # what Lightning reads as "stopped in the middle of an evaluation" makes it evaluate, from the first batch on
    _count(evaluation["current"], 0)
    _count(evaluation["total"], 0)
    if due:
        evaluation["total"]["ready"] = evaluation["total"]["started"] = 1
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step - due


def rescale(loops: dict[str, Any], accumulate: int) -> None:
    """Count the micro-batches of the epoch at hand in accumulation windows of the run that goes on.

    Args:
        loops: State of the fit loop, as :func:`settle` left it; changed in place.
        accumulate: Micro-batches of an optimizer step from here on.
    """
    batches = loops["epoch_loop.batch_progress"]
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["current"]["completed"]
    change = steps * accumulate - batches["current"]["ready"]
    if change and batches["current"]["ready"]:
        for span in ("current", "total"):
            _count(batches[span], batches[span]["ready"] + change)
        batches["is_last_batch"] = False


def _count(counters: dict[str, int], value: int) -> None:
    for name in counters:
        counters[name] = value
