"""Base classes of the filters: of instructions before they are answered, of groups after they were scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lightning.pytorch import Callback

from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import Group, Instruction, Reason, Verdict


class InstructionFilter(Callback, ABC):
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


class GroupFilter(Callback, ABC):
    """Judges answered and scored groups before they are trained on."""

    @abstractmethod
    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[Reason | None]]:
        """A weight per group of a round, 0 to drop it, and a reason per group, ``None`` where it is not dropped."""
