"""The options of writing: how few-shot prompts look and how problems are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightning_serl.engines.base import Sampling
from lightning_serl.errors import InputError, check_choice, check_range
from lightning_serl.prompts.few_shot import InstructionTemplate
from lightning_serl.types import STYLES


@dataclass(frozen=True)
class Writing:
    """How the policy writes new instructions.

    Args:
        exemplars: Problems shown in each few-shot prompt.
        from_kept: How many of them come from the policy's own kept problems, at most.
        prompts_per_call: Few-shot prompts sent at a time.
        by_subject: Show problems of one subject in each few-shot prompt. The subject is drawn in proportion to its
            seeds, and the written problems get it. If it has too few seeds, others fill the prompt up.
        template: Wording of the few-shot prompt.
        sampling: How instructions are drawn, independently of how answers are drawn.
        style: ``serl`` shows exemplars, cuts few-shot prompts and reads lists as SeRL's published code does.
    """

    exemplars: int = 8
    from_kept: int = 2
    prompts_per_call: int = 8
    by_subject: bool = False
    template: InstructionTemplate = field(default_factory=InstructionTemplate)
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8, top_p=0.95))
    style: Literal["default", "serl"] = "default"

    def __post_init__(self) -> None:
        check_choice("data.writing.style", self.style, STYLES)
        check_range("data.writing.exemplars", self.exemplars, at_least=1)
        hint = "the upper limit is data.writing.exemplars"
        check_range("data.writing.from_kept", self.from_kept, at_least=0, at_most=self.exemplars, hint=hint)
        check_range("data.writing.prompts_per_call", self.prompts_per_call, at_least=1)


def check_exemplars(exemplars: int, seeds: int, where: str) -> None:
    """Refuse few-shot prompts that show more problems than there are ``seeds``, which the file ``where`` holds."""
    if exemplars > seeds:
        raise InputError(
            f"data.writing.exemplars is {exemplars} but {where} holds only {seeds} problems; "
            f"set data.writing.exemplars to at most {seeds} or add seeds"
        )
