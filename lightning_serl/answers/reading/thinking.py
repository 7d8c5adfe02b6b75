"""Removes ``<think>`` sections, closed or not, from a response."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def strip_thinking(text: str) -> str:
    """The text without its thinking.

    Closed sections are removed. Everything after an opening tag without a closing one is thinking, and so is everything
    before a ``</think>`` without an opening tag (chat templates write the opening tag into the prompt).

    Example:
        >>> strip_thinking("<think>1 or 2?</think>It is 2.")
        'It is 2.'
        >>> strip_thinking("1 or 2?</think>It is 2. <think>Or")
        'It is 2. '
    """
    if OPEN not in text and CLOSE not in text:
        return text
    # Each tag is searched once, so that a text of nothing but tags takes linear time.
    pieces: list[str] = []
    at = 0
    start, end = text.find(OPEN), text.find(CLOSE)
    while end != -1:
        if start == -1 or end < start:
            pieces.clear()  # the prompt opened this section
        else:
            pieces.append(text[at:start])
        at = end + len(CLOSE)
        end = text.find(CLOSE, at)
        if -1 < start < at:
            start = text.find(OPEN, at)
    pieces.append(text[at:] if start == -1 else text[at:start])
    return "".join(pieces)
