"""Optimizer and learning-rate scheduler of a policy, from the factories that the options name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from lightning_serl.errors import InputError
from lightning_serl.policy.policy import Policy


def trial_optimizer(make: OptimizerCallable, make_scheduler: LRSchedulerCallable | None) -> torch.optim.Optimizer:
    """An optimizer of a small tensor, with a scheduler on it, to check the options before a model is loaded."""
    try:
        optimizer = make([nn.Parameter(torch.zeros(2, 2))])
        if make_scheduler is not None:
            make_scheduler(optimizer)
    except (ValueError, TypeError) as error:
        raise InputError(f"model.optimizer or model.lr_scheduler cannot be made: {error}") from error
    return optimizer


def policy_optimizer(
    policy: Policy, make: OptimizerCallable, make_scheduler: LRSchedulerCallable | None, after_step: Callable[[], None]
) -> OptimizerLRScheduler:
    """What ``configure_optimizers`` returns: an optimizer of the trainable weights, and its scheduler if there is one.

    Every optimizer step raises the policy's version, calls ``after_step`` and steps the scheduler.
    """
    optimizer = make([p for p in policy.parameters() if p.requires_grad])

    def count(*_: Any) -> None:
        policy.version += 1
        after_step()

    optimizer.register_step_post_hook(count)
    if make_scheduler is None:
        return optimizer
    scheduler = make_scheduler(optimizer)
    config = {"scheduler": scheduler, "interval": "step"}
    if isinstance(scheduler, ReduceLROnPlateau):
        config["monitor"] = scheduler.monitor
    return {"optimizer": optimizer, "lr_scheduler": config}
