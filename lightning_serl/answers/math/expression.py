r"""Evaluates one LaTeX expression at a fixed point, by recursive descent over a small grammar.

Real numbers are computed to sixty digits, complex ones in double precision; variables are random numbers. All steps are
linear in a text of bounded length; a text outside the grammar has no value. Whole numbers, powers, factorials and their
quotients also have an exact value.
"""

from __future__ import annotations

import cmath
import hashlib
import math
import re
from collections.abc import Callable
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any

_DEEPEST = 25
_DIGITS = 60
CONTEXT = Context(prec=_DIGITS, Emax=10**6, Emin=-(10**6), traps=[InvalidOperation, DivisionByZero, Overflow])
_MAX_EXPONENT = 100_000
_MAX_FACTORIAL = 170
# At these points variables are positive.
POSITIVE_POINTS = 2
# Bits of an exact value, and the largest exact factorial.
_MOST_BITS = 200_000
_EXACT_FACTORIAL = 5000
_PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749446")

Value = Decimal | complex

_TOKEN = re.compile(r"\s*(\\[a-zA-Z]+|\d+(?:\.\d+)?|\.\d+|[a-zA-Z]|[-+*/^(){}\[\]|!_])")
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
_CLOSING = {"(": ")", "{": "}", "[": "]"}


class NotUnderstood(Exception):
    """The text is outside the grammar, or it has no value."""


class _Complex(Exception):
    """The value is not real, or :mod:`decimal` cannot compute it."""


@lru_cache(maxsize=16384)
def evaluate(text: str, point: int) -> tuple[Value, frozenset[str], bool] | None:
    """The value of a spelling at a point, its variables, and whether equal values prove equality; or ``None``."""
    for real in (True, False):
        try:
            evaluator = _Evaluator(text, point, real)
            with localcontext(CONTEXT):
                value = evaluator.whole()
                if isinstance(value, complex) and not cmath.isfinite(value):
                    return None
            proves = real and not (evaluator.variables and evaluator.transcendental)
            return value, frozenset(evaluator.variables), proves
        except _Complex:
            continue
        except (NotUnderstood, ArithmeticError, ValueError, RecursionError):
            return None
    return None


@lru_cache(maxsize=4096)
def exact_value(text: str) -> Fraction | None:
    """The exact value of a spelling of whole numbers, powers, factorials and quotients; ``None`` for all others."""
    if "." in text:
        return None
    try:
        value = _Exact(text, 0, True).whole()
    except (NotUnderstood, _Complex, ArithmeticError, ValueError, RecursionError):
        return None
    return value if isinstance(value, Fraction) else None


@lru_cache(maxsize=1024)
def _variable(name: str, point: int) -> Decimal:
    """A random number for a variable: between 1 and 2 at the first two points, of any sign and below 3 at others."""
    digest = hashlib.sha256(f"{point}:{name}".encode()).hexdigest()
    fraction = Decimal(int(digest[:20], 16)) / Decimal(16**20)
    if point < POSITIVE_POINTS:
        return 1 + fraction
    return (Decimal("0.1") + 3 * fraction) * (-1 if int(digest[20], 16) % 2 else 1)


class _Evaluator:
    """Computes the value of one spelling while it parses it."""

    def __init__(self, text: str, point: int, real: bool) -> None:
        self.tokens: list[str] = []
        at = 0
        while match := _TOKEN.match(text, at):
            self.tokens.append(match.group(1))
            at = match.end()
        if text[at:].strip():
            raise NotUnderstood
        self.tokens.append("")
        self.at = self.depth = 0
        self.point, self.real = point, real
        self.transcendental = False
        self.variables: set[str] = set()

    def whole(self) -> Value:
        value = self.sum()
        if self.tokens[self.at]:
            raise NotUnderstood
        return value

    def take(self, token: str) -> bool:
        if self.tokens[self.at] != token:
            return False
        self.at += 1
        return True

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise NotUnderstood

    def bracketed(self, closing: str) -> Any:
        """The value of what follows an opening bracket, up to the closing one."""
        value = self.sum()
        self.expect(closing)
        return value

    def number(self, text: str) -> Value:
        return Decimal(text) if self.real else complex(float(text))

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotUnderstood
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
                    raise NotUnderstood  # 1/2x: half of x, or the inverse of 2x
            elif token and (token[0].isalnum() or token[0] == "\\" or token in "({["):
                # atom() refuses two adjacent numbers.
                value = value * self.factor()
            else:
                return value

    def factor(self) -> Value:
        value = self.atom()
        while self.take("!"):
            value = self.factorial(value)
        if self.take("^"):
            value = self.power(value, self.exponent())
            if self.tokens[self.at] in ("^", "!"):
                raise NotUnderstood
        return value

    def factorial(self, value: Any) -> Any:
        return self.number(str(math.factorial(self.integer(value, _MAX_FACTORIAL))))

    def exponent(self) -> Value:
        if self.take("{"):
            return self.bracketed("}")
        if self.take("("):
            return self.bracketed(")")
        token = self.tokens[self.at]
        if not token or not (token[0].isdigit() or (len(token) == 1 and token.isalpha())):
            raise NotUnderstood
        return self.atom()

    def power(self, base: Any, exponent: Any) -> Value:
        if not self.real:
            if base == 0:
                raise NotUnderstood
            self.transcendental = True
            result: complex = base**exponent
            return result
        whole = exponent == exponent.to_integral_value()
        if not whole or self.variables:
            # With variables only constant whole exponents are rational; this one may be whole at this point only.
            self.transcendental = self.transcendental or not (whole and abs(exponent) <= 100)
        if abs(exponent) > _MAX_EXPONENT:
            raise NotUnderstood
        if whole:
            return base ** int(exponent)
        if base <= 0:
            raise _Complex if base else NotUnderstood
        return base**exponent

    def integer(self, value: Any, most: int) -> int:
        """A whole number from 0 to ``most``."""
        if self.variables:
            raise NotUnderstood
        real = value.real if isinstance(value, complex) else value
        if value != int(real) or not 0 <= real <= most:
            raise NotUnderstood
        return int(real)

    def argument(self) -> Value:
        r"""The value of an argument of ``\frac`` or ``\sqrt``: a group, one digit or one letter."""
        if self.take("{"):
            return self.bracketed("}")
        token = self.tokens[self.at]
        if len(token) != 1 or not token.isalnum():
            raise NotUnderstood
        if token.isalpha():
            return self.atom()
        self.at += 1
        return self.number(token)

    def atom(self) -> Value:
        token = self.tokens[self.at]
        self.at += 1
        if not token:
            raise NotUnderstood
        if token[0].isdigit() or token[0] == ".":
            following = self.tokens[self.at]
            if len(token) > 60 or following[:1].isdigit() or following == "_":
                raise NotUnderstood
            if following == "(" and self.tokens[self.at + 1][:1].isdigit() and self.tokens[self.at + 2] == ")":
                raise NotUnderstood  # 2(3): a product, or for math-verify a mixed number
            return self.number(token)
        if token in _CLOSING:
            return self.bracketed(_CLOSING[token])
        if token == "|":
            self.transcendental = True
            return self.number("1") * abs(self.bracketed("|"))
        if token.isalpha() or _SYMBOL.fullmatch(token):
            return self.symbol(token)
        if token[0] == "\\":
            return self.command(token[1:])
        raise NotUnderstood

    def symbol(self, token: str) -> Value:
        if self.take("_"):
            token += self.subscript()
        elif token in ("i", "I"):
            if self.real:
                raise _Complex
            return 1j
        elif token in ("e", "E"):
            return Decimal(1).exp() if self.real else complex(math.e)
        self.variables.add(token)
        value = _variable(token, self.point)
        return value if self.real else complex(value)

    def subscript(self) -> str:
        """The subscript as written: one token, or a group of them in braces."""
        parts = []
        group = self.take("{")
        while self.tokens[self.at].isalnum():
            parts.append(self.tokens[self.at])
            self.at += 1
            if not group:
                break
        if not parts:
            raise NotUnderstood
        if group:
            self.expect("}")
        return "_" + "".join(parts)

    def command(self, name: str) -> Value:
        if name == "pi":
            if type(self) is _Exact:
                raise NotUnderstood
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
        raise NotUnderstood

    def root(self) -> Value:
        degree: Any = self.bracketed("]") if self.take("[") else self.number("2")
        value: Any = self.bracketed(")") if self.take("(") else self.argument()
        self.transcendental = True
        if not self.real:
            if degree != 2:
                raise NotUnderstood
            return cmath.sqrt(value)
        if value < 0:
            if degree != 2:
                raise NotUnderstood  # the real root, or the principal one
            raise _Complex
        if degree == 2:
            return value.sqrt()
        return value if value == 0 else value ** (1 / degree)

    def function(self, name: str) -> Value:
        self.transcendental = True
        base: Any = self.argument() if name == "log" and self.take("_") else None
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
            raise NotUnderstood  # the inverse function, not one over the value
        return self.power(result, exponent)

    def operand(self) -> Value:
        """The argument of a function: a bracket, or the factors up to the next function, sign or bracket."""
        for opening in "([":
            if self.take(opening):
                return self.bracketed(_CLOSING[opening])
        value: Any = self.factor()
        while True:
            token = self.tokens[self.at]
            if not token or token[1:] in _FUNCTIONS or not (token[0].isalpha() or token[0] == "\\"):
                return value
            value = value * self.factor()

    def logarithm(self, value: Any, base: Any) -> Value:
        if not self.real:
            return cmath.log(value) / (cmath.log(10) if base is None else cmath.log(base))
        if value <= 0 or (base is not None and base <= 0):
            raise _Complex if value < 0 else NotUnderstood
        return value.log10() if base is None else value.ln() / base.ln()


class _Exact(_Evaluator):
    """Computes exact rational values of bounded size."""

    def number(self, text: str) -> Any:
        return Fraction(int(text))

    def power(self, base: Any, exponent: Any) -> Any:
        if exponent.denominator != 1:
            raise NotUnderstood
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) > _MOST_BITS:
            raise NotUnderstood
        return base**exponent.numerator

    def factorial(self, value: Any) -> Any:
        return Fraction(math.factorial(self.integer(value, _EXACT_FACTORIAL)))

    def symbol(self, token: str) -> Any:
        raise NotUnderstood

    def root(self) -> Any:
        raise NotUnderstood

    def function(self, name: str) -> Any:
        raise NotUnderstood
