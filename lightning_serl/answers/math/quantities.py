r"""Reads and compares numbers with units.

``3.5 mol/L``, ``3.5\,\text{mol L}^{-1}`` and ``3.5`` are equal, ``3 g`` and ``3 kg`` are not. A unit that one side
omits makes no difference, nor does a word that names no known unit. Two units must be the same, as symbols or as words;
they are not converted into each other.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from lightning_serl.answers.math.units import (
    COMPOUND,
    PER,
    RAISES_LAST,
    RAISES_NEXT,
    RAISING_PREFIXES,
    is_word,
    symbol_of,
)

_LONGEST = 80
_MAX_EXPONENT = 100
_SPACE = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|~|\$")
_WRAPPED = re.compile(r"\\(?:text|textrm|mathrm|rm|mbox|operatorname|unit|si)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_DEGREE = re.compile(r"\^?\s*\{?\s*\\circ\s*\}?|\\degree")
_MICRO = re.compile(r"\\mu\s*|[µμ]\s+")
_CELSIUS = re.compile(
    r"(?i)(?:\b(?:degrees?|grados?|grad|degrés?|graus?|gradi)|°)\s*(?:(c|celsius|centigrade|centígrados)|f|fahrenheit)\b"
)
# Dollar signs delimit formulas; a single one, or an escaped one, is a currency.
_DOLLAR = "＄"
_POWER_OF_TEN = re.compile(r"^\s*([-+]?)\s*10\s*(?=\^)")
_NUMBER = re.compile(
    r"\s*([-+]?)\s*([＄€£¥]?)\s*(\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+(?!\d)|\d{1,40})(?:\.(\d{1,40}))?"
    r"(?:\s*(?:\\times|\\cdot|[×·xX*])\s*10\s*\^\s*(?:[{(]\s*(-?\d{1,3})\s*[)}]|(-?\d{1,3})(?!\d))|(?:(?<=\.\d)|(?<=\d))[eE]([-+]?\d{1,3})(?!\w))?"
)
# An exponent without ``^`` follows a letter directly: "m2", while "5 ft 3 in" has two numbers.
_TOKEN = re.compile(
    r"\s*(?:([^\W\d_]+|°[CF]?|[＄€£¥])|(?:\^\s*\{?\s*(-?\d)\s*\}?|(?<=[^\W\d_])(-?\d)(?!\d))|(/)"
    r"|[()·*.⋅]|\\cdot(?![a-zA-Z]))\s*"
)
# "5 J (joules)"
_TWICE = re.compile(r"([^\W\d_]+)\s*\(\s*([^\W\d_]+)\s*\)")
_PREFIXES = ("", "k", "c", "d", "m", "µ", "μ", "n", "p", "f", "M", "G", "T", "h")
_BASES = (
    *("m", "g", "s", "A", "K", "mol", "cd", "L", "l", "J", "W", "Pa", "N", "V", "C", "Hz", "F", "T", "H", "S", "M"),
    *("eV", "cal", "bar", "atm", "h", "min", "t", "Ω", "°C", "°F", "°", "rad", "Bq", "Gy", "Sv", "Da", "u", "Torr"),
    *("mmHg", "ppm", "ppb", "ft", "in", "lb", "oz", "mi", "rpm", "psi", "Å", "€", "£", "¥"),
)
_SYMBOLS = frozenset(prefix + base for prefix in _PREFIXES for base in _BASES)


class Quantity(NamedTuple):
    """A number with its unit.

    Attributes:
        value: The number.
        decimal: Whether it was written as a decimal.
        unit: The units by name, each with its power.
        known: Those of ``unit`` that are known units and not just words.
    """

    value: Fraction
    decimal: bool
    unit: tuple[tuple[str, int], ...]
    known: tuple[tuple[str, int], ...]


@lru_cache(maxsize=16384)
def quantity(answer: str) -> Quantity | None:
    r"""The number and unit of an answer, ``None`` if it holds anything else.

    Example:
        >>> quantity(r"1.5 \times 10^{-3}\,\text{mol/L}").unit, quantity("2x"), quantity("5 or 6")
        ((('L', -1), ('mol', 1)), None, None)
    """
    if len(answer) > _LONGEST:
        return None
    text = answer.replace("\\$", _DOLLAR)
    if text.count("$") % 2:
        text = text.replace("$", _DOLLAR, 1)
    text = _SPACE.sub(" ", text)
    text = _DEGREE.sub("°", _WRAPPED.sub(r" \1 ", text)).replace("\\Omega", "Ω")
    text = _CELSIUS.sub(lambda m: "°C" if m[1] else "°F", _MICRO.sub("μ", text))
    text = _POWER_OF_TEN.sub(r"\g<1>1×10", text)
    match = _NUMBER.match(text)
    if match is None:
        return None
    sign, currency, whole, decimals, *exponents = match.groups()
    scientific = exponents[2] is not None
    if scientific and not decimals and "e" in match.group():
        return None  # 2e-3 is also twice Euler's number less three
    power = int(next((e for e in exponents if e), "0"))
    rest = text[match.end() :].strip(" .")
    twice = _TWICE.fullmatch(rest)
    if twice is not None and _named(twice[1]) is not None and _named(twice[1]) == _named(twice[2]):
        rest = twice[1]
    unit = _unit(rest, text[match.end() : match.end() + 1] == " ", currency)
    if unit is None or abs(power) > _MAX_EXPONENT:
        return None
    value = (
        Fraction(int(re.sub("[, ]", "", whole) + (decimals or "")), 10 ** len(decimals or "")) * Fraction(10) ** power
    )
    return Quantity(-value if sign == "-" else value, bool(decimals) or power < 0, *unit)


def _unit(
    text: str, apart: bool, currency: str
) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]] | None:
    """All units with their powers, and those of known units; ``None`` if the text is no unit."""
    powers = dict.fromkeys([currency.replace(_DOLLAR, "$")] if currency else [], 1)
    known = set(powers)
    sign, raised, last, at = 1, 1, "", 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        at = match.end()
        name, *exponents, slash = match.groups()
        exponent = next((e for e in exponents if e), None)
        if exponent:
            if not last:
                return None
            powers[last] += sign * (int(exponent) - 1)
            last = ""
            continue
        # Scripts without spaces write "kilometres per hour" as one word.
        for word in re.split("(每)", name) if name else [slash] if slash else []:
            if not word:
                continue
            if word.lower() in PER:
                sign, last = -1, ""
            elif word.lower() in RAISES_NEXT:
                raised = RAISES_NEXT[word.lower()]
            elif last and word.lower() in RAISES_LAST:
                powers[last] += sign * (RAISES_LAST[word.lower()] - 1)
                last = ""
            else:
                named = _named(word)
                if named is None:
                    return None
                for last, power, is_known in named:
                    powers[last] = powers.get(last, 0) + sign * power * raised
                    known |= {last} if is_known else set()
                raised = 1
    # A single letter next to a number is a variable; after a space, or in \\text, it is a unit.
    if raised > 1 or (len(text) == 1 and text.isalpha() and text.isascii() and not apart):
        return None
    return tuple(sorted(powers.items())), tuple(sorted((n, p) for n, p in powers.items() if n in known))


def _named(word: str) -> list[tuple[str, int, bool]] | None:
    """The units that a symbol or word names, with power and whether each is known; ``None`` if it names none."""
    if word in COMPOUND:
        return [(name, power, True) for name, power in COMPOUND[word]]
    if word in _SYMBOLS:
        symbol = word.replace("µ", "μ")
        return [(symbol.replace("l", "L") if symbol in ("l", "ml", "dl", "μl", "cl") else symbol, 1, True)]
    if word == _DOLLAR:
        return [("$", 1, True)]
    symbol_or_none = symbol_of(word)
    if symbol_or_none is not None:
        return [(symbol_or_none, 1, True)]
    for prefix, power in RAISING_PREFIXES.items():
        raised = symbol_of(word[len(prefix) :]) if word.lower().startswith(prefix) else None
        if raised is not None:
            return [(raised, power, True)]
    return [(word.removesuffix("s"), 1, False)] if is_word(word) else None


def same_quantity(a: str, b: str) -> bool | None:
    """Whether two answers are equal quantities, ``None`` if one is no quantity or only rounding separates them."""
    left, right = quantity(a), quantity(b)
    if left is None or right is None:
        return None
    if left.value != right.value:
        near = abs(left.value - right.value) <= Fraction(1, 10**6) * max(Fraction(1), abs(left.value))
        return None if near and (left.decimal or right.decimal) else False
    if left.unit == right.unit or not left.unit or not right.unit:
        return True
    if left.unit == left.known and right.unit == right.known:
        return False
    # Words beside known units ("20 km each day") may say what the other side omits.
    powers = set(left.known), set(right.known)
    return powers[0] <= powers[1] or powers[1] <= powers[0]
