"""Math answers that plain rules decide, without a computer algebra system: a normal form and exact numbers."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from lightning_serl.answers.evaluate import compare

# math-verify compares decimals at this many places.
PRECISION = 6

_COMMAND_SPACE = re.compile(r"(?<!\\)\\[,;:! ]|~|\\quad(?![a-zA-Z])|\\qquad(?![a-zA-Z])")
_SIZE = re.compile(r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![a-zA-Z])")
_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SHORT_FRAC = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_TEXT_ONLY = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}\\$]*)\}")
_UNIT = re.compile(r"(?<=[\d}])\s*\\(?:text|textrm|mathrm|mbox)\s*\{([a-zA-Z .]*)\}(?:\s*\^\s*(?:\{[23]\}|[23]))?")
_DEGREES = re.compile(r"(?<=\d)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
# Blanks between two letters (or a command and a letter) separate names; all others mean nothing.
_BLANK = re.compile(r"(?<![a-zA-Z])\s+|\s+(?![a-zA-Z])")
_DOTS = re.compile(r"\\[lc]?dots[cbmio]?(?![a-zA-Z])|…")
_ABRIDGED = re.compile(r",(?:\s|\\[,;:! ]|\\q?quad)*(?:\.\.\.|\\[lc]?dots(?![a-zA-Z])|…)")
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[a-zA-Z]{3,}")
_FUNCTIONS = frozenset(
    (
        "sqrt",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "exp",
        "floor",
        "ceil",
        "max",
        "min",
        "mod",
        "frac",
        "and",
    )
)
_NUMBER = re.compile(r"([-+]?)(\d{1,60}\.?\d{0,60}|\.\d{1,60})")
_RATIO = re.compile(r"([-+]?)(\d{1,60})/(\d{1,60})")
_LATEX_RATIO = re.compile(r"([-+]?)\\frac\{([-+]?)(\d{1,60})\}\{(\d{1,60})\}")


@lru_cache(maxsize=16384)
def normal_form(answer: str) -> str:
    r"""A spelling shared by answers that differ in typesetting only.

    Example:
        >>> normal_form(r"$\dfrac12$."), normal_form(r"1{,}234 \text{ cm}^2"), normal_form(r"\text{even}")
        ('\\frac{1}{2}', '1234', 'even')
    """
    form = answer.strip().replace("\\$", "").replace("$", "").replace("{,}", ",").replace("−", "-")
    form = _SIZE.sub("", _COMMAND_SPACE.sub(" ", _DOTS.sub("...", form))).strip().rstrip(".").strip()
    form = _SHORT_FRAC.sub(r"\\frac{\1}{\2}", _FRAC.sub(r"\\frac", form))
    whole = _TEXT_ONLY.fullmatch(form)
    if whole is not None:
        return " ".join(whole.group(1).split())
    form = _DEGREES.sub("", _BLANK.sub("", " ".join(form.split())))
    unit = _UNIT.search(form)
    # A unit is safe to drop only behind a single plain number: "5\text{ or }6" is two.
    if unit is not None and unit.end() == len(form) and number(form[: unit.start()]) is not None:
        form = form[: unit.start()]
    return form.replace(",", "") if _THOUSANDS.fullmatch(form) else form


@lru_cache(maxsize=16384)
def number(form: str) -> tuple[Fraction, bool] | None:
    r"""The exact value of an integer, a decimal, ``a/b`` or ``\frac{a}{b}``, and whether it was written as a decimal.

    Args:
        form: A normal form.

    Returns:
        ``None`` for anything else, such as a mixed number or a percentage.
    """
    if _THOUSANDS.fullmatch(form):
        form = form.replace(",", "")
    match = _NUMBER.fullmatch(form)
    if match is not None:
        value = Fraction(match.group(2).rstrip("."))
        return (-value if match.group(1) == "-" else value), "." in match.group(2).rstrip(".")
    match = _RATIO.fullmatch(form)
    if match is not None:
        sign, top, bottom = match.groups()
    else:
        match = _LATEX_RATIO.fullmatch(form)
        if match is None:
            return None
        outer, inner, top, bottom = match.groups()
        sign = "-" if (outer == "-") != (inner == "-") else ""
    if int(bottom) == 0:
        return None
    value = Fraction(int(top), int(bottom))
    return (-value if sign == "-" else value), False


@lru_cache(maxsize=16384)
def is_phrase(form: str) -> bool:
    """Whether a normal form says something in words, such as "Cannot be determined"; words with digits may be units."""
    if any(c.isdigit() for c in form):
        return False
    words = _WORD.findall(_COMMAND.sub(" ", form))
    return sum(word.lower() not in _FUNCTIONS for word in words) >= 2


def is_abridged(answer: str) -> bool:
    r"""Whether an answer is a list that leaves members out, such as ``1, 4, 9, \ldots``.

    Algebra would read one of the members; such a list is no number and equals only itself.
    """
    return _ABRIDGED.search(answer) is not None


def decide(a: str, b: str) -> bool | None:
    r"""Whether two answers are equal, as far as plain rules can tell.

    Returns:
        ``True`` for equal normal forms; the verdict on two plain numbers (to six places if one is a decimal, as
        math-verify does, exactly otherwise); that of :func:`~lightning_serl.answers.evaluate.compare` on all others;
        ``None`` where only algebra can tell.
    """
    form_a, form_b = normal_form(a), normal_form(b)
    if form_a == form_b:
        return True
    if is_phrase(form_a) or is_phrase(form_b):
        # Algebra reads a word as a product of its letters.
        return form_a.casefold() == form_b.casefold()
    value_a, value_b = number(form_a), number(form_b)
    if value_a is None or value_b is None:
        # Formulas in dollars inside of an answer stand in a text, and a full stop ends a sentence: math-verify reads
        # both in its own way.
        if any("$" in x.replace("\\$", "") or x.endswith(".") for x in (a, b)):
            return None
        return compare(form_a, form_b)
    if value_a[1] or value_b[1]:
        return round(value_a[0], PRECISION) == round(value_b[0], PRECISION)
    return value_a[0] == value_b[0]
