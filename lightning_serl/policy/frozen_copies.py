"""Frozen copies of the policy (``reference``, ``teacher``): which a run needs, where they are, what is saved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_serl.distributed import sharding
from lightning_serl.distributed.ranks import Ranks

_COPIES = ("reference", "teacher")


def needed_copies(asked: Collection[str], moved: Collection[str], kl: bool, base_is_reference: bool) -> list[str]:
    """The names of the frozen copies that a run needs.

    Args:
        asked: What rewards and sources ask for beyond the policy.
        moved: Copies that callbacks move; they must exist.
        kl: Whether the loss has a divergence to the reference policy.
        base_is_reference: Whether the model without its adapter is the policy as training began; it then serves as the
            reference policy until a callback moves it.
    """
    names = {*asked} & {*_COPIES} | ({"reference"} if kl else set()) | {*moved}
    return [n for n in sorted(names) if not (n == "reference" and base_is_reference and n not in moved)]


def freeze(policy: Any, who: str, convert: Callable[[nn.Module], Any]) -> Any:
    """The frozen copy of that name, in the run's precision; made from the present weights if it does not exist.

    Args:
        policy: The policy.
        who: ``reference`` or ``teacher``.
        convert: Converts a module to the run's precision; Lightning converts the module tree, which has no copies.
    """
    made = policy.freeze_copy(who)
    if isinstance(made, nn.Module):
        convert(made)
    return made


def place(policy: Any, device: torch.device, convert: Callable[[nn.Module], Any]) -> None:
    """Move frozen copies of the whole model to a device, unless they are offloaded, in the run's precision."""
    for copy in policy.frozen.values():
        made = convert(copy)
        if not policy.offload_frozen:
            made.to(device)


def moved_state(policy: Any, ranks: Ranks) -> dict[str, dict[str, Tensor]]:
    """The weights of the copies that were moved, by name, for a checkpoint; all ranks in step.

    The others are as they were when training began, so that a resumed run makes them from the model.
    """
    return {
        who: sharding.gathered_state(copy, ranks)
        if isinstance(copy, nn.Module) and copy.placement is not None
        else copy.state_dict()
        for who, copy in policy.copies.items()
        if copy.moved
    }


def load_moved(policy: Any, saved: Mapping[str, Any], convert: Callable[[nn.Module], Any]) -> None:
    """The inverse of :func:`moved_state`."""
    for who, state in saved.items():
        copy = freeze(policy, who, convert)
        if policy.placement is None:
            copy.load_state_dict(state)
        else:
            sharding.load_state(copy if isinstance(copy, nn.Module) else policy.model, state)
        copy.moved = True


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
