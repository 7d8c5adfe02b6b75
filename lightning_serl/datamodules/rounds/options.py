"""The size of a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_serl.types import STYLES


@dataclass(frozen=True)
class RoundOptions:
    """The size of a round.

    Args:
        prompts_per_round: Groups that a round trains on, over all ranks.
        samples_per_prompt: Completions of each prompt.
        max_attempts: A round proposes and answers at most this often to fill up; then it trains on what there is.
        max_waves: Waves of follow-up instructions after the first answers; 0 for SeRL.
        max_derived: Follow-ups of one group at most.
        max_prompt_tokens: Longer solve prompts are skipped and counted, never cut; null allows what fits the model.
        mask_truncated: Keep responses that were cut off by length out of the loss, the baseline and the difficulty.
        overlong_buffer: The last this many tokens before ``max_tokens`` cost up to one point of score (DAPO's soft
            punishment, 2503.14476, eq. 13); 0 for none. Filters judge the scores before it.
        style: ``serl`` follows SeRL's published code: every attempt answers ``prompts_per_round`` problems, its
            advantages are normalised over all its groups before the difficulty filter drops some, surplus groups
            still serve as exemplars, and problems left unanswered at the end of the round are forgotten.
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
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"round.samples_per_prompt must be at least 2, got {self.samples_per_prompt}: one response has "
                "nothing to be compared with"
            )
        for name in ("prompts_per_round", "max_attempts", "max_derived"):
            if getattr(self, name) < 1:
                raise ValueError(f"round.{name} must be at least 1, got {getattr(self, name)}")
        if self.max_waves < 0:
            raise ValueError(f"round.max_waves must be 0 or above, got {self.max_waves}")
        if self.overlong_buffer < 0:
            raise ValueError(f"round.overlong_buffer must be 0 or above, got {self.overlong_buffer}")
        if self.style not in STYLES:
            raise ValueError(f"round.style must be default or serl, got {self.style!r}")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ValueError(f"round.max_prompt_tokens must be at least 1 or null, got {self.max_prompt_tokens}")
