r"""Compares answers of several numbers that mean one thing: times, dates, remainders, ranges, ratios, mixed measures.

``2:30 pm`` is not 2, ``12 r 4`` not 12, ``3 to 5 days`` neither 3 nor 5; ``2:30 PM`` is ``14:30``, ``3-5 days`` is
``3 to 5 days``, and ``2 h 30 min`` is 150 minutes.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from lightning_serl.answers.math.quantities import quantity

_LONGEST = 120
_TEXT = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}|\\[,;:! ]|\\q?quad|~")
_NUMBER = r"[-+]?\d{1,15}(?:,\d{3})*(?:\.\d{1,15})?"
_MONEY = r"\s*[$€£¥]?\s*"
_UNIT = r"(?:\s*(?:[^\W\d_]|[°%$€£¥/ .])[^\d,;:=<>]{0,40})?"

_CLOCK = re.compile(
    r"(?i)(?:at\s)?(\d{1,2})(?:[:.h](\d{2}))?(?::(\d{2}))?\s*(a\.?\s?m\b\.?|p\.?\s?m\b\.?|noon|midnight|o'?clock|uhr|h\b)?"
    r"\s*(noon|midnight|o'?clock)?(?:\s+in the (morning|afternoon|evening)|\s+at (night|noon))?"
)
_REMAINDERS = (
    re.compile(
        rf"(?i)({_NUMBER})\s*(?:,?\s*(?:with|and)?\s*(?:an?\s)?(?:remainder|rem\.?|remaining|rest|resto|reste|resta|余数?|餘|나머지|あまり)"
        rf"\s*(?:of|von|de|是|为)?|r\.?)\s*:?\s*({_NUMBER})"
    ),
    re.compile(
        rf"(?i)quotient\s*(?:of|is|=|:)?\s*({_NUMBER})\s*[,;]?\s*(?:and|with)?\s*(?:a\s)?remainder\s*(?:of|is|=|:)?\s*({_NUMBER})"
    ),
)
_RANGES = (
    re.compile(
        rf"(?i)(?:between|entre|zwischen|tra|fra){_MONEY}\s*({_NUMBER}){_UNIT}?\s*(?:and|y|et|und|e)\s{_MONEY}({_NUMBER})({_UNIT})"
    ),
    re.compile(
        rf"(?i)(?:(?:about|around|approximately|roughly|from|de|von|da)\s)?{_MONEY}({_NUMBER})(?:{_UNIT})?\s*?"
        rf"(?:\s(?:to|through|until|till|up to|bis|a|à)\s|[到至〜～~])\s*{_MONEY}({_NUMBER})({_UNIT})"
    ),
    re.compile(
        rf"(?:(?i:about|around)\s)?{_MONEY}({_NUMBER})\s?(?:--?)\s?{_MONEY}({_NUMBER})(\s*[^\W\d_]{{2,}}{_UNIT})"
    ),
)
_RATIO = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(?:\s*:\s*(\d{1,12}(?:\.\d{1,6})?))+")
_MEASURES = re.compile(
    r"(\d{1,12}(?:\.\d{1,12})?)\s*([^\W\d_]+|['′’\"″]{1,2})\.?(?:\s*(?:,?\s*(?:and|y|et|und|e)\b|,|\s)\s*|(?=\d))"
    r"(\d{1,12}(?:\.\d{1,12})?)\s*([^\W\d_]+|['′’\"″]{1,2})"
    r"(?:(?:\s*(?:,?\s*(?:and|y|et|und|e)\b|,|\s)\s*|(?=\d))(\d{1,12}(?:\.\d{1,12})?)\s*([^\W\d_]+))?\.?"
)
_SPAN = re.compile(rf"({_NUMBER})\s*([^\W\d_]{{1,12}})?\s*(by|x|×|times)\s*({_NUMBER})\s*([^\W\d_]{{1,12}})?")
# Units of one kind by the size of each.
_SIZES = {
    "time": {"s": 1, "min": 60, "h": 3600, "day": 86400, "week": 604800},
    "length": {"in": 1, "ft": 12, "yd": 36, "mi": 63360},
    "metric": {"mm": 1, "cm": 10, "m": 1000, "km": 10**6},
    "weight": {"oz": 1, "lb": 16},
    "mass": {"mg": 1, "g": 1000, "kg": 10**6},
    "volume": {"mL": 1, "L": 1000},
    "money": {"cent": 1, "$": 100},
    "euro": {"ct": 1, "€": 100},
    "age": {"month": 1, "year": 12},
}
_SHORT = {
    "'": "ft",
    "′": "ft",
    "’": "ft",
    '"': "in",
    "″": "in",
    "''": "in",
    "m": "m",
    "lbs": "lb",
    "pound": "lb",
    "pounds": "lb",
}

_MONTHS = (
    "january/jan/enero/janvier/januar/gennaio/janeiro february/feb/febrero/fevrier/februar/febbraio/fevereiro "
    "march/mar/marzo/mars/marz/marco april/apr/abril/avril/aprile may/mayo/mai/maggio/maio "
    "june/jun/junio/juin/juni/giugno/junho july/jul/julio/juillet/juli/luglio/julho "
    "august/aug/agosto/aout september/sep/sept/septiembre/septembre/settembre/setembro "
    "october/oct/octubre/octobre/oktober/ottobre/outubro november/nov/noviembre/novembre/novembro "
    "december/dec/diciembre/decembre/dezember/dicembre/dezembro"
)
_MONTH_OF = {name: n for n, names in enumerate(_MONTHS.split(), 1) for name in names.split("/")}
_DATES = (
    re.compile(r"(?P<month>[^\W\d_]{3,10})\.?\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{4}))?"),
    re.compile(
        r"(?:the\s)?(?P<day>\d{1,2})(?:st|nd|rd|th|\.|er)?\s+(?:of\s|de\s)?(?P<month>[^\W\d_]{3,10})\.?"
        r"(?:,?\s+(?:de\s|del\s)?(?P<year>\d{4}))?"
    ),
    re.compile(r"(?P<year>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<day>\d{1,2})"),
    re.compile(r"(?P<year>\d{4})\s*[年년]\s*(?P<m>\d{1,2})\s*[月월]\s*(?P<day>\d{1,2})\s*[日号일]"),
    re.compile(r"(?P<m>\d{1,2})\s*[月월]\s*(?P<day>\d{1,2})\s*[日号일](?P<year>(?!))?"),
    re.compile(r"(?P<m>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4}|\d{2})"),
)
_WEEKDAY = re.compile(r"(?i)^(?:on\s)?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+(?=\S))?")


class Whole(NamedTuple):
    """What several numbers mean together."""

    kind: str  # "clock", "remainder", "range", "ratio", "date", or a kind of measure
    parts: tuple[Fraction | None, ...]


@lru_cache(maxsize=16384)
def whole(answer: str) -> Whole | None:
    """The time, date, remainder, range, ratio or mixed measure that an answer is, or ``None``.

    A time of day counts minutes and names the half of the day if that is known; a measure counts its smallest unit.

    Example:
        >>> whole("12 r 4"), whole("2:30 pm").parts, whole("12")
        (Whole(kind='remainder', parts=(Fraction(12, 1), Fraction(4, 1))), (Fraction(150, 1), Fraction(1, 1)), None)
    """
    if len(answer) > _LONGEST or not any(c.isdigit() for c in answer):
        return None
    text = " ".join(_TEXT.sub(lambda m: m[1] or " ", answer).strip(" .").split())
    if not text or text.isdigit() or "\\" in text or "=" in text:
        return None
    return (
        _remainder(text) or _date(text) or _time(text) or _measure(text) or _range(text) or _ratio(text) or _size(text)
    )


def same_whole(a: str, b: str) -> bool | None:
    """Whether two answers mean the same, ``None`` if neither is such a whole."""
    left, right = whole(a), whole(b)
    if left is None and right is None:
        return None
    if left is None or right is None:
        return _beside(left or right, b if right is None else a)
    if left.kind == right.kind == "clock":
        return _same_time(left, right)
    if {left.kind, right.kind} == {"clock", "ratio"}:
        ratio, clock = (left, a), (right, b)
        if left.kind == "clock":
            ratio, clock = clock, ratio
        return _same_time(clock[0], _clock_of(ratio[1]))
    if left.kind == right.kind == "date":
        return all(x is None or y is None or x == y for x, y in zip(left.parts, right.parts, strict=True))
    return left == right


def _same_time(a: Whole, b: Whole | None) -> bool:
    if b is None:
        return False
    if a.parts[1] is None or b.parts[1] is None:
        return (a.parts[0] or 0) % 720 == (b.parts[0] or 0) % 720
    return a.parts == b.parts


def _beside(found: Whole | None, other: str) -> bool | None:
    """The verdict on a whole and an answer that is none."""
    if found is None:
        return None
    if found.kind in _SIZES:
        single = quantity(other)
        if single is not None and not single.unit:
            return any(single.value * size == found.parts[0] for size in _SIZES[found.kind].values())
        if single is None or len(single.unit) != 1 or single.unit[0][1] != 1:
            return False
        size = _SIZES[found.kind].get(single.unit[0][0])
        return size is not None and single.value * size == found.parts[0]
    if found.kind == "range":
        bare = other.replace(" ", "")
        return bare[:1] in "[(" and bare[1:-1] == f"{found.parts[0]},{found.parts[1]}" if bare else False
    if found.kind == "ratio" and len(found.parts) == 2:
        return None  # a number, for algebra
    return False


def _remainder(text: str) -> Whole | None:
    for pattern in _REMAINDERS:
        match = pattern.fullmatch(text)
        if match is not None:
            return Whole("remainder", (_value(match[1]), _value(match[2])))
    return None


def _range(text: str) -> Whole | None:
    for pattern in _RANGES:
        match = pattern.fullmatch(text)
        if match is None:
            continue
        low, high = _value(match[1]), _value(match[2])
        if low < high:
            return Whole("range", (low, high))
        return Whole("ratio", _reduced([low, high])) if " to " in text and high else None
    return None


def _ratio(text: str) -> Whole | None:
    match = _RATIO.fullmatch(text)
    return None if match is None else Whole("ratio", _reduced([Fraction(part) for part in text.split(":")]))


def _size(text: str) -> Whole | None:
    """Two lengths that span an area, in any order: "4 cm by 6 cm"."""
    match = _SPAN.fullmatch(text)
    if match is None or (match[3] == "by") + bool(match[2] or match[5]) == 0:
        return None
    return Whole("size", tuple(sorted((_value(match[1]), _value(match[4])))))


def _reduced(parts: list[Fraction]) -> tuple[Fraction, ...]:
    """The parts of a ratio over the first of them that is not zero."""
    first = next((part for part in parts if part), Fraction(1))
    return tuple(part / first for part in parts)


def _time(text: str) -> Whole | None:
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hour, minute = int(match[1]), int(match[2] or 0)
    said = [(group or "").lower().replace(".", "").replace(" ", "") for group in match.groups()[3:]]
    named = any(said)
    if not named or (said[0] == "h" and match[2] is None) or hour > 24 or minute > 59:
        return None
    night = {"am": 0, "pm": 1, "noon": 1, "midnight": 0, "morning": 0, "afternoon": 1, "evening": 1, "night": 1}
    half = next((night[word] for word in said if word in night), None)
    return _at(hour, minute, half)


def _at(hour: int, minute: int, half: int | None) -> Whole:
    """The time of day: minutes since midnight or noon, and which of the two if that is known."""
    if half is None and (hour > 12 or hour == 0):
        half = int(hour >= 12)
    return Whole("clock", (Fraction(hour % 12 * 60 + minute), None if half is None else Fraction(half)))


def _clock_of(text: str) -> Whole | None:
    """The time that ``14:45`` is if it is one."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts) or len(parts[1].strip()) != 2:
        return None
    hour, minute = map(int, parts)
    return _at(hour, minute, None) if hour < 24 and minute < 60 else None


def _measure(text: str) -> Whole | None:
    match = _MEASURES.fullmatch(text)
    if match is None:
        return None
    found = [(Fraction(n), _symbol(u)) for n, u in zip(match.groups()[::2], match.groups()[1::2], strict=True) if n]
    for kind, sizes in _SIZES.items():
        if all(unit in sizes for _, unit in found):
            order = [sizes[unit] for _, unit in found if unit is not None]
            if order == sorted(set(order), reverse=True):
                return Whole(kind, (sum((n * size for (n, _), size in zip(found, order, strict=True)), Fraction(0)),))
    return None


def _symbol(word: str) -> str | None:
    """The symbol of a unit in words."""
    if word in _SHORT:
        return _SHORT[word]
    found = quantity(f"1 {word}")
    return found.unit[0][0] if found is not None and len(found.unit) == 1 else None


def _date(text: str) -> Whole | None:
    text = _WEEKDAY.sub("", text, count=1)
    for pattern in _DATES:
        match = pattern.fullmatch(text)
        if match is None:
            continue
        named = match.groupdict()
        name = (named.get("month") or "").lower()
        month = _MONTH_OF.get(name.translate(_ACCENTS)) if name else int(named["m"])
        day, year = int(named["day"]), named.get("year")
        if month is not None and month > 12 >= day:
            month, day = day, month
        if month is None or not (1 <= month <= 12 and 1 <= day <= 31):
            return None
        return Whole("date", (Fraction(int(year)) if year else None, Fraction(month), Fraction(day)))
    return None


_ACCENTS = str.maketrans("áéíóúâêôãõçäöüèûù", "aeiouaeoaocaoueuu")


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
