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
from lightning_serl.policy.adapter_weights import TRAINED


class FrozenAdapter:
    """A second adapter on the same base that does not train: a reference or teacher that may move.

    It begins as a copy of the trained adapter.

    Attributes:
        moved: Set once it left its first weights; only then it enters checkpoints.
    """

    def __init__(self, model: Any, who: str) -> None:
        self._model, self.who, self.moved = model, who, False
        config = copy.deepcopy(model.peft_config[TRAINED])
        config.inference_mode = True
        with torch.random.fork_rng():  # peft draws weights, which are overwritten at once
            model.add_adapter(who, config)
        for mine, theirs in self.pairs():
            theirs.data = theirs.data.to(mine.device, mine.dtype)
            theirs.requires_grad_(False)
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
        """Move towards the trained adapter, factor by factor; all the way with ``share`` 1."""
        for mine, theirs in self.pairs():
            theirs.lerp_(mine.to(theirs.dtype), share)
        self.moved = True

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors, sharded ones gathered."""
        found = dict(self._model.named_parameters())
        names = (_named_for(name, self.who) for name in found)
        return {n: sharding.full(found[n]) for n in names if n is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`state_dict`."""
        self._model.load_state_dict(dict(state), strict=False)


def _named_for(name: str, who: str) -> str | None:
    """The name of another adapter's parameter that corresponds to one of the trained adapter, if it is one."""
    other, count = re.subn(rf"\.{TRAINED}(?=\.|$)", f".{who}", name)
    return other if count else None
