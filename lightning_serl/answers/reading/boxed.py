r"""Finds ``\boxed{...}`` in a response, in bounded time on any text."""

from __future__ import annotations

import re

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
    parts: list[str] = []
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
        # Text that was escaped twice has a second backslash, which belongs to the command.
        following = at - text.startswith("\\", at - 1) if at else at
    return ",".join(reversed(parts)) if parts else None


def _joined(between: str) -> bool:
    """Whether the text between two boxes joins them to one answer."""
    if len(between) > _MAX_BETWEEN or _BETWEEN.fullmatch(between) is None:
        return False
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
