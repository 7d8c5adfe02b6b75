"""Takes problems out of what encloses them: JSON, code fences, tables, tags."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from lightning_serl.prompts.asking import asks
from lightning_serl.prompts.phrases import PROBLEM_WORDS, SOLUTION_WORDS

_FENCE = re.compile(r"^[ \t]*```([^\n`]*)$", re.MULTILINE)
_TEXT_FENCES = ("", "text", "txt", "plaintext", "plain", "markdown", "md", "json", "latex", "tex")
_FIELDS = (
    "problem",
    "question",
    "text",
    "prompt",
    "instruction",
    "exercise",
    "statement",
    "stem",
    "query",
    "task",
    "pregunta",
    "problema",
    "题目",
    "问题",
)
_DECODER = json.JSONDecoder(strict=False)
_QUOTED = re.compile(r"""\s*(?:"((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.|'(?=\w))*)')\s*(,|\]|$)""")


_BEFORE_OBJECT, _LIST_END = re.compile(r"[\s,]*(?=\{)"), re.compile(r"\s*\]")


def json_items(text: str) -> tuple[list[str], bool] | None:
    """The problems of a JSON list, an object with a list, or one object a line, and whether it ended.

    ``None`` if the text is no JSON.
    """
    start = re.search(r"^[ \t]*(?:\w{1,30}[ \t]*=[ \t]*)?(?=\[\s*[\"'{]|\{\s*[\"'])", text, re.MULTILINE)
    if start is None or not re.search(
        r"^(?:```\w*)?\s*(?:\w{1,30}\s*=\s*)?$|[:\n]\s*(?:```\w*)?\s*(?:\w{1,30}\s*=\s*)?$",
        text[: start.end()].rstrip()[-200:],
    ):
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
    return found, ended


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
    strings = [item for item in value.values() if isinstance(item, str)]
    if len(strings) == len(value) and all(map(asks, strings)):  # {"9": "What is ...?", "10": ...}
        return strings
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


def without_fences(text: str, holds_items: Callable[[str], bool]) -> str:
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
        holds = opening[1].strip().lower() in _TEXT_FENCES and holds_items(inside.lstrip("\n")[:2000])
        if holds or not inside.strip():
            out += [before, inside]
        else:
            out.append(text[at : closing.end() if closing else len(text)])
        at = closing.end() if closing else len(text)
    return "".join([*out, text[at:]])


_DIVIDER = re.compile(r"^[ \t]*+\|?[ \t]*+:?-{2,}+:?[ \t]*+(?:\|[ \t]*+:?-{2,}+:?[ \t]*+)*+\|?[ \t]*+$", re.MULTILINE)


def table_rows(text: str) -> list[str] | None:
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


_PROBLEM_TAG = (
    r"(?:\w{1,20}[_-])?(?:problem|question|exercise|task|item|li|q|instruction|statement|stem)"
    r"(?:[_-]?(?:\d{1,4}|text|statement|body))?"
)
_ANSWER_TAG = (
    r"(?:\w{1,20}[_-])?(?:a|ans|answers?|solutions?|explanation|rationale|output|response|hints?|reasoning|summary)"
)
_TAG = re.compile(
    rf"<(?:{_PROBLEM_TAG})\b[^<>\n]{{0,60}}>(?!\s*<(?:{_PROBLEM_TAG})\b)|^[ \t]*\\item\b", re.IGNORECASE | re.MULTILINE
)
_ANSWERED = re.compile(rf"<({_ANSWER_TAG})\b[^<>\n]{{0,60}}>.{{0,3000}}?</\1>", re.IGNORECASE | re.DOTALL)
_OTHER_TAG = re.compile(
    rf"</?(?:{_PROBLEM_TAG}|ol|ul|p|problems|questions|exercises|tasks|items|list|div|root|data|output|details|"
    r"options?|choices?|h[1-6])\b[^<>\n]{0,60}>|\\(?:begin|end)\{(?:enumerate|itemize|document)\}(?:\[[^\]\n]{0,30}\])?",
    re.IGNORECASE,
)
_BOLD = re.compile(r"</?(?:b|strong)>", re.IGNORECASE)
_PLAIN = re.compile(r"</?(?:i|em|u|span|font)\b[^<>\n]{0,60}>|&nbsp;", re.IGNORECASE)
_HEADS = re.compile(r"<h[1-6]\b[^<>\n]{0,60}>", re.IGNORECASE)
_PAIR = re.compile(r"<([a-z][a-z_-]{1,20})>(.{0,3000}?)</\1>", re.IGNORECASE | re.DOTALL)
_BREAK = re.compile(
    r"<br\s?/?>|<\|[a-z_]{1,20}\|>|</?s>|</?p>|</h[1-6]>|\[/?INST\]|<(?:start|end)_of_turn>(?:user|model)?",
    re.IGNORECASE,
)
# A heading in LaTeX: "\textbf{Problem 9.}", "\section*{Exercise 2}".
_COMMAND = re.compile(
    rf"^[ \t]*\\(?:textbf|textit|emph|underline|(?:sub){{0,2}}section|paragraph)\*?\{{(?P<inside>[^{{}}\n]{{0,20}}"
    rf"(?:{PROBLEM_WORDS}|{SOLUTION_WORDS}|\d{{1,4}}[.)])[^{{}}\n]{{0,60}})\}}",
    re.IGNORECASE | re.MULTILINE,
)


def without_tags(text: str) -> str:
    """The text with headings in place of the tags and LaTeX commands around its items, and without tags of layout."""
    if "\\" in text:
        text = _COMMAND.sub(r"**\g<inside>** ", text)
    if "<" in text or "[" in text:
        text = _BREAK.sub("\n", _PLAIN.sub("", _BOLD.sub("**", _HEADS.sub("\n### ", text))))
    if "</" in text:
        without = _ANSWERED.sub("\n", text)
        text = without if asks(without[:4000]) else text
    if _TAG.search(text) is not None:
        text = _OTHER_TAG.sub("\n", _TAG.sub("\nProblem: ", text))
    return _PAIR.sub(r"\n\2\n", text) if "</" in text else text
