"""Options of a round: its size, and which rules it follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_serl.errors import check_choice, check_range
from lightning_serl.types import STYLES


@dataclass(frozen=True)
class RoundOptions:
    """The size of a round.

    Args:
        prompts_per_round: Groups that a round trains on, over all ranks.
        samples_per_prompt: Completions of each prompt.
        max_attempts: How often a round proposes and answers to fill up, at most; then it trains on the groups it has.
        max_waves: Waves of follow-up instructions after the first answers; 0 for SeRL.
        max_derived: Follow-ups of one group, at most.
        max_prompt_tokens: Longer solve prompts are skipped and counted, never cut; null allows what fits the model.
        mask_truncated: Whether responses that were cut off by length stay out of loss, baseline and difficulty.
        overlong_buffer: Number of tokens before ``data.max_tokens`` over which a response's score falls linearly by up
            to one point (DAPO's soft punishment, 2503.14476, eq. 13); 0 for none. Filters see the scores without it.
        style: ``serl`` follows SeRL's published code: every attempt answers ``prompts_per_round`` problems, its
            advantages are normalised over all its groups before the difficulty filter drops some, surplus groups
            still serve as exemplars, and problems left unanswered at the end of the round are dropped.
    """

    prompts_per_round: int = 16
    samples_per_prompt: int = 16
    max_attempts: int = 4
    max_waves: int = 0
    max_derived: int = 4
    max_prompt_tokens: int | None = None
    mask_truncated: bool = False
    overlong_buffer: int = 0
    style: Literal["default", "serl"] = "default"

    def __post_init__(self) -> None:
        hint = "one response has nothing to be compared with"
        check_range("data.round.samples_per_prompt", self.samples_per_prompt, at_least=2, hint=hint)
        for name in ("prompts_per_round", "max_attempts", "max_derived", "max_prompt_tokens"):
            check_range(f"data.round.{name}", getattr(self, name), at_least=1)
        for name in ("max_waves", "overlong_buffer"):
            check_range(f"data.round.{name}", getattr(self, name), at_least=0)
        check_choice("data.round.style", self.style, STYLES)

    @property
    def published(self) -> bool:
        """Whether the round follows SeRL's published code."""
        return self.style == "serl"
