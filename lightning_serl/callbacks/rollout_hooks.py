"""Base classes of callbacks that act around rollouts, or judge instructions and groups: hooks that Lightning lacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import lightning.pytorch as pl

from lightning_serl.engines.base import RolloutEngine
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import Group, Instruction, Probed, Reason, Round, Verdict

#: Takes the number of units that were done since its last call.
Tick = Callable[[int], None]


class RolloutHooks(pl.Callback):
    """Base class of callbacks that act around rollouts.

    Every hook does nothing by default. The streams call them in the order of ``trainer.callbacks``.
    """

    def on_rollout_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, engine: RolloutEngine) -> None:
        """Called on every rank before a stream generates, in training, validation, test and predict."""

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Called on every rank after a training round was played and before its first optimizer step."""

    def on_probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule, probed: Mapping[str, Probed]) -> None:
        """Called on every rank after the health probe was answered, before the round that follows is played.

        A callback may set ``trainer.should_stop``, which ends the fit before that round, or restore other weights and
        raise ``policy.version``; then those answer the probe, and the hook is called once more.

        ``probed`` holds the responses by uid, equal on all ranks.
        """

    def phase(self, name: str, total: int) -> AbstractContextManager[Tick]:
        """Context of one phase of a round or an evaluation, for progress bars.

        Args:
            name: What is being done, for example ``"answering"``.
            total: How many units of work the phase has.
        """
        return nullcontext(lambda done: None)

    def span(self, name: str) -> AbstractContextManager[None]:
        """Context of work that no progress bar shows, such as ``"pushing"``, for measuring its time."""
        return nullcontext()

    def poll(self, trainer: pl.Trainer) -> None:
        """Called between completion tokens and between micro-batches; raise here to end the run."""


def hooks(callbacks: Sequence[pl.Callback], name: str) -> list[Callable[..., None]]:
    """The methods of that name (``on_rollout_start``, ``on_round_end``), of callbacks with another base class too."""
    return [getattr(callback, name) for callback in callbacks if hasattr(callback, name)]


@contextmanager
def phase_of(callbacks: Sequence[pl.Callback], name: str, total: int) -> Iterator[Tick]:
    """Enter :meth:`RolloutHooks.phase` of all callbacks that have it; the yielded function calls all of theirs."""
    with ExitStack() as stack:
        ticks = [stack.enter_context(c.phase(name, total)) for c in callbacks if hasattr(c, "phase")]

        def tick(done: int) -> None:
            for one in ticks:
                one(done)

        yield tick


@contextmanager
def span_of(callbacks: Sequence[pl.Callback], name: str) -> Iterator[None]:
    """Enter :meth:`RolloutHooks.span` of all callbacks that have it."""
    with ExitStack() as stack:
        for callback in callbacks:
            if hasattr(callback, "span"):
                stack.enter_context(callback.span(name))
        yield


class InstructionFilter(pl.Callback, ABC):
    """Judges an instruction before it is answered.

    Filters are called in the order of ``trainer.callbacks``; the first that returns a reason rejects the instruction.
    """

    @abstractmethod
    def reject(self, instruction: Instruction | str, pool: InstructionPool | None) -> Reason | None:
        """Why a proposal is not used; ``None`` accepts it.

        Args:
            instruction: The proposal.
            pool: Every instruction accepted so far and the seeds; ``None`` without a pool.
        """


class GroupFilter(pl.Callback, ABC):
    """Judges answered and scored groups before they are trained on."""

    @abstractmethod
    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[Reason | None]]:
        """A weight per group of a round, 0 to drop it, and a reason per group, ``None`` where it is not dropped."""
