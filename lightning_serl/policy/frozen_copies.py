"""Frozen copies of the policy (``reference``, ``teacher``): which a run needs, where they are, what is saved."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_serl.distributed import sharding
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.policy.lora import TRAINED

_COPIES = ("reference", "teacher")


def needed_copies(asked: Collection[str], moved: Collection[str], kl: bool, base_is_reference: bool) -> list[str]:
    """The frozen copies that a run needs: asked for by rewards or sources, moved by callbacks, or for a divergence.

    If the model without its adapter is the policy as training began, it is the reference policy until a callback moves
    it.
    """
    names = {*asked} & {*_COPIES} | ({"reference"} if kl else set()) | {*moved}
    return [n for n in sorted(names) if not (n == "reference" and base_is_reference and n not in moved)]


def freeze(policy: Any, who: str, convert: Callable[[nn.Module], Any]) -> Any:
    """The frozen copy of that name, made from the present weights if it does not exist.

    It is converted to the run's precision, as Lightning converts the module tree, which has no copies.
    """
    made = policy.freeze_copy(who)
    if isinstance(made, nn.Module):
        convert(made)
    return made


def place(policy: Any, device: torch.device, convert: Callable[[nn.Module], Any]) -> None:
    """Move frozen copies of the whole model to a device, unless they are offloaded, in the run's precision."""
    for frozen in policy.frozen.values():
        made = convert(frozen)
        if not policy.offload_frozen:
            made.to(device)


def moved_state(policy: Any, ranks: Ranks) -> dict[str, dict[str, Tensor]]:
    """The weights of the copies that were moved, by name, for a checkpoint; all ranks in step.

    The others are as they were when training began, so that a resumed run makes them from the model.
    """
    return {
        who: sharding.gathered_state(frozen, ranks)
        if isinstance(frozen, nn.Module) and frozen.placement is not None
        else frozen.state_dict()
        for who, frozen in policy.copies.items()
        if frozen.moved
    }


def load_moved(policy: Any, saved: Mapping[str, Any], convert: Callable[[nn.Module], Any]) -> None:
    """The inverse of :func:`moved_state`."""
    for who, state in saved.items():
        frozen = freeze(policy, who, convert)
        if policy.placement is None:
            frozen.load_state_dict(state)
        else:
            sharding.load_state(frozen if isinstance(frozen, nn.Module) else policy.model, state)
        frozen.moved = True


@contextmanager
def on_device(module: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Have the tensors of a frozen copy that waits on the CPU on a device inside the context; ``None`` leaves them."""
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


class FrozenAdapter:
    """A second adapter on the same base that does not train, for a reference or teacher policy.

    It begins as a copy of the trained adapter. Once ``moved`` it no longer has those weights, and checkpoints save it.
    """

    def __init__(self, model: Any, who: str) -> None:
        self._model, self.who, self.moved = model, who, False
        config = copy.deepcopy(model.peft_config[TRAINED])
        config.inference_mode = True
        with torch.random.fork_rng():  # peft draws weights, which are overwritten at once
            model.add_adapter(who, config)
        for trained, frozen in self.pairs():
            frozen.data = frozen.data.to(trained.device, trained.dtype)
            frozen.requires_grad_(False)
        self.follow(1.0)
        self.moved = False

    def pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(trained, frozen) parameters that correspond."""
        found = dict(self._model.named_parameters())
        for name, parameter in found.items():
            if (other := _named_for(name, self.who)) is not None:
                yield parameter, found[other]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Forward passes inside use this adapter in place of the trained one."""
        self._model.set_adapter(self.who, inference_mode=True)
        try:
            yield
        finally:
            self._model.set_adapter(TRAINED)

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Move each factor towards the trained adapter's: all the way with ``share`` 1."""
        for trained, frozen in self.pairs():
            frozen.lerp_(trained.to(frozen.dtype), share)
        self.moved = True

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors, sharded ones gathered."""
        found = dict(self._model.named_parameters())
        names = (_named_for(name, self.who) for name in found)
        return {n: sharding.full(found[n]) for n in names if n is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._model.load_state_dict(dict(state), strict=False)


def _named_for(name: str, who: str) -> str | None:
    """The name in another adapter of a parameter of the trained adapter; ``None`` for any other parameter."""
    other, count = re.subn(rf"\.{TRAINED}(?=\.|$)", f".{who}", name)
    return other if count else None
