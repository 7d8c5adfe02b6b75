"""What ``trainer.precision`` does to dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Precision(NamedTuple):
    """The dtypes of a run.

    Attributes:
        weights: The dtype that Lightning converts weights to; ``None`` keeps the one they were loaded in.
        autocast: The dtype that forward passes compute in under autocast; ``None`` without autocast.
    """

    weights: torch.dtype | None = None
    autocast: torch.dtype | None = None


_PRECISIONS = {
    "64-true": Precision(weights=torch.float64),
    "bf16-true": Precision(weights=torch.bfloat16),
    "16-true": Precision(weights=torch.float16),
    "bf16-mixed": Precision(autocast=torch.bfloat16),
    "16-mixed": Precision(autocast=torch.float16),
}


def precision_of(trainer: pl.Trainer | None) -> Precision:
    """The dtypes that a Trainer's precision sets; none without a Trainer or under ``32-true``."""
    return Precision() if trainer is None else _PRECISIONS.get(str(trainer.precision), Precision())


def compute_dtype(trainer: pl.Trainer | None, loaded: torch.dtype) -> torch.dtype:
    """The dtype that forward passes compute in.

    Args:
        trainer: The Trainer, if there is one.
        loaded: Of the weights as they were loaded.
    """
    precision = precision_of(trainer)
    return precision.autocast or precision.weights or loaded
