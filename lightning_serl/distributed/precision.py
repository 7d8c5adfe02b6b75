"""The dtypes that ``trainer.precision`` stands for."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


def autocast_dtype(trainer: pl.Trainer | None) -> torch.dtype | None:
    """The dtype that mixed precision computes in; ``None`` without mixed precision."""
    return None if trainer is None else _MIXED.get(str(trainer.precision))


def converted_dtype(trainer: pl.Trainer | None) -> torch.dtype | None:
    """The dtype that Lightning converts the weights to; ``None`` if it leaves them as they were loaded."""
    return None if trainer is None else _TRUE.get(str(trainer.precision))
