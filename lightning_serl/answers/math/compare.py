r"""Compares answers by their values at fixed points, without a computer algebra system.

Two expressions that differ at one point are different. Equality is claimed only where it is safe: for numbers, roots
and logarithms that agree to forty digits, and for quotients of polynomials that do so at two points with random digits.
Lists, tuples, intervals, matrices and equations are compared part by part. An answer with several readings (``20\%``
is 20 or 0.2, ``9:24`` a ratio or a time) differs from another if all pairs of readings do, and is never claimed equal.
Spellings outside the small grammar, and long ones, are undecided. All steps are linear in a text of bounded length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal, DecimalException, localcontext
from itertools import product

from lightning_serl.answers.math.expression import CONTEXT, POSITIVE_POINTS, Value, evaluate, exact_value
from lightning_serl.answers.math.structure import PRODUCT, Structure, is_interval, structure

_LONGEST = 300
_POINTS = POSITIVE_POINTS
_EQUATION_POINTS = (0, 1, POSITIVE_POINTS, POSITIVE_POINTS + 1)
# Further points, where variables have any sign.
_MORE_POINTS = range(_POINTS, _POINTS + 6)
_EQUAL = Decimal(10) ** -40
# math-verify compares decimals at six places; values closer than this are left to it.
_NEAR = 2e-6
_RELATIVE = 1e-9
# Small values differ if their leading digits do; still smaller ones may be zero up to rounding.
_SMALL, _LEADING = 2e-3, 1e-3
_NOTHING, _COMPLEX_NOTHING = 1e-45, 1e-12
_COMPLEX_NEAR = 1e-11
# Commands that bind a variable or name something other than a value; a variable that is not bound.
_BINDER = re.compile(r"\\(?:[io]*int|sum|prod|lim|max|min|sup|inf|gcd|lcm|text|math[a-z]*|operatorname|equiv|pmod|mod)")
_FREE = re.compile(r"(?<![\\a-zA-Z])[a-cf-hj-zA-Z](?![a-zA-Z])")


def compare_values(a: str, b: str) -> bool | None:
    r"""Whether two normal forms are equal, ``None`` where values at fixed points do not tell."""
    if len(a) > _LONGEST or len(b) > _LONGEST:
        return None
    left, right = structure(a), structure(b)
    return None if left is None or right is None else _same(left, right)


def is_understood(form: str) -> bool:
    """Whether all values in a normal form can be computed."""
    found = structure(form) if len(form) <= _LONGEST else None
    return found is not None and _is_computable(found)


def _is_computable(found: Structure) -> bool:
    if found.kind == "value":
        return all(evaluate(spelling, 0) is not None for spelling in found.spellings)
    return bool(found.parts) and all(_is_computable(part) for part in found.parts)


def _same(a: Structure, b: Structure) -> bool | None:
    kinds = {a.kind, b.kind}
    if kinds == {"value"}:
        return _values(a, b)
    if "equation" in kinds:
        if len(kinds) == 1:
            return _equations(a, b)
        return _same(*(x.parts[0] if x.kind == "equation" else x for x in (a, b)))
    if "text" in kinds:
        return False  # equal to nothing but itself
    if "union" in kinds:
        return _unions(a, b)
    if "relation" in kinds or "matrix" in kinds:
        if "value" in kinds:
            return False if _is_constant(a if a.kind == "value" else b) else None
        return _ordered(a.parts, b.parts) if kinds == {"matrix"} else None
    return _lists(a, b)


def _equations(a: Structure, b: Structure) -> bool | None:
    """The verdict on two equations that give the value of a name, and on multiples; the rest takes algebra."""
    right = a.parts[0], b.parts[0]
    if any(side.kind != "value" for side in right):
        return None
    if a.name and b.name and all(_is_constant(side) for side in right):
        return _values(*right) if a.name.lower() == b.name.lower() else False
    if a.spellings and b.spellings:
        verdict = _proportional(a.spellings, b.spellings)
        if verdict or not (a.name or b.name):
            return verdict
    if not a.name or not b.name:
        given, other = (a, b) if a.name else (b, a)
        return False if given.name and other.spellings and not _solves(given, other.spellings[0]) else None
    if a.name != b.name or any(a.name in spelling for side in right for spelling in side.spellings):
        return None
    return _values(*right)


def _proportional(a: Sequence[str], b: Sequence[str]) -> bool | None:
    """Whether the differences of the sides of two equations are proportional.

    Equations in one unknown may have the same solutions without that: ``None`` for those.
    """
    found = [[evaluate(PRODUCT.sub("*", x), point) for point in _EQUATION_POINTS] for x in (*a, *b)]
    if len(found) != 2 or any(value is None for side in found for value in side):
        return None
    variables = [side[0][1] for side in found if side[0] is not None]
    try:
        values = [[complex(value[0]) for value in side if value is not None] for side in found]
    except OverflowError:
        return None
    (p, *others), (q, *others_) = values
    pairs = [(p * y, q * x) for x, y in zip(others, others_, strict=True)]
    apart = any(abs(x - y) > _RELATIVE * max(abs(x), abs(y)) for x, y in pairs)
    if not apart and variables[0] == variables[1] and p and q and variables[0]:
        return True
    return False if apart and min(map(len, variables)) > 1 else None


def _solves(given: Structure, difference: str) -> bool:
    """Whether the value that an equation gives its name could be a root of this difference."""
    if not _is_constant(given.parts[0]) or len(given.parts[0].spellings) != 1:
        return True
    name = rf"(?<![\\a-zA-Z]){re.escape(given.name)}(?![a-zA-Z_])"
    value = f"(({given.parts[0].spellings[0]}))"  # doubled, since 2(3) might be a mixed number
    found = evaluate(re.sub(name, lambda _: value, PRODUCT.sub("*", difference)), 0)
    return found is None or not _apart(found[0], Decimal(0))


def _lists(a: Structure, b: Structure) -> bool | None:
    if a.kind == "value" or b.kind == "value":
        single, items = (a, b.parts) if a.kind == "value" else (b, a.parts)
        # A set that repeats one value is that value.
        return False if any(_same(item, single) is False for item in items) else None
    sets = [x.brackets in ("", "{}") for x in (a, b)]
    if not any(sets):
        verdict = _ordered(a.parts, b.parts)
        return False if verdict and a.brackets != b.brackets and len(a.parts) == 2 else verdict
    table = [[_same(x, y) for y in b.parts] for x in a.parts]
    for lines in (table, list(zip(*table, strict=True))):
        if any(all(cell is False for cell in line) for line in lines):
            return False
    # Each member has one partner, and one only.
    paired = all(sorted(map(str, line)).count("True") == 1 for line in (*table, *zip(*table, strict=True)))
    return True if all(sets) and paired and all(cell is not None for line in table for cell in line) else None


def _unions(a: Structure, b: Structure) -> bool | None:
    """Unions of intervals: different if their outer ends are, equal if their intervals are pairwise equal."""
    sides = [x.parts if x.kind == "union" else (x,) if is_interval(x) else None for x in (a, b)]
    if sides[0] is None or sides[1] is None:
        return False if "value" in (a.kind, b.kind) else None
    ends = [(_hull(side, 0), _hull(side, 1)) for side in sides if side is not None]
    for x, y in zip(*ends, strict=True):
        if x is not None and y is not None and x != y and _apart(x, y):
            return False
    if len(sides[0]) != len(sides[1]):
        return None
    same = [_ordered(x.parts, y.parts) and x.brackets == y.brackets for x, y in zip(*sides, strict=True)]
    return True if all(same) else None


def _hull(intervals: Sequence[Structure], end: int) -> Decimal | None:
    """The least left or the greatest right end of some intervals, ``None`` if one of them is no real number."""
    values: list[Decimal] = []
    for interval in intervals:
        if "infty" in "".join(interval.parts[end].spellings):
            return Decimal("Infinity" if end else "-Infinity")
        found = [evaluate(spelling, 0) for spelling in interval.parts[end].spellings[:1]]
        if not found or found[0] is None or found[0][1] or isinstance(found[0][0], complex):
            return None
        values.append(found[0][0])
    return max(values) if end else min(values)


def _ordered(a: Sequence[Structure], b: Sequence[Structure]) -> bool | None:
    """The verdict on two sequences, compared member by member."""
    if len(a) != len(b):
        return False
    verdicts = [_same(x, y) for x, y in zip(a, b, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def _is_constant(a: Structure) -> bool:
    """Whether every reading of a value is a number."""
    return all(reading is not None and not reading[1] for reading in (evaluate(s, 0) for s in a.spellings))


def _values(a: Structure, b: Structure) -> bool | None:
    if set(a.spellings) == set(b.spellings):
        return True
    if a.name and b.name:
        return False  # different digits or bases
    exact = [exact_value(x.spellings[0]) if len(x.spellings) == 1 else None for x in (a, b)]
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    apart = True
    for x, y in product(a.spellings, b.spellings):
        left, right = evaluate(x, 0), evaluate(y, 0)
        if left is None or right is None:
            known, other = (left, y) if right is None else (right, x)
            return False if known is not None and not known[1] and _is_open(other) else None
        apart = apart and _apart(left[0], right[0])
        if not apart:
            break
    if apart:
        return False
    if len(a.spellings) != 1 or len(b.spellings) != 1:
        return None
    pair = a.spellings[0], b.spellings[0]
    return True if _agree(*pair) or _agree_where_real(*pair) else None


def _is_open(text: str) -> bool:
    """Whether a spelling that cannot be computed depends on a variable, so that its value is no number."""
    return _BINDER.search(text) is None and _FREE.search(text) is not None


def _apart(x: Value, y: Value) -> bool:
    """Whether two values are farther apart than rounding explains."""
    try:
        if isinstance(x, complex) or isinstance(y, complex):
            x, y = complex(x), complex(y)
            distance, size = abs(x - y), max(abs(x), abs(y))
            if _COMPLEX_NOTHING < size < _SMALL:
                return distance > _LEADING * size
            return math.isfinite(size) and distance > max(_NEAR, _RELATIVE * size)
        with localcontext(CONTEXT):
            size_ = max(abs(x), abs(y))
            if _NOTHING < size_ < _SMALL:
                return abs(x - y) > Decimal(_LEADING) * size_
            return abs(x - y) > max(Decimal(_NEAR), Decimal(_RELATIVE) * size_)
    except (OverflowError, DecimalException):
        return False


def _agree(x: str, y: str) -> bool:
    """Whether two spellings agree to forty digits at every point and are of a kind for which that proves equality."""
    for point in range(_POINTS):
        left, right = evaluate(x, point), evaluate(y, point)
        if left is None or right is None or not (left[2] and right[2]):
            return False
        p, q = left[0], right[0]
        if isinstance(p, complex) or isinstance(q, complex):
            return False
        with localcontext(CONTEXT):
            if p != q and abs(p - q) > _EQUAL * max(abs(p), abs(q)):
                return False
        if not left[1] and not right[1]:
            break
    return True


def _agree_where_real(x: str, y: str) -> bool:
    """Whether two formulas with variables agree at many points of any sign, or neither is real there."""
    real = 0
    for point in (*range(_POINTS), *_MORE_POINTS):
        left, right = evaluate(x, point), evaluate(y, point)
        if left is None or right is None or left[1] != right[1] or not left[1]:
            return False
        p, q = complex(left[0]), complex(right[0])
        size = max(abs(p), abs(q), 1.0)
        if abs(p - q) <= _COMPLEX_NEAR * size:
            real += 1
        elif min(abs(p.imag), abs(q.imag)) <= _COMPLEX_NEAR * size:
            return False
    return real >= _POINTS
