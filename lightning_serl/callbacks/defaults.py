"""What a run needs and a user need not list."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_serl.callbacks.filters.base import GroupFilter, InstructionFilter
from lightning_serl.callbacks.filters.difficulty import DifficultyFilter, ZeroSpread
from lightning_serl.callbacks.filters.novelty import NoveltyFilter
from lightning_serl.callbacks.filters.quality import QualityFilter
from lightning_serl.callbacks.health.monitor import Health
from lightning_serl.callbacks.preemption import Preemption
from lightning_serl.callbacks.rollout_refresh import RolloutRefresh
from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.callbacks.run_folder.terminal import Phases


def missing_callbacks(trainer: pl.Trainer | None) -> list[pl.Callback]:
    """The machinery that the Trainer lacks, and SeRL's filters unless the user lists filters of any kind.

    A callbacks list in YAML replaces the defaults, so what must be there attaches itself.
    """
    present = [] if trainer is None else trainer.callbacks
    wanted: list[pl.Callback] = [
        kind() for kind in (Preemption, RolloutRefresh, Health, Ledger, Phases, ZeroSpread) if not _has(present, kind)
    ]
    chosen = [c for c in present if isinstance(c, (InstructionFilter, GroupFilter)) and not isinstance(c, ZeroSpread)]
    if not chosen:
        wanted += [QualityFilter(), NoveltyFilter(), DifficultyFilter()]
    return wanted


def _has(present: list[pl.Callback], kind: type[pl.Callback]) -> bool:
    return any(isinstance(c, kind) for c in present)


def announce_choice(callbacks: Sequence[pl.Callback], writes: bool) -> None:
    """Say which default filters are off because the user listed filters: one that is meant to be tuned replaces all.

    Args:
        callbacks: The Trainer's.
        writes: Whether problems are written; the instruction filters have nothing to judge otherwise.
    """
    chosen = [c for c in callbacks if isinstance(c, (InstructionFilter, GroupFilter)) and not isinstance(c, ZeroSpread)]
    usual = (QualityFilter, NoveltyFilter, DifficultyFilter) if writes else (DifficultyFilter,)
    off = [kind.__name__ for kind in usual if not any(isinstance(c, kind) for c in chosen)]
    if chosen and off:
        listed = ", ".join(dict.fromkeys(type(c).__name__ for c in chosen))
        rank_zero_info(
            f"filters: {listed}, as trainer.callbacks list them, in place of the default ones; off: {', '.join(off)} "
            "(list them as well to keep them)"
        )
