"""Rejects instructions that are too similar to one that the pool holds already."""

from __future__ import annotations

from typing import Literal

from lightning_serl.callbacks.filters.base import InstructionFilter
from lightning_serl.errors import InputError
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import STYLES, Instruction


class NoveltyFilter(InstructionFilter):
    """Rejects proposals that repeat an earlier problem.

    Args:
        threshold: The largest ROUGE-L F with any earlier problem that still passes, above 0 and at most 1.
        style: ``default`` compares with the seeds and everything that was ever accepted; ``serl`` with the seeds and
            what waits to be answered, as SeRL's published code does, which forgets everything else.
        max_alike: Reject a problem that already resembles this many of the policy's own: a policy tends to end up with
            a few stories and other numbers in them. By default there is no such limit.
        alike: ROUGE-L F above which two problems resemble each other, at most ``threshold``.

    Raises:
        InputError: for a number out of range or an unknown style.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        style: Literal["default", "serl"] = "default",
        max_alike: int | None = None,
        alike: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise InputError(f"NoveltyFilter: threshold {threshold} is out of range; it must be above 0 and at most 1")
        if style not in STYLES:
            raise InputError(f"NoveltyFilter: unknown style {style!r}; use default or serl")
        if max_alike is not None and max_alike < 1:
            raise InputError(f"NoveltyFilter: max_alike is {max_alike}; it must be at least 1, or null for no limit")
        if max_alike is not None and not 0 < alike <= threshold:
            raise InputError(
                f"NoveltyFilter: alike {alike} is out of range; it must be above 0 and at most {threshold}"
            )
        self.threshold, self.style, self.max_alike, self.alike = threshold, style, max_alike, alike

    @property
    def state_key(self) -> str:
        """Tells filters of one class apart by their options."""
        return self._generate_state_key(
            threshold=self.threshold, style=self.style, max_alike=self.max_alike, alike=self.alike
        )

    def reject(self, instruction: Instruction | str, pool: InstructionPool | None) -> str | None:
        """Why a proposal is not new.

        Args:
            instruction: The proposal.
            pool: What it is compared with.

        Returns:
            ``duplicate`` or ``None``.
        """
        if pool is None:
            return None
        among = ("seed", "accepted") if self.style == "serl" else None
        if pool.similar(instruction, self.threshold, among) is not None:
            return "duplicate"
        limit = self.max_alike
        return "duplicate" if limit is not None and pool.alike(instruction, self.alike, limit) >= limit else None
