r"""Finds the answer between tags such as ``<answer>...</answer>``, which many prompts ask for."""

from __future__ import annotations

import re

from lightning_serl.answers.reading.boxed import MAX_ANSWER, last_boxed
from lightning_serl.answers.reading.thinking import is_mentioned

_NAMES = (
    r"(?:(?:final|my|short|the|model)?[_\s-]?answer|final|(?:final[_\s-]?)?(?:result|response|output|solution|conclusion)"
    r"|respuesta|r[ée]ponse|antwort|resposta|risposta|ответ|答案|答え|回答|정답)"
)
_OPENING = re.compile(
    rf"<(?:(?i:\|?\s?{_NAMES}(?:\s[^<>\n]{{0,80}})?\s?\|?>)|\|(?:begin_of_(?:solution|answer|box)|START_RESPONSE)\|>)"
)
_SQUARE = re.compile(r"(?i)\[(?:final[_\s-]?)?answer\]")
_CLOSING = re.compile(
    rf"(?i)<\|?\s?/\s?{_NAMES}\s?\|?>|\[/(?:final[_\s-]?)?answer\]"
    r"|<\|(?:end_of_(?:solution|answer|box)|END_RESPONSE)\|>"
)
# Only a tag with such a word may stay open: the others are also words in angle brackets.
_MAY_STAY_OPEN = re.compile(r"(?i)answer|\||respuesta|\br[ée]ponse|antwort|risposta|resposta|ответ|答|정답")
_MARKUP = re.compile(r"</?(?:b|i|em|strong|p|span|div|br|code|center|u)(?:\s[^<>]{0,80})?/?>", re.IGNORECASE)
_EDGES = " \t\r\n"
_EMPHASIS = ("***", "**", "__", "*", "`", "_")
_SAYS = re.compile(r"[^\W_]|[∅∞√]")
_PLACEHOLDER = re.compile(
    r"(?i)\W*(?:(?:your|the|insert|put|final|numeric(?:al)?|number|answer|result|solution|value|here|goes|only|x)\b\W*)+"
)
_LONGEST_PLACEHOLDER = 60
_MOST_TRIED = 20


def last_answer_tag(text: str, finished: bool = True) -> str | None:
    r"""The content of the last ``<answer>`` tag or one of its kin (``<final_answer>``, ``[ANSWER]``), or ``None``.

    White space and emphasis around the content are removed, and from a content with a box only the box is returned.
    In a finished text the last tag need not be closed, because a stop sequence may have removed its end. Empty tags,
    placeholders ("your answer here") and tags in quotation marks are skipped.

    Example:
        >>> last_answer_tag("<think>2 + 10</think>\n<answer>\n**12**\n</answer>")
        '12'
        >>> last_answer_tag(r"<answer>It is \boxed{12}.</answer>"), last_answer_tag("no tag")
        ('12', None)
    """
    found = answer_tag_span(text, finished)
    if found is None:
        return None
    content = _MARKUP.sub("", text[found[0] : found[1]])
    return last_boxed(content) or bare(content)


def answer_tag_span(text: str, finished: bool = True) -> tuple[int, int] | None:
    """Where the content of the last answer tag starts and stops, or ``None``; see :func:`last_answer_tag`."""
    openings: list[re.Match[str]] = []
    if "<" in text:
        openings += (m for m in _OPENING.finditer(text) if not is_mentioned(text, *m.span()))
    if "[" in text and ("swer]" in text or "SWER]" in text):
        openings += (m for m in _SQUARE.finditer(text) if not is_mentioned(text, *m.span()))
        openings.sort(key=lambda m: m.start())
    if not openings:
        return None
    following = len(text)
    for opening in reversed(openings[-_MOST_TRIED:]):
        start = opening.end()
        closing = _CLOSING.search(text, start, min(following, start + MAX_ANSWER))
        if closing is None:
            # Text up to its end belongs to the tag if it is short and nothing else opens.
            last = finished and following == len(text) and _MAY_STAY_OPEN.search(opening.group()) is not None
            stop = len(text) if last else start
        else:
            stop = closing.start()
        following = opening.start()
        content = text[start:stop]
        if stop - start <= MAX_ANSWER and _SAYS.search(content) and not _is_placeholder(content):
            return start, stop
    return None


def bare(content: str) -> str:
    """The content without white space and emphasis around it."""
    content = content.strip(_EDGES)
    for mark in _EMPHASIS:
        size = len(mark)
        if len(content) > 2 * size and content.startswith(mark) and content.endswith(mark):
            inner = content[size:-size]
            if mark not in inner:
                content = inner.strip(_EDGES)
    return content


def _is_placeholder(content: str) -> bool:
    """Whether a content only stands for the answer, as in a repeated instruction."""
    return len(content) <= _LONGEST_PLACEHOLDER and _PLACEHOLDER.fullmatch(content) is not None
