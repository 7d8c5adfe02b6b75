"""Parses the numbered list that the policy writes into proposed problems."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lightning_serl.answers import strip_thinking
from lightning_serl.prompts import serl as published
from lightning_serl.prompts.asking import asks
from lightning_serl.prompts.chatter import Tidied, is_spoken, tidy
from lightning_serl.prompts.list_marks import pieces
from lightning_serl.prompts.phrases import SOLUTION_WORDS
from lightning_serl.types import STYLES


@dataclass(frozen=True)
class Item:
    """One proposed problem without its number, and whether the text was cut off in it."""

    text: str
    truncated: bool = False


# The items of a completion are freed from chatter up to this many characters; those behind them stay as they are.
_TIDIED = 60_000

# Repetitions are bounded: model text may be a megabyte of blank lines.
_SOLUTION = re.compile(
    rf"\\boxed\b|(?:^|[.?!。？！؟।;])[ \t\u3000*_#]{{0,20}}+(?:{SOLUTION_WORDS})[*_]{{0,3}}\s{{0,3}}[:：]",
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
    found, torn = pieces(strip_thinking(text), first, finished)
    items, room = [], _TIDIED
    for place, piece in enumerate(found):
        room -= len(piece.text)
        tidied = tidy(piece.text) if room >= 0 else Tidied(piece.text.strip(), False)
        if piece.number is None and len(tidied.text) < 400 and not asks(tidied.text) and is_spoken(tidied.text):
            continue
        # a problem is whole if only what followed it was cut off
        items.append(Item(tidied.text, torn and place == len(found) - 1 and not tidied.cut))
    return items


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
