"""Reads the responses of a group one by one, each distinct one once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

from lightning_serl.errors import InputError


def read_each(grader: Any, texts: Sequence[str], finished: Sequence[bool]) -> list[str | None]:
    """The answers of ``n`` responses by a grader's ``extract``, and by its ``extract_truncated`` if it has one.

    Distinct responses are read in sorted order: a grader with bounded time must not favour those that come first.
    Raises :class:`InputError` if the grader returns anything but strings and ``None``.
    """
    extract: Callable[[str], str | None] = grader.extract
    truncated: Callable[[str], str | None] | None = getattr(grader, "extract_truncated", None)
    answers: list[str | None] = [None] * len(texts)
    last: tuple[str, bool] | None = None
    answer: str | None = None
    # Sorting finds equal texts without hashing long ones.
    for text, done, i in sorted(zip(texts, map(bool, finished), range(len(texts)), strict=True)):
        if (text, done) != last:
            last = text, done
            answer = extract(text) if done else None if truncated is None else truncated(text)
            if not isinstance(answer, (str, NoneType)):
                raise InputError(
                    f"extract of the grader {type(grader).__name__} returned {type(answer).__name__}; it must return a "
                    "string or None"
                )
        answers[i] = answer
    return answers
