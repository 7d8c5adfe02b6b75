r"""Answers compared by their values at fixed points, without a computer algebra system.

Two expressions that differ at one point are different. The reverse is claimed only where it is safe: numbers, roots
and logarithms that agree to forty digits, and quotients of polynomials that do so at two points with random digits.
Lists, tuples, intervals, matrices and equations are compared by their parts. An answer with several readings (``20\%``
is 20 or 0.2, ``9:24`` a ratio or a time) differs from another if all of their readings do, and is never claimed equal.
Whatever the small grammar does not know is left undecided, and so is what might take long: nothing here is worse than
linear in a text of bounded length.
"""

from __future__ import annotations

import cmath
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException, DivisionByZero, InvalidOperation, Overflow, localcontext
from functools import lru_cache
from itertools import product
from typing import Any

_LONGEST = 200
_DEEPEST = 25
_DIGITS = 60
_POINTS = 2
_CONTEXT = Context(prec=_DIGITS, Emax=10**6, Emin=-(10**6), traps=[InvalidOperation, DivisionByZero, Overflow])
_EQUAL = Decimal(10) ** -40
# math-verify compares decimals at six places; whatever is nearer than this is not for us to separate.
_NEAR = 2e-6
_RELATIVE = 1e-9
_MAX_EXPONENT = 100_000
_MAX_FACTORIAL = 170
_PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749446")

Value = Decimal | complex

_TOKEN = re.compile(r"\s*(\\[a-zA-Z]+|\d+(?:\.\d+)?|\.\d+|[a-zA-Z]|[-+*/^(){}\[\]|!_])")
_PRODUCT = re.compile(r"\\(?:cdot|times|ast)(?![a-zA-Z])|[×·⋅∗]")
_QUOTIENT = re.compile(r"\\div(?![a-zA-Z])|÷")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")
_TEXT = re.compile(r"(?<=.)\s*\\(?:text|textrm|textbf|mathrm|mbox)\s*\{[^{}]*\}(?:\s*\^\s*(?:\{\d\}|\d))?$")
_OR = re.compile(r"(?:,?\s*\\text\s*\{\s*(?:and|or)\s*\}|(?<![a-zA-Z]),?\s*(?:and|or)(?![a-zA-Z]))")
_NAMED = re.compile(r"(?<![\\a-zA-Z])(pi|sin|cos|tan|cot|sec|csc|ln|log|exp|theta|alpha|beta)(?![a-zA-Z])")
_ROOT_WORD = re.compile(r"(?<![\\a-zA-Z])sqrt(?=\s*[({\d])")
_UNIT_TAIL = re.compile(r"(?<=[\d})])\s*(?:[cdghlmost]|[a-zA-Z]{2,}[a-zA-Z ./]*)(?:\^\{?[23]\}?)?$")
_MIXED = re.compile(r"(?<![\d.}])(\d+)\s*(\\frac\{\d+\}\{\d+\})")
_RATIO = re.compile(r"(\d+):(\d+)")
_IN_BASE = re.compile(r"(\d{1,30})_(?:\{(\d{1,2})\}|(\d))")
_GROUPED = re.compile(r"\d,\d{3}(?!\d)")
_RELATION = re.compile(r"[<>≤≥≠∈]|\\(?:leq?|geq?|lt|gt|neq?|in|cup|cap|setminus)(?![a-zA-Z])")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}|\\(?:text|mathrm|mbox)(?![a-zA-Z])")
_SAYS = re.compile(r"(?:is|are|=)\s*(-?\d+(?:\.\d+)?)\.?$|^There (?:is|are)\s*(\d+)[^\d]*$")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_NAME = re.compile(r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_(?:\w|\{\w+\}))?")
_OPENING, _CLOSING = "([{", ")]}"
_SYMBOL = re.compile(
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon"
    r"|(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|infty|angle|triangle)"
)
_TRIGONOMETRIC: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
}
_FUNCTIONS = frozenset(_TRIGONOMETRIC) | {"ln", "log", "exp"}


class _Unknown(Exception):
    """The grammar does not know this text, or it has no value."""


class _Complex(Exception):
    """The value is no real number that :mod:`decimal` can compute."""


@dataclass(frozen=True)
class Shape:
    """How an answer is built.

    Attributes:
        kind: ``"value"``, ``"equation"``, ``"list"``, ``"matrix"``, or ``"relation"`` for whatever is no number, such
            as an inequality, a union or a formula cut short.
        parts: The items of a list, the rows of a matrix (lists themselves), or the last side of an equation.
        brackets: Around a list: ``""``, ``"{}"``, ``"()"``, ``"[]"``, ``"(]"`` or ``"[)"``.
        spellings: The readings of a value, or the difference of the sides of an equation that names no value.
        name: What an equation gives the value of: its first side, if that is a single name.
    """

    kind: str
    parts: tuple[Shape, ...] = ()
    brackets: str = ""
    spellings: tuple[str, ...] = ()
    name: str = ""


def compare(a: str, b: str) -> bool | None:
    r"""Whether two answers are equal, as far as values at fixed points can tell.

    Args:
        a: The normal form of an answer.
        b: The normal form of another.

    Example:
        >>> compare(r"\sqrt{8}", r"2\sqrt{2}"), compare("(x+1)^2", "x^2+2x+1"), compare("(1,2)", "(1,3)")
        (True, True, False)
        >>> compare(r"\sin^2 x+\cos^2 x", "1") is None
        True
    """
    if len(a) > _LONGEST or len(b) > _LONGEST:
        return None
    left, right = shape(a), shape(b)
    return None if left is None or right is None else _same(left, right)


def is_understood(form: str) -> bool:
    """Whether all values in a normal form can be computed."""
    found = shape(form) if len(form) <= _LONGEST else None
    return found is not None and _is_computable(found)


def _is_computable(found: Shape) -> bool:
    if found.kind == "value":
        return all(_evaluate(spelling, 0) is not None for spelling in found.spellings)
    return bool(found.parts) and all(_is_computable(part) for part in found.parts)


@lru_cache(maxsize=16384)
def shape(form: str) -> Shape | None:
    """How a normal form is built, ``None`` if it has a part that is not understood."""
    try:
        text = form.replace('"', "").replace("∞", r"\infty").replace("π", r"\pi ").replace("infinity", r"\infty")
        text = text if "matrix" in text else _DOUBLED.sub(r"\\", text)
        if ";" in text and "," in text:
            return None  # a list of lists
        text = _OR.sub(",", text.replace(";", ","))
        return _shape(_TEXT.sub("", text).strip(), 0)
    except (_Unknown, RecursionError):
        return None


def _shape(text: str, depth: int) -> Shape:
    if depth > 3 or not text:
        raise _Unknown
    items = _split(text, ",")
    if len(items) > 1:
        if _GROUPED.search(text):
            raise _Unknown  # 81,100: two numbers or one
        return Shape("list", tuple(_shape(item, depth + 1) for item in items))
    sides = _split(text, "=")
    matrix = _MATRIX.fullmatch(sides[-1])
    if matrix is not None and len(sides) == 1:
        return _matrix(matrix.group(2))
    if matrix is None and "\\begin" in text:
        raise _Unknown
    if matrix is None and (_RELATION.search(text) or text[-1] in "+-*/="):
        return Shape("relation")
    if len(sides) > 1:
        name = sides[0].strip()
        name = name if _NAME.fullmatch(name) else ""
        difference = (f"({sides[0]})-({sides[1]})",) if len(sides) == 2 and not name else ()
        return Shape("equation", (_shape(sides[-1].strip(), depth + 1),), spellings=difference, name=name)
    inner = text.replace(r"\{", "{").replace(r"\}", "}")
    if inner[0] in _OPENING and inner[-1] in _CLOSING and _split(inner[1:-1], ",", closed=True)[1:]:
        brackets = inner[0] + inner[-1]
        if (inner[0] == "{") != (inner[-1] == "}"):
            raise _Unknown
        return Shape("list", tuple(_shape(i, depth + 1) for i in _split(inner[1:-1], ",")), brackets)
    return Shape("value", spellings=tuple(dict.fromkeys(_readings(inner if inner[0] == "{" else text))))


def _split(text: str, separator: str, closed: bool = False) -> list[str]:
    """The pieces between separators outside of all brackets; ``closed`` forbids brackets that close before they open.

    Intervals are closed by brackets of any kind, hence one depth for all.
    """
    if separator not in text:
        return [text]
    pieces, depth, last = [], 0, 0
    for at, c in enumerate(text):
        if c in _OPENING:
            depth += 1
        elif c in _CLOSING:
            depth -= 1
            if depth < 0:
                if closed:
                    return [text]
                raise _Unknown
        elif c == separator and depth == 0:
            pieces.append(text[last:at].strip())
            last = at + 1
    return [*pieces, text[last:].strip()]


def _matrix(body: str) -> Shape:
    rows = []
    for row in re.split(r"\\\\(?![a-zA-Z])", body.strip()):
        if row.strip():
            rows.append(Shape("list", tuple(_shape(cell.strip(), 1) for cell in row.split("&")), "()"))
    return Shape("matrix", tuple(rows))


def _readings(text: str) -> list[str]:
    """What one value may mean."""
    text = _QUOTIENT.sub("/", _PRODUCT.sub("*", _ROOT_WORD.sub(r"\\sqrt", text)))
    text = _MIXED.sub(r"(\1+\2)", text)
    if len(_WORD.findall(_NAMED.sub("", text))) > 1 and any(c.isdigit() for c in text):
        said = _SAYS.search(text)
        if said is not None:
            return [said[1] or said[2]]
        # "At most 5 of them": what a text says is one of its numbers, or nothing.
        return [*(n for match in _NUMBER.findall(text)[:6] for n in (match, match.lstrip("-"))), "w_{text}"]
    ratio = _RATIO.fullmatch(text)
    if ratio is not None:
        return [f"{ratio[1]}/{ratio[2]}", f"{ratio[1]}+{ratio[2]}/60"]
    based = _IN_BASE.fullmatch(text)
    if based is not None:
        return [based[1], _in_base(based[1], int(based[2] or based[3]))]
    if "%" in text:
        text = text.replace(r"\%", "%")
        if text.index("%") != len(text) - 1:
            raise _Unknown
        return [text[:-1], f"({text[:-1]})/100"]
    found = [text, _UNIT_TAIL.sub("", text)]
    return [*found, *(_NAMED.sub(r"\\\1 ", t) for t in found)]


def _in_base(digits: str, base: int) -> str:
    try:
        return str(int(digits, base))
    except ValueError:
        return digits


def _same(a: Shape, b: Shape) -> bool | None:
    kinds = {a.kind, b.kind}
    if kinds == {"value"}:
        return _values(a, b)
    if "equation" in kinds:
        if len(kinds) == 1:
            return _equations(a, b)
        return _same(*(x.parts[0] if x.kind == "equation" else x for x in (a, b)))
    if "relation" in kinds or "matrix" in kinds:
        if "value" in kinds:
            constant = a if a.kind == "value" else b
            return False if _is_constant(constant) else None
        return _ordered(a.parts, b.parts) if kinds == {"matrix"} else None
    return _lists(a, b)


def _equations(a: Shape, b: Shape) -> bool | None:
    """Two equations that give the value of a name; others can be solved in ways that only algebra knows."""
    right = a.parts[0], b.parts[0]
    if any(side.kind != "value" for side in right):
        return None
    if not a.name or not b.name:
        given, other = (a, b) if a.name else (b, a)
        return False if given.name and other.spellings and not _solves(given, other.spellings[0]) else None
    if all(_is_constant(side) for side in right):
        return _values(*right) if a.name.lower() == b.name.lower() else False
    if a.name != b.name or any(a.name in spelling for side in right for spelling in side.spellings):
        return None
    return _values(*right)


def _solves(given: Shape, difference: str) -> bool:
    """Whether what an equation gives for its name could be a root of this difference."""
    if not _is_constant(given.parts[0]) or len(given.parts[0].spellings) != 1:
        return True
    name = rf"(?<![\\a-zA-Z]){re.escape(given.name)}(?![a-zA-Z_])"
    value = f"(({given.parts[0].spellings[0]}))"  # doubled, since 2(3) might be a mixed number
    found = _evaluate(re.sub(name, lambda _: value, _PRODUCT.sub("*", difference)), 0)
    return found is None or not _apart(found[0], Decimal(0))


def _lists(a: Shape, b: Shape) -> bool | None:
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


def _ordered(a: Sequence[Shape], b: Sequence[Shape]) -> bool | None:
    """Member by member."""
    if len(a) != len(b):
        return False
    verdicts = [_same(x, y) for x, y in zip(a, b, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def _is_constant(a: Shape) -> bool:
    """Whether every reading of a value is a number."""
    return all(reading is not None and not reading[1] for reading in (_evaluate(s, 0) for s in a.spellings))


def _values(a: Shape, b: Shape) -> bool | None:
    if set(a.spellings) == set(b.spellings):
        return True
    apart = True
    for x, y in product(a.spellings, b.spellings):
        left, right = _evaluate(x, 0), _evaluate(y, 0)
        if left is None or right is None:
            return None
        apart = apart and _apart(left[0], right[0])
        if not apart:
            break
    if apart:
        return False
    single = len(a.spellings) == len(b.spellings) == 1
    return True if single and _agree(a.spellings[0], b.spellings[0]) else None


def _apart(x: Value, y: Value) -> bool:
    """Whether two values are too far from each other for any reading of the digits."""
    try:
        if isinstance(x, complex) or isinstance(y, complex):
            x, y = complex(x), complex(y)
            distance, size = abs(x - y), max(abs(x), abs(y))
            return math.isfinite(size) and distance > max(_NEAR, _RELATIVE * size)
        with localcontext(_CONTEXT):
            return abs(x - y) > max(Decimal(_NEAR), Decimal(_RELATIVE) * max(abs(x), abs(y)))
    except (OverflowError, DecimalException):
        return False


def _agree(x: str, y: str) -> bool:
    """Whether two spellings are equal to forty digits at every point, and of a kind for which that proves it."""
    for point in range(_POINTS):
        left, right = _evaluate(x, point), _evaluate(y, point)
        if left is None or right is None or not (left[2] and right[2]):
            return False
        p, q = left[0], right[0]
        if isinstance(p, complex) or isinstance(q, complex):
            return False
        with localcontext(_CONTEXT):
            if p != q and abs(p - q) > _EQUAL * max(abs(p), abs(q)):
                return False
        if not left[1] and not right[1]:
            break
    return True


@lru_cache(maxsize=16384)
def _evaluate(text: str, point: int) -> tuple[Value, bool, bool] | None:
    """The value of a spelling at a point, whether it has variables, and whether equal values mean equality."""
    for real in (True, False):
        reader = _Reader(text, point, real)
        try:
            with localcontext(_CONTEXT):
                value = reader.whole()
                if isinstance(value, complex) and not cmath.isfinite(value):
                    return None
            proves = real and not (reader.variables and reader.transcendental)
            return value, reader.variables, proves
        except _Complex:
            continue
        except (_Unknown, ArithmeticError, ValueError, RecursionError):
            return None
    return None


@lru_cache(maxsize=1024)
def _variable(name: str, point: int) -> Decimal:
    """A number with random digits between 1 and 2 for a variable; x and X are one, as they are for math-verify."""
    name = name.lower() if len(name) == 1 else name
    digest = hashlib.sha256(f"{point}:{name}".encode()).hexdigest()
    return 1 + Decimal(int(digest[:20], 16)) / Decimal(16**20)


class _Reader:
    """Recursive descent over the tokens of one spelling, computing as it goes."""

    def __init__(self, text: str, point: int, real: bool) -> None:
        self.tokens: list[str] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                break
            self.tokens.append(match.group(1))
            at = match.end()
        self.whole_text = at == len(text) or not text[at:].strip()
        self.tokens.append("")
        self.at = self.depth = 0
        self.point, self.real = point, real
        self.variables = self.transcendental = False

    def whole(self) -> Value:
        if not self.whole_text:
            raise _Unknown
        value = self.sum()
        if self.tokens[self.at]:
            raise _Unknown
        return value

    def take(self, token: str) -> bool:
        if self.tokens[self.at] != token:
            return False
        self.at += 1
        return True

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise _Unknown

    def number(self, text: str) -> Value:
        return Decimal(text) if self.real else complex(float(text))

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Unknown
        value: Any = self.number("0")
        sign = "+"
        while True:
            while self.tokens[self.at] in ("+", "-"):
                sign = "+" if self.tokens[self.at] == sign else "-"
                self.at += 1
            term: Any = self.product()
            value = value + term if sign == "+" else value - term
            if self.tokens[self.at] not in ("+", "-"):
                break
            sign = "+"
        self.depth -= 1
        return value

    def product(self) -> Value:
        value: Any = self.factor()
        while True:
            token = self.tokens[self.at]
            if token == "*":
                self.at += 1
                value = value * self.factor()
            elif token == "/":
                self.at += 1
                value = value / self.factor()
                if self.tokens[self.at] not in ("", "+", "-", ")", "}", "*", "/", "|", "]"):
                    raise _Unknown  # 1/2x: half of x for some, the inverse of 2x for others
            elif token and (token[0].isalnum() or token[0] == "\\" or token in "({"):
                # Two numbers side by side are refused where the first of them is read.
                value = value * self.factor()
            else:
                return value

    def factor(self) -> Value:
        value = self.atom()
        while self.take("!"):
            value = self.number(str(math.factorial(self.integer(value, _MAX_FACTORIAL))))
        if self.take("^"):
            value = self.power(value, self.exponent())
            if self.tokens[self.at] in ("^", "!"):
                raise _Unknown
        return value

    def exponent(self) -> Value:
        if self.take("{"):
            value = self.sum()
            self.expect("}")
            return value
        if self.take("("):
            value = self.sum()
            self.expect(")")
            return value
        token = self.tokens[self.at]
        if not token or not (token[0].isdigit() or (len(token) == 1 and token.isalpha())):
            raise _Unknown
        return self.atom()

    def power(self, base: Any, exponent: Any) -> Value:
        if not self.real:
            if base == 0:
                raise _Unknown
            self.transcendental = True
            result: complex = base**exponent
            return result
        whole = exponent == exponent.to_integral_value()
        if not whole or self.variables:
            # With variables only whole exponents are rational; one that is whole at this point may not be one.
            self.transcendental = self.transcendental or not (whole and abs(exponent) <= 100)
        if abs(exponent) > _MAX_EXPONENT:
            raise _Unknown
        if whole:
            return base ** int(exponent)
        if base <= 0:
            raise _Complex if base else _Unknown
        return base**exponent

    def integer(self, value: Any, most: int) -> int:
        """A whole number from 0 to ``most``."""
        if self.variables:
            raise _Unknown
        real = value.real if isinstance(value, complex) else value
        if value != int(real) or not 0 <= real <= most:
            raise _Unknown
        return int(real)

    def argument(self) -> Value:
        r"""What follows ``\frac`` or ``\sqrt``: a group or one digit or letter."""
        if self.take("{"):
            value = self.sum()
            self.expect("}")
            return value
        token = self.tokens[self.at]
        if len(token) != 1 or not token.isalnum():
            raise _Unknown
        if token.isalpha():
            return self.atom()
        self.at += 1
        return self.number(token)

    def atom(self) -> Value:
        token = self.tokens[self.at]
        self.at += 1
        if not token:
            raise _Unknown
        if token[0].isdigit() or token[0] == ".":
            following = self.tokens[self.at]
            if len(token) > 60 or following[:1].isdigit() or following == "_":
                raise _Unknown
            if following == "(" and self.tokens[self.at + 1][:1].isdigit() and self.tokens[self.at + 2] == ")":
                raise _Unknown  # 2(3): a product for some, a mixed number for math-verify
            return self.number(token)
        if token in ("(", "{"):
            value = self.sum()
            self.expect(")" if token == "(" else "}")
            return value
        if token == "|":
            self.transcendental = True
            size: Any = abs(self.sum())
            self.expect("|")
            return self.number("1") * size
        if token.isalpha() or _SYMBOL.fullmatch(token):
            return self.symbol(token)
        if token[0] == "\\":
            return self.command(token[1:])
        raise _Unknown

    def symbol(self, token: str) -> Value:
        name = token
        if self.take("_"):
            name += self.subscript()
        elif token in ("i", "I"):
            if self.real:
                raise _Complex
            return 1j
        elif token in ("e", "E"):
            return Decimal(1).exp() if self.real else complex(math.e)
        self.variables = True
        value = _variable(name, self.point)
        return value if self.real else complex(value)

    def subscript(self) -> str:
        """A token or a group of them, as they are written."""
        parts = []
        group = self.take("{")
        while self.tokens[self.at].isalnum():
            parts.append(self.tokens[self.at])
            self.at += 1
            if not group:
                break
        if not parts:
            raise _Unknown
        if group:
            self.expect("}")
        return "_" + "".join(parts)

    def command(self, name: str) -> Value:
        if name == "pi":
            return _PI if self.real else complex(math.pi)
        if name == "frac":
            top: Any = self.argument()
            return top / self.argument()
        if name == "sqrt":
            return self.root()
        if name == "binom":
            n, k = self.integer(self.argument(), 500), self.integer(self.argument(), 500)
            return self.number(str(math.comb(n, k)))
        if name in _FUNCTIONS:
            return self.function(name)
        raise _Unknown

    def root(self) -> Value:
        degree: Any = self.number("2")
        if self.take("["):
            degree = self.sum()
            self.expect("]")
        if self.take("("):
            value: Any = self.sum()
            self.expect(")")
        else:
            value = self.argument()
        self.transcendental = True
        if not self.real:
            if degree != 2:
                raise _Unknown
            return cmath.sqrt(value)
        if value < 0:
            if degree != 2:
                raise _Unknown  # the real root for some, the principal one for others
            raise _Complex
        if degree == 2:
            return value.sqrt()
        return value if value == 0 else value ** (1 / degree)

    def function(self, name: str) -> Value:
        self.transcendental = True
        base: Any = None
        if name == "log" and self.take("_"):
            base = self.argument()
        exponent = self.exponent() if self.take("^") else None
        value: Any = self.operand()
        if name == "exp":
            result: Any = self.power(self.symbol("e"), value)
        elif name in ("ln", "log"):
            result = self.logarithm(value, base if name == "log" else self.symbol("e"))
        elif self.real:
            raise _Complex
        else:
            result = _TRIGONOMETRIC[name](value)
        if exponent is None:
            return result
        if exponent == -1:
            raise _Unknown  # the inverse function, not the inverse value
        return self.power(result, exponent)

    def operand(self) -> Value:
        """What a function applies to: a bracket, or the factors up to the next function, sign or bracket."""
        if self.take("("):
            value: Any = self.sum()
            self.expect(")")
            return value
        value = self.factor()
        while True:
            token = self.tokens[self.at]
            if not token or token[1:] in _FUNCTIONS or not (token[0].isalpha() or token[0] == "\\"):
                return value
            value = value * self.factor()

    def logarithm(self, value: Any, base: Any) -> Value:
        if not self.real:
            return cmath.log(value) / (cmath.log(10) if base is None else cmath.log(base))
        if value <= 0 or (base is not None and base <= 0):
            raise _Complex if value < 0 else _Unknown
        return value.log10() if base is None else value.ln() / base.ln()
