"""Parses the numbered list that the policy writes into proposed problems."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lightning_serl.answers import strip_thinking
from lightning_serl.prompts import serl as published
from lightning_serl.types import STYLES


@dataclass(frozen=True)
class Item:
    """One proposed problem without its number, and whether the text was cut off in it."""

    text: str
    truncated: bool = False


_NUMBER = re.compile(r"^[ \t]*(?:\*\*|#+[ \t]+)?(\d{1,4})(?:[.)](?:\*\*)?(?:\s+|$)|[、．）][ \t]*)", re.MULTILINE)

# Words that open a solution at the start of a line or sentence; the colon excludes "Answer the question".
_SOLUTION_WORDS = (
    "solutions?|(?:the )?(?:final |correct |right )?answers?|explanation|"
    "解|解答|解析|答|答案|参考答案|正解|정답|풀이|soluci[oó]n|respuesta|solução|resposta|réponse|lösung|antwort|"
    "soluzione|risposta|решение|ответ|الحل|الجواب|الإجابة|हल|उत्तर|समाधान"
)
# Repetitions are bounded: model text may be a megabyte of blank lines.
_SOLUTION = re.compile(
    rf"\\boxed\b|(?:^|[.?!。？！؟।;])[ \t\u3000*_#]{{0,20}}+(?:{_SOLUTION_WORDS})[*_]{{0,3}}\s{{0,3}}[:：]",
    re.IGNORECASE | re.MULTILINE,
)


def split_items(
    text: str,
    style: Literal["default", "serl"] = "default",
    first: int | None = None,
    finished: bool = True,
) -> list[Item]:
    """Split the policy's list into problems, including truncated and empty ones, so that they can be counted.

    Args:
        text: The sampled text.
        style: ``default`` reads numbers at line starts and keeps the problems as written; ``serl`` follows SeRL's
            published code, which finds numbers anywhere and capitalises.
        first: The number that the prompt ended with: text before the next number is that problem. Without it, or if the
            text restarts the numbering, text before the first number is a preamble.
        finished: ``False`` if the text was cut off by length.

    Raises:
        ValueError: for an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; use one of {', '.join(STYLES)}")
    if style == "serl":
        return [Item(found) for found in published.read_list(text)]
    text = strip_thinking(text)
    numbers = list(_NUMBER.finditer(text))
    lead = text[: numbers[0].start()] if numbers else text
    goes_on = first is not None and (not numbers or int(numbers[0][1]) == first + 1)
    found = [lead] if goes_on and lead.strip() else []
    ends = [*(n.start() for n in numbers[1:]), len(text)]
    found += [text[n.end() : end] for n, end in zip(numbers, ends, strict=False)]
    return [Item(t.strip(), not finished and i == len(found) - 1) for i, t in enumerate(found)]


def parse_instructions(
    text: str,
    style: Literal["default", "serl"] = "default",
    first: int | None = None,
    finished: bool = True,
) -> list[str]:
    """The problems in the policy's list; the default style omits empty and truncated ones.

    Arguments and errors are those of :func:`split_items`.
    """
    items = split_items(text, style, first, finished)
    return [item.text for item in items if style == "serl" or (item.text and not item.truncated)]


def has_solution(text: str) -> bool:
    r"""Whether a problem contains its solution: a box, or a sentence that opens with ``Answer:`` or similar."""
    return _SOLUTION.search(text) is not None
