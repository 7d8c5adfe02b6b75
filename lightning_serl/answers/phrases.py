r"""Answers announced in words: "the answer is ...", where no ``\boxed{...}`` marks them."""

from __future__ import annotations

import re

# The announcement stands at the end of a response.
_TAIL = 4000
# "Cannot be determined" is an answer in words; more words than this explain one.
_FEW_WORDS = 8
_ANNOUNCED = re.compile(r"(?i)\banswer[*_ ]*(?:is|:|=)[*_:\s]*")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(
    r"([-+]?)\s*[$€£¥]?\s*([-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?)(?=\s*(?:$|[.*!]+(?:\s|$)|[a-zA-Z]))"
)
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
        # More after the formula ("$3$ or $-3$") is more than this rule can read.
        after = line[math.end() :].strip(" .*!")
        return inside if _is_formula(inside) and not re.search(r"[$\\\d]|\b(?:and|or)\b", after) else None
    number = _NUMBER.match(line)
    if number is not None and not re.match(r"\s*(?:and|or)\b", line[number.end() :]):
        return number.group(1) + number.group(2)
    end = _SENTENCE_END.search(line)
    whole = (line if end is None else line[: end.start()]).strip()
    return whole if _is_formula(whole) else None


def _is_formula(text: str) -> bool:
    """Short, with a digit or a letter, and without words outside of LaTeX commands."""
    bare = _COMMAND.sub(" ", text)
    if not 0 < len(text) <= 120 or "boxed" in text or _WORD.search(bare) is not None:
        return False
    return any(c.isalnum() for c in text)


def is_prose(answer: str) -> bool:
    """Whether an answer consists of sentences rather than of a formula or a short phrase."""
    return len(_WORD.findall(_COMMAND.sub(" ", answer))) > _FEW_WORDS
