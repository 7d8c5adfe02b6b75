"""Rejects proposals that are no usable problem."""

from __future__ import annotations

from typing import Literal

from lightning_serl.answers import split_choices
from lightning_serl.callbacks.filters import serl as published
from lightning_serl.callbacks.filters.base import InstructionFilter
from lightning_serl.callbacks.filters.wording import MISSING_PICTURE, leaks_solution, phrase_pattern
from lightning_serl.distributed.lightning_internals import callback_state_key
from lightning_serl.errors import InputError, check_choice
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.pool.words import count_words
from lightning_serl.types import STYLES, Instruction, Reason


class QualityFilter(InstructionFilter):
    """Rejects proposals that are empty, too short or long, cut off, or cannot be solved from their text.

    The style ``default`` accepts problems in any language and with leading formulas; ``serl`` applies the rules of
    SeRL's published code.

    Args:
        style: ``default`` or ``serl``.
        min_words: Fewest words of a problem (characters in scripts without spaces).
        max_words: Most words of a problem; by default 600, in the style ``serl`` 150.
        keywords: Words and phrases that reject a problem; by default references to a picture, which a text cannot
            show, in the style ``serl`` SeRL's list.
        require_choices: Reject problems without options; by default if all seeds have options.

    Raises:
        InputError: for an unknown style, length bounds out of order or an empty keyword.
    """

    def __init__(
        self,
        style: Literal["default", "serl"] = "default",
        min_words: int = 4,
        max_words: int | None = None,
        keywords: list[str] | None = None,
        require_choices: bool | None = None,
    ) -> None:
        super().__init__()
        check_choice("QualityFilter.style", style, STYLES)
        self.style = style
        self.min_words = min_words
        self.max_words = _MAX_WORDS[style] if max_words is None else max_words
        if not 0 <= self.min_words <= self.max_words:
            raise InputError(
                "QualityFilter.min_words must be at least 0 and at most QualityFilter.max_words, got "
                f"{self.min_words} and {self.max_words}"
            )
        if isinstance(keywords, str) or any(not k.strip() for k in keywords or ()):
            raise InputError(f"QualityFilter.keywords must be a list of words, got {keywords!r}; use [] for none")
        self.keywords = keywords
        self.require_choices = require_choices
        chosen = keywords if keywords is not None else published.KEYWORDS if style == "serl" else None
        self._keyword = MISSING_PICTURE if chosen is None else phrase_pattern(chosen)

    @property
    def state_key(self) -> str:
        """A key that tells filters of this class with other options apart."""
        return callback_state_key(
            self,
            style=self.style,
            min_words=self.min_words,
            max_words=self.max_words,
            keywords=self.keywords,
            require_choices=self.require_choices,
        )

    def reject(self, instruction: Instruction | str, pool: InstructionPool | None = None) -> Reason | None:
        """Why a proposal is no usable problem.

        Args:
            instruction: The proposal; options are read from its text if it is a plain string.
            pool: Tells whether all seeds have options.

        Returns:
            A reason, or ``None`` if it is usable.
        """
        text = instruction if isinstance(instruction, str) else instruction.prompt
        reason = self._reject_serl(text) if self.style == "serl" else self._reject_default(instruction)
        if reason is None and self._lacks_choices(instruction, pool):
            return "no_choices"
        return reason

    def _reject_default(self, instruction: Instruction | str) -> Reason | None:
        if isinstance(instruction, str):
            text, options = split_choices(instruction)[0], instruction
        else:
            text = instruction.prompt
            if instruction.meta.get("truncated"):
                return "truncated_item"
            # "Answer: B" after the last option is part of that option
            options = "\n".join([text, *map(str, instruction.meta.get("choices") or ())])
        words = count_words(text)
        if not text.strip():
            return "empty"
        if not words:
            return "punctuation"
        if words < self.min_words:
            return "too_short"
        if words > self.max_words:
            return "too_long"
        if self._keyword.search(text):
            return "keyword"
        # votes cannot agree on a program
        if text.lstrip().lower().startswith("write a program"):
            return "write_a_program"
        return "solution_leak" if leaks_solution(options) else None

    def _reject_serl(self, text: str) -> Reason | None:
        return published.reject(text, self.min_words, self.max_words, self._keyword)

    def _lacks_choices(self, instruction: Instruction | str, pool: InstructionPool | None) -> bool:
        required = self.require_choices
        if required is None:
            # SeRL's published code has no such rule
            required = self.style == "default" and pool is not None and pool.multiple_choice
        if not required:
            return False
        found = split_choices(instruction)[1] if isinstance(instruction, str) else instruction.meta.get("choices")
        return len(found or ()) < 2


_MAX_WORDS = {"default": 600, "serl": published.MAX_WORDS}
