"""Pushes the policy's weights to the rollout engine, and proves that it samples from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_serl.callbacks.rollout_hooks import RolloutHooks, span_of
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.distributed.strategies import precision_of
from lightning_serl.engines import weight_checks
from lightning_serl.engines.base import Receipt, RolloutEngine, WeightUpdate
from lightning_serl.errors import PushMismatch, check_range
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Round

#: Version of pushed weights that are not the policy's: a canary, or the base of an adapter.
NO_VERSION = -1


class RolloutRefresh(RolloutHooks):
    """Pushes the policy's weights to the engine before a rollout if the engine holds another version.

    A push at the start of a rollout, rather than after each optimizer step, also covers resumed runs, validation and
    restarted engines; the stream refuses to generate while the versions differ. Under LoRA only the adapter is pushed,
    if the engine takes adapters of its kind; otherwise a copy of the model with the adapter merged into it is pushed.

    Three proofs precede the first token: after the start of an engine a canary, that is changed weights with which all
    log-probs must change, before the policy's weights, with which they must agree with the policy's; at every push
    version, names and bytes of the received tensors; and at every push the log-probs of fixed tokens in policy and
    engine. All ranks take the same steps. Weights that are not finite, or give log-probs that are NaN, are not pushed,
    and an engine that reads the live weights does not sample from them.

    Logged with the next round: ``serl/sync/bytes``, ``serl/sync/probe_logp_err`` (nats per token) and ``time/sync``
    (seconds).

    Args:
        max_logp_err: Largest mean difference of log-probs, in nats per token, that counts as rounding; by default 1e-4
            in float32, 1e-2 in float16 or where hardware rounds float32 products, 5e-2 in bfloat16.
    """

    def __init__(self, max_logp_err: float | None = None) -> None:
        super().__init__()
        if max_logp_err is not None:
            check_range("RolloutRefresh.max_logp_err", max_logp_err, above=0)
        self.max_logp_err = max_logp_err
        #: Seconds, bytes and number of all pushes so far, canaries included.
        self.seconds, self.bytes, self.pushes = 0.0, 0, 0
        self._fresh: dict[str, float] = {}  # metrics of the pushes since the last round
        self._must_push = False
        self._engine: RolloutEngine | None = None
        self._finite: int | None = None  # version of the policy whose weights were last seen to be finite

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put an engine to sleep that was woken for a validation between two steps of a round."""
        if self._engine is not None:
            self._engine.sleep()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Drop the reference to the engine."""
        self._engine = self._finite = None

    def on_rollout_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, engine: RolloutEngine) -> None:
        """Push the weights if the versions differ.

        Raises:
            NotFinite: if a weight is NaN or infinite, or gives log-probs that are NaN.
            PushMismatch: if the engine does not sample from the weights that were pushed.
        """
        if not engine.samples_policy:
            return  # recordings, which can be replayed without a policy
        policy, self._engine = pl_module.policy, engine
        ranks = Ranks.of(trainer)
        if self._finite != policy.version:
            weight_checks.check_finite(policy, trainer)
            self._finite = policy.version
        with ranks.stage("asking the engine for its version"):
            due = self._must_push or engine.version != policy.version
        if not any(ranks.gather(due)):
            return
        began, before = time.monotonic(), self.bytes
        self._must_push = True  # if a proof fails and the caller goes on, the next rollout pushes again
        # without a Trainer where an engine is used by itself
        with span_of(() if trainer is None else trainer.callbacks, "pushing"):
            err = _Push(self, trainer, policy, engine).run()
        self._must_push = False
        seconds = time.monotonic() - began
        self.seconds += seconds
        self._fresh = {
            "serl/sync/bytes": self._fresh.get("serl/sync/bytes", 0.0) + self.bytes - before,
            "serl/sync/probe_logp_err": max(self._fresh.get("serl/sync/probe_logp_err", 0.0), err),
            "time/sync": self._fresh.get("time/sync", 0.0) + seconds,
        }

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Add the metrics of the pushes since the last round."""
        if played.stats:
            played.stats.update(self._fresh)
            self._fresh = {}


class _Push:
    """One push to one engine, with its proofs."""

    def __init__(self, owner: RolloutRefresh, trainer: pl.Trainer, policy: Policy, engine: RolloutEngine) -> None:
        self.owner, self.trainer, self.policy, self.engine = owner, trainer, policy, engine
        self.ranks = Ranks.of(trainer)
        self.rows = weight_checks.probe_rows(policy)
        self.autocast = precision_of(trainer).autocast
        self.bound = owner.max_logp_err or weight_checks.bound(policy, engine, self.autocast)
        # ranks can share an engine, and the state of a server that restarted may be known to one of them only
        states = self.ranks.gather((engine.needs_base, engine.proven))
        self.needs_base, engine.proven = any(n for n, _ in states), all(p for _, p in states)

    def run(self) -> float:
        """Push adapter or full weights; returns the mean difference of log-probs in nats per token."""
        policy, engine = self.policy, self.engine
        config = policy.adapter_config() if policy.has_adapter else {}
        if not policy.has_adapter or not engine.takes_adapter(config):
            weights = policy.merged_weights if policy.has_adapter else policy.named_weights
            err = self._full(weights, policy.version, base=False)
        else:
            if self.needs_base:
                self._full(policy.named_weights, NO_VERSION, base=True)
            state = policy.adapter_state()
            expected = self._logps(base=False)
            if not engine.proven:
                canary = weight_checks.canary_adapter(state)
                self._send(WeightUpdate("adapter", lambda: iter(canary.items()), NO_VERSION, config))
                self._check_moved(expected)
            self._send(WeightUpdate("adapter", lambda: iter(state.items()), policy.version, config))
            err = self._check_agrees(expected)
        engine.proven = True
        return err

    def _full(self, weights: Callable[[], Iterator[tuple[str, Tensor]]], version: int, base: bool) -> float:
        expected = self._logps(base)
        # the frozen base of an adapter never changes: that later pushes arrive is proven with the adapter
        if not self.engine.proven and not base:
            scaled = weight_checks.canary_name(self.policy)
            self._send(WeightUpdate("full", lambda: weight_checks.canary_weights(weights(), scaled), NO_VERSION))
            self._check_moved(expected)
        self._send(WeightUpdate("full", weights, version))
        return self._check_agrees(expected)

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
            if receipt is None:  # an engine that counts nothing is checked by its version and the log-probs
                receipt = replace(sent.receipt(), version=self.engine.version)
            weight_checks.check_receipt(receipt, sent.receipt())
            if update.kind == "full":
                weight_checks.check_complete(sent.receipt(), weight_checks.full_names(self.policy))
        self.owner.bytes += receipt.bytes
        self.owner.pushes += 1

    def _logps(self, base: bool) -> list[Tensor]:
        with self.policy.gathered(self.trainer):
            return weight_checks.policy_logps(self.policy, self.rows, base)

    def _check_moved(self, before: list[Tensor]) -> None:
        """The canary's proof: the engine's log-probs must differ from those without the canary."""
        with self.ranks.stage("proving that pushes arrive"):
            moved = weight_checks.gap(self.engine.score(self.rows), before)
            if not moved > self.bound:
                raise PushMismatch(
                    f"the rollout engine ignores pushed weights: its log-probs did not move (by {moved:.1g} nats per "
                    "token) when changed weights were pushed; choose another engine or another release of it"
                )

    def _check_agrees(self, expected: list[Tensor]) -> float:
        """The proof of every push: the engine's log-probs must agree with the policy's."""
        with self.ranks.stage("proving a push"):
            err = weight_checks.gap(self.engine.score(self.rows), expected)
            if not err <= self.bound:
                ours = self.autocast or self.policy.causal_lm.get_input_embeddings().weight.dtype
                dtypes = f"{_name(ours)} in the policy and {_name(self.engine.dtype)} in the engine"
                raise PushMismatch(
                    f"after the push of version {self.policy.version} the rollout engine's log-probs are {err:.2g} "
                    f"nats per token off the policy's, more than {self.bound:.0e}, computed in {dtypes}; give both the "
                    "same model and dtype"
                )
            return err


def _name(dtype: torch.dtype | None) -> str:
    return "an unknown dtype" if dtype is None else str(dtype).removeprefix("torch.")
