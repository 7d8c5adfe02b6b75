"""Base class of instruction sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.types import Group, Instruction, Verdict


class InstructionSource(ABC):
    """Proposes instructions, follows up on answered ones, and learns from what came of them.

    ``propose`` and ``observe`` run alike on all ranks: same arguments, same results; ``derive`` sees one rank's groups.
    To sample proposals in their own way, roll them out in ``propose`` and return the groups. An instruction without a
    uid gets one from the round. Filters and the pool are applied by the round, never here.
    """

    #: Policies beside the live one that the source's rollouts need (``reference``, ``teacher``).
    needs: frozenset[str] = frozenset()

    #: Whether proposed problems (role ``solve``) pass the instruction filters and enter the pool.
    filtered: bool = True

    @abstractmethod
    def propose(self, k: int, ctx: Context) -> Sequence[Instruction | Group]:
        """About ``k`` fresh instructions; fewer, more or none are fine.

        A returned :class:`Group` was rolled out already (through ``ctx.generate``) and is rewarded as it stands: so a
        proposal can itself be trained on.
        """

    def lanes(self, want: int) -> list[tuple[InstructionSource, int]]:
        """Who brings how many of the next ``want`` roots; a source by itself brings all of them."""
        return [(self, want)]

    def derive(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> Sequence[Instruction]:
        """Follow-ups to this wave's groups, each with a ``link`` to its parent's uid; asked only if ``max_waves`` > 0.

        Args:
            groups: The groups of one rank's share of the wave.
            verdicts: Their gate verdicts: the label if one is known, else the vote.
            ctx: Works on this rank alone.
        """
        return ()

    def observe(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:  # noqa: B027 - optional
        """See every group of a finished round, those that were dropped too."""

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Continue from :meth:`state_dict`."""
