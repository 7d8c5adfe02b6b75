"""The module's part of a checkpoint: its state in addition to the weights, and Lightning's loop counters.

The counters are set back to the last whole optimizer step, since the gradients of an unfinished accumulation window are
not in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from lightning_serl.distributed.lightning_internals import FitCounters, validation_is_due
from lightning_serl.errors import InputError

_KEY = "serl_policy"
# Options that torch's optimizers gained over time.
_LATER = {"maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}


class ModuleState(NamedTuple):
    """The module's state in a checkpoint."""

    version: int  # of the policy's weights
    frozen: Mapping[str, Any]  # weights of the frozen copies that were moved, by name
    evaluated_at: int | None  # optimizer step of the last complete evaluation inside ``fit``
    not_taken: list[int]  # optimizer steps that were not taken: in a row up to now, and in all


def save(checkpoint: dict[str, Any], state: ModuleState, trainer: pl.Trainer | None, kept: set[str] | None) -> None:
    """Add the module's state to a checkpoint, in place, and keep only the weights named in ``kept`` (``None``: all)."""
    if kept is not None:
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
    checkpoint[_KEY] = state._asdict()
    if trainer is not None and _fits(trainer, checkpoint):
        _settle(checkpoint["loops"]["fit_loop"], trainer, state.evaluated_at)
        checkpoint[_KEY]["accumulate"] = trainer.accumulate_grad_batches
        checkpoint[_KEY]["optimizer"] = kind_of(trainer.optimizers[0])


def load(checkpoint: Mapping[str, Any], trainer: pl.Trainer | None) -> ModuleState:
    """The module's state in a checkpoint; the loop counters in it are converted to this run's accumulation."""
    saved = checkpoint.get(_KEY, {"version": 0, "frozen": {}, "evaluated_at": None})
    if trainer is not None and _fits(trainer, checkpoint):
        accumulate = trainer.accumulate_grad_batches
        # only if the number differs: the last window of a user's own stream may be shorter
        if saved.get("accumulate", accumulate) != accumulate:
            _rescale(checkpoint["loops"]["fit_loop"], accumulate)
    not_taken = list(saved.get("not_taken", (0, 0)))
    return ModuleState(saved["version"], saved["frozen"], saved["evaluated_at"], not_taken)


def kind_of(optimizer: torch.optim.Optimizer) -> list[str]:
    """The full names of an optimizer's class and of the optimizers that it derives from."""
    kinds = [kind for kind in type(optimizer).__mro__ if issubclass(kind, torch.optim.Optimizer)]
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if kind is not torch.optim.Optimizer]


def check_kind(checkpoint: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer of another class than the one whose state a checkpoint holds; a derived class will do.

    Checkpoints of earlier versions do not name it; then an option that the checkpoint lacks tells.
    """
    saved, here = checkpoint.get(_KEY), kind_of(optimizer)
    stored = (saved.get("optimizer") if isinstance(saved, Mapping) else None) or []  # what else is wrong is found later
    groups = [group for state in checkpoint.get("optimizer_states", ()) for group in state["param_groups"]]
    lacking = sorted(set(optimizer.defaults) - set(groups[0]) - _LATER) if groups else []
    if (stored and (stored[0] in here or here[0] in stored)) or not (stored or lacking):
        return
    theirs = stored[0] if stored else f"another one, without {lacking[0]}"
    raise InputError(
        f"model.optimizer is {here[0]} but the checkpoint holds the state of {theirs}; give the one that it was made "
        "with, or begin a new run"
    )


def _fits(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> bool:
    return trainer.state.fn == "fit" and "loops" in checkpoint


def check_names(found: set[str], expected: set[str], lora: bool) -> None:
    """Refuse a checkpoint of another model: loading is not strict, so that an adapter can be loaded alone.

    ``expected`` are the names of the weights that a checkpoint of this run keeps, an adapter's if ``lora``.
    """
    if found == expected:
        return
    theirs = any(".lora_" in name for name in found)
    if theirs != lora:
        have = "a LoRA adapter" if theirs else "full weights"
        give = "the --model.lora options it had" if theirs else "no --model.lora"
        raise InputError(f"the checkpoint holds {have} and this run does not; give {give}")
    odd = sorted(found ^ expected)
    raise InputError(f"the checkpoint is of another model: {len(odd)} weights differ in name, such as {odd[0]}")


def _settle(loops: dict[str, Any], trainer: pl.Trainer, evaluated_at: int | None) -> None:
    """Put the saved counters of the fit loop at the last whole optimizer step, in place, whenever they were saved.

    The micro-batches of an unfinished accumulation window must come again. Lightning's own counters, saved in the
    middle of an epoch, also lose an evaluation that was due, or a whole epoch that had just begun.
    """
    counters = FitCounters.of(loops)
    epochs, batches, steps = counters.epochs, counters.batches, counters.optimizer_steps["current"]
    current, total = batches["current"], batches["total"]
    due = False
    _reopen(counters, trainer)
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


def _reopen(counters: FitCounters, trainer: pl.Trainer) -> None:
    """Count an epoch that was ended within as one that is not finished, in place.

    Lightning counts it as finished where ``max_steps``, ``max_time`` or a callback ended it, so that a run continued
    with larger bounds would go on with the next epoch, or not at all.
    """
    epochs, trained = counters.epochs, counters.batches["current"]["processed"]
    between = epochs["total"]["started"] == epochs["total"]["processed"]
    exhausted = counters.batches["is_last_batch"]
    if between and not exhausted and 0 < trained < trainer.num_training_batches:
        for span in ("current", "total"):
            epochs[span]["processed"] = epochs[span]["completed"] = epochs[span]["started"] - 1


def _rescale(loops: dict[str, Any], accumulate: int) -> None:
    """Count the micro-batches of the epoch, as :func:`_settle` left them, in accumulation windows of another size."""
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
