"""The next round, written by an engine of its own while this one trains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_serl.checkpoints.serialize import completion_state, load_completion
from lightning_serl.datamodules.rounds.play import play_round
from lightning_serl.datamodules.rounds.setup import Table, silent
from lightning_serl.engines.base import Receipt, Request, RolloutEngine, WeightUpdate, Who
from lightning_serl.types import Completion, Round

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy


class Memo:
    """What an engine wrote for a round so far, by the seeds that it was asked with.

    A round that is played again from its counters asks for the same: what is remembered here is not written twice, and
    comes from the same weights as the first time.

    Args:
        step: Optimizer step whose weights write.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._written: dict[tuple[int, ...], list[Completion]] = {}

    def __len__(self) -> int:
        return len(self._written)

    def get(self, request: Request) -> list[Completion] | None:
        """The completions of a request, if they are remembered."""
        return self._written.get(request.seeds)

    def put(self, request: Request, completions: list[Completion]) -> None:
        """Remember them."""
        self._written[request.seeds] = completions

    def state_dict(self) -> dict[str, Any]:
        """Primitives only."""
        written = list(self._written.items())  # in one go: the thread may add to it
        rows = [[list(seeds), [completion_state(c) for c in completions]] for seeds, completions in written]
        return {"step": self.step, "written": rows}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Memo:
        """The inverse of :meth:`state_dict`."""
        memo = cls(state["step"])
        for seeds, completions in state["written"]:
            memo._written[tuple(seeds)] = [load_completion(c) for c in completions]
        return memo


class RememberingEngine(RolloutEngine):
    """An engine that answers from a memo what is in there, and enters what it writes.

    Args:
        engine: Writes; its life is its owner's business.
        memo: What was written before.
    """

    def __init__(self, engine: RolloutEngine, memo: Memo) -> None:
        super().__init__()
        self.engine, self.memo = engine, memo
        self.samples_policy, self.overlaps = engine.samples_policy, engine.overlaps

    @property
    def version(self) -> int:
        """That of the engine."""
        return self.engine.version

    def start(self, policy: Policy | None, ranks: Any) -> None:
        """See :meth:`RolloutEngine.start`."""
        self.engine.start(policy, ranks)

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """See :meth:`RolloutEngine.generate`; what is remembered comes first."""
        if who != "policy":
            yield from self.engine.generate(requests, who)
            return
        known = {i: found for i, r in enumerate(requests) if (found := self.memo.get(r)) is not None}
        yield from known.items()
        missing = [i for i in range(len(requests)) if i not in known]
        for place, completions in self.engine.generate([requests[i] for i in missing], who) if missing else ():
            self.memo.put(requests[missing[place]], completions)
            yield missing[place], completions

    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score`."""
        return self.engine.score(token_ids, who)

    def push(self, update: WeightUpdate) -> Receipt:
        """See :meth:`RolloutEngine.push`."""
        return self.engine.push(update)


class _Stopped(Exception):
    """The round ahead was told to stop."""


class Ahead:
    """One round in a thread of its own. It makes no collective call and never touches the policy's weights.

    Args:
        table: The run's parts; pool, queue and source move on as the round is played.
        number: The round's number.
        before: The run's state before it.
        memo: Takes what the engine writes.
        poll: Raises when the run should stop.
    """

    def __init__(self, table: Table, number: int, before: dict[str, Any], memo: Memo, poll: Callable[[], None]) -> None:
        self.number, self.before, self.memo = number, before, memo
        self._table = replace(table, engine=RememberingEngine(table.engine, memo), phase=silent, step=memo.step, age=1)
        self._engine, self._poll = table.engine, poll
        self._stop = threading.Event()
        self._played: Round | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"round {number + 1} ahead", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._engine.poll = self._look_up
        self._thread.start()

    def _look_up(self) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._poll()

    def _run(self) -> None:
        try:
            with torch.no_grad():
                self._played = play_round(self._table, self.number)
        except BaseException as error:  # carried to the main thread, which raises it
            self._error = error

    def wait(self) -> None:
        """Until the round is played or failed; polls meanwhile."""
        while self._thread.is_alive():
            self._thread.join(0.05)
            self._poll()

    def result(self) -> Round:
        """The round, once it is played.

        Raises:
            Exception: what playing it raised.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._played is not None
        return self._played

    def stop(self) -> None:
        """End the thread; what the engine wrote so far stays in the memo."""
        self._stop.set()
        self._thread.join()
