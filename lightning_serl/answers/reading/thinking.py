"""Removes the thinking of reasoning models from a response, in time linear in the text."""

from __future__ import annotations

import re
from typing import NamedTuple

# Names of sections between angle brackets (``<think>``, ``<|thinking|>``) or square ones (``[THINK]``). Models mix the
# first three; all are lower-cased before they are looked up.
_SAME = ("think", "thinking", "thought", "thoughts")
_NAMES = (
    *_SAME,
    *("reasoning", "reason", "reflection", "scratchpad", "scratch_pad", "analysis", "rationale", "inner_monologue"),
    *("seed:think", "cot", "internal", "chain_of_thought", "thinking_process", "thought_process", "reasoning_process"),
)
# Sections that a chat template never opens in the prompt: their closing tag alone ends nothing.
_NEVER_OPENED = frozenset({"reflection", "rationale", "internal", "analysis"})
# Sections of control tokens: opening, closing.
_TOKENS = (
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|startofthought|>", "<|endofthought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>", "<channel|>"),
    ("<unused94>", "<unused95>"),
    ("<|im_start|>think", "<|im_start|>answer"),
)
# A section that breaks off is recognised anywhere by these tags, by others at the start of a line.
_CUT_ANYWHERE = frozenset({"think", "seed:think", *(closing for _, closing in _TOKENS)})
_OPENS = dict(_TOKENS)
_CLOSES = frozenset(_OPENS.values())
_NAME = "|".join(sorted(map(re.escape, _NAMES), key=len, reverse=True))
_TAG = re.compile(
    rf"(?i:<\|?\s?(?P<close>/)?\s?(?P<name>{_NAME})(?P<rest>\s[^<>\n]{{0,80}})?\s?\|?>)"
    rf"|\[(?P<close2>/)?(?P<name2>THINK)\]"
    rf"|(?P<token>{'|'.join(map(re.escape, sorted((*_OPENS, *_CLOSES), key=len, reverse=True)))})"
)
# Cheap tests for texts without any of them, which are most.
_ANGLE = re.compile(
    r"<[|/]{0,2}\s?(?i:think|thought|reason|reflect|scratch|analysis|rationale|inner_|seed:|cot\b|internal|chain_of)"
    r"|<\|(?:channel|begin_of_t|end_of_t|startof|endof|START_|END_|im_start|inner)|<unused9|<channel\|>"
)
_QUOTES = "`\"'“”‘’«»「」"

# Channels of the harmony format: a header up to the message token, and the message up to the next token.
_CHANNEL = "<|channel|>"
_MESSAGE = re.compile(r"<\|channel\|>\s*(\w*)[^<]{0,200}(?:<\|constrain\|>[^<]{0,80})?<\|message\|>")
_MESSAGE_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
# The same where the tokenizer dropped its control tokens.
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=\s*[A-Z\d\"'“(*#$\\]|[^\x00-\x7f])")
_BARE_FINAL = "assistantfinal"


class _Tag(NamedTuple):
    """A tag and the section that it opens or closes."""

    start: int
    end: int
    name: str
    closes: bool


def strip_thinking(text: str) -> str:
    """The text without its thinking, in whatever tags the model's family writes it.

    Closed sections (``<think>``, ``<thinking>``, ``<reasoning>``, ``[THINK]``, ``<seed:think>``, ``◁think▷`` and
    others) are removed. Everything after an opening tag without a closing one is thinking, and so is everything before
    a closing tag without an opening one, because chat templates write the opening tag into the prompt. Of the channels
    of the harmony format only the final one is kept. Tags in quotation marks are mentioned, not used.

    Example:
        >>> strip_thinking("<think>3 or 4?</think>It is 4."), strip_thinking("[THINK]Perhaps 3")
        ('It is 4.', '')
    """
    if _CHANNEL in text:
        text = _final_channel(text)
    elif text.startswith(("analysis", " analysis", "\nanalysis")) and _BARE_ANALYSIS.match(text) is not None:
        return _after_bare_analysis(text)
    return _without_sections(text) if _may_have_sections(text) else text


def _may_have_sections(text: str) -> bool:
    """Whether a text holds the beginning of a tag."""
    if "<" in text and _ANGLE.search(text) is not None:
        return True
    return "THINK]" in text or "◁" in text


def _without_sections(text: str) -> str:
    """The text without sections between an opening and a closing tag."""
    tags = [_kind(m) for m in _TAG.finditer(text) if not is_mentioned(text, *m.span())]
    last_closing = {tag.name: tag.start for tag in tags if tag.closes}
    pieces: list[str] = []
    at = 0
    opened: str | None = None
    for start, end, name, closes in tags:
        if opened is not None:
            if closes and name == opened:
                opened, at = None, end
        elif closes:
            if name in _NEVER_OPENED:
                pieces.append(text[at:start])
            else:
                pieces.clear()  # the prompt opened this section
            at = end
        elif last_closing.get(name, -1) > start or name in _CUT_ANYWHERE or _begins_a_line(text, start):
            pieces.append(text[at:start])
            opened = name
    if opened is None:
        pieces.append(text[at:])
    return "".join(pieces)


def _kind(match: re.Match[str]) -> _Tag:
    """The section that a tag belongs to."""
    token = match["token"]
    if token is not None:
        return _Tag(*match.span(), _OPENS.get(token, token), token in _CLOSES)
    name = (match["name"] or match["name2"]).lower()
    closes = bool(match["close"] or match["close2"])
    return _Tag(*match.span(), "think" if name in _SAME else name, closes)


def _begins_a_line(text: str, at: int) -> bool:
    """Whether only blanks and marks stand before a place on its line."""
    before = text[max(0, at - 20) : at].rsplit("\n", 1)
    return not before[-1].strip(" \t*_>#") and (len(before) > 1 or at <= 20)


def is_mentioned(text: str, start: int, end: int) -> bool:
    """Whether a tag stands in quotation marks or code ticks."""
    return start > 0 and end < len(text) and text[start - 1] in _QUOTES and text[end] in _QUOTES


def _final_channel(text: str) -> str:
    """The messages of the final channel; without one the text before all channels, unless that was a thought."""
    found: list[str] = []
    first: int | None = None
    for match in _MESSAGE.finditer(text):
        first = match.start() if first is None else first
        if match[1].lower() == "final":
            end = _MESSAGE_END.search(text, match.end())
            found.append(text[match.end() : len(text) if end is None else end.start()])
    before = text[: text.find(_CHANNEL)]
    if found:
        return "".join(found)
    return "" if first is not None or _MESSAGE_END.search(before) else before


def _after_bare_analysis(text: str) -> str:
    """What follows the analysis where the control tokens around it were dropped."""
    at = text.rfind(_BARE_FINAL)
    if at != -1:
        return text[at + len(_BARE_FINAL) :]
    # "analysisWe need": the name of the channel and the first word of a thought that was cut off.
    return "" if re.match(r"\s*analysis[^\s]", text) else text
