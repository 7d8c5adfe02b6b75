"""Base classes of filters: of instructions before they are answered, of groups after they were rewarded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lightning.pytorch import Callback

from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import Group, Instruction, Verdict


class InstructionFilter(Callback, ABC):
    """Judges a proposed instruction before it is rolled out.

    Filters are asked in the order they are listed; the first reason given rejects the instruction.
    """

    @abstractmethod
    def reject(self, instruction: Instruction | str, pool: InstructionPool | None) -> str | None:
        """Why not to use an instruction.

        Args:
            instruction: The proposal.
            pool: All instructions accepted so far, seeds included; ``None`` if there is no pool.

        Returns:
            One of ``lightning_serl.types.Reason``, or ``None`` to let it pass.
        """


class GroupFilter(Callback, ABC):
    """Judges rolled-out and rewarded groups before they are trained on."""

    @abstractmethod
    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[str | None]]:
        """How much each group counts.

        Args:
            groups: The groups of a round.
            verdicts: What the reward said of each.

        Returns:
            A weight per group, 0 to drop it, and a reason per group: one of ``lightning_serl.types.Reason`` for those
            dropped, ``None`` for the others.
        """
