"""The protocol of graders: read the answer of a response, and tell which answers are equal."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class AnswerGrader(Protocol):
    """Reads answers and compares them; any object with these two methods is a grader.

    Three more methods are optional and found by name:

    - ``extract_truncated(text) -> str | None`` reads a response that was cut off; without it such a response has no
      answer.
    - ``label(text) -> str | None`` reads a gold label; without it ``extract`` reads it, and where that gives ``None``
      the label is used unchanged.
    - ``start_group(seconds=...)`` is called before each group, for graders that spend bounded time on one.
    """

    def extract(self, text: str) -> str | None:
        """The answer of a finished response, or ``None`` if it has none. Must not raise on any text."""
        ...

    def same(self, a: str, b: str) -> bool:
        """Whether two extracted answers are equal. Must be symmetric and must not raise."""
        ...
