"""Keeps the rollout engine's weights up to date, and proves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines import weight_checks
from lightning_serl.engines.base import Receipt, RolloutEngine, WeightUpdate
from lightning_serl.errors import PushMismatch

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy
    from lightning_serl.types import Round

#: The version of weights that are none of the policy's: a canary, or the base of an adapter.
NO_VERSION = -1


class RolloutRefresh(RolloutHooks):
    """Pushes the policy's weights whenever the engine holds another version, just before it is asked to write.

    Pulling at the last moment covers resume, validation and a replaced engine by the same line; the stream refuses to
    generate while the versions differ. Under LoRA only the adapter travels, if the engine takes adapters of its kind;
    otherwise it is merged out of place and the whole model travels.

    Three proofs, each before the engine writes a token: once after an engine was started a canary, weights changed so
    that every log-prob must move, followed by the true ones, which must bring them back; at every push version, names
    and bytes of what arrived; and at every push the log-probs of fixed tokens on both sides. All ranks act alike.

    Logged with the next round: ``serl/sync/bytes`` and ``serl/sync/probe_logp_err`` (nats per token), and
    ``time/sync`` in seconds.

    Args:
        max_logp_err: Mean gap of the probe in nats per token that is taken for rounding; by default 1e-4 in float32,
            1e-2 in float16 or where hardware rounds float32 products, 5e-2 in bfloat16.
    """

    def __init__(self, max_logp_err: float | None = None) -> None:
        super().__init__()
        if max_logp_err is not None and max_logp_err <= 0:
            raise ValueError(f"max_logp_err must be above 0, got {max_logp_err}")
        self.max_logp_err = max_logp_err
        #: Seconds, bytes and number of pushes so far; canaries count.
        self.seconds, self.bytes, self.pushes = 0.0, 0, 0
        self._fresh: dict[str, float] = {}
        self._doubted = False
        self._engine: RolloutEngine | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """An engine that was woken for a validation in mid-round sleeps again; others sleep already."""
        if self._engine is not None:
            self._engine.sleep()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the engine."""
        self._engine = None

    def on_rollout_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, engine: RolloutEngine) -> None:
        """Push and prove if the versions differ.

        Raises:
            PushMismatch: if the engine does not hold what was sent.
        """
        if not engine.samples_policy:
            return  # recordings; there may be no policy at all
        policy, self._engine = pl_module.policy, engine
        ranks = Ranks.of(trainer)
        with ranks.stage("asking the engine for its version"):
            due = self._doubted or engine.version != policy.version
        if not any(ranks.gather(due)):
            return
        began, before = time.monotonic(), self.bytes
        self._doubted = True  # until all is proven; a caller who goes on after an error pushes again
        err = _Push(self, trainer, policy, engine).run()
        self._doubted = False
        seconds = time.monotonic() - began
        self.seconds += seconds
        self._fresh = {
            "serl/sync/bytes": self._fresh.get("serl/sync/bytes", 0.0) + self.bytes - before,
            "serl/sync/probe_logp_err": max(self._fresh.get("serl/sync/probe_logp_err", 0.0), err),
            "time/sync": self._fresh.get("time/sync", 0.0) + seconds,
        }

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """What the pushes since the last round cost and showed."""
        if played.stats:
            played.stats.update(self._fresh)
            self._fresh = {}


class _Push:
    """One refresh of one engine."""

    def __init__(self, owner: RolloutRefresh, trainer: pl.Trainer, policy: Policy, engine: RolloutEngine) -> None:
        self.owner, self.trainer, self.policy, self.engine = owner, trainer, policy, engine
        self.ranks = Ranks.of(trainer)
        self.rows = weight_checks.probe_rows(policy)
        autocast = _autocast(trainer)
        self.bound = owner.max_logp_err or weight_checks.bound(policy, engine, autocast)
        # what one rank knows of an engine that all share, another may not have noticed yet
        told = self.ranks.gather((engine.needs_base, engine.proven))
        self.needs_base, engine.proven = any(n for n, _ in told), all(p for _, p in told)

    def run(self) -> float:
        """Push what is due and prove it; returns the gap of the probe."""
        policy, engine = self.policy, self.engine
        config = policy.adapter_config() if policy.has_adapter else {}
        if not policy.has_adapter or not engine.takes_adapter(config):
            weights = policy.merged_weights if policy.has_adapter else policy.named_weights
            err = self._full(weights, policy.version, base=False)
        else:
            if self.needs_base:
                self._full(policy.named_weights, NO_VERSION, base=True)
            state = policy.adapter_state()
            true = self._logps(base=False)
            if not engine.proven:
                odd = weight_checks.canary_adapter(state)
                self._send(WeightUpdate("adapter", lambda: iter(odd.items()), NO_VERSION, config))
                self._must_move(true)
            self._send(WeightUpdate("adapter", lambda: iter(state.items()), policy.version, config))
            err = self._must_agree(true)
        engine.proven = True
        return err

    def _full(self, weights: Callable[[], Iterator[tuple[str, Tensor]]], version: int, base: bool) -> float:
        true = self._logps(base)
        if not self.engine.proven:
            scaled = weight_checks.canary_name(self.policy)
            self._send(WeightUpdate("full", lambda: weight_checks.canary_weights(weights(), scaled), NO_VERSION))
            self._must_move(true)
        self._send(WeightUpdate("full", weights, version))
        return self._must_agree(true)

    def _send(self, update: WeightUpdate) -> None:
        sent = weight_checks.Counted(update)
        receipt: Receipt | None = None
        error = None
        try:
            receipt = self.engine.push(replace(update, tensors=sent))
        except Exception as caught:  # raised below, on all ranks
            error = caught
        if self.ranks.size > 1:
            sent.finish()
        with self.ranks.stage("pushing weights"):
            if error is not None:
                raise error
            if receipt is None:  # an engine of somebody's own that keeps no count: its version and the probe must do
                receipt = replace(sent.receipt(), version=self.engine.version)
            weight_checks.check_receipt(receipt, sent.receipt())
            if update.kind == "full":
                weight_checks.check_complete(sent.receipt(), weight_checks.full_names(self.policy))
        self.owner.bytes += receipt.bytes
        self.owner.pushes += 1

    def _logps(self, base: bool) -> list[Tensor]:
        with self.policy.gathered(self.trainer):
            return weight_checks.policy_logps(self.policy, self.rows, base)

    def _must_move(self, true: list[Tensor]) -> None:
        with self.ranks.stage("proving that pushes arrive"):
            moved = weight_checks.gap(self.engine.score(self.rows), true)
            if not moved > self.bound:
                raise PushMismatch(
                    f"the rollout engine's log-probs did not move (by {moved:.1g} nats) when changed weights were "
                    "pushed: it samples from others than it takes; choose another engine or release of it"
                )

    def _must_agree(self, true: list[Tensor]) -> float:
        with self.ranks.stage("proving a push"):
            err = weight_checks.gap(self.engine.score(self.rows), true)
            if not err <= self.bound:
                raise PushMismatch(
                    f"after the push of version {self.policy.version} the rollout engine's log-probs are {err:.2g} "
                    f"nats per token off the policy's, more than {self.bound:.0e}; its weights are not the policy's, "
                    "or its dtype is another: give both the same"
                )
            return err


def _autocast(trainer: pl.Trainer) -> torch.dtype | None:
    """The dtype that mixed precision computes in, if the trainer uses it."""
    precision = str(getattr(trainer, "precision", ""))
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.split("-")[0]) if "-" in precision else None
