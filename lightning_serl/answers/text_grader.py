"""Grader for short answers in words of any script, compared after normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from lightning_serl.answers.reading.boxed import last_boxed
from lightning_serl.answers.reading.letters import rejected_left, rejected_right
from lightning_serl.answers.reading.phrase import SHORT_WORDS, answer_phrase, is_sentence, labelled, says_nothing
from lightning_serl.answers.reading.thinking import strip_thinking

# A longer last line is an explanation, not a short answer.
MAX_LENGTH = 200
_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|emph|mathrm|mathbf|mathit|mathsf|rm|mbox|ce|operatorname)\s*\{([^{}]*)\}"
)
_SCRIPTS = re.compile(r"[_^]\s*(?:\{([^{}]*)\}|(?=\w))")
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|~")
_ESCAPED = re.compile(r"\\([%&#_{}$])")
_BLANKS = re.compile(r"\s+")
_EDGES = " \t.,;:!?…。．，、；：！？·*_`\"'$।؟،「」『』«»()[]{}"
_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("’‘ʼ′´`＇‛", "'"),
        **dict.fromkeys("“”„«»‟″", '"'),
        **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", None),
    }
)
# What tells no two answers apart: quotation marks, apostrophes, full stops behind letters, commas before blanks,
# hyphens between words, an article in front.
_QUOTES = re.compile(r"[\"'「」『』]|(?<=[^\W\d_])\.(?!\d)|(?<=\d)\.(?!\d)")
_BREAKS = re.compile(r"[,;:!?،，、](?!\d)|(?<=\w)[-/](?=[^\W\d_])|(?<=[^\W\d_])-(?=\w)|\s+-+\s+|&(?=\s)|[()\[\]]")
_ARTICLE = re.compile(
    r"(?:the|an?|el|la|los|las|un|una|le|les|une|l|der|die|das|ein|eine|il|lo|gli|i|os|as|um|uma|het|een)\s+(?=\w)"
)
_INITIALS = re.compile(r"(?<=\b[a-z])\s(?=[a-z]\b(?!['’]))")
_SPACELESS = re.compile("[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f\uac00-\ud7af]")


class TextGrader:
    r"""Reads a box, an announced answer, an emphasised or lone phrase, or the last line, and normalises it.

    Normalisation folds compatibility forms, case, typography (curly quotes, dashes, ``\text{H}_2\text{O}``) and white
    space, and drops punctuation at both ends. Comparison also ignores an article in front and punctuation between
    words; letters and words keep their order, so NaCl is not ClNa. In a group, a sentence stands for the short answer
    that occurs in it if there is exactly one (:meth:`settle`).

    Example:
        >>> grader = TextGrader()
        >>> grader.extract("It is in Europe.\nAnswer: **Paris**."), grader.extract("因此，答案是：北京。")
        ('paris', '北京')
        >>> grader.same("hooke's law", "Hooke’s law")
        True
    """

    name = "text"

    def extract(self, text: str) -> str | None:
        """The normalised answer of a finished response, or ``None``."""
        phrase = answer_phrase(text)
        return None if phrase is None or says_nothing(phrase) else normalise(phrase.text)

    def extract_truncated(self, text: str) -> str | None:
        """The last complete box; a truncated response without one has no answer."""
        box = last_boxed(strip_thinking(text))
        return None if box is None else normalise(box)

    def label(self, text: str) -> str | None:
        """A gold label, bare, boxed, after ``####`` or after "Answer:"."""
        return normalise(labelled(text))

    def same(self, a: str, b: str) -> bool:
        """Whether two answers are the same up to normalisation."""
        return a == b or comparison_key(a) == comparison_key(b)

    def settle(self, answers: Sequence[str]) -> dict[str, str]:
        """The short answer that each sentence among the ``answers`` stands for; other answers are left out.

        A sentence ("the capital of france is paris") stands for a short answer ("paris") if that one occurs in it as
        whole words, no other one of the group does, and it is not negated.

        Example:
            >>> TextGrader().settle(["paris", "rome", "it has been paris since 987", "not paris but lyon"])
            {'it has been paris since 987': 'paris'}
        """
        return settle(answers)


def settle(answers: Sequence[str]) -> dict[str, str]:
    """See :meth:`TextGrader.settle`."""
    distinct = sorted(set(answers), key=lambda a: (len(a), a))
    short: dict[str, str] = {}
    for answer in distinct:
        key = comparison_key(answer)
        if key and not is_sentence(answer) and not rejected_left(key) and len(key.split()) <= SHORT_WORDS:
            short.setdefault(key, answer)
    found: dict[str, str] = {}
    for answer in distinct:
        if short and is_sentence(answer) and len(answer) <= MAX_LENGTH:
            named = _named(comparison_key(answer), tuple(short))
            if len(named) == 1:
                found[answer] = short[named[0]]
    return found


def _named(sentence: str, short: Sequence[str]) -> list[str]:
    """The short answers that occur in a sentence and are not negated; none of them inside another."""
    spans = [(*m.span(), key) for key in short if key in sentence for m in _pattern(key).finditer(sentence)]
    out: dict[str, None] = {}
    for start, end, key in spans:
        inside = any(s <= start and end <= e and (s, e) != (start, end) for s, e, _ in spans)
        if not inside:
            negated = rejected_left(sentence[:start]) or rejected_right(sentence[end:])
            out |= {} if negated else {key: None}
    return list(out)


@lru_cache(maxsize=4096)
def _pattern(key: str) -> re.Pattern[str]:
    """The words between borders of words; scripts without spaces have none."""
    left = "" if _SPACELESS.match(key[0]) else r"(?<!\w)(?<!\d[.,])"
    right = (
        "" if _SPACELESS.match(key[-1]) else r"(?![^\W\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f\uac00-\ud7af])(?![.,]\d)"
    )
    return re.compile(left + re.escape(key) + right)


@lru_cache(maxsize=16384)
def comparison_key(answer: str) -> str:
    """What two equal answers in words have in common."""
    key = _typed(answer[: 4 * MAX_LENGTH])
    key = _BREAKS.sub(" ", _QUOTES.sub("", key))
    key = _INITIALS.sub("", " ".join(key.split()).strip(_EDGES))
    return _ARTICLE.sub("", key, count=1) if _ARTICLE.match(key) else key


def normalise(text: str, fold: bool = True) -> str | None:
    """One spelling for each short answer; ``None`` if nothing is left or it is longer than ``MAX_LENGTH``.

    Without ``fold`` upper and lower case stay.
    """
    if len(text) > 4 * MAX_LENGTH:
        return None
    folded = _typed(text, fold).strip(_EDGES)
    # Control characters, marks without a letter and lone surrogates are no answer.
    visible = any(unicodedata.category(c)[0] in "LNPS" for c in folded)
    return folded if visible and len(folded) <= MAX_LENGTH else None


def _typed(text: str, fold: bool = True) -> str:
    """The text without typesetting, in folded case and compatibility forms, with plain quotes and hyphens."""
    if "\\" in text or "_" in text or "^" in text:
        text = _ESCAPED.sub(r"\1", _SPACING.sub(" ", text))
        for _ in range(3):
            text = _WRAPPED.sub(r"\1", text)
        text = _SCRIPTS.sub(lambda m: m[1] or "", text)
    text = text.translate(_TYPOGRAPHY).replace("**", "").replace("$", "")
    folded = unicodedata.normalize("NFKC", text)
    if fold:  # which undoes NFKC for a few letters, so it is applied again
        folded = unicodedata.normalize("NFKC", folded.casefold())
    return _BLANKS.sub(" ", folded.translate(_TYPOGRAPHY)).strip()
