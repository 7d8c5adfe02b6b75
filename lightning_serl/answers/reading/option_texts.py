"""Finds the options of a multiple-choice problem that a phrase names by their own texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from lightning_serl.answers.math.decide import decide
from lightning_serl.answers.math.normal_form import ascii_digits, normal_form
from lightning_serl.answers.reading.letters import LETTERS, rejected_left, rejected_right

_LONGEST = 400
_ARTICLE = re.compile(
    r"(?:the|an?|el|la|los|las|un|una|le|les|une|der|die|das|ein|eine|il|lo|o|os|as|um|uma|het|de|een)\s+|(?:l|un)'(?=\w)"
)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|ce|boxed|fbox)\s*\{([^{}]*)\}")
_TYPESETTING = re.compile(r"\\[,;:! ]|\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|[*`$\"“”„«»「」『』]|_{2,}")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "‐": "-", "‑": "-", "–": "-", "—": "-", "−": "-"})
_EDGES = " \t\n.,;:!?。，、！？"
_WORD = "a-z0-9à-ɏ"
_MAY_BE_VALUE = re.compile(r"[\d\\^+=/]")


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """A short text without typesetting, case, articles in front and punctuation at its ends."""
    bare = _TYPESETTING.sub(" ", _WRAPPED.sub(r" \1 ", text[: 2 * _LONGEST])).translate(_QUOTES)
    bare = " ".join(unicodedata.normalize("NFKC", bare).casefold().split()).strip(_EDGES)
    return _ARTICLE.sub("", bare, count=1) if _ARTICLE.match(bare) else bare


def option_of(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the one option that equals an answer in words or in value; ``None`` if none or several do."""
    if len(answer) > _LONGEST:
        return None
    words = plain(answer)
    equal = [letter for letter, option in zip(LETTERS, options, strict=False) if words and plain(option) == words]
    if not equal and _MAY_BE_VALUE.search(answer):
        equal = [letter for letter, option in zip(LETTERS, options, strict=False) if _same_value(answer, option)]
    return equal[0] if len(equal) == 1 else None


def _same_value(answer: str, option: str) -> bool:
    """Whether two numbers or formulas are equal by rule."""
    if len(option) > _LONGEST:
        return False
    return decide(normal_form(ascii_digits(answer)), normal_form(ascii_digits(option))) is True


def options_in(statement: str, options: Sequence[str]) -> list[str]:
    """The letters of the options whose texts occur in a statement as whole words and are not rejected there."""
    text = plain(statement)
    spans: list[tuple[int, int, str]] = []
    for letter, option in zip(LETTERS, options, strict=False):
        words = plain(option)
        if words and len(words) <= len(text):
            spans += [(*m.span(), letter) for m in _pattern(words).finditer(text)]
    found: list[str] = []
    for start, end, letter in spans:
        # "iron" inside of "iron oxide" is no mention of iron
        inside = any(s <= start and end <= e and (s, e) != (start, end) for s, e, _ in spans)
        if not inside and not rejected_left(text[:start]) and not rejected_right(text[end:]):
            found.append(letter)
    return list(dict.fromkeys(found))


@lru_cache(maxsize=4096)
def _pattern(words: str) -> re.Pattern[str]:
    """The words between borders of words; in scripts without spaces a single character stands alone or after "is"."""
    left = rf"(?<![{_WORD}][.,'-])(?<![{_WORD}-])" if words[0].isascii() else ""
    right = rf"(?![{_WORD}^]|[.,'-][{_WORD}])" if words[-1].isascii() else ""
    one = re.escape(words)
    if len(words) == 1 and not words.isascii():
        return re.compile(rf"(?:(?<=^)|(?<=[是为為はが选選叫:：,，、。 (]))(?:{one})|{one}(?=$|[。.,，、;；)\s])")
    return re.compile(left + one + right)
