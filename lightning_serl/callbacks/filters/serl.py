"""The quality and difficulty rules of SeRL's published code."""

from __future__ import annotations

import re
import string

from torch import Tensor

from lightning_serl.prompts.serl import normalise
from lightning_serl.types import Reason

MAX_WORDS = 150

KEYWORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps"),
    *("draw", "plot", "go to"),
)


def reject(problem: str, min_words: int, max_words: int, keyword: re.Pattern[str]) -> Reason | None:
    """The first rule that a problem breaks, in the published order; ``None`` if it breaks none.

    Text is normalised as in the published parser and words are counted at blanks: from 4 to 150 in the published code.
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
    """The float32 mean of (n,) scores that is compared with the difficulty band: 4 of 5 is 0.800000012, above 0.8."""
    return float(scores.float().mean())
