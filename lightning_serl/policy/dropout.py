"""Noise of forward passes in training: none in the base, and draws that a resumed run repeats in an adapter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_serl.distributed.seeding import seed_for


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability, and the jitter of routers, to 0 in all modules; the configuration stays.

    Old log-probs, reference log-probs and completions are computed without dropout, so that a ratio to them would be
    noise (TRL's ``disable_dropout``). Models keep probabilities in ``nn.Dropout`` or in attributes such as
    ``attention_dropout`` and ``jitter_noise``.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)


@contextmanager
def repeated_dropout(policy: nn.Module, trainer: pl.Trainer | None, batch_idx: int) -> Iterator[None]:
    """Torch's draws inside the context depend on the run's seed, the optimizer step, the micro-batch and the rank.

    Where nothing draws, which is all but an adapter with ``model.lora.dropout``, torch's generators stay as they are.
    """
    if trainer is None or not any(isinstance(m, nn.Dropout) and m.p > 0 for m in policy.modules()):
        yield
        return
    place: tuple[Any, ...] = (trainer.global_step, batch_idx % trainer.accumulate_grad_batches, trainer.global_rank)
    device = trainer.strategy.root_device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_for(int(os.environ.get("PL_GLOBAL_SEED", "0")), "dropout", *place))
        yield
