"""The prompt that asks the policy for an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lightning_serl.answers import expected_kind
from lightning_serl.prompts.encoding import PromptTemplate, check_places, check_stop, fill, with_options
from lightning_serl.types import Instruction

_ANSWER_FORMATS = {
    "math": r"Reason step by step and put the final answer in \boxed{}.",
    "choice": r"Reason step by step and put the letter of the right option in \boxed{}.",
    "text": r"Reason step by step and put a short final answer in \boxed{}.",
}


@dataclass(frozen=True)
class SolveTemplate(PromptTemplate):
    r"""How a problem is put to the policy.

    Args:
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

    text: str = "{problem}\n{answer_format}"
    plain: str = "Question: {problem}\n{answer_format}\nSolution:"
    answer_format: str | None = None
    bos: bool = True

    def __post_init__(self) -> None:
        for name in ("text", "plain"):
            check_places(f"data.solve.{name}", getattr(self, name), ("problem",), ("answer_format",))
        check_stop("data.solve.stop", self.stop)

    def render(self, instruction: Instruction, grader_name: str, chat: bool) -> str:
        """The user turn (``chat``) or the whole prompt of a base model, before tokenization.

        Args:
            instruction: The problem; options under ``meta["choices"]`` are listed below it.
            grader_name: Decides the answer-format sentence: ``math``, ``choice``, ``text``, ``auto`` for the one that
                fits the problem, or that of ``math`` for any other name.
            chat: Which of the two templates to fill.
        """
        asked = self.answer_format
        if asked is None:
            if grader_name == "auto":
                grader_name = expected_kind(instruction.prompt, instruction.meta.get("choices"))
            asked = _ANSWER_FORMATS.get(grader_name, _ANSWER_FORMATS["math"])
        template = self.text if chat else self.plain
        if not asked:
            # The white space around the sentence goes too.
            template = re.sub(r"^\{answer_format\}\s*|\s*\{answer_format\}", "", template)
        return fill(template, problem=with_options(instruction.prompt, instruction), answer_format=asked)

    def encode(self, tokenizer: Any, instruction: Instruction, grader_name: str) -> list[int]:
        """The prompt's token ids, with one beginning-of-sequence token if the tokenizer adds one.

        Args:
            tokenizer: A transformers tokenizer.
            instruction: The problem.
            grader_name: See :meth:`render`.

        Raises:
            InputError: if ``chat`` is true and there is no chat template, or it cannot be filled.
        """
        ids = self._encode(tokenizer, self.render(instruction, grader_name, self.uses_chat(tokenizer)))
        if not self.bos and tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]:
            del ids[0]
        return ids

    def _plain_stop(self) -> str:
        """The words that would open the next problem."""
        opening = self.plain.partition("{problem}")[0].rpartition("\n")[2].strip()
        return "\n" + opening if opening else super()._plain_stop()
