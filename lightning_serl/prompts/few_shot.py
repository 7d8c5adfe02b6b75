"""The few-shot prompt that asks for new instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_serl.prompts.encoding import (
    _check_places,
    _check_stop,
    _encode,
    _fill,
    _one_line,
    _uses_chat,
    _with_options,
)
from lightning_serl.types import Instruction


@dataclass(frozen=True)
class InstructionTemplate:
    """How the policy is asked for new problems: a numbered list of examples that it continues.

    Args:
        header: What is asked for, above the list.
        system: System prompt; without a chat template it becomes the first paragraph.
        chat: Use the tokenizer's chat template; by default whenever it has one.
        chat_kwargs: More arguments for the chat template, for example ``enable_thinking``.
        item: One example, with the places ``{i}`` and ``{problem}``.
        dangling: End the list with the next number, so that the policy goes on with a problem.
        stop: Strings that end a list; by default none under a chat template, and for a base model two blank lines,
            after which it would leave the list.

    Raises:
        InputError: if ``item`` lacks a place or names an unknown one, or a stop string is empty.
    """

    header: str = (
        "Continue this numbered list with new problems of the same kind and level, each different from all the others. "
        "Every problem must be complete in itself, need nothing but its own text, and have one short answer that can "
        "be checked. Write down the problems only; do not solve them."
    )
    system: str | None = None
    chat: bool | None = None
    chat_kwargs: dict[str, Any] = field(default_factory=dict)
    item: str = "{i}. {problem}\n"
    dangling: bool = True
    stop: list[str] | None = None

    def __post_init__(self) -> None:
        _check_places("instruction template 'item'", self.item, ("i", "problem"), ())
        _check_stop(self.stop)

    def render(self, exemplars: Sequence[Instruction]) -> str:
        """The user turn, or the whole prompt of a base model, before any tokenizer sees it.

        Args:
            exemplars: The problems to show, in order; options under ``meta["choices"]`` are listed in the item.
        """
        parts = [self.header + "\n"] if self.header else []
        for i, exemplar in enumerate(exemplars, 1):
            parts.append(_fill(self.item, i=str(i), problem=_with_options(_one_line(exemplar.prompt), exemplar)))
        if self.dangling:
            # A trailing space would be half of the next word's token.
            parts.append(_fill(self.item.partition("{problem}")[0], i=str(len(exemplars) + 1)).rstrip())
        text = "".join(parts)
        return text if self.dangling else text.rstrip("\n")

    def first_number(self, exemplars: Sequence[Instruction]) -> int | None:
        """The number a completion goes on from without repeating it, for :func:`split_items`; ``None`` if none dangles.

        Args:
            exemplars: What :meth:`render` was given.
        """
        return len(exemplars) + 1 if self.dangling else None

    def encode(self, tokenizer: Any, exemplars: Sequence[Instruction]) -> list[int]:
        """The prompt's token ids, with one beginning-of-sequence token if the tokenizer adds one.

        Args:
            tokenizer: A transformers tokenizer.
            exemplars: The problems to show.

        Raises:
            InputError: if a chat template is asked for and there is none, or it cannot be filled.
        """
        chat = _uses_chat(tokenizer, self.chat)
        return _encode(tokenizer, self.render(exemplars), self.system, chat, self.chat_kwargs)

    def stop_strings(self, tokenizer: Any) -> list[str]:
        """The strings that end a list.

        Args:
            tokenizer: A transformers tokenizer; tells whether the prompt is a chat.

        Raises:
            InputError: if a chat template is asked for and there is none.
        """
        if self.stop is not None:
            return list(self.stop)
        return [] if _uses_chat(tokenizer, self.chat) else ["\n\n\n"]
