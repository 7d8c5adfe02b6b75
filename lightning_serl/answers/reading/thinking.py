"""A ``<think>`` section is no answer, closed or not."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def strip_thinking(text: str) -> str:
    """The text without its thinking.

    Closed sections are removed; from a section that never closes on, everything is thinking; before a ``</think>``
    without an opening tag, everything is thinking too (chat templates write the opening tag into the prompt).

    Example:
        >>> strip_thinking("<think>1 or 2?</think>It is 2.")
        'It is 2.'
        >>> strip_thinking("1 or 2?</think>It is 2. <think>Or")
        'It is 2. '
    """
    if OPEN not in text and CLOSE not in text:
        return text
    # The last closing tag ends every section before it, also nested or unopened ones; what stands between two closed
    # sections is an interim answer at best, and the answer of a response comes last.
    # Each tag is looked for once: a text may be tags and nothing else.
    pieces: list[str] = []
    at = 0
    start, end = text.find(OPEN), text.find(CLOSE)
    while end != -1:
        if start == -1 or end < start:
            pieces.clear()  # all of it was thinking that the prompt had opened
        else:
            pieces.append(text[at:start])
        at = end + len(CLOSE)
        end = text.find(CLOSE, at)
        if -1 < start < at:
            start = text.find(OPEN, at)
    pieces.append(text[at:] if start == -1 else text[at:start])
    return "".join(pieces)
