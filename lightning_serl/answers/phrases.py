r"""Answers announced in words: "the answer is ...", where no ``\boxed{...}`` marks them."""

from __future__ import annotations

import re

from lightning_serl.answers.evaluate import is_understood
from lightning_serl.answers.plain import normal_form

# The announcement stands at the end of a response.
_TAIL = 4000
# "Cannot be determined" is an answer in words; more words than this explain one.
_FEW_WORDS = 8
_LINE, _SHORT = 200, 100
_MOST_JOINED = 6
_ANNOUNCED = re.compile(r"(?i)\banswer[*_ ]*(?:is|:|=)[*_:\s]*")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(
    r"([-+]?)\s*[$€£¥]?\s*([-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?)(?=\s*(?:$|[.*!]+(?:\s|$)|[a-zA-Z]))"
)
# "A: 18" on the last line.
_LABELLED = re.compile(r"(?:A|Ans|####)\s*:?\s*[$€£¥]?(-?\d{1,20}(?:,\d{3})*(?:\.\d+)?)\s*\.?")
# A number that belongs to no longer expression, and after which no other stands.
_LAST_NUMBER = re.compile(
    r"(?:^|[^\d\s.,+*/^()×÷-]\s+|=\s*)[$€£¥]?(-?\d{1,20}(?:,\d{3})*(?:\.\d+)?)"
    r"(?:\.?$|(?!\s*(?:[-+*/^=(×÷%\\]|perc|pct))[\s.,:;!?)a-zA-Z][^\d\\$%=]*$)"
)
_INLINE = re.compile(r"(?<!\\)\\[()]")
_DISPLAY = re.compile(r"\$\$|\\[$\\]|(?:^|\s)\[")
# What counts as a number or a fraction outside of formulas.
_CANDIDATE = re.compile(r"(?:^|[\s=])(?:\*\*)?[$€£¥]?-?\(?-?[\d.]|\\frac\{-?\d[\d.,]*\}\{-?\d")
_JOINED = re.compile(r"\s*(?:,|,?\s*(?:and|or))\s*")
# The word gives what follows it soon a right of way.
_ANCHORED = re.compile(r"(?i:answer).{0,120}?[\d$\\]", re.DOTALL)
_PERCENT = re.compile(r"\s*(?:\\?%|perc|pct)", re.IGNORECASE)
_SEVERAL = re.compile(r"\$([^$\n,]+)\$\s*,?\s*(?:and|or)\s*\$([^$\n,]+)\$\s*[.*!]*(?: I hope.*)?")
_SENTENCE_END = re.compile(r"[.!]\**(?:\s|$)|\*\*")
_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[a-zA-Z]{3,}")


def announced(text: str) -> str | None:
    r"""What follows the last "answer is" or "answer:" on its line, if it is a formula or a number.

    Example:
        >>> announced("So the answer is 4+3\\sqrt{2}.")
        '4+3\\sqrt{2}'
        >>> announced("The answer is $18 dollars.")
        '18'
        >>> announced("The answer is the number of ways.") is None
        True
    """
    last = None
    tail = text[-_TAIL:]
    for match in _ANNOUNCED.finditer(tail):
        last = match
    if last is None:
        return None
    line = tail[last.end() :].split("\n", 1)[0].strip()
    math = _MATH.match(line)
    if math is not None:
        inside = next(part for part in math.groups() if part is not None).strip()
        several = _SEVERAL.fullmatch(line)
        if several is not None and all(_is_formula(part) for part in several.groups()):
            return f"{several[1]},{several[2]}"
        # More after the formula ("$3$, or $-3$, if") is more than this rule can read.
        after = line[math.end() :].strip(" .*!")
        return inside if _is_formula(inside) and not re.search(r"[$\\\d]|\b(?:and|or)\b", after) else None
    number = _NUMBER.match(line)
    if number is not None and not re.match(r"\s*(?:and|or)\b", line[number.end() :]):
        return number.group(1) + number.group(2)
    end = _SENTENCE_END.search(line)
    whole = (line if end is None else line[: end.start()]).strip()
    return whole if _is_formula(whole) else None


def closing(text: str) -> str | None:
    r"""The number or short formula that a response without a box ends with, where no reader could see another.

    Example:
        >>> closing("She sold 9 * 2 = 18 eggs."), closing("Hence $x = \\frac{1}{2}$."), closing("So 2 + 3 * 4")
        ('18', 'x = \\frac{1}{2}', None)
    """
    if "boxed" in text or _ANCHORED.search(text):
        return None
    labelled = _LABELLED.fullmatch(text.rstrip().rsplit("\n", 1)[-1].strip())
    if labelled is not None:
        return labelled.group(1)
    text = text.replace("\\[", "$$").replace("\\]", "$$").rstrip(" .\n")
    if text.count("$$") % 2:
        # Cut off inside of a formula, which then is none.
        text, _, rest = text.rpartition("$$")
        if "$" in rest or _CANDIDATE.search(rest):
            return None
        text = text.rstrip(" .\n")
    for line in reversed(text.splitlines()):
        line = line.rstrip(" .")
        if line.endswith("$$"):
            return _understood(text[: text.rindex("$$")].rpartition("$$")[2].strip())
        opened = "$$" not in line and line.count("$") == 1
        if _CANDIDATE.search(line) or (any(c.isdigit() or c in "$\\" for c in line) and not opened):
            return _last_of(line)
    return None


def _last_of(line: str) -> str | None:
    """What ends last on a line, a number or an inline formula, if there is no doubt about either."""
    number = _LAST_NUMBER.search(line[-_LINE:])
    if number is not None:
        return number.group(1)
    pieces = (line if "$" in line else _INLINE.sub("$", line)).split("$")
    closed = (len(pieces) - 1) // 2
    # A number before a dollar makes it a price, not the beginning of a formula.
    if not closed or _DISPLAY.search(line) or any(p[-1:].isdigit() for p in pieces[: 2 * closed : 2]):
        return None
    tail = "$".join(pieces[2 * closed :])
    if _CANDIDATE.search(tail) or _PERCENT.match(tail):
        return None
    first = closed - 1
    while first > 0 and closed - first < _MOST_JOINED and _JOINED.fullmatch(pieces[2 * first]):
        first -= 1
    inside = ",".join(piece.strip() for piece in pieces[2 * first + 1 : 2 * closed : 2])
    return _understood(inside)


def _understood(formula: str) -> str | None:
    """The formula, if it is short, can be computed, and has nothing on which readers stumble."""
    plain = len(formula) <= _SHORT and not re.search(r"\n|\\\\|[.,;]$", formula)
    return formula if plain and is_understood(normal_form(formula)) else None


def _is_formula(text: str) -> bool:
    """Short, with a digit or a letter, and without words outside of LaTeX commands."""
    bare = _COMMAND.sub(" ", text)
    if not 0 < len(text) <= 120 or "boxed" in text or _WORD.search(bare) is not None:
        return False
    return any(c.isalnum() for c in text)


def is_prose(answer: str) -> bool:
    """Whether an answer consists of sentences rather than of a formula or a short phrase."""
    if len(answer) < 4 * _FEW_WORDS:
        return False  # too short for more than that many words of three letters
    return len(_WORD.findall(_COMMAND.sub(" ", answer))) > _FEW_WORDS
