"""A frozen copy of a LoRA adapter, held in the same layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_serl.distributed import sharding
from lightning_serl.policy.lora import TRAINED


class FrozenAdapter:
    """A second adapter on the same base that does not train, for a reference or teacher policy.

    It begins as a copy of the trained adapter, and may be moved towards it.

    Attributes:
        moved: Whether it no longer has its first weights; only then it is saved in checkpoints.
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
            other = _named_for(name, self.who)
            if other is not None:
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
