"""The tiny language: short arithmetic questions, their solutions, and a parser that knows the right answers.

Everything is drawn from a ``random.Random`` that the caller seeds. The numbers and weights below are a measured recipe:
a base model pre-trained on them guesses at most stories, yet a vote of sixteen answers is mostly right.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from string import Formatter
from typing import NamedTuple

# fmt: off
_NAMES = (
    "Tom", "Ana", "Ben", "Mia", "Leo", "Zoe", "Sam", "Eva", "Max", "Lily", "Omar", "Nina", "Paul", "Rosa",
    "Ivan", "Kate", "Hugo", "Emma", "Noah", "Iris", "Carl", "Jane", "Luis", "Tara",
)
_THINGS = (
    "apples", "books", "coins", "stamps", "marbles", "cards", "pens", "shells", "stickers", "candles",
    "cookies", "bottles", "flowers", "buttons", "lemons", "rocks", "tickets", "eggs", "toys", "beads",
)
# fmt: on
# Only openings and two closings name the thing: if every sentence did, three quarters of the model's questions would
# contradict themselves.
_OPENINGS = (
    "{name} has {start} {thing}.",
    "{name} starts with {start} {thing}.",
    "There are {start} {thing} in a bag.",
    "{name} owns {start} {thing}.",
    "On Monday {name} counts {start} {thing}.",
    "A shop stores {start} {thing}.",
    "{name} found {start} {thing}.",
    "A box holds {start} {thing}.",
)
# The order of the kinds matters: it is the order of _KIND_WEIGHTS.
_EVENTS = {
    "+": (
        "Then {count} more arrive.",
        "A friend brings another {count}.",
        "Later {count} are added.",
        "Next day {count} extra ones come.",
        "After that {count} are won in a game.",
        "Someone finds {count} more.",
        "Grandma sends {count} as a gift.",
    ),
    "-": (
        "Then {count} are given away.",
        "Sadly {count} get lost.",
        "Later {count} are sold.",
        "A dog runs off with {count}.",
        "After that {count} break.",
        "Next day {count} are missing.",
        "Someone takes {count} of them.",
    ),
    "+*": (
        "Then {times} boxes with {each} each arrive.",
        "Now {times} friends each bring {each}.",
        "For {times} days {each} are added per day.",
    ),
    "-*": (
        "Then {times} friends take {each} each.",
        "For {times} days {each} are lost per day.",
        "Later {times} boxes of {each} are sold.",
    ),
}
_CLOSINGS = (
    "How many are there now?",
    "How many {thing} are left?",
    "What is the final number?",
    "Find the count that remains.",
    "How many are there in the end?",
    "Count them all.",
    "What is the total number of {thing}?",
)
_EXPRESSIONS = (
    "What is {expression}?",
    "Compute {expression}.",
    "Evaluate {expression}.",
    "Find the value of {expression}.",
)

_LARGEST = 50  # of the start and of every running value
_LARGEST_COUNT = 20
_LARGEST_TIMES = 4
_LARGEST_EACH = 6
_KIND_WEIGHTS = (0.32, 0.32, 0.18, 0.18)
_LENGTHS = (1, 2, 3)
_LENGTH_WEIGHTS = (0.35, 0.45, 0.20)
_EXPRESSION_SHARE = 0.25
# The parser also reads questions that a model wrote, so it allows larger values than the generator draws.
_LARGEST_READ = 999
_DRILL_EQUATIONS = 6
_LARGEST_DRILLED = 24
_HELD_OUT_SEED = 10**6
_SEEDS_SEED = 555
_HEADING = "Write new math questions.\n"

_NUMBER = "(?:0|[1-9][0-9]{0,2})"
_SLOTS = {
    "name": "[A-Z][a-z]+",
    "thing": "[a-z]+",
    "expression": rf"{_NUMBER}(?: [-+] {_NUMBER}(?: \* {_NUMBER})?)+",
    **dict.fromkeys(("start", "count", "times", "each"), _NUMBER),
}


class Operation(NamedTuple):
    """One change of the running value: ``sign`` is ``+`` or ``-``, ``factors`` are one number or two to multiply."""

    sign: str
    factors: tuple[int, ...]


class Equation(NamedTuple):
    """One line of work, ``left sign right = result``."""

    left: int
    sign: str
    right: int
    result: int


class Truth(NamedTuple):
    """The answer of a well-posed question and the equations that lead to it."""

    answer: int
    equations: tuple[Equation, ...]


def _pattern(template: str) -> re.Pattern[str]:
    """The regular expression of all sentences that ``template`` can be filled to; its slots become named groups."""
    parts = []
    for literal, slot, _, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if slot is not None:
            parts.append(f"(?P<{slot}>{_SLOTS[slot]})")
    return re.compile("".join(parts))


_OPENING_PATTERNS = [_pattern(t) for t in _OPENINGS]
_CLOSING_PATTERNS = [_pattern(t) for t in _CLOSINGS]
_EXPRESSION_PATTERNS = [_pattern(t) for t in _EXPRESSIONS]
_EVENT_PATTERNS = [(kind[0], _pattern(t)) for kind, templates in _EVENTS.items() for t in templates]


def _first_match(patterns: Sequence[re.Pattern[str]], text: str) -> re.Match[str] | None:
    return next((m for m in (p.fullmatch(text) for p in patterns) if m), None)


def _draw_operations(rng: random.Random) -> tuple[int, list[tuple[str, tuple[int, ...]]]]:
    """A start and (kind, factors) pairs whose running values all stay in 0..50, by rejection."""
    while True:
        start = value = rng.randint(2, _LARGEST)
        drawn: list[tuple[str, tuple[int, ...]]] = []
        inside = True
        for _ in range(rng.choices(_LENGTHS, _LENGTH_WEIGHTS)[0]):
            kind = rng.choices(list(_EVENTS), _KIND_WEIGHTS)[0]
            factors: tuple[int, ...]
            if kind.endswith("*"):
                factors = (rng.randint(2, _LARGEST_TIMES), rng.randint(2, _LARGEST_EACH))
            else:
                factors = (rng.randint(2, _LARGEST_COUNT),)
            amount = math.prod(factors)
            value += amount if kind.startswith("+") else -amount
            inside &= 0 <= value <= _LARGEST
            drawn.append((kind, factors))
        if inside:
            return start, drawn


def question(rng: random.Random) -> str:
    """Draw one well-posed question: an expression with probability 1/4, else a story."""
    start, drawn = _draw_operations(rng)
    if rng.random() < _EXPRESSION_SHARE:
        terms = [f"{kind[0]} " + " * ".join(map(str, factors)) for kind, factors in drawn]
        return rng.choice(_EXPRESSIONS).format(expression=" ".join([str(start), *terms]))
    name = rng.choice(_NAMES)
    thing = rng.choice(_THINGS)
    events = [rng.choice(_EVENTS[kind]).format(count=f[0], times=f[0], each=f[-1]) for kind, f in drawn]
    opening = rng.choice(_OPENINGS).format(name=name, thing=thing, start=start)
    return " ".join([opening, *events, rng.choice(_CLOSINGS).format(thing=thing)])


def is_expression(text: str) -> bool:
    """Whether ``text`` is a plain expression to compute, not a story."""
    return _first_match(_EXPRESSION_PATTERNS, text) is not None


def _read_expression(text: str) -> tuple[int, list[Operation]] | None:
    match = _first_match(_EXPRESSION_PATTERNS, text)
    if match is None:
        return None
    start, *terms = re.split(r" (?=[-+])", match["expression"])
    return int(start), [Operation(t[0], tuple(int(x) for x in t[2:].split(" * "))) for t in terms]


def _read_story(text: str) -> tuple[int, list[Operation]] | None:
    sentences = re.split(r"(?<=[.?]) ", text)
    if len(sentences) < 3:
        return None
    opening = _first_match(_OPENING_PATTERNS, sentences[0])
    closing = _first_match(_CLOSING_PATTERNS, sentences[-1])
    # "... 5 apples ... How many pens are left?" has no answer.
    if opening is None or closing is None or closing.groupdict().get("thing", opening["thing"]) != opening["thing"]:
        return None
    operations = []
    for sentence in sentences[1:-1]:
        hit = next(((sign, m) for sign, p in _EVENT_PATTERNS if (m := p.fullmatch(sentence))), None)
        if hit is None:
            return None
        sign, match = hit
        operations.append(Operation(sign, tuple(int(x) for x in match.groups())))
    return int(opening["start"]), operations


def parse(text: str) -> Truth | None:
    """The right answer of a question, which a model may have written; used only for measuring, never in training.

    ``None`` if the question is not well posed: a sentence outside the language, a closing about another thing than the
    opening, or a running value below 0 or above 999.
    """
    read = _read_expression(text) or _read_story(text)
    if read is None:
        return None
    value, operations = read
    equations = []
    for sign, factors in operations:
        amount = math.prod(factors)
        if len(factors) == 2:
            equations.append(Equation(factors[0], "*", factors[1], amount))
        result = value + amount if sign == "+" else value - amount
        if not 0 <= result <= _LARGEST_READ:
            return None
        equations.append(Equation(value, sign, amount, result))
        value = result
    return Truth(value, tuple(equations))


def solution(text: str, worked: bool) -> str:
    r"""The solution of a question, with its equations (``worked``) or without, as in ``So \boxed{34}.``.

    Raises :class:`ValueError` for a question that is not well posed.
    """
    truth = parse(text)
    if truth is None:
        raise ValueError(f"not a well-posed question of the tiny language: {text!r}")
    work = "".join(f"{e.left} {e.sign} {e.right} = {e.result}. " for e in truth.equations) if worked else ""
    return f"{work}So \\boxed{{{truth.answer}}}."


def drill(rng: random.Random) -> str:
    """Six equations in a row, each preceded by a space: practice in arithmetic alone."""
    equations = []
    for _ in range(_DRILL_EQUATIONS):
        kind = rng.random()
        if kind < 0.12:
            left, right = rng.randint(2, _LARGEST_TIMES), rng.randint(2, _LARGEST_EACH)
            equations.append(f" {left} * {right} = {left * right}.")
        elif kind < 0.56:
            left = rng.randint(0, _LARGEST - 2)
            right = rng.randint(2, min(_LARGEST_DRILLED, _LARGEST - left))
            equations.append(f" {left} + {right} = {left + right}.")
        else:
            left = rng.randint(2, _LARGEST)
            right = rng.randint(2, min(_LARGEST_DRILLED, left))
            equations.append(f" {left} - {right} = {left - right}.")
    return "".join(equations)


def solve_prompt(text: str) -> str:
    """The prompt that a solution, preceded by a space, continues."""
    return f"Question: {text}\nSolution:"


def numbered(questions: Sequence[str], unfinished: bool = False) -> str:
    """A heading and the numbered questions, one per line; ``unfinished`` appends the next number."""
    lines = [f"{i}. {q}\n" for i, q in enumerate(questions, start=1)]
    return _HEADING + "".join(lines) + (f"{len(questions) + 1}." if unfinished else "")


def held_out(n: int) -> list[str]:
    """The first ``n`` evaluation questions; the first 1000 never occur with a solution in pre-training."""
    return [question(random.Random(_HELD_OUT_SEED + i)) for i in range(n)]


def seed_questions(n: int) -> list[str]:
    """The first ``n`` questions that self-play starts from."""
    rng = random.Random(_SEEDS_SEED)
    return [question(rng) for _ in range(n)]
