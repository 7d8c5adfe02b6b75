"""Normal forms of math answers: ASCII digits, spellings without differences of typesetting, exact values of numbers."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

_FRACTION_SIGN = re.compile("[¼-¾⅐-⅞↉]")
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
_SIGNS = str.maketrans({"−": "-", "⁄": "/", "٫": ".", "٬": ",", "٪": "%", "\u200e": None, "\u200f": None})
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
# A space between two letters (or a command and a letter) separates names; between two digits it separates numbers,
# unless it groups thousands; all other spaces mean nothing.
_BLANK = re.compile(r"(?<![a-zA-Z\d])\s+|(?<=\d)\s+(?!\d)|\s+(?![a-zA-Z\d])|(?<=[a-zA-Z])\s+(?=\d)")
# In text that was escaped twice; in a matrix two backslashes may also end a row.
_DOUBLED = re.compile(r"\\{2,}(?=[a-zA-Z])")
_DOUBLED_IN_MATRIX = re.compile(r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|left|right|cdot|pi|text)(?![a-zA-Z]))")
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{(?:[pbB]?matrix|smallmatrix|array)\}(?:\s*\{[lcr| ]*\})?")
_LAST_ROW = re.compile(r"\\\\\s*(?=\\end\s*\{)")
_ROW_SPACE = re.compile(r"\\\\\s*\[\s*-?\d[\d.]*\s*(?:pt|em|ex|mm|cm)\s*\]")
_AROUND_MATRIX = re.compile(
    r"(?:\\left\s*)?[(\[]\s*(\\begin\{pmatrix\}(?:(?!\\begin|\\end).)*\\end\{pmatrix\})\s*(?:\\right\s*)?[)\]]",
    re.DOTALL,
)
_DOTS = re.compile(r"\\[lc]?dots[cbmio]?(?![a-zA-Z])")
_ABRIDGED = re.compile(r",(?:\s|\\[,;:! ]|\\q?quad)*(?:\.\.\.|\\[lc]?dots(?![a-zA-Z])|…)")
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[a-zA-Z]{3,}")
_FUNCTION = re.compile(r"(?i)sqrt|sin|cos|tan|cot|sec|csc|log|exp|floor|ceil|max|min|mod|frac|and")
_NUMBER = re.compile(r"([-+]?)(\d{1,60}\.?\d{0,60}|\.\d{1,60})")
_RATIO = re.compile(r"([-+]?)(?P<top>\d{1,60})/(?P<bottom>\d{1,60})")
_LATEX_RATIO = re.compile(r"([-+]?)\\frac\{([-+]?)(?P<top>\d{1,60})\}\{(?P<bottom>\d{1,60})\}")


def ascii_digits(text: str) -> str:
    r"""The text with ASCII digits, ``\frac`` for fraction characters and ``^`` for superscript digits.

    Example:
        >>> ascii_digits("½"), ascii_digits("10⁻³ m²"), ascii_digits("٣٫٥"), ascii_digits("３７ ℃")
        ('\\frac{1}{2}', '10^{-3} m^2', '3.5', '37 °C')
    """
    if text.isascii():
        return text
    text = _RAISED.sub(_power, _FRACTION_SIGN.sub(_fraction, unicodedata.normalize("NFC", text)))
    return "".join(c if c.isascii() else _ascii(c) for c in text.translate(_SIGNS))


def _fraction(match: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", match.group()).split("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _power(match: re.Match[str]) -> str:
    # NFKC turns a superscript minus into U+2212.
    digits = unicodedata.normalize("NFKC", match.group()).replace("−", "-")
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"


def _ascii(c: str) -> str:
    """An ASCII digit for a digit of any script, ASCII for full-width characters, letters for signs such as ℃ and ㎏."""
    digit = unicodedata.decimal(c, None)
    if digit is not None:
        return str(digit)
    if "！" <= c <= "～" or "㍱" <= c <= "㏟" or c in "℃℉":
        return unicodedata.normalize("NFKC", c)
    return c


@lru_cache(maxsize=16384)
def normal_form(answer: str) -> str:
    r"""A spelling that answers share if they differ in typesetting only.

    Example:
        >>> normal_form(r"$\dfrac12$."), normal_form(r"1{,}234 \text{ cm}^2"), normal_form(r"\text{even}")
        ('\\frac{1}{2}', '1234', 'even')
    """
    if _BARE.fullmatch(answer):
        return answer
    form = answer.strip().replace("\\$", "").replace("$", "").replace("{,}", ",").replace("−", "-")
    form = form.replace("²", "^2").replace("³", "^3").replace("…", "...").replace("~", " ")
    if "\\" in form:
        if "matrix" in form or "{array}" in form:
            form = _plain_matrix(form)
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
    # A unit is safe to drop only after a single plain number: "5\text{ or }6" is two.
    if unit is not None and unit.end() == len(form) and number(form[: unit.start()]) is not None:
        form = form[: unit.start()]
    if _THOUSANDS.fullmatch(form) is None:
        return form.replace(" ", "") if _SPACED.fullmatch(form) else form
    # "1,234" is one number, "1, 234" two.
    return form.replace(",", ";" if _LISTED.search(answer) else "")


def _plain_matrix(form: str) -> str:
    """One spelling for all environments of matrices, without brackets around them and separators at their end."""
    form = _ROW_SPACE.sub(r"\\\\", _LAST_ROW.sub("", _ENVIRONMENT.sub(r"\\\1{pmatrix}", form)))
    return _AROUND_MATRIX.sub(r"\1", form)


@lru_cache(maxsize=16384)
def number(form: str) -> tuple[Fraction, bool] | None:
    r"""The exact value of an integer, a decimal, ``a/b`` or ``\frac{a}{b}``, and whether it was written as a decimal.

    ``None`` for all other normal forms, such as a mixed number or a percentage.
    """
    if _THOUSANDS.fullmatch(form):
        form = form.replace(",", "")
    match = _NUMBER.fullmatch(form)
    if match is not None:
        whole, _, decimals = match.group(2).partition(".")
        value = Fraction(int(whole + decimals), 10 ** len(decimals))
        return (-value if match.group(1) == "-" else value), bool(decimals)
    match = _RATIO.fullmatch(form) or _LATEX_RATIO.fullmatch(form)
    if match is None or int(match["bottom"]) == 0:
        return None
    value = Fraction(int(match["top"]), int(match["bottom"]))
    return (-value if match.groups().count("-") == 1 else value), False


@lru_cache(maxsize=16384)
def is_phrase(form: str) -> bool:
    """Whether a normal form is words, such as "Cannot be determined"; words beside digits may be units."""
    if any(c.isdigit() for c in form):
        return False
    words = _WORD.findall(_COMMAND.sub(" ", form))
    return sum(_FUNCTION.fullmatch(word) is None for word in words) >= 2


def is_abridged(answer: str) -> bool:
    r"""Whether an answer is a list that omits members, such as ``1, 4, 9, \ldots``.

    Algebra would read one of the members; such a list is no number and equals only itself.
    """
    return _ABRIDGED.search(answer) is not None
