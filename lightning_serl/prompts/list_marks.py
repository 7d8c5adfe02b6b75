"""Finds the problems in a text by their marks: numbers, headings, bullets, JSON, tables, or one problem a line."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, NamedTuple

from lightning_serl.prompts.asking import asks, sentences
from lightning_serl.prompts.phrases import PROBLEM_WORDS, SOLUTION_WORDS, is_preface, is_remark, opens_answer

_SHORT_WORDS = r"Q|P|Ex|Prob|Ques|No\.?|Nr\.?|N°|№|#"
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
_OPEN = rf"^[ \t]{{0,60}}+(?:>[ \t]{{0,9}}+)?(?:[-*+•‣◦▪●–—·][ \t]+)?(?:#{{1,6}}[ \t]+)?{_EMPHASIS}"
_NUMBER = (
    rf"(?P<plain>\d{{1,4}})(?:[ \t]?(?:\\?[.)]{{1,2}}|[º°ª]\.?)[:-]?{_EMPHASIS}(?:\s+|$)|"
    rf"\.(?=(?-i:[A-Z¿¡][a-z ]))|[、．）][ \t]*|"
    rf"{_EMPHASIS}:{_EMPHASIS}(?:[ \t]+|$)|：[ \t]*"
    r"|[ \t]+[-–—][ \t]+(?=(?-i:[A-Z¿][a-z]))|\ufe0f?\u20e3[ \t]*)"
)
_BRACKET = (
    rf"[(（\[【［<](?P<bracket>\d{{1,4}})[)）\]】］>]{_EMPHASIS}[.:：]?{_EMPHASIS}[ \t]*|(?P<circled>[①-⑳])[ \t]*"
)
_WORDED = (
    rf"[\[【]?(?:(?P<word>(?:(?:new|next|another) )?(?:{PROBLEM_WORDS})|{_SHORT_WORDS})[ \t]{{0,3}}(?:#|no\.?|"
    rf"nº|n°|№)?[ \t]{{0,3}}"
    rf"(?:(?P<worded>\d{{1,4}})|(?P<spelled>{'|'.join(_SPELLED)})\b)|第[ \t]*(?P<ordinal>\d{{1,4}}|"
    rf"[一二三四五六七八九十]{{1,3}})[ \t]*[题題問问道个])[\]】]?"
    rf"{_EMPHASIS}(?:[ \t]{{0,3}}\([^()\n]{{1,40}}\))?{_EMPHASIS}(?:[ \t]{{0,3}}(?:[.:：、．)）|]|[-–—](?=[ \t]))|"
    rf"(?=[ \t]*$)|(?<=\*\*)|(?<=[】\]])|(?<=[問问]\d)(?=[ \u3000])|(?<=[問问]\d\d)(?=[ \u3000])|"
    rf"(?=[ \u3000]+[^\x00-\x7f])|(?=[ \t]+(?-i:[A-Z¿¡])))"
    rf"{_EMPHASIS}[ \t\u3000]*"
)
_HEADED = (
    rf"(?P<headed>(?:(?:{_ORDER}) )?(?:{PROBLEM_WORDS})|Q)"
    rf"{_EMPHASIS}[ \t]?[:：]{_EMPHASIS}[ \t\u3000]*"
)
_MARK = re.compile(rf"{_OPEN}(?:{_NUMBER}|{_BRACKET}|{_WORDED}|{_HEADED})", re.MULTILINE | re.IGNORECASE)
_BULLET = re.compile(r"^[ \t]*[-*+•‣◦▪●–—·][ \t]+(?=\S)", re.MULTILINE)
_LETTER = re.compile(r"^[ \t]*\(?(?:[A-Za-z]|[ivxIVX]{2,5})[.)][ \t]+(?=\S)", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$", re.MULTILINE)
_FINISHED = re.compile(
    r"(?:^[ \t]*[(（]?[B-J][.)、][^\n]+|[.?!。？！؟।]|か|오|_{2,})[$)\]*_\"'”’」』）]*\s*\Z", re.MULTILINE
)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")
_FENCE = re.compile(r"^[ \t]*```([^\n`]*)$", re.MULTILINE)
_TEXT_FENCES = ("", "text", "txt", "plaintext", "plain", "markdown", "md", "json", "latex", "tex")


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
        listed = _json_items(text, finished)
        if listed is not None:
            return listed
        text = _without_tags(_without_fences(text))
        text = _on_lines(_before_key(text), first)
        rows = _table(text)
        if rows is not None:
            return [Piece(row) for row in rows], not finished
    marks = _main_marks(_marks(text), text, first)
    lead = text[: marks[0].start] if marks else text
    found: list[Piece] = []
    if lead.strip() and (not marks or first is None or _follows(marks[0], first)):
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


def _follows(mark: _Mark, first: int) -> bool:
    """Whether text before the first mark is the item whose number ended the prompt."""
    return mark.number == first + 1 or mark.number is None


_TAG = re.compile(
    r"<(?:problem|question|exercise|task|item|li)\b[^<>\n]{0,40}>|^[ \t]*\\item\b", re.IGNORECASE | re.MULTILINE
)
_OTHER_TAG = re.compile(
    r"</?(?:problem|question|exercise|task|item|li|ol|ul|p|br|problems|questions|list|div)\b[^<>\n]{0,40}>|"
    r"\\(?:begin|end)\{(?:enumerate|itemize)\}",
    re.IGNORECASE,
)


def _without_tags(text: str) -> str:
    """The text with tags around its items replaced by headings."""
    return text if _TAG.search(text) is None else _OTHER_TAG.sub("\n", _TAG.sub("\nProblem: ", text))


_IN_LINE = re.compile(
    rf"(?<=[.?!。？！])[ \t]{{1,9}}(?=\*{{0,2}}(?:(?:{PROBLEM_WORDS})[ \t]#?\d{{1,4}}[*_]{{0,3}}[:：.)]"
    r"|\(?(?P<number>\d{1,4})[.)][ \t]+\*{0,2}(?-i:[A-Z¿¡])))",
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
    main: list[_Mark] = []
    last_of = {mark.number: place for place, mark in enumerate(chosen)}
    for place, mark in enumerate(chosen):
        if main and main[-1].number is not None and mark.family != "worded":
            goes_on = last_of.get(main[-1].number + 1, -1) > place
            if _is_part(mark, main[-1], goes_on, text):
                continue
        main.append(mark)
    if first is not None and opening.number == 1 and len(marks) > 1 and main and main[0].number == 1:
        lead = text[: main[0].start]
        # "A farmer has 4 cows. 1. How many heads? 2. How many legs?" continues the item that the prompt began
        if first != 1 and lead.strip() and not asks(lead) and not is_preface(lead):
            return []
    return main


def _repeats(mark: _Mark, before: _Mark | None, text: str) -> bool:
    """Whether a heading without a number only repeats the heading before it: "Problem 9", then "Question: ..."."""
    return mark.number is None and before is not None and not asks(text[before.end : mark.start][:2000])


def _is_part(mark: _Mark, last: _Mark, goes_on: bool, text: str) -> bool:
    """Whether a number belongs to a part of the item ``last``: it starts at 1 again, or continues such parts.

    ``goes_on`` tells whether the number after that of ``last`` follows later.
    """
    if mark.number is None or last.number is None or mark.number == last.number + 1:
        return False
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


# -- text without marks ------------------------------------------------------------------------------------------------


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
        parts = [part for part in parts if not is_preface(part) and not is_remark(part)]
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


# -- JSON, fences, tables ----------------------------------------------------------------------------------------------

_FIELDS = (
    "problem",
    "question",
    "text",
    "prompt",
    "instruction",
    "exercise",
    "task",
    "pregunta",
    "problema",
    "题目",
    "问题",
)
_DECODER = json.JSONDecoder(strict=False)
_QUOTED = re.compile(r"""\s*(?:"((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.|'(?=\w))*)')\s*(,|\]|$)""")


_BEFORE_OBJECT, _LIST_END = re.compile(r"[\s,]*(?=\{)"), re.compile(r"\s*\]")


def _json_items(text: str, finished: bool) -> tuple[list[Piece], bool] | None:
    """The problems of a JSON list, an object with a list, or one object a line; ``None`` if the text is no JSON."""
    start = re.search(r"^[ \t]*(?=\[\s*[\"'{]|\{\s*[\"'])", text, re.MULTILINE)
    if start is None or not re.search(r"^(?:```\w*)?\s*$|:\s*(?:```\w*)?\s*$", text[: start.end()].rstrip()[-200:]):
        return None
    found: list[str] = []
    at, ended = start.end(), True
    while at < len(text) and text[at] in "[{":
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            more, ended = _torn_list(text, at)
            found += more
            break
        found += _problems_in(value)
        at += len(text[at:]) - len(text[at:].lstrip(" \t\n,"))
    if not found:
        return None
    return [Piece(problem) for problem in found], not ended and not finished


def _problems_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [problem for item in value for problem in _problems_in(item)] if len(value) < 1000 else []
    if not isinstance(value, dict):
        return []
    keys = {str(key).lower(): key for key in value}
    for field in _FIELDS:
        named = next((keys[key] for key in (field, field + "s") if key in keys), None)
        if named is not None:
            options = next((value[keys[k]] for k in ("options", "choices") if k in keys), None)
            found = _problems_in(value[named])
            return [_with_options(found[0], options)] if len(found) == 1 and options else found
    return [problem for item in value.values() if isinstance(item, (dict, list)) for problem in _problems_in(item)]


def _with_options(problem: str, options: Any) -> str:
    if isinstance(options, dict):
        return "\n".join([problem, *(f"{letter}. {text}" for letter, text in options.items())])
    if not isinstance(options, list):
        return problem
    listed = [str(o) for o in options]
    if not all(re.match(r"\(?[A-Za-z][.)]", o) for o in listed):
        listed = [f"{chr(65 + i)}. {o}" for i, o in enumerate(listed[:26])]
    return "\n".join([problem, *listed])


def _torn_list(text: str, at: int) -> tuple[list[str], bool]:
    """The whole items of a list of strings or objects that was cut off, or quotes its strings with ``'``."""
    found: list[str] = []
    if text[at] != "[":
        return found, False
    at += 1
    while at < len(text):
        item = _QUOTED.match(text, at)
        if item is not None:
            found.append((item[1] if item[1] is not None else item[2]).replace('\\"', '"').replace("\\'", "'"))
            at = item.end()
            if item[3] != ",":
                return found, item[3] == "]"
            continue
        brace = _BEFORE_OBJECT.match(text, at)
        if brace is None:
            ended = _LIST_END.match(text, at) is not None
            return (found if ended else [*found, text[at:].strip(" \n\"'")]), ended
        try:
            value, at = _DECODER.raw_decode(text, brace.end())
        except (ValueError, RecursionError):
            return [*found, text[brace.end() :]], False
        found += _problems_in(value)
    return found, False


def _without_fences(text: str) -> str:
    """The text without fences that enclose items; one that is a part of an item (a program) stays."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return text
    out, at = [], 0
    for place in range(0, len(fences), 2):
        opening = fences[place]
        closing = fences[place + 1] if place + 1 < len(fences) else None
        inside = text[opening.end() : closing.start() if closing else len(text)]
        before = text[at : opening.start()]
        holds = opening[1].strip().lower() in _TEXT_FENCES and (
            _MARK.match(inside.lstrip("\n")) is not None or asks(inside[:2000])
        )
        if holds or not inside.strip():
            out += [before, inside]
        else:
            out.append(text[at : closing.end() if closing else len(text)])
        at = closing.end() if closing else len(text)
    return "".join([*out, text[at:]])


_DIVIDER = re.compile(r"^[ \t]*+\|?[ \t]*+:?-{2,}+:?[ \t]*+(?:\|[ \t]*+:?-{2,}+:?[ \t]*+)*+\|?[ \t]*+$", re.MULTILINE)


def _table(text: str) -> list[str] | None:
    """The problems of a table with a column of problems; ``None`` without such a table."""
    divider = _DIVIDER.search(text)
    if divider is None or "|" not in divider[0]:
        return None
    head = text[: divider.start()].rstrip("\n").rpartition("\n")[2]
    names = [cell.strip(" *_").lower() for cell in head.strip().strip("|").split("|")]
    named = [i for i, name in enumerate(names) if re.fullmatch(PROBLEM_WORDS, name)]
    if len(named) != 1:
        return None
    found = []
    for line in text[divider.end() :].lstrip("\n").split("\n"):
        cells = line.strip().strip("|").split("|")
        if "|" not in line:
            break
        if len(cells) > named[0]:
            found.append(cells[named[0]].strip())
    return found or None
