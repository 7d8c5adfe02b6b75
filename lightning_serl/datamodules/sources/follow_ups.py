"""Sources that add follow-ups to the problems of another source."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.types import Group, Instruction, Reason, Verdict


class FollowUps(InstructionSource):
    """Takes its problems from another source, and derives further instructions from those that were answered.

    A subclass implements :meth:`follow` alone. Seeds, filters, pool and labels are those of ``base``, so that
    ``--data.source Paraphrase --data.source.base seeds`` trains on the seeds, and ``self`` on written problems.
    ``data.round.max_waves`` must be at least ``waves``.

    Args:
        base: Where the problems come from, as ``data.source`` would name it: ``self``, ``seeds``, ``mix:RATIO``, or
            your own source.
    """

    #: Waves and follow-ups of a group that it needs, at least.
    waves: int = 1
    follow_ups: int = 1

    def __init__(self, base: str | InstructionSource = "self") -> None:
        self.base = base
        self._inner: InstructionSource | None = None

    def around(self, inner: InstructionSource) -> FollowUps:
        """This source with the problems of ``inner``, which the run made of ``base``."""
        self._inner = inner
        return self

    @abstractmethod
    def follow(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> Sequence[Instruction]:
        """Return the follow-ups to a wave of groups; see :meth:`InstructionSource.derive`."""

    @property
    def inner(self) -> InstructionSource:
        """The source of the problems."""
        assert self._inner is not None, "the run makes the source named by base before the first round"
        return self._inner

    @property
    def filtered(self) -> bool:  # type: ignore[override]
        """That of the source of the problems."""
        return self.inner.filtered

    def lanes(self, want: int) -> list[tuple[InstructionSource, int]]:
        """Those of the source of the problems."""
        return self.inner.lanes(want)

    def propose(self, k: int, ctx: Context) -> Sequence[Instruction | Group]:
        """The proposals of the source of the problems; a round calls it directly, see :meth:`lanes`."""
        return self.inner.propose(k, ctx)

    def reject(self, instruction: Instruction) -> Reason | None:
        """Passed on."""
        return self.inner.reject(instruction)

    def derive(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> Sequence[Instruction]:
        """The follow-ups of the source of the problems, then those of :meth:`follow`."""
        return [*self.inner.derive(groups, verdicts, ctx), *self.follow(groups, verdicts, ctx)]

    def observe(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:
        """Passed on."""
        self.inner.observe(groups, verdicts)

    def state_dict(self) -> dict[str, Any]:
        """That of the source of the problems."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.inner.load_state_dict(state)
