r"""Numbers with units: ``3.5 mol/L``, ``3.5\,\text{mol L}^{-1}`` and ``3.5`` are one answer, ``3 g`` and ``3 kg`` two.

The number decides. A unit that one side leaves out is no difference, and neither is one spelled in words; two symbols
of units must be the same, for units are not converted into each other.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

_LONGEST = 80
_MAX_EXPONENT = 100
_SPACE = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|~|\$")
_WRAPPED = re.compile(r"\\(?:text|textrm|mathrm|rm|mbox|operatorname|unit|si)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_DEGREE = re.compile(r"\^?\s*\{?\s*\\circ\s*\}?|\\degree")
_MICRO = re.compile(r"\\mu\s*|[µμ]\s+")
_NUMBER = re.compile(
    r"\s*([-+]?)\s*[$€£¥]?\s*(\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+(?!\d)|\d{1,40})(?:\.(\d{1,40}))?"
    r"(?:\s*(?:\\times|\\cdot|×|·)\s*10\s*\^\s*(?:\{\s*(-?\d{1,3})\s*\}|(-?\d))|(?:(?<=\.\d)|(?<=\d))[eE]([-+]?\d{1,3})(?!\w))?"
)
_TOKEN = re.compile(r"\s*(?:([a-zA-Zµμ°ΩÅ]+)|\^?\s*\{?\s*(-?\d)\s*\}?|(/)|[()·*.⋅]|\\cdot(?![a-zA-Z]))\s*")
_PREFIXES = ("", "k", "c", "d", "m", "µ", "μ", "n", "p", "f", "M", "G", "T", "h")
_BASES = (
    *("m", "g", "s", "A", "K", "mol", "cd", "L", "l", "J", "W", "Pa", "N", "V", "C", "Hz", "F", "T", "H", "S", "M"),
    *("eV", "cal", "bar", "atm", "h", "min", "t", "Ω", "°C", "°F", "°", "rad", "Bq", "Gy", "Sv", "Da", "u", "Torr"),
    *("mmHg", "ppm", "ppb", "ft", "in", "lb", "oz", "mi", "mph", "rpm", "psi", "Å"),
)
_SYMBOLS = frozenset(prefix + base for prefix in _PREFIXES for base in _BASES)
# Words behind a number that change it, or that are no unit.
_NO_UNITS = frozenset(
    [
        *("percent", "pct", "thousand", "million", "billion", "trillion", "hundred", "dozen", "factorial", "squared"),
        *("cubed", "sqrt", "sin", "cos", "tan", "log", "exp", "and", "times", "plus", "minus", "over", "mod", "choose"),
        "base",
    ]
)


class Quantity(NamedTuple):
    """A number, whether it was written as a decimal, and its unit: powers by name, whether all are known symbols."""

    value: Fraction
    decimal: bool
    unit: tuple[tuple[str, int], ...]
    known: bool


@lru_cache(maxsize=16384)
def quantity(answer: str) -> Quantity | None:
    r"""The number and the unit of an answer that consists of these and nothing else.

    Example:
        >>> quantity(r"1.5 \times 10^{-3}\,\text{mol/L}").unit, quantity("2x"), quantity("5 or 6")
        ((('L', -1), ('mol', 1)), None, None)
    """
    if len(answer) > _LONGEST:
        return None
    text = _SPACE.sub(" ", answer)
    text = _DEGREE.sub("°", _WRAPPED.sub(r" \1 ", text)).replace("\\Omega", "Ω")
    text = _MICRO.sub("μ", text)
    match = _NUMBER.match(text)
    if match is None:
        return None
    sign, whole, decimals, *exponents = match.groups()
    scientific = exponents[2] is not None
    if scientific and not decimals and "e" in match.group():
        return None  # 2e-3 is also twice Euler's number less three
    power = int(next((e for e in exponents if e), "0"))
    unit = _unit(text[match.end() :].strip(" ."), text[match.end() : match.end() + 1] == " ")
    if unit is None or abs(power) > _MAX_EXPONENT:
        return None
    value = (
        Fraction(int(re.sub("[, ]", "", whole) + (decimals or "")), 10 ** len(decimals or "")) * Fraction(10) ** power
    )
    return Quantity(-value if sign == "-" else value, bool(decimals) or power < 0, *unit)


def _unit(text: str, apart: bool) -> tuple[tuple[tuple[str, int], ...], bool] | None:
    """The powers in a unit by name and whether all names are known symbols; ``None`` if it is no unit."""
    powers: dict[str, int] = {}
    known, sign, last, at = True, 1, "", 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        at = match.end()
        name, exponent, slash = match.groups()
        if slash or name == "per":
            sign, last = -1, ""
        elif name:
            symbol = name in _SYMBOLS
            if not symbol and (len(name) < 3 or not name.islower() or name in _NO_UNITS):
                return None
            known = known and symbol
            last = name.replace("µ", "μ").replace("l", "L") if symbol and name in ("l", "ml", "dl", "µl") else name
            last = last.replace("µ", "μ") if symbol else last.removesuffix("s")
            powers[last] = powers.get(last, 0) + sign
        elif exponent:
            if not last:
                return None
            powers[last] += sign * (int(exponent) - 1)
            last = ""
    # A single letter at a number is a variable; behind a blank, or in \text, it is a unit.
    if len(text) == 1 and not apart and text != "°":
        return None
    return tuple(sorted(powers.items())), known


def same_quantity(a: str, b: str) -> bool | None:
    """Whether two quantities are equal, ``None`` unless both are quantities of which one has a unit or an exponent."""
    left, right = quantity(a), quantity(b)
    if left is None or right is None:
        return None
    if left.value != right.value:
        near = abs(left.value - right.value) <= Fraction(1, 10**6) * max(Fraction(1), abs(left.value))
        return None if near and (left.decimal or right.decimal) else False
    if left.unit == right.unit or not left.unit or not right.unit:
        return True
    return not (left.known and right.known)
