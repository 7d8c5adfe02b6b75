"""Splits a text without numbers into its problems: by rules, bullets, letters, paragraphs, lines or sentences."""

from __future__ import annotations

import re

from lightning_serl.prompts.asking import asks, sentences
from lightning_serl.prompts.phrases import is_preface, is_remark, opens_answer

_BULLET = re.compile(
    r"^[ \t]*(?:[-*+]|[^\x00-\x7f\w\s“”‘’«»¿¡「『（【《])\ufe0f?[ \t]+(?:\[[ xX]?\][ \t]+)?(?=\S)", re.MULTILINE
)
_LETTER = re.compile(r"^[ \t]*\(?(?:[A-Za-z]|[ivxIVX]{2,5})[.)][ \t]+(?=\S)", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$", re.MULTILINE)
_FINISHED = re.compile(
    r"(?:^[ \t]*[(（]?[B-J][.)、][^\n]+|[.?!。？！؟।]|か|오|_{2,})[$)\]*_\"'”’」』）]*\s*\Z", re.MULTILINE
)
# A step of a solution: "First, find the value after one year."
_DERIVES = re.compile(r"\W*(?:first|then|next|finally|so|thus|therefore|hence|now)\b,", re.IGNORECASE)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")


def unmarked(text: str, marked: bool) -> list[str]:
    """The problems of a text that has no numbers: by rules, bullets, letters, paragraphs, lines or sentences.

    Args:
        text: A whole text, or one item of a list.
        marked: Whether it is an item of a list, in which bullets are parts.
    """
    if "[asy]" in text:
        return [text]
    parts = [part for part in _RULE.split(text) if part.strip()]
    if (
        len(parts) > 1
        and sum(map(_is_whole, parts)) == len([p for p in parts if not is_preface(p) and not is_remark(p)]) > 1
    ):
        return [one for part in parts if _is_whole(part) for one in unmarked(part, marked)]
    if not marked:
        for pattern in (_BULLET, _LETTER):
            starts = list(pattern.finditer(text))
            ends = [*(s.start() for s in starts[1:]), len(text)]
            items = [text[s.end() : end] for s, end in zip(starts, ends, strict=False)]
            lead = text[: starts[0].start()] if starts else ""
            if items and all(_is_whole(item.strip()) for item in items) and (not asks(lead) or is_preface(lead)):
                return items
    for split in (_PARAGRAPHS.split, str.splitlines):
        parts = [part for part in split(text) if part.strip()]
        answer = next((i for i, part in enumerate(parts) if opens_answer(part)), len(parts))
        parts = [p for i, p in enumerate(parts) if i < answer or (re.search(r"[?？؟]", p) and not opens_answer(p))]
        parts = [p for p in parts if not is_preface(p) and not is_remark(p) and _DERIVES.match(p) is None]
        problems = [part for part in parts if asks(part)]
        several = len(problems) == len(parts) > 1
        if several and all(map(_is_whole, problems)) and all(map(_FINISHED.search, problems[:-1])):
            return problems
    found = list(sentences(text)) if len(text) < 2000 else []
    if len(found) > 1 and all(s.asks for s in found):
        questions = [text[s.start : s.end] for s in found]
        if all(
            q.rstrip('*_"”» ').endswith(("?", "？", "؟")) and _is_whole(q) and len(q.split()) > 3 for q in questions
        ):
            return questions
    return [text] if text.strip() else []


# A question that speaks of what only a sentence before it can name.
_REFERS = re.compile(
    r"\b(?:he|she|they|him|her|his|hers|their|them|it|its|this|these|those|that|the same|the other|"
    r"the remaining|left|"
    r"in total|altogether|in all|remain|still|each)\b",
    re.IGNORECASE,
)


# A sentence that only says in which form to answer.
_FORM = re.compile(
    r"\W*(?:please )?(?:enter|submit|express|give|round|write|provide|answer|state|show|explain|justify|leave|"
    r"type|list|"
    r"use|assume|choose|select|report)\b[^.?\n]*?\b(?:your|answers?|solutions?|reasoning|work|steps|results?|"
    r"separated|"
    r"values|pair|neither|letter|option|in terms of|as an? (?:integer|fraction|decimal|mixed|common|reduced|"
    r"percent)|nearest|simplest)\b",
    re.IGNORECASE,
)


def _is_whole(text: str) -> bool:
    """Whether a text asks and could stand alone, that is, does not lean on a story before it."""
    found = list(sentences(text))
    if not any(s.asks for s in found):
        return False
    if _FORM.match(text) is not None:
        return False
    told = any(not s.asks for s in found)
    question = text[found[0].start : found[0].end]
    return told or _REFERS.search(question) is None or re.search(r"\d", question) is not None
