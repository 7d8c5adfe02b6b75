"""The learning-rate schedule of SeRL's training scripts."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR


class CosineWithFloor(LambdaLR):
    """Linear warm-up from 0, then a cosine from the optimizer's learning rate down to a share of it.

    The published scripts use 2,000 steps, a warm-up of 60 (so that the first update has learning rate 0) and a floor of
    a tenth. They make two updates of each batch, so that the floor is reached after 1,000 batches. After
    ``total_steps`` the published cosine rises again; this one does so only if ``hold`` is off.

    Args:
        optimizer: Its learning rate is the peak.
        total_steps: Optimizer steps from the first to the floor.
        warmup_steps: Optimizer steps until the peak.
        floor: Learning rate at the end, as a share of the peak.
        hold: Stay at the floor after ``total_steps``.

    Raises:
        ValueError: if ``warmup_steps`` is not below ``total_steps``, or ``floor`` is outside [0, 1].
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int = 2000,
        warmup_steps: int = 60,
        floor: float = 0.1,
        hold: bool = True,
    ) -> None:
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps must lie between 0 and total_steps ({total_steps}), got {warmup_steps}")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must lie between 0 and 1, got {floor}")

        def share(step: int) -> float:
            if step < warmup_steps:
                return step / warmup_steps
            if hold:
                step = min(step, total_steps)
            progress = (step - warmup_steps) / (total_steps - warmup_steps)
            return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

        super().__init__(optimizer, share)
