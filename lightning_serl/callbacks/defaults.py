"""The callbacks that a run adds to the Trainer's list by itself."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_serl.callbacks.averaging import AveragedWeights, averages
from lightning_serl.callbacks.checkpoints import Checkpoints
from lightning_serl.callbacks.export import Export
from lightning_serl.callbacks.filters import (
    DifficultyFilter,
    GroupFilter,
    InstructionFilter,
    NoveltyFilter,
    QualityFilter,
    ZeroSpread,
)
from lightning_serl.callbacks.health import Health
from lightning_serl.callbacks.loggers.tables import TrackerTables
from lightning_serl.callbacks.memory_plan import MemoryPlan
from lightning_serl.callbacks.preemption import Preemption
from lightning_serl.callbacks.rollout_refresh import RolloutRefresh
from lightning_serl.callbacks.run_folder import Ledger, ReportPage, RoundProfile, RoundProgress, Summary

#: Added unless the user lists the callback or a subclass of it.
ALWAYS: tuple[type[pl.Callback], ...] = (
    MemoryPlan, Preemption, RolloutRefresh, Health, RoundProfile, Ledger, RoundProgress, ZeroSpread,
    TrackerTables,
)  # fmt: skip
#: SeRL's filters, added unless the user lists filters.
DEFAULT_FILTERS: tuple[type[pl.Callback], ...] = (QualityFilter, NoveltyFilter, DifficultyFilter)


def default_callbacks(checkpoints: bool = True) -> list[pl.Callback]:
    """What the command line adds to a Trainer: summary and plots, report, export and, if wanted, checkpoints.

    A Trainer of your own takes them as ``callbacks=[*default_callbacks(), ...]``; all others come by themselves.
    """
    return [Summary(), Export(), *([Checkpoints()] if checkpoints else []), ReportPage()]


def missing_callbacks(trainer: pl.Trainer | None) -> list[pl.Callback]:
    """The default callbacks that the Trainer lacks.

    They are added by code, not by a preset, since a list of callbacks in YAML replaces the one before it.
    """
    present = [] if trainer is None else trainer.callbacks
    wanted = [kind for kind in ALWAYS if not _has(present, kind)]
    if averages(trainer):
        wanted.append(AveragedWeights)
    if not _chosen_filters(present):
        wanted += DEFAULT_FILTERS
    return [kind() for kind in wanted]


def announce_choice(callbacks: Sequence[pl.Callback], writes: bool) -> None:
    """Log which default filters are off because the user listed filters, perhaps to change an option of one only.

    ``writes`` tells whether the policy writes problems; otherwise there is nothing for instruction filters to judge.
    """
    chosen = _chosen_filters(callbacks)
    applicable = [kind for kind in DEFAULT_FILTERS if writes or issubclass(kind, GroupFilter)]
    off = [kind.__name__ for kind in applicable if not _has(chosen, kind)]
    if chosen and off:
        listed = ", ".join(dict.fromkeys(type(c).__name__ for c in chosen))
        rank_zero_info(
            f"filters: {listed}, as trainer.callbacks list them, in place of the default ones; off: {', '.join(off)} "
            "(list them as well to keep them)"
        )


def _chosen_filters(callbacks: Sequence[pl.Callback]) -> list[pl.Callback]:
    """The filters among the callbacks, apart from ``ZeroSpread``, which is added in any case."""
    return [c for c in callbacks if isinstance(c, (InstructionFilter, GroupFilter)) and not isinstance(c, ZeroSpread)]


def _has(present: Sequence[pl.Callback], kind: type[pl.Callback]) -> bool:
    return any(isinstance(c, kind) for c in present)
