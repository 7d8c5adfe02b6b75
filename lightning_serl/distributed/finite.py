"""Finds values that are NaN or infinite among many tensors, with one synchronisation where there are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds NaN or an infinite value; ``None`` if all values are finite.

    Of a sharded tensor the part on this rank is read, without a collective call. Integers, such as 4-bit weights, are
    not read.
    """
    held = [(name, own_part(tensor.detach())) for name, tensor in tensors]
    held = [(name, tensor) for name, tensor in held if tensor.dtype in _FLOATS and not tensor.is_meta]
    if not held or bool(torch.isfinite(torch.nn.utils.get_total_norm([tensor for _, tensor in held]))):
        return None
    # finite values can have a norm beyond the range of their dtype
    return next((name for name, tensor in held if not is_finite(tensor)), None)


def is_finite(tensor: Tensor) -> bool:
    """Whether a floating-point tensor of any shape holds neither NaN nor infinity, in one pass without a mask."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def tensors_in(value: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    """All tensors inside nested mappings and lists, with their keys joined by dots."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from tensors_in(item, f"{name}.{number}")


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; another tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
