"""Decides by rules whether two math answers are equal; ``None`` where only algebra can tell."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from lightning_serl.answers.math.compare import compare_values
from lightning_serl.answers.math.normal_form import is_phrase, normal_form, number
from lightning_serl.answers.math.quantities import quantity, same_quantity

# math-verify compares decimals at this many places.
_PRECISION = 6
_CLOSE = 1e-3

# Spellings with one reading: digits, operators, brackets, single letters and a few commands.
_UNAMBIGUOUS = re.compile(
    r"(?:[-+*/^(){}\[\],.=\d ]|\\[{}]|\\(?:[dt]?frac|sqrt|pi|infty|left|right|cdot|times)(?![a-zA-Z])"
    r"|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))+"
)
_DOUBTFUL = re.compile(r"\d\s*\(|\d,\s*\d{3}|\d\s+\d|\.\s*(?:;|$)|\.\.|(?<!\d)\.|[,(\[{]\s*,|,\s*[)\]}]")
_WORDS = re.compile(r"[a-zA-Z ]+\.?")
_DECIMAL = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?")


def decide(a: str, b: str) -> bool | None:
    r"""Whether two answers are equal, ``None`` where only algebra can tell.

    Equal normal forms are equal. Two plain numbers are compared to six places if one is a decimal, as math-verify does,
    otherwise exactly. Percentages, quantities and values at fixed points decide in all other cases.
    """
    form_a, form_b = normal_form(a), normal_form(b)
    if form_a == form_b:
        return True
    if is_phrase(form_a) or is_phrase(form_b):
        # Algebra reads a word as a product of its letters.
        return form_a.casefold() == form_b.casefold()
    value_a, value_b = number(form_a), number(form_b)
    if value_a is None or value_b is None:
        verdict = _equal_shares(form_a, form_b) if "%" in form_a or "%" in form_b else same_quantity(a, b)
        verdict = compare_values(form_a, form_b) if verdict is None else verdict
        # math-verify misreads a formula that ends with a full stop.
        return None if verdict and any(x.endswith(".") and "\\" in x for x in (a, b)) else verdict
    return _equal(value_a, value_b)


def decide_unambiguous(a: str, b: str) -> bool | None:
    r"""The verdict of :func:`decide` where the answers have one reading: equal whole numbers, and different values.

    Units, percentages, words, thousands, bases and mixed numbers are left to algebra, and so is equality of formulas.
    """
    if any(_DECIMAL.fullmatch(y) and _WORDS.fullmatch(x) and is_phrase(normal_form(x)) for x, y in ((a, b), (b, a))):
        return False  # words and nothing else, and a number
    if _UNAMBIGUOUS.fullmatch(a) is None or _UNAMBIGUOUS.fullmatch(b) is None or _DOUBTFUL.search(f"{a};{b}"):
        return None
    if any(quantity(x) is not None and not _DECIMAL.fullmatch(x) for x in (a, b)):
        return None
    if decide(a, b) is False:
        return None if _near(a, b) else False
    if _DECIMAL.fullmatch(a) is None or _DECIMAL.fullmatch(b) is None:
        return None
    return True if Fraction(a) == Fraction(b) else None


def _near(a: str, b: str) -> bool:
    """Whether two plain numbers are so close that the verdict depends on rounding."""
    value_a, value_b = number(normal_form(a)), number(normal_form(b))
    if value_a is None or value_b is None:
        return False
    return abs(value_a[0] - value_b[0]) * 10**5 <= max(Fraction(1), abs(value_a[0]))


@lru_cache(maxsize=16384)
def _percent(form: str) -> tuple[Fraction, bool] | None:
    r"""The number in front of a percent sign, ``None`` if that is not the form."""
    if not form.endswith("%"):
        return None
    return number(form[:-1].removesuffix("\\"))


def _equal(a: tuple[Fraction, bool], b: tuple[Fraction, bool]) -> bool:
    """Whether two numbers are equal: exactly, or to six places if one was written as a decimal."""
    if not (a[1] or b[1]):
        return a[0] == b[0]
    # Rounding fractions is slow and rarely needed.
    return abs(float(a[0]) - float(b[0])) < _CLOSE and round(a[0], _PRECISION) == round(b[0], _PRECISION)


def _equal_shares(a: str, b: str) -> bool | None:
    """The verdict if one form is a percentage and the other a percentage or a number, else ``None``.

    20% equals 0.2, and also 20, because the sign is easily forgotten; the latter for whole numbers only.
    """
    share_a, share_b = _percent(a), _percent(b)
    if share_a is not None and share_b is not None:
        return _equal(share_a, share_b)
    share, plain = (share_a, number(b)) if share_b is None else (share_b, number(a))
    if share is None or plain is None:
        return None
    return _equal((share[0] / 100, share[1]), plain) or (not share[1] and not plain[1] and share[0] == plain[0])
