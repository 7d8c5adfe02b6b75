"""Optimizer and learning-rate scheduler of a policy, from the factories that the options name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from lightning_serl.errors import InputError, check_range
from lightning_serl.policy.policy import Policy

#: Learning rate of the default optimizer where all weights are trained, as in SeRL.
FULL_LR = 1e-6
#: The same for an adapter. Its updates are scaled by alpha / r, so that the rate does not depend on the rank; a hundred
#: times the rate of all weights is the upper end of what is published for adapters (10 to 100 times).
ADAPTER_LR = 1e-4
# Below this rate the steps of an adapter are too small to be seen within a run.
_LOWEST_ADAPTER_LR = 5e-6


def adamw(params: Any, lr: float = FULL_LR) -> torch.optim.Optimizer:
    """AdamW as SeRL uses it: betas 0.9 and 0.95, no weight decay."""
    return torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


def optimizer_factory(make: OptimizerCallable | None, lr: float | None, adapter: bool) -> OptimizerCallable:
    """The user's optimizer, by default :func:`adamw` at the rate for an adapter or for all weights.

    ``lr``, if given, replaces the rate of every parameter group. InputError for a rate below 0.
    """
    check_range("model.lr", lr, at_least=0)
    if make is None:
        return partial(adamw, lr=(ADAPTER_LR if adapter else FULL_LR) if lr is None else lr)
    return make if lr is None else partial(_with_rate, make, lr)


def _with_rate(make: OptimizerCallable, lr: float, params: Any) -> torch.optim.Optimizer:
    optimizer = make(params)
    optimizer.defaults["lr"] = lr
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer


def announce_rate(optimizer: torch.optim.Optimizer, adapter: bool) -> None:
    """Log the learning rate and what is trained with it, as a warning where an adapter would hardly move."""
    group = optimizer.param_groups[0]
    lr = group.get("initial_lr", group["lr"])
    what = "an adapter" if adapter else "all weights"
    said = f"learning rate: {lr:g}, {type(optimizer).__name__} on {what}"
    if adapter and 0 < lr < _LOWEST_ADAPTER_LR:
        rank_zero_warn(
            f"{said}; adapters need 10 to 100 times the rate of all weights, so set --model.lr {ADAPTER_LR:g}"
        )
    else:
        rank_zero_info(f"{said}; --model.lr sets another")


class Shared:
    """Calls a factory, and is itself where a module is copied: the parser's hold the parser, which cannot be copied."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        """What the factory makes."""
        return self._make(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        """Itself."""
        return self


def trial_optimizer(make: OptimizerCallable, make_scheduler: LRSchedulerCallable | None) -> torch.optim.Optimizer:
    """An optimizer of a small tensor, with a scheduler on it, to check the options before a model is loaded."""
    try:
        optimizer = make([nn.Parameter(torch.zeros(2, 2))])
        if make_scheduler is not None:
            make_scheduler(optimizer)
    except (ValueError, TypeError) as error:
        raise InputError(f"model.optimizer or model.lr_scheduler cannot be made: {error}") from error
    return optimizer


def scheduler_monitor(make: OptimizerCallable, make_scheduler: LRSchedulerCallable | None) -> str | None:
    """The metric that the learning-rate scheduler waits for, if it waits for one."""
    scheduler = None if make_scheduler is None else make_scheduler(make([nn.Parameter(torch.zeros(2, 2))]))
    if isinstance(scheduler, ReduceLROnPlateau):
        return str(scheduler.monitor)
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise InputError(
            "model.lr_scheduler: torch's ReduceLROnPlateau does not say what to monitor; use "
            "lightning.pytorch.cli.ReduceLROnPlateau with --model.lr_scheduler.monitor"
        )
    return None


def policy_optimizer(
    policy: Policy, make: OptimizerCallable, make_scheduler: LRSchedulerCallable | None
) -> OptimizerLRScheduler:
    """What ``configure_optimizers`` returns: an optimizer of the trainable weights, and its scheduler if there is one.

    Every optimizer step raises the policy's version and steps the scheduler; one that waits for an evaluation's figure
    is stepped after the evaluations of an epoch.
    """
    optimizer = make([p for p in policy.parameters() if p.requires_grad])

    def count(*_: Any) -> None:
        policy.version += 1

    optimizer.register_step_post_hook(count)
    if make_scheduler is None:
        return optimizer
    scheduler = make_scheduler(optimizer)
    config = {"scheduler": scheduler, "interval": "step"}
    if isinstance(scheduler, ReduceLROnPlateau):
        config["monitor"] = scheduler.monitor
        config["interval"] = "epoch" if scheduler.monitor.startswith("val/") else "step"
    return {"optimizer": optimizer, "lr_scheduler": config}
