"""Frozen copies of the policy (``reference``, ``teacher``): moving them between devices and towards the policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def on_device(module: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Have a module's tensors on a device inside the context; those it came with stay where they were.

    Args:
        module: A frozen copy that waits on the CPU.
        device: ``None`` to leave it where it is.
    """
    parts = [] if device is None else [*module.parameters(), *module.buffers()]
    home = [part.data for part in parts]
    for part in parts:
        part.data = part.data.to(device, non_blocking=True)
    try:
        yield
    finally:
        for part, data in zip(parts, home, strict=True):
            part.data = data


@torch.no_grad()
def move_towards(module: nn.Module, policy: nn.Module, share: float) -> None:
    """Move the parameters of a frozen copy towards the policy's: all the way with ``share`` 1."""
    for own, other in zip(module.parameters(), policy.parameters(), strict=True):
        own.lerp_(other.to(own), share)
