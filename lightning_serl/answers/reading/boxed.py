r"""Finds ``\boxed{...}`` in a response, in bounded time on any text."""

from __future__ import annotations

import re
from typing import NamedTuple

# Longer text is hostile or broken and no answer.
MAX_ANSWER = 2000
# At most this many boxes, balanced or not, are tried from the end.
_MAX_TRIES = 20
_MAX_BETWEEN = 40
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_SIMPLE = re.compile(r"\{[^{}\\]*\}")
# Text allowed between two boxes of one answer: typesetting, a comma, "and", the name of the next part ("y =").
_BETWEEN = re.compile(
    r"(?:[\s$.,;+]|\\[()\[\],;! ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b"
    r"|\b[a-zA-Z](?:_\{?\w\}?)?\s*=(?=\s*$))*"
)
# The same with the names of what is counted: "papers and", "red,", "and y is".
_WORDS_BETWEEN = re.compile(
    r"[\s$]{0,3}(?:(?!(?:so|then|thus|but|hence|for|as|if|which|is|are|was|gives?|from|of|total)\b)[^\W\d_]{1,15}[\s$]{1,3}){0,2}"
    r"(?<=[\s$])(?:,\s*)?(?:and|or|y|und|et|e|o|ou|oder)[\s$]{1,3}(?:the\sother\s)?(?:[^\W\d_]{1,10}\s(?:is|=|are)\s)?[\s$]{0,3}"
    r"|[\s$]{0,3}(?!(?:so|then|thus|but|hence)\b)[^\W\d_]{1,15}(?:\s[^\W\d_]{1,15})?,[\s$]{0,3}|[\s$]{0,3}(?:、|和|与|及|と)[\s$]{0,3}"
)


class Box(NamedTuple):
    """The content of one or several boxes that form one answer, and where the first starts and the last stops."""

    content: str
    start: int
    stop: int


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete, non-empty ``\boxed{...}`` (or ``\fbox``), or ``None``.

    Boxes separated only by typesetting, a comma, "and" or "or" are one answer with several parts, returned
    comma-separated.

    Example:
        >>> last_boxed(r"so $\boxed{\frac{1}{2}}$. Cut: \boxed{3")
        '\\frac{1}{2}'
        >>> last_boxed(r"$x=\boxed{1}$ or $\boxed{2}$")
        '1,2'
    """
    found = last_box(text)
    return None if found is None else found.content


def last_box(text: str) -> Box | None:
    """The last complete, non-empty box and those that it forms one answer with; see :func:`last_boxed`."""
    parts: list[str] = []
    first, end = -1, -1
    stop, following = len(text), -1
    framed = "\\fbox" in text
    for _ in range(_MAX_TRIES):
        if parts and "}" not in text[max(0, following - _MAX_BETWEEN - 1) : following]:
            break  # no box ends close enough to belong to this one
        at = text.rfind("\\boxed", 0, stop)
        if framed:
            at = max(at, text.rfind("\\fbox", 0, stop))
        if at == -1:
            break
        stop = at
        span = _braces(text, at + (6 if text.startswith("\\boxed", at) else 5))
        content = "" if span is None else text[span[0] + 1 : span[1] - 1].strip()
        if span is None or not content:
            if parts:
                break
            continue
        if parts and not _joined(text[span[1] : following]):
            break
        if content not in parts:
            parts.append(content)
        first, end = at, max(end, span[1])
        # Text that was escaped twice has a second backslash, which belongs to the command.
        following = at - text.startswith("\\", at - 1) if at else at
    return Box(",".join(reversed(parts)), first, end) if parts else None


def _joined(between: str) -> bool:
    """Whether the text between two boxes joins them to one answer."""
    if len(between) > _MAX_BETWEEN:
        return False
    if _BETWEEN.fullmatch(between) is None:
        return _WORDS_BETWEEN.fullmatch(between) is not None
    return "=" not in between or re.search(r"[,;]|\b(?:and|or)\b", between) is not None


def _braces(text: str, at: int) -> tuple[int, int] | None:
    """The span of the balanced braces that open at ``at`` or after white space, if they close within ``MAX_ANSWER``."""
    while at < len(text) and text[at] in " \t\n":
        at += 1
    if not text.startswith("{", at):
        return None
    simple = _SIMPLE.match(text, at, at + MAX_ANSWER + 2)
    if simple is not None:
        return at, simple.end()
    depth = 0
    for match in _BRACE.finditer(text, at, at + MAX_ANSWER + 2):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            depth -= 1
            if depth == 0:
                return at, match.end()
    return None
