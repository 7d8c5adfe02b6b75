"""Rewrites digits, fractions and exponents of other scripts in the spelling that the rules and math-verify know."""

from __future__ import annotations

import re
import unicodedata

_FRACTION = re.compile("[¼-¾⅐-⅞↉]")
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
_SIGNS = str.maketrans({"−": "-", "⁄": "/", "٫": ".", "٬": ",", "٪": "%", "\u200e": None, "\u200f": None})


def ascii_digits(text: str) -> str:
    r"""The text with ASCII digits, ``\frac`` for fraction characters and ``^`` for superscript digits.

    Example:
        >>> ascii_digits("½"), ascii_digits("10⁻³ m²"), ascii_digits("٣٫٥"), ascii_digits("３７ ℃")
        ('\\frac{1}{2}', '10^{-3} m^2', '3.5', '37 °C')
    """
    if text.isascii():
        return text
    text = _RAISED.sub(_power, _FRACTION.sub(_fraction, unicodedata.normalize("NFC", text)))
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
