"""What a run needs and a user need not list."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_serl.callbacks.filters import (
    DifficultyFilter,
    GroupFilter,
    InstructionFilter,
    NoveltyFilter,
    QualityFilter,
    ZeroSpread,
)
from lightning_serl.callbacks.health import Health
from lightning_serl.callbacks.ledger import Ledger
from lightning_serl.callbacks.preemption import Preemption
from lightning_serl.callbacks.progress import Phases
from lightning_serl.callbacks.rollout_refresh import RolloutRefresh


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
