"""Math answers that plain rules decide, without a computer algebra system: a normal form and exact numbers."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from lightning_serl.answers.math.compare import compare
from lightning_serl.answers.math.quantities import quantity, same_quantity

# math-verify compares decimals at this many places.
PRECISION = 6
_CLOSE = 1e-3

_BARE = re.compile(r"-?\d+(?:\.\d+)?|[a-zA-Z]")
_COMMAND_SPACE = re.compile(r"(?<!\\)\\[,;:! ]|\\quad(?![a-zA-Z])|\\qquad(?![a-zA-Z])")
_SIZE = re.compile(r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![a-zA-Z])")
_BOLD = re.compile(r"\\(?:mathbf|boldsymbol|bm|vec)\s*\{([a-zA-Z])\}")
_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SHORT_FRAC = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_TEXT_ONLY = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}\\$]*)\}")
_UNIT = re.compile(r"(?<=[\d}])\s*\\(?:text|textrm|mathrm|mbox)\s*\{([a-zA-Z .]*)\}(?:\s*\^\s*(?:\{[23]\}|[23]))?")
_DEGREES = re.compile(r"(?<=\d)\s*(?:\^\s*)?(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})")
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d*)?")
_LISTED = re.compile(r",(?:\s|\\[ ;:]|\\q?quad)")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
# Blanks between two letters (or a command and a letter) separate names, those between two digits numbers, unless they
# group thousands; all others mean nothing.
_BLANK = re.compile(r"(?<![a-zA-Z\d])\s+|(?<=\d)\s+(?!\d)|\s+(?![a-zA-Z\d])|(?<=[a-zA-Z])\s+(?=\d)")
# Text that was escaped twice; in a matrix two backslashes may also end a row.
_DOUBLED = re.compile(r"\\{2,}(?=[a-zA-Z])")
_DOUBLED_IN_MATRIX = re.compile(r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|left|right|cdot|pi|text)(?![a-zA-Z]))")
_DOTS = re.compile(r"\\[lc]?dots[cbmio]?(?![a-zA-Z])")
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
# What every reader takes for the same: digits, operators, brackets, single letters and a few commands.
_UNAMBIGUOUS = re.compile(
    r"(?:[-+*/^(){}\[\],.=\d ]|\\[{}]|\\(?:[dt]?frac|sqrt|pi|infty|left|right|cdot|times)(?![a-zA-Z])"
    r"|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))+"
)
_DOUBTFUL = re.compile(r"\d\s*\(|\d,\s*\d{3}|\d\s+\d|\.\s*(?:;|$)|\.\.|(?<!\d)\.|[,(\[{]\s*,|,\s*[)\]}]")
_WORDS = re.compile(r"[a-zA-Z ]+\.?")
_DECIMAL = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?")
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
    if _BARE.fullmatch(answer):
        return answer
    form = answer.strip().replace("\\$", "").replace("$", "").replace("{,}", ",").replace("−", "-")
    form = form.replace("²", "^2").replace("³", "^3").replace("…", "...").replace("~", " ")
    if "\\" in form:
        form = (_DOUBLED_IN_MATRIX if "matrix" in form else _DOUBLED).sub(r"\\", form)
        form = _BOLD.sub(r"\1", form)
        form = _SIZE.sub("", _COMMAND_SPACE.sub(" ", _DOTS.sub("...", form)))
        form = _SHORT_FRAC.sub(r"\\frac{\1}{\2}", _FRAC.sub(r"\\frac", form))
    form = form.strip().rstrip(".").strip()
    whole = _TEXT_ONLY.fullmatch(form)
    if whole is not None:
        return " ".join(whole.group(1).split())
    form = " ".join(form.split())
    if " " in form:
        form = _BLANK.sub("", form)
    if "\\" in form:
        form = _DEGREES.sub("", form)
    unit = _UNIT.search(form)
    # A unit is safe to drop only behind a single plain number: "5\text{ or }6" is two.
    if unit is not None and unit.end() == len(form) and number(form[: unit.start()]) is not None:
        form = form[: unit.start()]
    if _THOUSANDS.fullmatch(form) is None:
        return form.replace(" ", "") if _SPACED.fullmatch(form) else form
    # "1,234" is one number, "1, 234" two.
    return form.replace(",", ";" if _LISTED.search(answer) else "")


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
        whole, _, decimals = match.group(2).partition(".")
        value = Fraction(int(whole + decimals), 10 ** len(decimals))
        return (-value if match.group(1) == "-" else value), bool(decimals)
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


@lru_cache(maxsize=16384)
def _percent(form: str) -> tuple[Fraction, bool] | None:
    r"""The number in front of a percent sign, ``None`` if that is not the form."""
    if not form.endswith("%"):
        return None
    return number(form[:-1].removesuffix("\\"))


def _equal(a: tuple[Fraction, bool], b: tuple[Fraction, bool]) -> bool:
    """Exactly, or to six places if one was written as a decimal."""
    if not (a[1] or b[1]):
        return a[0] == b[0]
    # Rounding fractions is slow, and mostly not needed.
    return abs(float(a[0]) - float(b[0])) < _CLOSE and round(a[0], PRECISION) == round(b[0], PRECISION)


def _equal_shares(a: str, b: str) -> bool | None:
    """The verdict if one of two forms is a percentage and the other that or a number.

    20% is 0.2, and since the sign is easily forgotten it is 20, too, as long as it is whole.
    """
    share_a, share_b = _percent(a), _percent(b)
    if share_a is not None and share_b is not None:
        return _equal(share_a, share_b)
    share, plain = (share_a, number(b)) if share_b is None else (share_b, number(a))
    if share is None or plain is None:
        return None
    return _equal((share[0] / 100, share[1]), plain) or (not share[1] and not plain[1] and share[0] == plain[0])


def settle(a: str, b: str) -> bool | None:
    r"""The verdict of :func:`decide` where it hangs on no reading: equal whole numbers, and different values.

    Units, percentages, words, thousands, bases and mixed numbers are left to algebra, and so is equality of formulas.

    Example:
        >>> settle("7", "7.0"), settle(r"\frac{1}{2}", "3x"), settle("5 cm", "6"), settle("x+1", "1+x")
        (True, False, None, None)
    """
    if any(_says_no_number(x) and _DECIMAL.fullmatch(y) for x, y in ((a, b), (b, a))):
        return False
    if _UNAMBIGUOUS.fullmatch(a) is None or _UNAMBIGUOUS.fullmatch(b) is None or _DOUBTFUL.search(f"{a};{b}"):
        return None
    if any(quantity(x) is not None and not _DECIMAL.fullmatch(x) for x in (a, b)):
        return None
    if decide(a, b) is False:
        return None if _near(a, b) else False
    if _DECIMAL.fullmatch(a) is None or _DECIMAL.fullmatch(b) is None:
        return None
    return True if Fraction(a) == Fraction(b) else None


def _says_no_number(answer: str) -> bool:
    """Whether an answer is a phrase of several words and nothing else."""
    return _WORDS.fullmatch(answer) is not None and is_phrase(normal_form(answer))


def _near(a: str, b: str) -> bool:
    """Whether two plain numbers are so near to each other that rounding decides."""
    value_a, value_b = number(normal_form(a)), number(normal_form(b))
    if value_a is None or value_b is None:
        return False
    return abs(value_a[0] - value_b[0]) * 10**5 <= max(Fraction(1), abs(value_a[0]))


def decide(a: str, b: str) -> bool | None:
    r"""Whether two answers are equal, as far as plain rules can tell.

    Returns:
        ``True`` for equal normal forms; the verdict on two plain numbers (to six places if one is a decimal, as
        math-verify does, exactly otherwise); that of ``compare.compare`` on all others;
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
        verdict = _equal_shares(form_a, form_b) if "%" in form_a or "%" in form_b else same_quantity(a, b)
        verdict = compare(form_a, form_b) if verdict is None else verdict
        # math-verify stumbles over a full stop behind a formula.
        return None if verdict and any(x.endswith(".") and "\\" in x for x in (a, b)) else verdict
    return _equal(value_a, value_b)
