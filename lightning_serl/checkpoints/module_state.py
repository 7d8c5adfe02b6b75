"""The module's part of a checkpoint: its state in addition to the weights, and the check that the weights fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_serl.checkpoints.loop_progress import rescale, settle
from lightning_serl.errors import InputError

if TYPE_CHECKING:
    import lightning.pytorch as pl

_KEY = "serl_policy"


class ModuleState(NamedTuple):
    """The module's state in a checkpoint.

    Attributes:
        version: Version of the policy's weights.
        frozen: Weights of the frozen copies that were moved, by name.
        evaluated_at: Optimizer step of the last complete evaluation inside ``fit``.
    """

    version: int
    frozen: Mapping[str, Any]
    evaluated_at: int | None


def save(checkpoint: dict[str, Any], state: ModuleState, trainer: pl.Trainer | None, kept: set[str] | None) -> None:
    """Add the module's state to a checkpoint, in place.

    Args:
        checkpoint: As Lightning passes it to ``on_save_checkpoint``.
        state: What is added.
        trainer: In a fit, its loop counters in the checkpoint are set back to the last whole optimizer step.
        kept: Names of the weights that the checkpoint keeps; ``None`` keeps all.
    """
    if kept is not None:
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
    checkpoint[_KEY] = state._asdict()
    if trainer is not None and _fits(trainer, checkpoint):
        settle(checkpoint["loops"]["fit_loop"], trainer, state.evaluated_at)
        checkpoint[_KEY]["accumulate"] = trainer.accumulate_grad_batches


def load(checkpoint: Mapping[str, Any], trainer: pl.Trainer | None) -> ModuleState:
    """The module's state in a checkpoint; the loop counters in it are converted to this run's accumulation.

    Args:
        checkpoint: As Lightning passes it to ``on_load_checkpoint``.
        trainer: The Trainer that loads it.
    """
    saved = checkpoint.get(_KEY, {"version": 0, "frozen": {}, "evaluated_at": None})
    if trainer is not None and _fits(trainer, checkpoint):
        accumulate = trainer.accumulate_grad_batches
        # only if the number differs: the last window of a user's own stream may be shorter
        if saved.get("accumulate", accumulate) != accumulate:
            rescale(checkpoint["loops"]["fit_loop"], accumulate)
    return ModuleState(saved["version"], saved["frozen"], saved["evaluated_at"])


def _fits(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> bool:
    return trainer.state.fn == "fit" and "loops" in checkpoint


def check_names(found: set[str], expected: set[str], lora: bool) -> None:
    """Refuse a checkpoint of another model: loading is not strict, so that an adapter can be loaded alone.

    Args:
        found: Names of the weights in the checkpoint.
        expected: Names of the weights that a checkpoint of this run keeps.
        lora: Whether this run trains an adapter.

    Raises:
        InputError: if the names differ.
    """
    if found == expected:
        return
    theirs = any(".lora_" in name for name in found)
    if theirs != lora:
        have, give = (
            ("a LoRA adapter", "the --model.lora options it had") if theirs else ("full weights", "no --model.lora")
        )
        raise InputError(f"the checkpoint holds {have} and this run does not; give {give}")
    odd = sorted(found ^ expected)
    raise InputError(f"the checkpoint is of another model: {len(odd)} weights differ in name, such as {odd[0]}")
