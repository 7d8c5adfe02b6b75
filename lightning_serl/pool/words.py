"""Splits text of any script into words: the tokens for ROUGE-L, the number of words, the share of distinct n-grams."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ASCII_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_APOSTROPHES = "'\u2019"

# Scripts written without spaces between words: there each character counts as a word.
_UNSPACED = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "YI SYLLABLE", "THAI", "LAO"),
    *("KHMER", "MYANMAR", "TAI THAM", "TAI LE", "NEW TAI LUE", "JAVANESE", "BALINESE"),
)
# Letters of Latin text that rouge_score drops: accented ones, ordinals, and the mathematical letters below.
_LATIN = ("LATIN", "FULLWIDTH LATIN", "MODIFIER LETTER", "FEMININE ORDINAL", "MASCULINE ORDINAL", "MICRO SIGN")
_LETTERLIKE = (range(0x2100, 0x2150), range(0x1D400, 0x1D800))
_JOINERS = "\u200c\u200d"

_SEPARATOR, _LATIN_LETTER, _WORD, _UNIT, _MARK = range(5)


@cache
def _kind(char: str) -> int:
    """The effect of a character outside ASCII on the word it is in."""
    if char in _JOINERS:
        return _MARK
    category, name = unicodedata.category(char), unicodedata.name(char, "")
    if category[0] == "M":
        return _MARK
    if category[0] != "L" and category not in ("Nd", "Nl"):
        return _SEPARATOR
    if name.startswith(_LATIN) or any(ord(char) in block for block in _LETTERLIKE):
        return _LATIN_LETTER
    if category == "Nd":
        return _WORD
    if name.startswith(_UNSPACED):
        return _UNIT
    return _WORD if category[0] == "L" else _SEPARATOR


def _is_symbol(token: str) -> bool:
    """Whether a word is one Greek letter, with or without an accent or arrow on it."""
    letters = [char for char in token if _kind(char) != _MARK]
    return len(letters) == 1 and unicodedata.name(letters[0], "").startswith("GREEK")


def tokenise(text: str) -> list[str]:
    """The tokens that ROUGE-L compares.

    Latin text gives exactly the tokens of the ``rouge_score`` package (runs of ASCII letters and digits, lower case).
    Letters of other scripts, which that package drops, form words here too, or single characters where the script has
    no spaces. A single Greek letter is a mathematical symbol, not a word, and is dropped as in ``rouge_score``.
    """
    text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(text)
    tokens: list[str] = []
    run, run_kind = "", _SEPARATOR
    for char in text + " ":
        kind = _LATIN_LETTER if char in _ASCII_ALNUM else _SEPARATOR if char.isascii() else _kind(char)
        if kind == _LATIN_LETTER and not char.isascii():
            kind = _SEPARATOR
        if run and ((kind == _MARK and run_kind != _LATIN_LETTER) or (kind == run_kind != _UNIT)):
            run += char
            continue
        if run:
            tokens.append(run if run_kind == _LATIN_LETTER else unicodedata.normalize("NFKC", run))
        if kind in (_SEPARATOR, _MARK):
            run, run_kind = "", _SEPARATOR
        else:
            run, run_kind = char, kind
    return [token for token in tokens if token.isascii() or not _is_symbol(token)]


def count_words(text: str) -> int:
    r"""The number of words; parts of formulas (``\frac``, ``3``) and characters of scripts without spaces count too."""
    count, inside = 0, False
    for char in text:
        kind = _WORD if char.isascii() and char.isalnum() else _SEPARATOR if char.isascii() else _kind(char)
        if kind == _UNIT:
            count, inside = count + 1, False
        elif kind in (_WORD, _LATIN_LETTER):
            count, inside = count + (not inside), True
        elif not (kind == _MARK or (inside and char in _APOSTROPHES)):
            inside = False
    return count


def unique_ngrams(texts: Iterable[str], n: int = 4) -> float:
    """The share of distinct n-grams among all n-grams of some texts (distinct-n, Li et al. 2016); 1 if there is none.

    Words are those of :func:`tokenise`; no n-gram spans two texts.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = tokenise(text)
        for start in range(len(words) - n + 1):
            seen.add(tuple(words[start : start + n]))
            total += 1
    return len(seen) / total if total else 1.0
