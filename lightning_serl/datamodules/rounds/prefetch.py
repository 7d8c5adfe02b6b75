"""Writes the next round in a thread while this one trains, for engines that run in parallel to the trainer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_serl.checkpoints.serialize import completion_state, load_completion
from lightning_serl.datamodules.rounds.play import play_round
from lightning_serl.datamodules.rounds.setup import RoundSetup, RoundState, silent
from lightning_serl.engines.base import Receipt, Request, RolloutEngine, WeightUpdate, Who
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Completion, Round


class RolloutCache:
    """The completions written for a round so far, by the seeds they were requested with.

    A round that is played again from its counters makes the same requests. What is found here is not written twice, and
    comes from the same weights as the first time.
    """

    def __init__(self, step: int) -> None:
        self.step = step  # the optimizer step whose weights write
        self._written: dict[tuple[int, ...], list[Completion]] = {}

    def get(self, request: Request) -> list[Completion] | None:
        """The completions of a request; ``None`` if they were not written yet."""
        return self._written.get(request.seeds)

    def put(self, request: Request, completions: list[Completion]) -> None:
        """Keep the completions of a request."""
        self._written[request.seeds] = completions

    def state_dict(self) -> dict[str, Any]:
        """Primitives only."""
        written = list(self._written.items())  # one call that nothing interrupts: the thread may be adding to it
        rows = [[list(seeds), [completion_state(c) for c in completions]] for seeds, completions in written]
        return {"step": self.step, "written": rows}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RolloutCache:
        """The inverse of :meth:`state_dict`."""
        cache = cls(state["step"])
        for seeds, completions in state["written"]:
            cache._written[tuple(seeds)] = [load_completion(c) for c in completions]
        return cache


class CachedEngine(RolloutEngine):
    """Takes completions from a cache, and adds those that the wrapped engine writes, which its owner closes."""

    def __init__(self, engine: RolloutEngine, cache: RolloutCache) -> None:
        super().__init__()
        self.engine, self.cache = engine, cache
        self.samples_policy, self.overlaps = engine.samples_policy, engine.overlaps

    @property
    def version(self) -> int:
        """See :attr:`RolloutEngine.version`."""
        return self.engine.version

    def start(self, policy: Policy | None, ranks: Any) -> None:
        """See :meth:`RolloutEngine.start`."""
        self.engine.start(policy, ranks)

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """See :meth:`RolloutEngine.generate`; cached completions come first."""
        if who != "policy":
            yield from self.engine.generate(requests, who)
            return
        known = {i: found for i, r in enumerate(requests) if (found := self.cache.get(r)) is not None}
        yield from known.items()
        missing = [i for i in range(len(requests)) if i not in known]
        for place, completions in self.engine.generate([requests[i] for i in missing], who) if missing else ():
            self.cache.put(requests[missing[place]], completions)
            yield missing[place], completions

    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score`."""
        return self.engine.score(token_ids, who)

    def score_from(self, rows: Sequence[tuple[Sequence[int], int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score_from`."""
        return self.engine.score_from(rows, who)

    def push(self, update: WeightUpdate) -> Receipt:
        """See :meth:`RolloutEngine.push`."""
        return self.engine.push(update)


def from_cache(setup: RoundSetup, cache: RolloutCache) -> RoundSetup:
    """The setup of a round that was begun with the weights of ``cache.step``, one round before those it trains."""
    return replace(setup, engine=CachedEngine(setup.engine, cache), step=cache.step, age=1)


class _Stopped(Exception):
    """The prefetch was told to stop."""


class Prefetch:
    """Plays a round in a thread. It makes no collective call and never reads the policy's weights.

    ``state`` changes while it is played. ``before`` is the run's state before it: with the completions in ``cache``,
    what a checkpoint keeps meanwhile. ``poll`` raises when the run should stop.
    """

    def __init__(
        self, setup: RoundSetup, state: RoundState, number: int, before: dict[str, Any], poll: Callable[[], None]
    ) -> None:
        self.number, self.before, self.cache = number, before, RolloutCache(setup.step)
        self._setup, self._state = replace(from_cache(setup, self.cache), phase=silent), state
        self._engine, self._poll = setup.engine, poll
        self._stop = threading.Event()
        self._played: Round | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"prefetch of round {number + 1}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._engine.poll = self._check_stop
        self._thread.start()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._poll()

    def _run(self) -> None:
        try:
            with torch.no_grad():
                self._played = play_round(self._setup, self._state, self.number)
        except BaseException as error:  # kept for the main thread, which raises it
            self._error = error

    def wait(self) -> None:
        """Return when the round is played or failed; poll meanwhile."""
        while self._thread.is_alive():
            self._thread.join(0.05)
            self._poll()

    def result(self) -> Round:
        """Wait for the round and return it, or raise what playing it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._played is not None
        return self._played

    def stop(self) -> None:
        """End the thread; the completions written so far stay in the cache."""
        self._stop.set()
        self._thread.join()
