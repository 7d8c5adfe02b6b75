"""Reads numbers in words: cardinals below a trillion, negatives, fractions, decimals, percentages.

English, Spanish, French, German, Italian and Portuguese, with or without hyphens and accents, and the numerals of
Chinese, Japanese and Korean.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import NamedTuple

from lightning_serl.answers.reading.counting import Language, languages
from lightning_serl.answers.reading.numerals import numerals

_MOST_WORDS = 16
_LONGEST = 200
# "half an hour", "a third of the cake"
_MAY_FOLLOW = ("", " ", "-", "\u00a0")
_ARTICLE = re.compile(r"(?i)^(?:an?|of|of an?|of the|de|d'|di|von|da|do)\b\s*")
_WORD = re.compile(r"[^\W\d_]+")
_GAP = re.compile(r"(?:[ \t\u00a0]+|\s?[-\u2010-\u2014]\s?)")


class Spelled(NamedTuple):
    """A number in words and where it stands."""

    start: int
    stop: int
    value: Fraction
    percent: bool
    word: str  # the words, folded


def digits(text: str) -> str | None:
    r"""An answer that begins with a number in words, with digits in its place; ``None`` if it does not.

    Example:
        >>> digits("Two and a half hours"), digits("three quarters"), digits("x = 2")
        ('2.5 hours', '\\frac{3}{4}', None)
    """
    if len(text) > _LONGEST or not text or text[0].isdigit():
        return None
    text = text.strip()
    counted = numerals(text)
    if counted is not None:
        return counted
    first = _WORD.match(text)
    if first is None or not _begins(_fold(first.group())):
        return None
    found = next(spelled(text), None)
    if found is None or found.start or text[found.stop : found.stop + 1] not in _MAY_FOLLOW:
        return None
    rest = _ARTICLE.sub("", text[found.stop :].strip(" -"), count=1) if found.stop < len(text) else ""
    return f"{_spelling(found, bool(rest))} {rest}".strip()


def spelled(text: str) -> Iterator[Spelled]:
    """All numbers in words in a text, from left to right; the longest at each place."""
    words = list(_WORD.finditer(text))
    folded = [_fold(word.group()) for word in words]
    at = 0
    while at < len(words):
        found = None
        if _begins(folded[at]):
            run = _run(text, words, folded, at)
            found = next((f for size in range(run, 0, -1) if (f := _value(tuple(folded[at : at + size])))), None)
        if found is None:
            at += 1
            continue
        value, percent, size = found
        yield Spelled(words[at].start(), words[at + size - 1].end(), value, percent, " ".join(folded[at : at + size]))
        at += size


def spelling(found: Spelled) -> str:
    """The number in digits."""
    return _spelling(found, False)


def _spelling(found: Spelled, measured: bool) -> str:
    """The number in digits; with a unit a fraction is written as a decimal where that ends."""
    value = found.value
    if value.denominator == 1:
        text = str(value.numerator)
    elif 10**6 % value.denominator == 0 and (measured or abs(value) > 1 or found.percent):
        text = f"{float(value):.6f}".rstrip("0")
    else:
        sign = "-" if value < 0 else ""
        text = rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    return text + r"\%" if found.percent else text


def _run(text: str, words: Sequence[re.Match[str]], folded: Sequence[str], at: int) -> int:
    """How many words from one on could belong to one number."""
    size = 1
    while at + size < len(words) and size < _MOST_WORDS and _begins(folded[at + size]):
        if _GAP.fullmatch(text, words[at + size - 1].end(), words[at + size].start()) is None:
            break
        size += 1
    return size


@lru_cache(maxsize=4096)
def _value(words: tuple[str, ...]) -> tuple[Fraction, bool, int] | None:
    """The value of words that are one number as a whole, whether it is a percentage, and how many words it has."""
    for language in languages():
        value = _in_language(words, language)
        if value is not None:
            return *value, len(words)
    return None


def _in_language(words: tuple[str, ...], language: Language) -> tuple[Fraction, bool] | None:
    percent = next((p for p in language.percent if words[-len(p) :] == p), ())
    rest = words[: len(words) - len(percent)]
    sign = 1
    if rest and rest[0] in language.minus:
        sign, rest = -1, rest[1:]
    value = _positive(rest, language) if rest else None
    return None if value is None else (sign * value, bool(percent))


def _positive(words: tuple[str, ...], language: Language) -> Fraction | None:
    whole = _whole(words, language)
    if whole is not None:
        return Fraction(whole)
    if len(words) == 1 and words[0] in language.fixed:
        return language.fixed[words[0]]
    for read in (_fraction, _with_fraction, _decimal, _dozens):
        value = read(words, language)
        if value is not None:
            return value
    return None


def _whole(words: tuple[str, ...], language: Language) -> int | None:
    """A cardinal, its groups below a thousand before their scales."""
    if not words or words[0] in language.joins or words[-1] in language.joins:
        return None
    total, group, last = 0, [], 10**15
    for word in words:
        scale = language.scales.get(word)
        if scale is None:
            group.append(word)
            continue
        if scale >= last:
            return None
        count = 1 if not group or (group[0] in language.articles and len(group) == 1) else _below(group, language)
        if count is None:
            return None
        total, group, last = total + count * scale, [], scale
    if not group:
        return total
    rest = _below(group, language)
    if rest is None:
        return None
    return total + rest


def _below(words: Sequence[str], language: Language) -> int | None:
    """A number below a thousand."""
    words = [word for word in words if word not in language.joins]
    known = language.counted.get(" ".join(words))
    if known is not None or not words:
        return known
    if len(words) == 1 and language.glued in words[0] and language.glued:
        head, _, tail = words[0].partition(language.glued)
        tail = tail.removeprefix("und")
    elif words[0] in language.hundreds:
        rest = language.counted.get(" ".join(words[1:])) if words[1:] else 0
        return None if rest is None else language.hundreds[words[0]] + rest
    else:
        at = next((i for i, word in enumerate(words[:2]) if word in language.hundred), None)
        if at is None:
            return None
        head, tail = " ".join(words[:at]), " ".join(words[at + 1 :])
    count = 1 if not head or head in language.articles else language.counted.get(head)
    rest = language.counted.get(tail) if tail else 0
    return None if count is None or rest is None or not 0 < count < 10 else 100 * count + rest


def _fraction(words: tuple[str, ...], language: Language) -> Fraction | None:
    """``two thirds``, ``a half``, ``half``, ``half a dozen``."""
    last = words[-1]
    if words[0] in language.half and len(words) > 1:
        after = words[2:] if words[1] in language.articles else words[1:]
        if len(after) == 1 and after[0] in language.dozen:
            return Fraction(6)
        if len(after) == 1 and after[0] in language.scales:
            return Fraction(language.scales[after[0]], 2)
        return None
    if last in language.half:
        top = 1 if not words[:-1] or words[:-1] in _singles(language) else _whole(words[:-1], language)
        return None if top is None else Fraction(top, 2)
    bottom = language.parts.get(last)
    if bottom is None or len(words) == 1:
        return None
    top = 1 if words[:-1] in _singles(language) else _whole(words[:-1], language)
    return None if top is None or top >= 1000 else Fraction(top, bottom)


def _singles(language: Language) -> frozenset[tuple[str, ...]]:
    return frozenset((article,) for article in language.articles)


def _with_fraction(words: tuple[str, ...], language: Language) -> Fraction | None:
    """``two and a half``."""
    for at in range(1, len(words) - 1):
        if words[at] in language.joins:
            whole, part = _whole(words[:at], language), _fraction(words[at + 1 :], language)
            if whole is not None and part is not None and part < 1:
                return whole + part
    return None


def _decimal(words: tuple[str, ...], language: Language) -> Fraction | None:
    """``three point one four``."""
    at = next((i for i, word in enumerate(words) if word in language.point), None)
    if at is None or at == len(words) - 1:
        return None
    whole = _whole(words[:at], language) if at else 0
    each = [language.counted.get(word) for word in words[at + 1 :]]
    if whole is None or any(d is None for d in each):
        return None
    if any(d is not None and d > 9 for d in each) and len(each) > 1:
        return None
    decimals = "".join(map(str, each))
    return whole + Fraction(int(decimals), 10 ** len(decimals))


def _dozens(words: tuple[str, ...], language: Language) -> Fraction | None:
    if words[-1] not in language.dozen:
        return None
    count = 1 if words[:-1] in _singles(language) or not words[:-1] else _whole(words[:-1], language)
    return None if count is None else Fraction(12 * count)


def _fold(word: str) -> str:
    """The word in lower case without accents."""
    word = word.lower()
    if word.isascii():
        return word
    return "".join(c for c in unicodedata.normalize("NFD", word) if not "\u0300" <= c <= "\u036f")


def _begins(word: str) -> bool:
    """Whether a folded word occurs in a number."""
    return word in _vocabulary() or (len(word) > len("cento") and ("hundert" in word or "cento" in word))


@cache
def _vocabulary() -> frozenset[str]:
    """Every word that occurs in a number, but for compounds of hundreds."""
    known: set[str] = set()
    for language in languages():
        known.update(word for phrase in language.counted for word in phrase.split())
        known.update(*(t for t in (language.hundreds, language.hundred, language.fixed, language.scales)))
        known.update(language.parts, language.half, language.dozen, language.joins)
        known.update(language.articles, language.minus, language.point)
        known.update(word for phrase in language.percent for word in phrase)
        known.add(language.glued)
    return frozenset(known)
