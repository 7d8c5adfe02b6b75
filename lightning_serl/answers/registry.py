"""The protocol of graders, and the grader that the user's ``grader`` option names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lightning_serl.answers.auto_grader import AutoGrader
from lightning_serl.answers.choice_grader import ChoiceGrader
from lightning_serl.answers.math_grader import MODES, MathGrader
from lightning_serl.answers.text_grader import TextGrader
from lightning_serl.errors import InputError, check_choice, did_you_mean

NAMES = ("auto", "math", "choice", "text")


@runtime_checkable
class AnswerGrader(Protocol):
    """Reads answers and compares them; any object with these two methods is a grader.

    Six more methods are optional and found by name:

    - ``extract_truncated(text) -> str | None`` reads a response that was cut off; without it such a response has no
      answer.
    - ``label(text) -> str | None`` reads a gold label; without it ``extract`` reads it, and where that gives ``None``
      the label is used unchanged.
    - ``start_group(seconds=...)`` is called before each group, for graders that spend bounded time on one.
    - ``for_problem(prompt, choices) -> AnswerGrader`` is the grader of one problem, for graders that look at it.
    - ``read_group(texts, finished) -> list[str | None]`` reads all responses to a problem together, in place of
      ``extract`` and ``extract_truncated``. It must not depend on their order.
    - ``settle(answers) -> dict[str, str]`` says which of a group's distinct answers stand for another one of them.
    """

    def extract(self, text: str) -> str | None:
        """The answer of a finished response, or ``None`` if it has none. Must not raise on any text."""
        ...

    def same(self, a: str, b: str) -> bool:
        """Whether two extracted answers are equal. Must be symmetric and must not raise."""
        ...


def resolve_grader(grader: str | AnswerGrader, mode: str = "fast", option: str = "grader") -> AnswerGrader:
    """The grader named ``"auto"``, ``"math"``, ``"choice"`` or ``"text"``, or the user's own object after a check.

    Only the math grader, which is also a part of ``"auto"``, has a ``mode``, ``"fast"`` or ``"exact"``. Raises
    :class:`InputError`, naming ``option``, for an unknown name or mode, a class in place of an object, or an object
    without the methods.
    """
    check_choice("mode of the grader", mode, MODES)
    if grader == "auto":
        return AutoGrader(mode)
    if grader == "math":
        return MathGrader(mode)
    if grader == "choice":
        return ChoiceGrader()
    if grader == "text":
        return TextGrader()
    if isinstance(grader, str):
        meant = did_you_mean(grader, NAMES) or f"; use {', '.join(NAMES)} or an object with extract and same"
        raise InputError(f"{option} is {grader!r}{meant}")
    if isinstance(grader, type):
        raise InputError(f"{option} is the class {grader.__name__}; pass an object, as in {grader.__name__}()")
    for method in ("extract", "same"):
        if not callable(getattr(grader, method, None)):
            kind = type(grader).__name__
            raise InputError(f"{option} {kind} has no method {method!r}; it needs extract(text) and same(a, b)")
    return grader


def grader_for(grader: AnswerGrader, prompt: str, choices: Sequence[str] | None) -> AnswerGrader:
    """The grader of one problem: what ``for_problem`` returns, or the grader itself."""
    for_problem = getattr(grader, "for_problem", None)
    return grader if for_problem is None else for_problem(prompt, choices)
