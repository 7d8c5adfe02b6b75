"""How SeRL's published code judges a written problem and the difficulty of an answered one."""

from __future__ import annotations

import re
import string

from torch import Tensor

from lightning_serl.prompts.serl import normalise

MAX_WORDS = 150

KEYWORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps"),
    *("draw", "plot", "go to"),
)


def reject(problem: str, min_words: int, max_words: int, keyword: re.Pattern[str]) -> str | None:
    """The first rule that a problem breaks, in the published order; ``None`` if it breaks none.

    Args:
        problem: The text, normalised here as the published parser leaves it.
        min_words: The fewest words, counted at blanks; the published code asks for 4.
        max_words: The most words; the published code allows 150.
        keyword: Finds the words that reject a problem.
    """
    text = normalise(problem)
    words = len(text.split())
    if not text:
        return "empty"
    if words < min_words:
        return "too_short"
    if words > max_words:
        return "too_long"
    if keyword.search(text):
        return "keyword"
    if text.startswith("Write a program"):
        return "write_a_program"
    if text[0] in string.punctuation:
        return "punctuation"
    return None if text[0].isascii() else "non_ascii"


def mean_score(scores: Tensor) -> float:
    """The mean that is held against the band, in float32: 4 of 5 is 0.800000012, above 0.8.

    Args:
        scores: (n,) float32.
    """
    return float(scores.float().mean())
