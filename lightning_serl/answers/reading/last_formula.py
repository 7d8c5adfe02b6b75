r"""Finds the last formula or number of a response that has neither a box nor an announced answer.

math-verify reads such responses by the same rule: a formula or number soon after the word "answer" takes precedence,
then the rightmost one counts. Parsing it costs math-verify 5 to 200 ms, most in formulas where a response broke off;
this module only finds the place, in time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from lightning_serl.answers.math.compare import is_understood
from lightning_serl.answers.math.normal_form import normal_form

_READ = 16_000
# A number or formula within this many characters after the word "answer", on its line, belongs to it; so does an
# equated number.
_NEAR, _EQUATED = 50, 100
_MOST_WORDS = 8
_MOST_JOINED = 6
_LONGEST = 1000
_END = 500
_SHORT = 80
_RUN = 200
# Most responses end soon after their last number.
_REACH = (40, 400, _READ)

_DELIMITER = re.compile(r"(?<!\\)(?:\$\$?|\\[()\[\]])|\n")
_CLOSES = {"$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)"}
_JOINED = re.compile(r"\s*(?:,|,?\s*(?:and|or))\s*")
_PERCENT = re.compile(r"\s*(?:\\?%|[Pp]erc|[Pp]ct)")
_NUMBER = re.compile(
    r"(?:^|(?<=[\s=])|(?<=[\s=]\*\*)|(?<=[\s=][$€£¥])|(?<=^[$€£¥]))"
    r"(-?(?:[1-9]\d{0,2}(?:[ ,]\d{3}(?!\d))+(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+))"
)
_THOUSANDS = re.compile(r"[ ,](?=\d{3}(?!\d))")
_ARITHMETIC = frozenset("0123456789. +-*/^()×÷")
_MAY_FOLLOW = frozenset(["", *".,:)$* \n"])
_OPERATOR = re.compile(r"(?<=[\d)])\s*[-+*/^×÷]")
_FRACTION = re.compile(r"-?\\[dt]?frac\{-?\d{1,20}\}\{\d{1,20}\}")
# A full stop inside dollar signs, and backslashes that were escaped twice.
_STUMBLES = re.compile(r"\\\\|[.,;]$")
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"(?i)answer")


class _Found(NamedTuple):
    """A formula or number and where it stands."""

    start: int
    stop: int
    text: str


def last_formula(text: str) -> str | None:
    r"""The last formula or number of a response without a box; ``None`` or the empty string if it has none.

    Example:
        >>> last_formula("So the answer to this is that they found 7 shells. I counted 9.")
        '7'
        >>> last_formula("Half of it is 25%."), last_formula("Hence $x = 3$ and\n\\[y = x + ")
        ('25\\%', 'x = 3')
    """
    if len(text) > _READ:
        text = "…" + text[-_READ:]  # a number that is cut here must not look whole
    word = "nswer" in text or "NSWER" in text
    if not word:
        text = text[_where_the_end_begins(text) :]
    formulas = list(_formulas(text)) if "$" in text or "\\" in text else []
    found = _beside_the_word(text, formulas) if word else None
    if found is None:
        number = _last_number(text)
        last = formulas[-1] if formulas else None
        by_number = last is None or (number is not None and (number.stop > last.stop or len(last.text) > _LONGEST))
        found = number if by_number else _joined(text, formulas)
    if found is None:
        fractions = _FRACTION.findall(text) if "boxed" not in text else []
        return fractions[-1] if fractions else None
    return "" if "boxed" in found.text else found.text  # the answer is an empty box


def is_doubtful(found: str) -> bool:
    """Whether a formula is short, yet math-verify may read another one than this."""
    return len(found) <= _SHORT and (_STUMBLES.search(found) is not None or not is_understood(normal_form(found)))


def first_formula(text: str) -> str | None:
    """The first formula or number of a text."""
    found = next(_formulas(text), None)
    match = _NUMBER.search(text)
    if match is not None and (found is None or match.start() < found.start - 1):
        found = _arithmetic(text, match)
    return None if found is None else found.text


def _where_the_end_begins(text: str) -> int:
    """The start of a line near the end, if it is outside any formula and a digit follows; else 0."""
    at = text.rfind("\n", 0, max(0, len(text) - _END)) + 1
    inside = text.count("$$", 0, at) % 2 or text.rfind("\\[", 0, at) > text.rfind("\\]", 0, at)
    return 0 if inside or not _DIGIT.search(text, at) else at


def _formulas(text: str) -> Iterator[_Found]:
    """All complete formulas, in the order of their ends."""
    last = {closing: text.rfind(closing) for closing in _CLOSES.values()}
    opened: tuple[str, int] | None = None
    for match in _DELIMITER.finditer(text):
        token, at = match.group(), match.end()
        if opened is not None and token == _CLOSES[opened[0]]:
            inside = text[opened[1] : match.start()].strip()
            if inside:
                percent = _PERCENT.match(text, at)
                yield _Found(opened[1], at, inside + r"\%" if percent else inside)
            opened = None
        elif token == "\n":
            if opened is not None and opened[0] in ("$", "\\("):
                opened = None  # inline formulas end with their line
        elif opened is None and token in _CLOSES and last[_CLOSES[token]] > at:
            before = text[max(0, match.start() - 1) : match.start()]
            opened = None if token[0] == "$" and before.isdigit() else (token, at)  # after a digit: a currency


def _joined(text: str, formulas: list[_Found]) -> _Found:
    """The last formula together with those that commas, "and" or "or" join to it."""
    first = len(formulas) - 1
    while first > 0 and len(formulas) - first < _MOST_JOINED:
        between = text[formulas[first - 1].stop : formulas[first].start].rstrip("$\\([")
        if len(between) > 2 * _MOST_JOINED or _JOINED.fullmatch(between) is None:
            break
        first -= 1
    parts = formulas[first:]
    return _Found(parts[0].start, parts[-1].stop, ",".join(part.text for part in parts))


def _last_number(text: str) -> _Found | None:
    """The last number, or the arithmetic expression that it is a part of."""
    for reach in _REACH:
        start = max(0, len(text) - reach)
        matches = list(_NUMBER.finditer(text, start))
        if matches:
            return _arithmetic(text, matches[-1])
    return None


def _arithmetic(text: str, match: re.Match[str]) -> _Found:
    """A number, extended to the sum or product around it if that can be computed."""
    start, stop = match.span(1)
    percent = _PERCENT.match(text, stop)
    digits = match.group(1)
    grouped = _THOUSANDS.sub("", digits)
    plain = grouped if grouped != digits else digits.replace(",", ".")
    number = _Found(start, stop, plain + r"\%" if percent else plain)
    first, last = start, stop
    while last < len(text) and last - stop < _RUN and text[last] in _ARITHMETIC and text[last : last + 2] != ". ":
        last += 1
    while first > 0 and start - first < _RUN and text[first - 1] in _ARITHMETIC and text[first - 1 : first + 1] != ". ":
        first -= 1
    run = text[first:last].rstrip(" .")
    if text[first + len(run) : first + len(run) + 1] not in _MAY_FOLLOW:
        return number
    leading = len(run) - len(run.lstrip(" .*/^)+×÷"))
    expression = run[leading:]
    if percent or _OPERATOR.search(expression) is None or not is_understood(normal_form(expression)):
        return number
    return _Found(first + leading, first + len(run), expression)


def _beside_the_word(text: str, formulas: list[_Found]) -> _Found | None:
    """The formula or number after the word "answer"; the last such word counts, those with a colon first."""
    words = [match.end() for match in _WORD.finditer(text)][-_MOST_WORDS:]
    for at in sorted(words, key=lambda at: (text[at : at + 1] == ":", at), reverse=True):
        seen = text[at : at + 3 * _EQUATED]
        line = seen.split("\n", 1)[0]
        cut = line == seen and at + len(seen) < len(text)
        numbers = [n for n in _NUMBER.finditer(line) if not (cut and n.end() == len(line))]
        near = next((n for n in numbers if n.start() <= _NEAR), None)
        equated = [n for n in numbers if n.start() <= _EQUATED and line[: n.start()].rstrip().endswith("=")]
        equated = [n for n in equated if not line[n.end() :].lstrip().startswith("=")]
        number = equated[-1] if equated else near
        found = None if number is None else _arithmetic(line, number)
        formula = next((f for f in formulas if at <= f.start <= at + _NEAR + 2), None)
        if formula is not None and (found is None or formula.stop > at + found.stop):
            return formula
        if found is not None:
            return found
    return None
