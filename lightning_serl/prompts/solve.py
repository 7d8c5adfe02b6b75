"""The prompt that asks for an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lightning_serl.prompts.encoding import _check_places, _check_stop, _encode, _fill, _uses_chat, _with_options
from lightning_serl.types import Instruction

_ANSWER_FORMATS = {
    "math": r"Reason step by step and put the final answer in \boxed{}.",
    "choice": r"Reason step by step and put the letter of the right option in \boxed{}.",
    "text": r"Reason step by step and put a short final answer in \boxed{}.",
}
# For a grader of the user's own.
_ANY_ANSWER_FORMAT = r"Reason step by step and put the final answer in \boxed{}."


# --- templates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SolveTemplate:
    r"""How a problem is put to the policy.

    Args:
        chat: Use the tokenizer's chat template; by default whenever it has one.
        system: System prompt; without a chat template it becomes the first paragraph.
        chat_kwargs: More arguments for the chat template, for example ``enable_thinking``.
        text: The user turn under a chat template, with the places ``{problem}`` and ``{answer_format}``.
        plain: The prompt of a base model, with the same places.
        answer_format: The sentence that asks for the form the grader reads; by default the one that fits the grader,
            "" for none.
        stop: Strings that end a response; by default none under a chat template, and for a base model the words that
            would open the next problem.
        bos: Begin with the tokenizer's beginning-of-sequence token where it adds one by itself; SeRL's published
            rollouts go without.

    Raises:
        InputError: if a template lacks ``{problem}`` or names an unknown place, or a stop string is empty.
    """

    chat: bool | None = None
    system: str | None = None
    chat_kwargs: dict[str, Any] = field(default_factory=dict)
    text: str = "{problem}\n{answer_format}"
    plain: str = "Question: {problem}\n{answer_format}\nSolution:"
    answer_format: str | None = None
    stop: list[str] | None = None
    bos: bool = True

    def __post_init__(self) -> None:
        for name in ("text", "plain"):
            _check_places(f"solve template {name!r}", getattr(self, name), ("problem",), ("answer_format",))
        _check_stop(self.stop)

    def render(self, instruction: Instruction, grader_name: str, chat: bool) -> str:
        """The user turn (``chat``) or the whole prompt of a base model, before any tokenizer sees it.

        Args:
            instruction: The problem; options under ``meta["choices"]`` are listed below it.
            grader_name: ``math``, ``choice``, ``text`` or any other name; decides the answer-format sentence.
            chat: Which of the two templates to fill.
        """
        asked = self.answer_format
        if asked is None:
            asked = _ANSWER_FORMATS.get(grader_name, _ANY_ANSWER_FORMAT)
        template = self.text if chat else self.plain
        if not asked:
            # The white space that set the sentence off goes with it.
            template = re.sub(r"^\{answer_format\}\s*|\s*\{answer_format\}", "", template)
        return _fill(template, problem=_with_options(instruction.prompt, instruction), answer_format=asked)

    def encode(self, tokenizer: Any, instruction: Instruction, grader_name: str) -> list[int]:
        """The prompt's token ids, with one beginning-of-sequence token if the tokenizer adds one.

        Args:
            tokenizer: A transformers tokenizer.
            instruction: The problem.
            grader_name: See :meth:`render`.

        Raises:
            InputError: if a chat template is asked for and there is none, or it cannot be filled.
        """
        chat = _uses_chat(tokenizer, self.chat)
        ids = _encode(tokenizer, self.render(instruction, grader_name, chat), self.system, chat, self.chat_kwargs)
        if not self.bos and tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]:
            del ids[0]
        return ids

    def stop_strings(self, tokenizer: Any) -> list[str]:
        """The strings that end a response.

        Args:
            tokenizer: A transformers tokenizer; tells whether the prompt is a chat.

        Raises:
            InputError: if a chat template is asked for and there is none.
        """
        if self.stop is not None:
            return list(self.stop)
        if _uses_chat(tokenizer, self.chat):
            return []
        opening = self.plain.partition("{problem}")[0].rpartition("\n")[2].strip()
        return ["\n" + opening] if opening else ["\n\n\n"]
