"""Logs how much memory a run will take before the model is loaded, and divides its work so that it fits."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.callbacks.foresight import (
    REMEDIES,
    SHARE,
    Division,
    Foresight,
    chosen_division,
    given_division,
    remedies,
    responses_of,
    state_per_weight,
    writing_only,
)
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines import TransformersEngine
from lightning_serl.errors import InputError, SeRLError, reason
from lightning_serl.policy.memory_plan import Plan, gib
from lightning_serl.protocols import LoadsPolicy, SelfPlay

__all__ = ["MemoryPlan", "is_out_of_memory", "state_per_weight"]


class MemoryPlan(pl.Callback):
    """Logs the GiB that weights, gradients, optimizer state, activations and engine will take, and makes them fit.

    Where ``trainer.accumulate_grad_batches`` is 1 and ``model.micro_batch`` is ``auto``, an optimizer step is divided
    into the fewest micro-batches whose foreseen peak stays below 85 % of the memory that is free; where the engine's
    ``max_rows`` is open, so are the completions written at one time. Gradients are the same up to rounding. A resumed
    run keeps the number of micro-batches of its checkpoint if it fits. A run of which not even one response at a time
    fits is refused before the model is loaded. Nothing is foreseen if module or datamodule are not of this package.

    Args:
        refuse: Whether a run that cannot fit is refused; False warns in its place.
    """

    def __init__(self, refuse: bool = True) -> None:
        super().__init__()
        self.refuse = refuse
        #: Whether a fit follows the evaluation that is set up next, which loads the model.
        self.fit_follows = False
        self._planned = False  # for the fit that comes next
        self._chose = False  # whether the number of micro-batches was left to this callback
        self._micro_batches = 1
        self._rows: int | None = None  # completions written at one time, after memory ran out with more
        self._scored: int | None = None
        self._foresight: Foresight | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Plan: Lightning loads the model after this hook."""
        fits = stage == "fit"
        if fits and self._planned:
            self._planned = False
            return
        self._planned, self.fit_follows = self.fit_follows and not fits, False
        if not self.plan(trainer, pl_module, trainer.datamodule, trains=fits or self._planned):
            self._foresight = None

    def plan(self, trainer: pl.Trainer, module: pl.LightningModule, data: object, trains: bool = True) -> bool:
        """Estimate a run's memory, log it and divide its work; returns whether it could be estimated.

        Raises:
            InputError: if the run cannot fit, or the number of micro-batches is given twice.
        """
        asked, former = getattr(module, "micro_batch", "auto"), trainer.accumulate_grad_batches
        # a second fit by the same Trainer finds what the first one set
        self._chose = asked == "auto" and (former == 1 or (self._chose and former == self._micro_batches))
        if trains and asked != "auto" and former != self._micro_batches:
            raise InputError(
                f"model.micro_batch is {asked} and trainer.accumulate_grad_batches {former}; give one of them"
            )
        if not isinstance(module, LoadsPolicy) or not isinstance(data, SelfPlay) or module.model_name_or_path is None:
            if trains and asked != "auto":
                raise InputError(
                    f"model.micro_batch is {asked}, but the responses of an optimizer step are known only with "
                    "SelfPlayDataModule; set trainer.accumulate_grad_batches"
                )
            return False
        if trains and isinstance(module.micro_batch, int):
            responses = responses_of(trainer.world_size, module, data)
            self._micro_batches = -(-responses // min(module.micro_batch, responses))
            divide_steps(trainer, self._micro_batches)
        ranks = Ranks.of(trainer)
        with ranks.stage("planning the memory"):
            found = self._make_plan(trainer, module, data, trains)
        divisions = [one for one in ranks.gather(None if found is None else found[1]) if one is not None]
        if found is None or len(divisions) < ranks.size:
            return False
        # equal on all ranks, of which one may have less memory than the others
        division = Division(
            max(one.micro_batches for one in divisions),
            min(one.rows for one in divisions),
            min(one.scored for one in divisions),
        )
        self._apply(trainer, data, found[0], division, trains)
        return True

    def _make_plan(
        self, trainer: pl.Trainer, module: LoadsPolicy, data: SelfPlay, trains: bool
    ) -> tuple[Foresight, Division] | None:
        """The division of this rank; ``None`` for a model that cannot be traced, which can be trained all the same."""
        try:
            foresight = Foresight(trainer, module, data)
            if not trains:
                return foresight, writing_only(foresight)
            if self._chose:
                return foresight, chosen_division(foresight, self._cannot_fit)
            return foresight, given_division(foresight, trainer.accumulate_grad_batches, self._cannot_fit)
        except InputError:
            raise
        except Exception as error:
            rank_zero_info(f"memory: no plan for this model ({reason(error)})")
            return None

    def _apply(
        self, trainer: pl.Trainer, data: SelfPlay, foresight: Foresight, division: Division, trains: bool
    ) -> None:
        """Set the Trainer's and the engine's numbers, and log them."""
        free, most = f"{gib(foresight.free)} GiB that are free", foresight.most_rows
        self._foresight, self._scored = foresight, division.scored
        if division.rows < most and isinstance(data.engine, TransformersEngine):
            data.engine.max_rows = division.rows
            rank_zero_info(
                f"memory: {division.rows} completions are written at one time in place of {most}, to stay below "
                f"{100 * SHARE:.0f} % of the {free} (data.engine.max_rows)"
            )
        if not trains:
            return
        self._micro_batches = division.micro_batches
        plan = foresight.plan_of(foresight.rows_of(division.micro_batches), division.rows, division.scored)
        rank_zero_info(plan.sentence(str(foresight.device), foresight.free, foresight.libraries))
        if self._chose and division.micro_batches > 1:
            rank_zero_info(
                f"memory: an optimizer step is divided into {division.micro_batches} micro-batches of "
                f"{foresight.rows_of(division.micro_batches)} of its {foresight.responses} responses, to stay below "
                f"{100 * SHARE:.0f} % of the {free} (model.micro_batch auto)"
            )
        divide_steps(trainer, division.micro_batches)
        if plan.peak > foresight.free:
            rank_zero_warn(_too_large(foresight, plan))

    def resume(self, trainer: pl.Trainer, saved: Mapping[str, int]) -> None:
        """Keep the number of micro-batches of a checkpoint, from its :meth:`state_dict`, if it fits the free memory.

        Called before the counters of the checkpoint are converted to the run's number of micro-batches.
        """
        foresight, former = self._foresight, saved.get("micro_batches", 1)
        self._rows = saved.get("rows")
        engine = getattr(trainer.datamodule, "engine", None)
        if self._rows is not None and isinstance(engine, TransformersEngine) and engine.given_rows is None:
            engine.max_rows = min(engine.max_rows, self._rows)
        if foresight is None or not self._chose or former == self._micro_batches:
            return
        fits = foresight.plan_of(foresight.rows_of(former), 1, 1).training <= foresight.free
        if all(Ranks.of(trainer).gather(fits)):
            self._micro_batches = former
            divide_steps(trainer, former)
            rank_zero_info(f"memory: an optimizer step has {former} micro-batches, as in the checkpoint's run")

    def _cannot_fit(self, foresight: Foresight) -> None:
        """Refuse a run of which not even one response at a time fits, or warn of it."""
        least = foresight.plan_of(1, 1, 1)
        said = (
            f"this run needs at least {gib(least.peak)} GiB on {foresight.device}, where {gib(foresight.free)} of "
            f"{gib(foresight.total)} are free"
        )
        advice = remedies(foresight)
        if self.refuse:
            raise InputError(
                f"{said}; {advice}; to try it all the same: --trainer.callbacks+ MemoryPlan "
                "--trainer.callbacks.refuse false"
            )
        rank_zero_warn(f"{said}; {advice}")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bound the passes without gradients."""
        if self._scored is not None and self._foresight is not None:
            policy: Any = pl_module.policy
            policy.rows_per_pass = self._scored

    # -- when memory runs out all the same -----------------------------------------------------------------------------

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Where memory ran out, add to the exception what to try next, and free gradients for the checkpoint."""
        if not is_out_of_memory(exception):
            return
        exception.add_note(self._next_setting(trainer, exception))
        if trainer.state.fn == "fit":
            pl_module.zero_grad(set_to_none=True)

    def _next_setting(self, trainer: pl.Trainer, exception: BaseException) -> str:
        """What to try after memory ran out; what was chosen here is chosen smaller when the run is resumed."""
        fits = trainer.state.fn == "fit"
        go_on = f"go on with {'--ckpt_path last and ' if fits else ''}"
        engine = getattr(trainer.datamodule, "engine", None)
        frames = traceback.extract_tb(exception.__traceback__)
        writes = any(frame.filename.endswith("engines/transformers.py") for frame in frames)
        if writes and isinstance(engine, TransformersEngine) and engine.max_rows > 1:
            now, self._rows = engine.max_rows, engine.max_rows // 2
            return (
                f"memory ran out while {now} completions were written at one time; {go_on}"
                f"--data.engine TransformersEngine --data.engine.max_rows {self._rows}"
            )
        size = None if self._foresight is None else self._foresight.rows_of(trainer.accumulate_grad_batches)
        if not fits or size == 1:
            return f"memory ran out; try {REMEDIES[0].options}, a smaller data.max_tokens or {REMEDIES[1].options}"
        now = trainer.accumulate_grad_batches
        self._micro_batches = 2 * now
        of = "" if size is None else f" of {size} responses"
        if self._chose:
            go_on = "go on with --ckpt_path last, which makes them"
        elif getattr(trainer.lightning_module, "micro_batch", "auto") != "auto":
            return f"memory ran out with micro-batches{of}; {go_on}--model.micro_batch {max(1, (size or 2) // 2)}"
        else:
            go_on += "--trainer.accumulate_grad_batches"
        return f"memory ran out with {now} micro-batches{of} in an optimizer step; {go_on} {2 * now}"

    def state_dict(self) -> dict[str, Any]:
        """The numbers of micro-batches and of rows that were chosen here; empty where neither was needed."""
        micro_batches = {"micro_batches": self._micro_batches} if self._chose and self._micro_batches > 1 else {}
        return micro_batches | ({} if self._rows is None else {"rows": self._rows})


def resume_division(trainer: pl.Trainer | None, checkpoint: Mapping[str, Any]) -> None:
    """Let the Trainer's :class:`MemoryPlan` divide steps as in the run that a fit continues."""
    if trainer is not None and trainer.state.fn == "fit":
        for callback in trainer.callbacks:
            if isinstance(callback, MemoryPlan):
                callback.resume(trainer, checkpoint.get("callbacks", {}).get(callback.state_key, {}))


def divide_steps(trainer: pl.Trainer, micro_batches: int) -> None:
    """Divide optimizer steps into micro-batches; limits and intervals that were given in steps are converted."""
    former, trainer.accumulate_grad_batches = trainer.accumulate_grad_batches, micro_batches
    if trainer.fast_dev_run:
        return
    for name in ("limit_train_batches", "val_check_interval"):
        if type(number := getattr(trainer, name)) is int and number % former == 0:
            setattr(trainer, name, number // former * micro_batches)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of another library says that a device or the host had no memory left."""
    if isinstance(error, SeRLError):
        return False
    said = str(error)
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "DefaultCPUAllocator" in said or "out of memory" in said.lower()


def _too_large(foresight: Foresight, plan: Plan) -> str:
    """What to set in place of the user's numbers, with the peak that they would have."""
    size = foresight.largest_micro_batch(foresight.limit)
    rows = foresight.writing_rows(foresight.limit)
    said = (
        f"this run needs about {gib(plan.peak)} GiB on {foresight.device}, where {gib(foresight.free)} are free; see "
        "docs/memory.md"
    )
    if not size:
        return said
    count = -(-foresight.responses // size)
    other = foresight.plan_of(foresight.rows_of(count), max(1, rows), 1)
    return f"{said}; trainer.accumulate_grad_batches {count} would take {gib(other.peak)}"
