"""Keeps the rollout engine's weights up to date."""

from __future__ import annotations

import time
from collections.abc import Iterator

import lightning.pytorch as pl
from torch import Tensor

from lightning_serl.callbacks.hooks import RolloutHooks
from lightning_serl.engines.base import Receipt, RolloutEngine, WeightUpdate
from lightning_serl.errors import PushMismatch


class RolloutRefresh(RolloutHooks):
    """Pushes the policy's weights whenever the engine holds another version, just before it is asked to write.

    Pulling at the last moment covers resume, validation and a replaced engine by the same line; the stream refuses to
    generate while the versions differ. Under LoRA only the adapter travels, if the engine takes adapters of its kind.
    What the engine says it took in is compared with what was sent.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Seconds and number of pushes so far.
        self.seconds, self.pushes = 0.0, 0

    def on_rollout_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, engine: RolloutEngine) -> None:
        """Push if the versions differ.

        Raises:
            PushMismatch: if version, names or bytes of what arrived are not those of what was sent.
        """
        if not engine.samples_policy:
            return  # recordings; there may be no policy at all
        policy = pl_module.policy
        if engine.version == policy.version:
            return
        began = time.monotonic()
        if policy.has_adapter:
            state = policy.adapter_state()
            config = policy.model.peft_config["default"].to_dict()
            update = WeightUpdate("adapter", lambda: iter(state.items()), policy.version, config)
        else:
            update = WeightUpdate("full", policy.named_weights, policy.version)
        sent = _Counted(update)
        receipt = engine.push(WeightUpdate(update.kind, sent, update.version, update.meta))
        check_receipt(receipt, sent.receipt())
        self.seconds += time.monotonic() - began
        self.pushes += 1


class _Counted:
    """The tensors of an update; remembers what it handed out."""

    def __init__(self, update: WeightUpdate) -> None:
        self._update = update
        self._sizes: dict[str, int] = {}

    def __call__(self) -> Iterator[tuple[str, Tensor]]:
        self._sizes = {}
        for name, tensor in self._update.tensors():
            self._sizes[name] = tensor.numel() * tensor.element_size()
            yield name, tensor

    def receipt(self) -> Receipt:
        """What a faithful engine answers."""
        return Receipt(self._update.version, frozenset(self._sizes), sum(self._sizes.values()))


def check_receipt(arrived: Receipt, sent: Receipt) -> None:
    """Compare what an engine took in with what it was sent.

    Raises:
        PushMismatch: naming the first of version, names and bytes that differs.
    """
    if arrived.version != sent.version:
        raise PushMismatch(
            f"the rollout engine is at version {arrived.version} after a push of version {sent.version}; "
            "start the run again, which pushes anew, or choose another engine"
        )
    if odd := sorted(arrived.names ^ sent.names):
        raise PushMismatch(
            f"the rollout engine took {len(arrived.names)} tensors where {len(sent.names)} were sent (first that "
            f"differs: {odd[0]}); its architecture is not the policy's: give both the same model"
        )
    if arrived.bytes != sent.bytes:
        raise PushMismatch(
            f"the rollout engine took {arrived.bytes} bytes where {sent.bytes} were sent; "
            "give engine and policy the same model and dtype"
        )
