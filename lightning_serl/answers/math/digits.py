"""Digits, fractions and exponents of other scripts, in the one spelling that rules and algebra know."""

from __future__ import annotations

import re
import unicodedata

_FRACTION = re.compile("[¼-¾⅐-⅞↉]")
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
_SIGNS = str.maketrans({"−": "-", "⁄": "/", "٫": ".", "٬": ",", "٪": "%", "\u200e": None, "\u200f": None})


def plain_script(text: str) -> str:
    r"""A text with ASCII digits, ``\frac`` for the signs of fractions and ``^`` for raised digits.

    Example:
        >>> plain_script("½"), plain_script("10⁻³ m²"), plain_script("٣٫٥"), plain_script("３７ ℃")
        ('\\frac{1}{2}', '10^{-3} m^2', '3.5', '37 °C')
    """
    if text.isascii():
        return text
    text = _RAISED.sub(_power, _FRACTION.sub(_fraction, unicodedata.normalize("NFC", text)))
    return "".join(c if c.isascii() else _plain(c) for c in text.translate(_SIGNS))


def _fraction(match: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", match.group()).split("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _power(match: re.Match[str]) -> str:
    # A raised minus is folded to U+2212.
    digits = unicodedata.normalize("NFKC", match.group()).replace("−", "-")
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"


def _plain(c: str) -> str:
    """An ASCII digit for a digit of any script, ASCII for full width, letters for signs such as ℃ and ㎏."""
    digit = unicodedata.decimal(c, None)
    if digit is not None:
        return str(digit)
    if "！" <= c <= "～" or "㍱" <= c <= "㏟" or c in "℃℉":
        return unicodedata.normalize("NFKC", c)
    return c
