"""Rejects instructions that are too similar to one in the pool."""

from __future__ import annotations

from typing import Literal

from lightning_serl.callbacks.rollout_hooks import InstructionFilter
from lightning_serl.distributed.lightning_internals import callback_state_key
from lightning_serl.errors import check_choice, check_range
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import STYLES, Instruction, Reason


class NoveltyFilter(InstructionFilter):
    """Rejects proposals that repeat an earlier problem.

    Where more than a fifth of the seeds repeat others by ROUGE-L ("What is the capital of Norway?", "... of France?"),
    the words of the frames that they share do not count between two problems of one frame: a repetition also has the
    same words outside of it. An exact copy, in other case or punctuation too, is always one.

    Problems that were written from passages (``data.documents``) are compared with those of the same passage, since the
    same words about another passage ask for another fact; there two problems are also different if each has a word of
    three letters or more that the other lacks ("the color of Mira", "the home of Mira"). Exact copies are never new.

    Args:
        threshold: Largest ROUGE-L F with an earlier problem that is accepted, above 0 and at most 1.
        style: ``default`` compares with the seeds and all problems ever accepted; ``serl`` with the seeds and the
            problems that are not answered yet, since SeRL's published code keeps no others, and by ROUGE-L alone.
        max_alike: Reject a problem that resembles this many written problems: a policy tends to repeat a few stories
            with other numbers. By default there is no such limit.
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
        check_range("NoveltyFilter.threshold", threshold, above=0, at_most=1)
        check_choice("NoveltyFilter.style", style, STYLES)
        if max_alike is not None:
            check_range("NoveltyFilter.max_alike", max_alike, at_least=1, hint="null means no limit")
            check_range("NoveltyFilter.alike", alike, above=0, at_most=threshold)
        self.threshold, self.style, self.max_alike, self.alike = threshold, style, max_alike, alike

    @property
    def state_key(self) -> str:
        """A key that tells filters of this class with other options apart."""
        return callback_state_key(self, "threshold", "style", "max_alike", "alike")

    def reject(self, instruction: Instruction | str, pool: InstructionPool | None) -> Reason | None:
        """``duplicate`` if a proposal repeats a problem of the pool, else ``None``."""
        if pool is None:
            return None
        among = ("seed", "accepted") if self.style == "serl" else None
        if pool.similar(instruction, self.threshold, among) is not None:
            return "duplicate"
        limit = self.max_alike
        return "duplicate" if limit is not None and pool.alike(instruction, self.alike, limit) >= limit else None

    def frames_found(self, pool: InstructionPool) -> str | None:
        """The sentence for the log that says by which frames of the seeds problems are compared; ``None`` without."""
        frames = pool.frames(self.threshold) if self.style == "default" else None
        if not frames:
            return None
        return (
            f"novelty: {frames.alike} of {frames.compared} seeds are above ROUGE-L {self.threshold:g} with another, so "
            f"the words of the {len(frames.frames)} frame{'s'[: len(frames.frames) > 1]} that they share do not count; "
            "NoveltyFilter(style=serl) counts them"
        )
