"""Grader for short answers in words of any script, compared after normalisation."""

from __future__ import annotations

import re
import unicodedata

from lightning_serl.answers.reading.announced import ANNOUNCEMENT
from lightning_serl.answers.reading.boxed import last_boxed
from lightning_serl.answers.reading.thinking import strip_thinking

# A longer last line is an explanation, not a short answer.
MAX_LENGTH = 200
_TAIL = 4000
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|ce)\s*\{([^{}]*)\}")
_BLANKS = re.compile(r"\s+")
_EDGES = " \t.,;:!?…。．，、；：！？·*_`\"'“”‘’«»「」『』$।؟،"


class TextGrader:
    r"""Reads a box, the last "answer: ...", or the last line, and normalises it.

    Normalisation folds compatibility forms and case, collapses white space, and drops punctuation at both ends; letters
    and words keep their order, so NaCl is not ClNa.

    Example:
        >>> grader = TextGrader()
        >>> grader.extract("It is in Europe.\nAnswer: **Paris**."), grader.extract("因此，答案是：北京。")
        ('paris', '北京')
    """

    name = "text"

    def extract(self, text: str) -> str | None:
        """The normalised answer of a finished response, or ``None``."""
        text = strip_thinking(text)
        box = last_boxed(text)
        if box is not None:
            return normalise(_WRAPPED.sub(r"\1", box))
        tail = text[-_TAIL:]
        announced = list(ANNOUNCEMENT.finditer(tail))
        if announced:
            found = normalise(tail[announced[-1].end() :].strip().split("\n", 1)[0])
            if found is not None:
                return found
        return normalise(next((line for line in reversed(tail.splitlines()) if line.strip()), ""))

    def extract_truncated(self, text: str) -> str | None:
        """The last complete box; a truncated response without one has no answer."""
        box = last_boxed(strip_thinking(text))
        return None if box is None else normalise(_WRAPPED.sub(r"\1", box))

    def label(self, text: str) -> str | None:
        """A gold label, bare or boxed."""
        box = last_boxed(text)
        return normalise(_WRAPPED.sub(r"\1", text if box is None else box))

    def same(self, a: str, b: str) -> bool:
        """Whether two normalised answers are the same string."""
        return a == b


def normalise(text: str) -> str | None:
    """One spelling for each short answer; ``None`` if nothing is left or it is longer than ``MAX_LENGTH``."""
    if len(text) > 4 * MAX_LENGTH:
        return None
    # Case folding undoes NFKC for a few letters, so it is applied again.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = _BLANKS.sub(" ", folded).strip(_EDGES)
    # Control characters, marks without a letter and lone surrogates are no answer.
    visible = any(unicodedata.category(c)[0] in "LNPS" for c in folded)
    return folded if visible and len(folded) <= MAX_LENGTH else None
