"""The prompts that show a passage: one asks for problems about it, one for the answer to a problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lightning_serl.prompts.encoding import PromptTemplate, check_places, check_stop, fill
from lightning_serl.prompts.solve import SolveTemplate
from lightning_serl.types import Instruction


@dataclass(frozen=True)
class QuestionTemplate(PromptTemplate):
    """How the policy is asked for problems about a passage: it goes on with a numbered list.

    Args:
        chat: Put the request into a user turn of the tokenizer's chat template. By default it is plain text, which the
            policy continues, as in ``data.writing.template``.
        text: The request, with the place ``{passage}``. It ends with the number of the first problem.
        stop: Strings that end a list, besides the number that follows the last problem that is read.

    Raises:
        InputError: if ``text`` lacks ``{passage}`` or names an unknown place, or a stop string is empty.
    """

    text: str = (
        "Text:\n{passage}\n\nQuestions about facts of this text. Each one names what it asks about, so that a reader "
        "who does not see the text understands it, and has one short answer.\n1."
    )

    def __post_init__(self) -> None:
        check_places("data.reading.ask.text", self.text, ("passage",), ())
        check_stop("data.reading.ask.stop", self.stop)

    def uses_chat(self, tokenizer: Any) -> bool:
        """Whether the request is a turn of a chat: only if ``chat`` is true."""
        return bool(self.chat) and super().uses_chat(tokenizer)

    def encode(self, tokenizer: Any, passage: str) -> list[int]:
        """The prompt's token ids; raises as :meth:`SolveTemplate.encode`."""
        return self._encode(tokenizer, fill(self.text, passage=passage))


@dataclass(frozen=True)
class OpenBookTemplate(SolveTemplate):
    """How a problem is put to the policy with its passage in view: the solve prompt behind the passage.

    Args:
        frame: The prompt, with the places ``{passage}`` and ``{problem}``; the latter is what ``data.solve`` makes.
        passages: The text of each passage by its key, ``FILE:START``.
    """

    frame: str = "{passage}\n\n{problem}"
    passages: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def over(cls, solve: SolveTemplate, frame: str, passages: Mapping[str, str]) -> OpenBookTemplate:
        """The template that shows passages in front of the prompts of ``solve``."""
        same = {one.name: getattr(solve, one.name) for one in fields(SolveTemplate)}
        return cls(**same, frame=frame, passages=passages)

    def render(self, instruction: Instruction, grader_name: str, chat: bool) -> str:
        """See :meth:`SolveTemplate.render`."""
        cited = instruction.meta["passage"]
        passage = self.passages[f"{cited['file']}:{cited['start']}"]
        return fill(self.frame, passage=passage, problem=super().render(instruction, grader_name, chat))
