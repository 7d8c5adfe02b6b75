"""Turns the user's ``grader`` option into a grader object."""

from __future__ import annotations

from lightning_serl.answers.base import AnswerGrader
from lightning_serl.answers.choice_grader import ChoiceGrader
from lightning_serl.answers.math_grader import MODES, MathGrader
from lightning_serl.answers.text_grader import TextGrader
from lightning_serl.errors import InputError, check_choice

NAMES = ("math", "choice", "text")


def resolve_grader(grader: str | AnswerGrader, mode: str = "fast", option: str = "grader") -> AnswerGrader:
    """The grader of that name, or the user's own object.

    Args:
        grader: ``"math"``, ``"choice"``, ``"text"``, or an object with ``extract`` and ``same``.
        mode: ``"fast"`` or ``"exact"``; other graders than math ignore it.
        option: The name of the option, for messages.

    Raises:
        InputError: for an unknown name or mode, a class in place of an object, or an object without these methods.
    """
    check_choice("mode of the grader", mode, MODES)
    if grader == "math":
        return MathGrader(mode)
    if grader == "choice":
        return ChoiceGrader()
    if grader == "text":
        return TextGrader()
    if isinstance(grader, str):
        raise InputError(f"{option} is {grader!r}; use {', '.join(NAMES)} or an object with extract and same")
    if isinstance(grader, type):
        raise InputError(f"{option} is the class {grader.__name__}; pass an object, as in {grader.__name__}()")
    for method in ("extract", "same"):
        if not callable(getattr(grader, method, None)):
            kind = type(grader).__name__
            raise InputError(f"{option} {kind} has no method {method!r}; it needs extract(text) and same(a, b)")
    return grader
