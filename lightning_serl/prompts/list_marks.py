"""Finds the problems in a text by their marks: numbers and headings."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from lightning_serl.prompts.asking import asks
from lightning_serl.prompts.containers import json_items, table_rows, without_fences, without_tags
from lightning_serl.prompts.phrases import PROBLEM_WORDS, SOLUTION_WORDS, is_heading, is_preface
from lightning_serl.prompts.unmarked import unmarked

_SHORT_WORDS = r"Q\.?|P\.?|Ex|Prob|Ques|No\.?|Nr\.?|N°|№|#"
_SPELLED = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
_ORDER = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|new|next|another|your|the|final|last"
_EMPHASIS = r"[*_]{0,3}"
_OPEN = (
    rf"^[ \t]{{0,60}}+(?:>[ \t]{{0,9}}+)?(?:[-*+•‣◦▪●–—·][ \t]+)?(?:\[[ xX]?\][ \t]+)?(?:#{{1,6}}[ \t]+)?{_EMPHASIS}"
)
_NUMBER = (
    rf"(?P<plain>\d{{1,4}})(?:[ \t]?(?:\\?[.)]{{1,2}}|[º°ª]\.?)[:-]?{_EMPHASIS}(?:\s+|$)|"
    rf"\.(?=(?-i:[A-Z¿¡][a-z ]))|[、．）][ \t]*|"
    rf"{_EMPHASIS}:{_EMPHASIS}(?:[ \t]+|$)|：[ \t]*"
    r"|[ \t]*[-–—>][ \t]+(?=(?-i:[A-Z¿][a-z]))|\ufe0f?\u20e3[ \t]*)"
)
_BRACKET = (
    rf"[(（\[【［<{{](?P<bracket>\d{{1,4}})[)）\]】］>}}]{_EMPHASIS}[.:：]?{_EMPHASIS}[ \t]*|(?P<circled>[①-⑳])[ \t]*"
)
_WORDED = (
    rf"[\[【]?(?:(?P<word>(?:(?:new|next|another) )?(?:{PROBLEM_WORDS})|{_SHORT_WORDS})[ \t]{{0,3}}(?:#|no\.?|"
    rf"nº|n°|№)?[ \t]{{0,3}}"
    rf"(?:(?P<worded>\d{{1,4}})(?:\.\d{{1,2}}(?=[:.]))?|(?P<spelled>{'|'.join(_SPELLED)})\b)|"
    rf"第[ \t]*(?P<ordinal>\d{{1,4}}|"
    rf"[一二三四五六七八九十]{{1,3}})[ \t]*[题題問问道个]|(?P<nth>\d{{1,4}})(?:st|nd|rd|th|"
    rf"\.)[ \t](?:{PROBLEM_WORDS})(?=[ \t]?[:：]))"
    rf"(?:[ \t]?(?:/|of)[ \t]?\d{{1,4}})?[\]】]?"
    rf"{_EMPHASIS}(?:[ \t]{{0,3}}\([^()\n]{{1,40}}\))?{_EMPHASIS}(?:[ \t]{{0,3}}(?:[.:：、．)）|]|[-–—](?=[ \t]))|"
    rf"(?=[ \t]*$)|(?<=\*\*)|(?<=[】\]])|(?<=[题題道])(?=[ \u3000])|(?<=[問问]\d)(?=[ \u3000])|"
    rf"(?<=[問问]\d\d)(?=[ \u3000])|"
    rf"(?=[ \u3000]+[^\x00-\x7f])|(?=[ \t]+(?-i:[A-Z¿¡])))"
    rf"{_EMPHASIS}[ \t\u3000]*"
)
_HEADED = (
    rf"(?P<headed>(?:(?:{_ORDER}) )?(?:{PROBLEM_WORDS})|Q)"
    rf"(?:{_EMPHASIS}[ \t]?[:：]{_EMPHASIS}[ \t\u3000]*(?:\d{{1,4}}[.)][ \t]+)?|\*\*[ \t]*$)"
)
_MARK = re.compile(rf"{_OPEN}(?:{_NUMBER}|{_BRACKET}|{_WORDED}|{_HEADED})", re.MULTILINE | re.IGNORECASE)


#: Longer text is split at its marks alone, so that a megabyte costs little; a completion is shorter.
_LONGEST = 30_000


class Piece(NamedTuple):
    """The text of one item of a list, without its mark, and its number where it has one."""

    text: str
    number: int | None = None


class _Mark(NamedTuple):
    family: str
    number: int | None
    start: int
    end: int
    indent: int


def pieces(text: str, first: int | None, finished: bool) -> tuple[list[Piece], bool]:
    """The items of a list in order, empty ones included, and whether the text could be cut off in the last of them.

    Args:
        text: What the policy wrote, without its thinking.
        first: The number that the prompt ended with: text before the next number is that item.
        finished: Whether the text ended by itself.
    """
    plain = len(text) > _LONGEST
    if not plain:
        listed = json_items(text)
        if listed is not None:
            return [Piece(problem) for problem in listed[0]], not listed[1] and not finished
        text = without_tags(without_fences(text, lambda inside: _MARK.match(inside) is not None or asks(inside)))
        kept = _before_key(text)
        finished = finished or len(kept) < len(text)
        text = _on_lines(kept, first)
        rows = table_rows(text)
        if rows is not None:
            return [Piece(row) for row in rows], not finished
    marks = _main_marks(_marks(text), text, first)
    lead = text[: marks[0].start] if marks else text
    found: list[Piece] = []
    if lead.strip() and (not marks or first is None or _follows(marks[0], first, lead)):
        parts = [lead] if plain else unmarked(lead, bool(marks))
        # without a number to go on from, text before the marks is a preamble
        if first is not None or (not marks and len(parts) > 1):
            found += [Piece(part) for part in parts]
    ends = [*(mark.start for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):
        item = text[mark.end : end]
        parts = [item] if plain else unmarked(item, True) or [""]
        found += [Piece(part, mark.number if i == 0 else None) for i, part in enumerate(parts)]
    return found, not finished


def _follows(mark: _Mark, first: int, lead: str) -> bool:
    """Whether text before the first mark is the item whose number ended the prompt."""
    return mark.number == first + 1 or (mark.number is None and asks(lead))


_IN_LINE = re.compile(
    rf"(?<=[.?!。？！])[ \t]{{1,9}}(?=\*{{0,2}}(?:(?:{PROBLEM_WORDS})[ \t]#?\d{{1,4}}[*_]{{0,3}}[:：.)]"
    r"|\(?(?P<number>\d{1,4})[.)]\*{0,2}[ \t]+\*{0,2}(?-i:[A-Z¿¡])))",
    re.IGNORECASE,
)


def _on_lines(text: str, first: int | None) -> str:
    """The text with a new line before each mark that stands behind a sentence and continues the numbers before it."""
    known = {first, *map(_numbered, _MARK.finditer(text))}
    out, at = [], 0
    for found in _IN_LINE.finditer(text):
        number = found["number"]
        if number is not None and int(number) - 1 not in known:
            continue
        if number is not None:
            known.add(int(number))
        out.append(text[at : found.start()])
        at = found.end()
    return "\n".join([*out, text[at:]])


# -- marks -------------------------------------------------------------------------------------------------------------


def _marks(text: str) -> list[_Mark]:
    """Everything at the start of a line that could be the mark of an item."""
    found = []
    for match in _MARK.finditer(text):
        family = {"plain": "plain", "bracket": "bracket", "circled": "bracket"}.get(str(match.lastgroup), "worded")
        indent = len(match[0]) - len(match[0].lstrip(" \t"))
        found.append(_Mark(family, _numbered(match), match.start(), match.end(), indent))
    return found


def _numbered(mark: re.Match[str]) -> int | None:
    """The number of a mark, ``None`` for a heading without one."""
    kind = str(mark.lastgroup)
    value = mark[kind]
    if kind == "headed":
        return None
    if value.isdecimal():
        return int(value)
    if kind == "spelled":
        return _SPELLED.index(value.lower()) + 1
    if kind == "circled":
        return int(unicodedata.numeric(value))
    digits = "一二三四五六七八九"
    tens, ten, ones = value.rpartition("十")
    return (10 * (digits.find(tens) + 1 if tens else 1) if ten else 0) + digits.find(ones) + 1


def _main_marks(marks: list[_Mark], text: str, first: int | None) -> list[_Mark]:
    """The marks that begin items; others, and numbers that restart inside an item, are parts of it."""
    if not marks:
        return []
    opening = next((m for m in marks if first is not None and m.number in (first, first + 1)), marks[0])
    chosen = [m for m in marks if m.family == opening.family]
    if opening.family == "worded" and any(m.number is not None for m in chosen):
        pairs = zip(chosen, [None, *chosen], strict=False)
        chosen = [mark for mark, before in pairs if not _repeats(mark, before, text)]
    if first is not None and opening.number == first + 1 and _is_listed(text[: chosen[0].start], chosen[0], text):
        chosen = [mark for mark in chosen if mark.start >= opening.start]
    main: list[_Mark] = []
    part: _Mark | None = None
    last_of = {mark.number: place for place, mark in enumerate(chosen)}
    for place, mark in enumerate(chosen):
        if main and main[-1].number is not None and mark.family != "worded":
            goes_on = last_of.get(main[-1].number + 1, -1) > place
            if _continues(mark, part, main[-1], text) or _is_part(mark, main[-1], goes_on, text):
                part = mark
                continue
        main.append(mark)
        part = None
    if first is not None and opening.number == 1 and len(marks) > 1 and main and main[0].number == 1:
        lead = text[: main[0].start]
        # "A farmer has 4 cows. 1. How many heads? 2. How many legs?" continues the item that the prompt began
        if first != 1 and lead.strip() and not asks(lead) and not is_preface(lead) and not is_heading(lead):
            return []
    return main


def _is_listed(lead: str, mark: _Mark, text: str) -> bool:
    """Whether a list behind a story is a part of it: "A game has these rules:", "1. Two dice are rolled."."""
    if mark.number != 1 or not lead.strip() or is_preface(lead) or is_heading(lead):
        return False
    return (
        lead.rstrip("*_ \t\n").endswith((":", "：")) or not asks(lead) or not asks(text[mark.end :].partition("\n")[0])
    )


def _repeats(mark: _Mark, before: _Mark | None, text: str) -> bool:
    """Whether a heading without a number only repeats the heading before it: "Problem 9", then "Question: ..."."""
    return mark.number is None and before is not None and not asks(text[before.end : mark.start][:2000])


def _continues(mark: _Mark, part: _Mark | None, last: _Mark, text: str) -> bool:
    """Whether a number continues the parts of the item ``last``: "1)", "2)" within "9."."""
    if part is None or part.number is None or mark.number != part.number + 1 or last.number is None:
        return False
    return mark.number != last.number + 1 or _style(mark, text) == _style(part, text) != _style(last, text)


def _style(mark: _Mark, text: str) -> str:
    """A mark without its number."""
    return re.sub(r"\d+", "0", text[mark.start : mark.end].strip())


def _is_part(mark: _Mark, last: _Mark, goes_on: bool, text: str) -> bool:
    """Whether a number belongs to a part of the item ``last``: it starts at 1 again, or continues such parts.

    ``goes_on`` tells whether the number after that of ``last`` follows later.
    """
    if mark.number is None or last.number is None or mark.number == last.number + 1:
        return False
    if text[last.end : mark.start].rstrip("*_ \t\n").endswith((":", "：")):
        return True  # what is listed behind a colon
    if mark.number > last.number + 1:  # years and amounts
        return goes_on or mark.number > last.number + 100
    if mark.number == 1 and last.number > 1:
        return goes_on or mark.indent > last.indent or not asks(text[last.end : min(mark.start, last.end + 2000)])
    if mark.number > 1 and last.number > mark.number:
        return goes_on or not asks(text[last.end : last.end + 400].partition("\n")[0])
    return False


_KEY = re.compile(
    rf"^[ \t]*[\W_]{{0,6}}(?:here are the )?(?:{SOLUTION_WORDS}|answer key|respuestas|soluciones|réponses|"
    rf"solutions|lösungen|"
    r"antworten|risposte|respostas|ответы)[*_]{0,3}[ \t]*[:：]?[*_]{0,3}[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)


def _before_key(text: str) -> str:
    """The text without a list of answers at its end, whose numbers restart."""
    for key in _KEY.finditer(text):
        after = _MARK.search(text, key.end())
        before = list(_MARK.finditer(text, 0, key.start()))
        if after is None or not before:
            continue
        again, last = _numbered(after), _numbered(before[-1])
        if again is not None and last is not None and again <= last:
            return text[: key.start()]
    return text
