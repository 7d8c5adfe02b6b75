"""The few-shot prompt that asks the policy for new problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_serl.prompts.encoding import PromptTemplate, check_places, check_stop, fill, one_line, with_options
from lightning_serl.types import Instruction


@dataclass(frozen=True)
class InstructionTemplate(PromptTemplate):
    """How the policy is asked for new problems: a numbered list of examples that it continues.

    Args:
        chat: Put the list into a user turn of the tokenizer's chat template. By default it is plain text for chat
            models too, which continue such a list better than they add to a user's (docs/domains.md); in the style
            ``serl`` it is a turn whenever there is a chat template.
        header: The request above the list.
        item: One example, with the places ``{i}`` and ``{problem}``.
        dangling: End the list with the next number, so that the policy goes on with a problem.
        stop: Strings that end a list; by default none under a chat template, and in plain text two blank lines, after
            which the model would leave the list.

    Raises:
        InputError: if ``item`` lacks a place or names an unknown one, or a stop string is empty.
    """

    header: str = (
        "Continue this numbered list with new problems of the same kind and level, each different from all the others. "
        "Every problem must be complete in itself, need nothing but its own text, and have one short answer that can "
        "be checked. Write down the problems only; do not solve them."
    )
    item: str = "{i}. {problem}\n"
    dangling: bool = True

    def __post_init__(self) -> None:
        check_places("data.writing.template.item", self.item, ("i", "problem"), ())
        check_stop("data.writing.template.stop", self.stop)

    def uses_chat(self, tokenizer: Any) -> bool:
        """Whether the list goes through the tokenizer's chat template: only if ``chat`` is true."""
        return bool(self.chat) and super().uses_chat(tokenizer)

    def render(self, exemplars: Sequence[Instruction]) -> str:
        """The whole prompt, or the user turn of a chat, before tokenization.

        The exemplars keep their order; options under ``meta["choices"]`` are listed in the item.
        """
        parts = [self.header + "\n"] if self.header else []
        for i, exemplar in enumerate(exemplars, 1):
            parts.append(fill(self.item, i=str(i), problem=with_options(one_line(exemplar.prompt), exemplar)))
        if self.dangling:
            # A trailing space would be half of the next word's token.
            parts.append(fill(self.item.partition("{problem}")[0], i=str(len(exemplars) + 1)).rstrip())
        text = "".join(parts)
        return text if self.dangling else text.rstrip("\n")

    def first_number(self, exemplars: Sequence[Instruction]) -> int | None:
        """The number that ends the prompt, for :func:`split_items`; ``None`` without ``dangling``."""
        return len(exemplars) + 1 if self.dangling else None

    def encode(self, tokenizer: Any, exemplars: Sequence[Instruction]) -> list[int]:
        """The prompt's token ids, with one beginning-of-sequence token if the tokenizer adds one.

        Raises :class:`InputError` if a chat template is asked for and there is none, or it cannot be filled.
        """
        return self._encode(tokenizer, self.render(exemplars))
