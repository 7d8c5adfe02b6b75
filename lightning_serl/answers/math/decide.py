"""Decides by rules whether two math answers are equal; ``None`` where only algebra can tell."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from lightning_serl.answers.math.compare import compare_values
from lightning_serl.answers.math.normal_form import is_phrase, normal_form, number
from lightning_serl.answers.math.quantities import quantity, same_quantity
from lightning_serl.answers.math.regions import same_region
from lightning_serl.answers.math.spelling import plain_spelling
from lightning_serl.answers.math.wholes import same_whole

# math-verify compares decimals at this many places.
_PRECISION = 6
_CLOSE = 1e-3
_NOISE = Fraction(1, 10**12)

# Spellings with one reading: digits, operators, brackets, single letters and a few commands.
_UNAMBIGUOUS = re.compile(
    r"(?:[-+*/^(){}\[\],.=\d ]|\\[{}]|\\(?:[dt]?frac|sqrt|pi|infty|left|right|cdot|times)(?![a-zA-Z])"
    r"|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))+"
)
_DOUBTFUL = re.compile(r"\d\s*\(|\d,\s*\d{3}|\d\s+\d|\.\s*(?:;|$)|\.\.|(?<!\d)\.|[,(\[{]\s*,|,\s*[)\]}]")
_PLAIN = re.compile(
    r"-?\d{1,15}(?:\.\d{1,15})?|-?[1-9]\d{0,2}(?:,\d{3})+|-?\d{1,9}(?:\.\d{1,9})?\s?\\?%|\\text\{-?\d{1,15}\}"
)
# Powers of ten, remainders, repeating decimals in brackets, groups around the whole.
_NOT_PLAIN = re.compile(r"\d\s*[eErR]\s*[-+]?\d|[\d.]\(\d|^\{|^[+*]|\]\s*\^|!")
_WORDS = re.compile(r"[a-zA-Z ]+\.?")
_NAME = re.compile(r"(?:\\text\{)?[A-Z]?[a-z]{3,}\}?")
_DECIMAL = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?")
# Not three digits, which would be thousands.
_COMMA = re.compile(r"(-?\d{1,12}),(\d{1,2}|\d{4,12})")
_MIXED = re.compile(r"(-?)(\d{1,12})\s*(?:\\frac\{(\d{1,12})\}\{(\d{1,12})\}|\s(\d{1,12})/(\d{1,12}))")


def decide_default(a: str, b: str) -> bool | None:
    r"""Whether two answers are equal in the default mode, ``None`` where only algebra can tell.

    Answers are compared in plain spellings. Times, dates, ranges and sets of numbers are compared as wholes.
    """
    if _is_plain(a) and _is_plain(b):
        return decide(a, b)
    a, b = plain_spelling(a), plain_spelling(b)
    if a == b:
        return True
    verdict = same_whole(a, b)
    if verdict is None:
        verdict = same_region(a, b)
    if verdict is None and a.count("\\ne ") == b.count("\\ne ") == 1:
        # Two sides differ in both: the same statement if the equations are.
        return decide(*(x.replace("\\ne ", "=") for x in (a, b))) or None
    if verdict is None:
        a, b = _with_points(a, b)
        verdict = decide(a, b)
    return verdict


@lru_cache(maxsize=16384)
def _is_plain(answer: str) -> bool:
    """Whether an answer is spelled plainly already, as most are: a test that costs less than a new spelling."""
    if _PLAIN.fullmatch(answer) is not None:
        return True
    if _UNAMBIGUOUS.fullmatch(answer) is None or _DOUBTFUL.search(f"{answer};") or _NOT_PLAIN.search(answer):
        return False
    return "," not in answer or answer[0] in "([" or answer.startswith(("\\left", "\\{"))


def _with_points(a: str, b: str) -> tuple[str, str]:
    """``3,5`` beside a single number as ``3.5``; beside a list it is one as well."""
    for x, y in ((a, b), (b, a)):
        comma = _COMMA.fullmatch(x)
        if comma is not None and "," not in y and number(normal_form(y)) is not None:
            point = f"{comma[1]}.{comma[2]}"
            return (point, y) if x == a else (y, point)
    return a, b


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
    if form_a.casefold() == form_b.casefold() and _NAME.fullmatch(form_a) and _NAME.fullmatch(form_b):
        return True  # "Tuesday", "tuesday"
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
        # math-verify takes x and X for one variable.
        return None if _near(a, b) or ((a != a.lower() or b != b.lower()) and not _apart_in_lower_case(a, b)) else False
    if _DECIMAL.fullmatch(a) is None or _DECIMAL.fullmatch(b) is None:
        return None
    return True if Fraction(a) == Fraction(b) else None


def _apart_in_lower_case(a: str, b: str) -> bool:
    return decide(a.lower(), b.lower()) is False


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
    form = form[:-1].removesuffix("\\").strip()
    mixed = _MIXED.fullmatch(form)
    if mixed is None:
        return number(form)
    top, bottom = int(mixed[3] or mixed[5]), int(mixed[4] or mixed[6])
    if not bottom:
        return None
    value = int(mixed[2]) + Fraction(top, bottom)
    return (-value if mixed[1] else value), False


def _equal(a: tuple[Fraction, bool], b: tuple[Fraction, bool]) -> bool:
    """Whether two numbers are equal: exactly, or to six places and three digits if one was written as a decimal.

    A whole number beside a decimal is exact but for the noise of floating point.
    """
    if a[0] == b[0]:
        return True
    if not (a[1] or b[1]):
        return False
    distance, size = abs(a[0] - b[0]), max(abs(a[0]), abs(b[0]))
    if any(value.denominator == 1 and not decimal for value, decimal in (a, b)):
        return distance <= _NOISE * size
    # Rounding fractions is slow and rarely needed.
    return float(distance) < _CLOSE * min(1.0, float(size)) and round(a[0], _PRECISION) == round(b[0], _PRECISION)


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
