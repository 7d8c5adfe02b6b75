r"""Compares sets of real numbers: ``x > 3``, ``(3, \infty)``, ``x < 1 \text{ or } x > 4``, ``x \ne 5``."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from lightning_serl.answers.math.expression import evaluate

_LONGEST = 200
_EQUAL = Decimal(10) ** -30
_MARK = re.compile(r"[<>]|\\(?:le|ge|ne|in|cup|setminus|mid)(?![a-zA-Z])")
_RELATION = re.compile(r"(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z]))")
_OR = re.compile(
    r"\s*(?:\\text\s*\{\s*,?\s*or\s*\}|(?<![a-zA-Z\\]),?\s*or(?![a-zA-Z])|\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z])|\\cup(?![a-zA-Z]))\s*"
)
_AND = re.compile(
    r"\s*(?:\\text\s*\{\s*,?\s*and\s*\}|(?<![a-zA-Z\\]),?\s*and(?![a-zA-Z])|\\land(?![a-zA-Z])|\\wedge(?![a-zA-Z]))\s*"
)
_IN = re.compile(r"^\s*([a-zA-Z])\s*\\in(?![a-zA-Z])\s*")
_BUILT = re.compile(r"^\\\{\s*([a-zA-Z])\s*(?:\\in\s*(?:\\mathbb\s*\{?R\}?|\\R)\s*)?(?:\\mid|\||:)\s*(.*)\\\}$")
_WITHOUT = re.compile(
    r"^(?:\\mathbb\s*\{?\s*R\s*\}?|\\R|R|\(\s*-\\infty\s*,\s*\\infty\s*\))\s*(?:\\setminus|\\backslash|-)\s*\\?\{(.*?)\\?\}$"
)
_ALL = re.compile(r"^(?:\\mathbb\s*\{?\s*R\s*\}?|\\R)$")
_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\[,;:! ]|\\q?quad(?![a-zA-Z])|\$")
_NAME = re.compile(r"\s*([a-zA-Z](?:_\{?\w+\}?)?|\\theta|\\alpha|\\lambda)\s*")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}
_INFINITE = Decimal("Infinity")


class _Piece(NamedTuple):
    """An interval and which of its ends belong to it."""

    low: Decimal
    low_closed: bool
    high: Decimal
    high_closed: bool


_LINE = _Piece(-_INFINITE, False, _INFINITE, False)


def same_region(a: str, b: str) -> bool | None:
    """Whether two answers are the same set of real numbers; ``None`` unless one has a relation and both are such sets.

    A condition on a name and a bare interval are equal if the interval holds what the condition allows.
    """
    marked = [_MARK.search(x) is not None for x in (a, b)]
    if not any(marked):
        return None
    left, right = region(a), region(b)
    if left is None or right is None:
        known, other = (left, b) if right is None else (right, a)
        # A condition is no single number.
        return False if known is not None and _constant(other.rpartition("=")[2]) is not None else None
    if left[0] and right[0] and left[0] != right[0]:
        return None
    return _same_pieces(left[1], right[1])


@lru_cache(maxsize=4096)
def region(text: str) -> tuple[str, tuple[_Piece, ...]] | None:
    """The name in a condition, empty for a bare set, and the sorted intervals where it holds; ``None`` otherwise."""
    if len(text) > _LONGEST:
        return None
    text = _SIZE.sub(" ", text).strip(" .")
    built = _BUILT.match(text)
    if built is not None:
        text = built[2]
    found = _union(text)
    return None if found is None else (found[0], _merged(found[1]))


def _union(text: str) -> tuple[str, list[_Piece]] | None:
    named = _IN.match(text)
    name = named[1] if named is not None else ""
    if named is not None:
        text = text[named.end() :]
    pieces: list[_Piece] = []
    for part in _OR.split(text):
        found = _intersection(part.strip())
        if found is None or (name and found[0] and found[0] != name):
            return None
        name = name or found[0]
        pieces += found[1]
    return name, pieces


def _intersection(text: str) -> tuple[str, list[_Piece]] | None:
    name, pieces = "", [_LINE]
    for part in _AND.split(text):
        found = _simple(part.strip())
        if found is None or (name and found[0] and found[0] != name):
            return None
        name = name or found[0]
        pieces = [c for p in pieces for q in found[1] if (c := _common(p, q)) is not None]
    return name, pieces


def _simple(text: str) -> tuple[str, list[_Piece]] | None:
    """One interval, one chain of relations, or the line without some points."""
    if not text:
        return None
    named = _IN.match(text)
    if named is not None:
        rest = _simple(text[named.end() :].strip())
        return None if rest is None else (named[1], rest[1])
    if _ALL.match(text):
        return "", [_LINE]
    without = _WITHOUT.match(text)
    if without is not None:
        return _except("", without[1])
    if text[0] in "([" and text[-1] in ")]" and text.count(",") == 1:
        low, high = (_constant(end) for end in text[1:-1].split(","))
        if low is None or high is None or low >= high:
            return None
        return "", [_Piece(low, text[0] == "[", high, text[-1] == "]")]
    return _chain(text)


def _chain(text: str) -> tuple[str, list[_Piece]] | None:
    sides = _RELATION.split(text)
    if len(sides) not in (3, 5):
        return None
    terms, relations = sides[::2], sides[1::2]
    at = [i for i, term in enumerate(terms) if _NAME.fullmatch(term) and _constant(term) is None]
    if len(at) != 1 or (len(terms) == 3 and at[0] != 1):
        return None
    name = terms[at[0]].strip()
    if "\\ne" in relations:
        if len(terms) != 2:
            return None
        return _except(name, terms[1 - at[0]])
    piece: _Piece | None = _LINE
    for i, relation in enumerate(relations):
        left = at[0] == i  # the name stands before this relation
        value = _constant(terms[i + 1] if left else terms[i])
        if value is None or piece is None:
            return None
        sign = relation if left else _FLIPPED[relation]
        closed = len(sign) > 1
        below = sign in ("<", "\\le")
        piece = _common(
            piece, _Piece(-_INFINITE, False, value, closed) if below else _Piece(value, closed, _INFINITE, False)
        )
    return None if piece is None else (name, [piece])


def _except(name: str, points: str) -> tuple[str, list[_Piece]] | None:
    """The line without the listed points."""
    values = [_constant(point) for point in points.split(",")]
    if any(value is None for value in values):
        return None
    ends = [-_INFINITE, *sorted({value for value in values if value is not None}), _INFINITE]
    return name, [_Piece(low, False, high, False) for low, high in itertools.pairwise(ends)]


def _common(a: _Piece, b: _Piece) -> _Piece | None:
    """The part that two intervals share."""
    low, low_open = max((a.low, not a.low_closed), (b.low, not b.low_closed))
    high, high_closed = min((a.high, a.high_closed), (b.high, b.high_closed))
    if low > high or (low == high and (low_open or not high_closed)):
        return None
    return _Piece(low, not low_open, high, high_closed)


def _merged(pieces: list[_Piece]) -> tuple[_Piece, ...]:
    """The pieces in order, those that touch joined."""
    merged: list[_Piece] = []
    for piece in sorted(pieces, key=lambda p: (p.low, not p.low_closed)):
        last = merged[-1] if merged else None
        if last is not None and (
            piece.low < last.high or (piece.low == last.high and (piece.low_closed or last.high_closed))
        ):
            high, closed = max((last.high, last.high_closed), (piece.high, piece.high_closed))
            merged[-1] = last._replace(high=high, high_closed=closed)
        else:
            merged.append(piece)
    return tuple(merged)


def _same_pieces(a: tuple[_Piece, ...], b: tuple[_Piece, ...]) -> bool:
    if len(a) != len(b):
        return False
    return all(
        (p.low_closed, p.high_closed) == (q.low_closed, q.high_closed) and _near(p.low, q.low) and _near(p.high, q.high)
        for p, q in zip(a, b, strict=True)
    )


def _near(a: Decimal, b: Decimal) -> bool:
    if a == b:
        return True
    return a.is_finite() and b.is_finite() and abs(a - b) <= _EQUAL * max(abs(a), abs(b))


def _constant(text: str) -> Decimal | None:
    r"""The value of a constant or of ``\infty``."""
    bare = text.replace(" ", "").replace("{", "").replace("}", "")
    if bare in ("\\infty", "+\\infty", "infty", "oo"):
        return _INFINITE
    if bare == "-\\infty":
        return -_INFINITE
    found = evaluate(text.strip(), 0) if text.strip() else None
    return None if found is None or found[1] or not isinstance(found[0], Decimal) else found[0]
