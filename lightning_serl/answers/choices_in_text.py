"""Splits a multiple-choice problem into its text and its options (``A. one``, ``(A) one``, ``a) one``)."""

from __future__ import annotations

import re
from string import ascii_uppercase

# A space follows the mark, except before numbers, formulas and scripts that use no spaces.
_CLOSED = r"(?:[.):](?:\*\*)?[ \t]+|[.):](?=[^\x00-\x7f])|[.)](?=[\d$\\])|[．、：）][ \t]*)"
_LINE = re.compile(rf"^[ \t]*(?:\*\*)?[(（]?([A-Z]){_CLOSED}", re.MULTILINE)
_LOWER_LINE = re.compile(rf"^[ \t]*(?:\*\*)?[(（]?([a-z]){_CLOSED}", re.MULTILINE)
_BEFORE = r"(?:(?<=\s)|(?<=[^\x00-\x7f])|^)"
_IN_BRACKETS = re.compile(rf"{_BEFORE}[(（]?([A-Z])(?:\)\s+|\)(?=[^\x00-\x7f])|）\s*)")
_WITH_DOTS = re.compile(rf"{_BEFORE}([A-Z])(?:\.\s+|\.(?=[^\x00-\x7f])|[．、]\s*)")

# Small letters also number the parts of a problem, and capitals with a dot begin names. Both mark options only if the
# text before them asks something or has a blank, and the items themselves ask nothing.
_ASKS = re.compile(r"(?:[?？؟]|_{2,}|[(（]\s{0,9}[)）]|…|\.{3})[\s*)\]）]{0,9}[.。]?\s{0,9}$")
_ASKS_OR_LISTS = re.compile(r"[:：]\s{0,9}$")
_QUESTION = re.compile(r"[?？؟]")
_TASK = re.compile(
    r"(?i)\W*(?:find|compute|calculate|determine|show|prove|explain|evaluate|solve|simplify|write|give|state|draw|sketch"
    r"|describe|estimate|express|list|derive|verify|deduce|hence|if|what|how|which|why|who|when|where|halla|calcula|"
    r"determina|demuestra|resuelve|calcule[rz]?|trouve[rz]?|montre[rz]?|détermine[rz]?|berechne|bestimme|zeige|"
    r"beweise|finde|найдите|вычислите|докажите)\b|\s*(?:求|计算|证明|写出|解)"
)
_LEAST_LISTED = 3


def split_choices(text: str) -> tuple[str, list[str] | None]:
    """Separate a multiple-choice problem from its options (``A.``, ``(A)`` ...), one per line or all in one line.

    Small letters count only at line starts after a question, and only if the items ask nothing themselves, because they
    also number the parts of a problem. The same holds for ``A. one B. two`` in one line, which may be names. The
    options are ``None`` unless there are two or more consecutive letters.

    Example:
        >>> split_choices("Which? A. one B. two")
        ('Which?', ['one', 'two'])
        >>> split_choices("Let $f(x)=x^2$. (a) Find $f(2)$. (b) Find $f(3)$.")[1] is None
        True
    """
    for pattern in (_LINE, _IN_BRACKETS, _LOWER_LINE, _WITH_DOTS):
        marks = list(pattern.finditer(text))
        starts = [i for i, mark in enumerate(marks) if mark[1] in "Aa"]
        if not starts:
            continue
        marks = marks[starts[-1] :]
        letters = "".join(mark[1] for mark in marks).upper()
        if len(marks) < 2 or not ascii_uppercase.startswith(letters):
            continue
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        choices = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
        problem = text[: marks[0].start()].strip()
        if all(choices) and (pattern in (_LINE, _IN_BRACKETS) or _are_chosen(problem, choices, pattern)):
            return problem, choices
    return text.strip(), None


def _are_chosen(problem: str, choices: list[str], pattern: re.Pattern[str]) -> bool:
    """Whether items that could be parts of a problem, or names, are options to choose from."""
    end = problem[-40:]
    listed = pattern is _WITH_DOTS and len(choices) >= _LEAST_LISTED and _ASKS_OR_LISTS.search(end) is not None
    if not listed and _ASKS.search(end) is None:
        return False
    return not any(_QUESTION.search(choice) or _TASK.match(choice) for choice in choices)
