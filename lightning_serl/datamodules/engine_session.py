"""The rollout engine during a run: start, wake-up, weight refresh, version check, signals and close."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_serl.callbacks.preemption import Preemption
from lightning_serl.callbacks.rollout_hooks import RolloutHooks, hooks, span_of
from lightning_serl.datamodules.checks import announce_lengths, check_chat_templates, check_lengths
from lightning_serl.datamodules.rounds.setup import RoundSetup
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import RolloutEngine, Sampling
from lightning_serl.errors import PushMismatch
from lightning_serl.policy.free_memory import give_back_memory
from lightning_serl.policy.policy import Policy


class EngineSession:
    """Starts the engine once for each policy, and gets it ready for every rollout."""

    def __init__(self) -> None:
        self._started: tuple[RolloutEngine, Policy | None] | None = None

    @contextmanager
    def ready(
        self, trainer: pl.Trainer, setup: RoundSetup, writing: Writing | None, answers: Sampling
    ) -> Iterator[None]:
        """Context in which the engine generates: started, awake, with the policy's weights, and those gathered.

        ``answers`` are drawn as the user asked for it, before lengths were fitted to a context.
        """
        engine, policy, ranks = setup.engine, setup.policy, setup.ranks
        if self._started is None or self._started[1] is not policy:
            with span_of(trainer.callbacks, "starting"):
                self._start(trainer, setup, writing, answers)
        engine.poll = partial(poll, trainer)
        give_back_memory()
        with span_of(trainer.callbacks, "starting"), ranks.stage("waking the engine"):
            engine.wake()
        self._refresh(trainer, engine)
        if policy is None:
            yield
            return
        asking = "asking the engine for its version"
        with ranks.stage(asking):
            stale = _stale_version(engine, policy) is not None
        if ranks.any(stale):
            self._refresh(trainer, engine)  # a server that came back during the push was only noticed after it
            with ranks.stage(asking):
                if (held := _stale_version(engine, policy)) is not None:
                    said = f"the rollout engine holds weights of version {held}, the policy is at {policy.version}"
                    raise PushMismatch(f"{said}; keep a RolloutRefresh callback in the Trainer")
        with policy.gathered(trainer):
            yield
        give_back_memory()

    def _start(self, trainer: pl.Trainer, setup: RoundSetup, writing: Writing | None, answers: Sampling) -> None:
        engine, policy = setup.engine, setup.policy
        problems = None if writing is None else writing.sampling
        check_chat_templates(policy, setup.templates, None if writing is None else writing.template)
        check_lengths(policy, engine, answers, problems)
        engine.folder, engine.poll = Path(trainer.default_root_dir), partial(poll, trainer)
        with setup.ranks.stage("starting the engine"):
            engine.start(policy, setup.ranks)
        atexit.register(engine.close)
        # some engines know the length of their context only now
        check_lengths(policy, engine, answers, problems)
        announce_lengths(policy, engine, answers, problems, setup.options.overlong_buffer)
        self._started = engine, policy

    def _refresh(self, trainer: pl.Trainer, engine: RolloutEngine) -> None:
        """Let the callbacks bring the engine's weights up to date."""
        for hook in hooks(trainer.callbacks, "on_rollout_start"):
            hook(trainer, trainer.lightning_module, engine)

    def close(self) -> None:
        """Release the engine; the next rollout starts it again."""
        if self._started is not None:
            engine, _ = self._started
            engine.close()
            atexit.unregister(engine.close)
            self._started = None


def _stale_version(engine: RolloutEngine, policy: Policy) -> int | None:
    """The version of the engine's weights, if it is not the policy's."""
    held = engine.version if engine.samples_policy else policy.version
    return held if held != policy.version else None


def poll(trainer: pl.Trainer) -> None:
    """Called between completion tokens; raises ``SIGTERMException`` or what a callback raises to end the run."""
    if trainer.received_sigterm:
        raise SIGTERMException
    for callback in trainer.callbacks:
        if isinstance(callback, RolloutHooks):
            callback.poll(trainer)


def stop_if_asked(trainer: pl.Trainer, ranks: Ranks) -> None:
    """Called between micro-batches: raises on all ranks if one was told to end. With one rank, Lightning does so."""
    if ranks.size == 1:
        return
    watches = [c for c in trainer.callbacks if isinstance(c, Preemption)]
    for watch in watches:
        watch.check_ranks()
    if ranks.any(any(watch.heard(trainer) for watch in watches)):
        error = SIGTERMException()
        error.on_every_rank = True
        raise error
