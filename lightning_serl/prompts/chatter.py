"""Removes from a proposed problem what is no part of it: labels, answers, explanations, remarks to the reader."""

from __future__ import annotations

import re
from typing import NamedTuple

from lightning_serl.answers import split_choices
from lightning_serl.prompts.asking import Sentence, asks, sentences
from lightning_serl.prompts.phrases import ANSWER, PROBLEM_WORDS, is_preface, is_remark, is_title

#: Longer text is no problem; it is left as it is, so that a megabyte costs nothing.
LONGEST = 20_000

_LETTER_A = re.compile(r"^[ \t]*[*_]{0,3}A(?:ns)?[*_]{0,3}[:：][*_]{0,3}[ \t]", re.MULTILINE)
_LETTER_B = re.compile(r"^[ \t]*[*_]{0,3}\(?B[:：.)]", re.MULTILINE)

_LABEL = re.compile(
    rf"[ \t]*(?:[*_#>`-]{{0,6}}[ \t]*)?(?:(?:(?:a |the |your |one )?(?:new|next|another|other|final|similar|"
    rf"sample|practice|example) ){{0,2}}"
    rf"(?:{PROBLEM_WORDS}|Q|Ex|example|"
    rf"title)(?:[ \t]*#?\d{{1,4}})?(?:[ \t]*\([^()\n]{{1,40}}\))?)[*_]{{0,3}}[ \t]?(?:[:：]|(?=\n))[*_]{{0,3}}\s*",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(
    rf"(?:(?:sure|certainly|okay|ok|of course|great)\b[^:\n?]{{0,20}})?(?:here(?:['’]s| is| are)|the next|"
    rf"another|the new|aquí|voici|hier ist|ecco)\b"
    rf"[^:\n?]{{0,60}}\b(?:{PROBLEM_WORDS}|one|example)\b[^:\n?]{{0,60}}:\s*",
    re.IGNORECASE,
)
_GREETING = re.compile(
    r"(?:sure(?: thing)?|certainly|absolutely|of course|okay|ok|great|alright|"
    r"no problem)\b[^.!?:\n]{0,30}[!.]\s+(?=\S)|"
    r"[=*_-]{3,}[ \t]*\n+(?=\S)|(?:user|human|assistant|model|student|teacher)\s?:[*_]{0,3}\s+|"
    r"(?:next|another one|one more|problem (?:statement|text|description))\s?:[*_]{0,3}\s+|"
    rf"(?:please )?(?:answer|solve|read|consider) (?:the following|"
    rf"this) (?:\w+ )?(?:{PROBLEM_WORDS})[^:\n?]{{0,40}}:\s*|"
    r"\W{0,3}(?:topic|difficulty(?: level)?|level|category|subject|type|grade|title|theme|"
    r"skill)s?\W{0,3}:(?:[^\n?]{0,60}\n+|[^\n?.]{0,40}\.[ \t]+)(?=\S)",
    re.IGNORECASE,
)
_HEADING = re.compile(r"[ \t]*(?:#{1,6}[ \t]+(?P<hash>[^\n]{1,80})|(?P<bold>\*\*[^*\n]{1,80}\*\*))[ \t]*\n+(?=\s*\S)")
_TITLE = re.compile(r"\*\*[^*\n?]{1,50}?(?::\*\*|\*\*[ \t]?[:–—-])[ \t]*(?=\S)")
_TRY = re.compile(
    r"^\W*(?:try|consider|solve|answer|how about|what about)\s+(?:this|these|the following)\b", re.IGNORECASE
)
# "(Easy)", "[Geometry]"
_TAGGED = re.compile(
    r"[(\[【](?!asy|true|false|yes|select|choose)[A-Za-z][\w &/-]{2,30}[)\]】][ \t]+(?=[A-Z¿¡$\\])", re.IGNORECASE
)
_SPOKEN_CLAUSE = re.compile(r"[^\n:?]{3,120}:\s+(?=\S)")
# "Below is a new question inspired by your examples.", "How about this one:"
_ANNOUNCES = re.compile(
    rf"\b(?:new|another|similar|different|original|unique|additional|following|next|below|this|more|"
    rf"some) (?:\w+,? ){{0,3}}"
    rf"(?:{PROBLEM_WORDS}|one|examples?)\b(?! (?:has|have|had|is worth|consists?|contains?)\b)|"
    rf"\b(?:your|these|the) (?:given |above |provided |previous )?examples\b|"
    r"^\W*(?:i|we)(?:['’](?:d|ll|m|ve|re)| will| can| would| have| am| are)\b.{0,60}\b(?:problem|question|example|"
    r"list|help)",
    re.IGNORECASE,
)
_WRAPS = (
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("_", "_"),
    ('"', '"'),
    ("“", "”"),
    ("«", "»"),
    ("`", "`"),
    ("「", "」"),
    ("'", "'"),
)
_RULES = r"^[ \t]*(?:-{2,}|\*{2,}|_{3,}|={3,}|#{1,6}|>)[ \t]*$|(?<=\s)\*\*$"
_LOOSE = re.compile(rf"(?:\s*(?:{_RULES}))+\s*\Z", re.MULTILINE)
_LOOSE_FENCE = re.compile(rf"(?:\s*(?:{_RULES}|^[ \t]*`{{3,}}\w*[ \t]*$|`{{3,}}$))+\s*\Z", re.MULTILINE)

# What may follow a question and still belongs to it: the form of the answer, an assumption, a conversion.
_BELONGS = re.compile(
    r"^[\W_]{0,4}(?:input\s?[:：]|submit|assum|suppos|note\b|remember|ignore|neglect|consider|recall|leave|include|where\b|"
    r"if\b|let (?!me|us)|when\b|given|"
    r"there (?:are|is)|do not|don['’]t|be sure|make sure|your answer|the answer should|answers? (?:should|"
    r"must|in|to)|in (?:\w+ ){0,3}\w+\W*$|to the nearest|"
    r"for (?:example|instance)\b|hint\b|supón|supon|recuerda|ten en cuenta|considera|si |nota\b|"
    r"on (?:suppose|admet|donne|prendra)|supposez|nimm|beachte|"
    r"es gilt|assumi|ricorda|tenha|considere|取|假设|結果|结果|答案(?:保留|用|写)|保留|注意|其中|精确|"
    r"ただし|なお|단|пусть|ответ (?:дай|запиш|округл)|считай|примите)",
    re.IGNORECASE,
)
_EQUATION_IN_BRACKETS = re.compile(
    r"^[(（\[].*(?:=|≈|\bis\b|:).*\d|^[(（\[][^()]{0,60}(?:only|nearest|decimal|simplest|true|yes|unit|in \w+)\b",
    re.IGNORECASE,
)
_OPTION_LINE = re.compile(
    r"^[ \t]*[*_]{0,2}(?:[-*•+–][ \t]+|[(（]?[A-Za-z][.)、．:）][*_]{0,2}[ \t]*|[(（]?(?:i{1,3}|iv|v)[.)][ \t]|\||"
    r"\d{1,2}[.)](?=[ \t]|[^\x00-\x7f]))"
)
# A question that points to what follows it.
_POINTS = re.compile(
    r"(?i)\b(?:below|following|as follows|siguientes?|suivante?s?|folgenden?|seguinti?|seguintes?)\b|下列|以下|下面|"
    r"次の|다음|следующ"
)
_LATEX_OPTIONS = re.compile(r"\s*\$?\\(?:text|mathrm)\w*\s*\{?\s*\(?A")
_NOTE_IN_BRACKETS = re.compile(r"^[(（](?!.{0,20}\banswers?\b)\W*\w+\W+\w+\W+\w+\W+\w+", re.IGNORECASE | re.DOTALL)
# "Answer: 7", "Step 2." and tags are no part of a story; "the result is 30" may be.
_LABELLED = re.compile(r"[:：=\-–—<\[✅]|step \d", re.IGNORECASE)
_NUMBERS = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]{2,}")


class Tidied(NamedTuple):
    """A problem without what is no part of it, and whether something after its end was removed."""

    text: str
    cut: bool


def tidy(text: str) -> Tidied:
    """The problem in an item of a list, as it was written, without the chatter around it."""
    if len(text) > LONGEST:
        return Tidied(text.strip(), False)
    body = _without_opening(_unwrapped(text.strip()))
    end = _end(body)
    kept = body[:end].rstrip() if end < len(body) else body
    cut = len(kept) < len(body.rstrip())
    shorter = (_LOOSE_FENCE if kept.count("```") % 2 else _LOOSE).sub("", kept)
    kept = _unwrapped(_closed_bold(shorter.strip()))
    return Tidied(kept, cut)


def is_spoken(text: str) -> bool:
    """Whether a text says nothing but announcements and remarks to the reader."""
    said = [text[s.start : s.end] for s in sentences(text)]
    return is_preface(text) or (bool(said) and all(is_remark(one) or is_preface(one) for one in said))


def _unwrapped(text: str) -> str:
    """The text without emphasis or quotes around all of it."""
    while True:
        for left, right in _WRAPS:
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                inside = text[len(left) : -len(right)]
                if left not in inside and right not in inside:
                    text = inside.strip()
                    break
        else:
            return text


def _closed_bold(text: str) -> str:
    """The text without two stars at its end, or its start, that close nothing."""
    if text.count("**") % 2:
        if text.endswith("**"):
            return text[:-2].rstrip()
        if text.startswith("**"):
            return text[2:].lstrip()
    return text


def _without_opening(text: str) -> str:
    """The text without announcements, labels and titles before the problem."""
    for _ in range(6):
        line, broken, rest = text.partition("\n")
        label = _LABEL.match(text) or _ANNOUNCED.match(text) or _GREETING.match(text)
        heading = _HEADING.match(text)
        title = _TITLE.match(text)
        tagged = _TAGGED.match(text)
        if tagged is not None and asks(text[tagged.end() :]):
            text = text[tagged.end() :]
        elif label is not None and text[label.end() :].strip():
            text = text[label.end() :]
        elif (line.count("**") == 1 and line.rstrip().endswith("**") and not asks(line) and asks(rest)) or (
            broken and rest.strip() and is_preface(line) and not asks(line)
        ):
            text = rest
        elif heading is not None and not asks(heading["hash"] or heading["bold"]) and asks(text[heading.end() :]):
            text = text[heading.end() :]
        elif title is not None and asks(text[title.end() :]) and not asks(title[0].strip("*: ")):
            text = text[title.end() :]
        elif is_title(line) and rest.strip() and _starts(rest) and not asks(line) and asks(rest):
            text = rest
        elif (end := _spoken(text)) and asks(text[end:]):
            text = text[end:]
        else:
            return text
        text = _unwrapped(text.strip())
    return text


def _starts(text: str) -> bool:
    """Whether a text begins a sentence."""
    first = text.lstrip(' \t\n"“‘«¿¡*_(')[:1]
    return first.isalnum() and not first.islower()


def _spoken(text: str) -> int:
    """The end of a first sentence, or of its clause before a colon, that speaks to the reader or announces."""
    first = next(sentences(text), None)
    if first is None:
        return 0
    said = text[first.start : first.end]
    clause = _SPOKEN_CLAUSE.match(said)
    if clause is not None and (
        is_remark(clause[0])
        or is_preface(clause[0])
        or _ANNOUNCES.search(clause[0]) is not None
        or _TRY.match(clause[0]) is not None
    ):
        return first.start + clause.end()
    if is_remark(said) or (_ANNOUNCES.search(said) is not None and not first.asks and not _NUMBERS.search(said)):
        return first.end
    return 0


def _end(text: str) -> int:
    """Where the problem ends: behind its options and the form of its answer, before the answer and remarks."""
    end = len(text)
    found = list(sentences(text))
    first = next((s for s in found if s.asks), None)
    if first is None:
        return _before_remarks(text, found)
    for answer in ANSWER.finditer(text, max(0, first.start)):
        at = answer.start() + (answer[0][:1] in ".?!。？！؟।" and len(answer[0]) > 0)
        soft = not _LABELLED.search(answer[0])
        if soft and any(s.asks for s in found if s.start >= answer.end() and "\n\n" not in text[at : s.start]):
            continue
        if at >= first.end - 1 or (at > first.start and asks(text[:at])):
            end = min(end, at)
            break
    letter = _LETTER_A.search(text, first.end, end)
    if letter is not None and _LETTER_B.search(text, letter.end()) is None:
        end = letter.start()
    found = [s for s in found if s.start < end]
    last = max(i for i, s in enumerate(found) if s.asks)
    last = _last_real(text, found, last)
    return min(end, _after(text[:end], found, last))


def _last_real(text: str, found: list[Sentence], last: int) -> int:
    """The last asking sentence that is not inside the options or behind a remark."""
    for place, sentence in enumerate(found[: last + 1]):
        if place and is_remark(text[sentence.start : sentence.end]) and any(s.asks for s in found[:place]):
            return max(i for i in range(place) if found[i].asks)
    return last


def _before_remarks(text: str, found: list[Sentence]) -> int:
    """The end of a text that asks nothing, without the remarks that follow it."""
    for place, sentence in enumerate(found):
        if place and is_remark(text[sentence.start : sentence.end]):
            return sentence.start
    return len(text)


def _after(text: str, found: list[Sentence], last: int) -> int:
    """The end of what belongs to the question ``found[last]``, in a text that ends before the answer."""
    question = text[found[last].start : found[last].end]
    tail = text[found[last].end :]
    if not tail.strip():
        return len(text)
    if question.rstrip("*_ ").endswith((":", "：")):
        paragraph = re.search(r"\n[ \t]*\n(?=[A-Z][a-z]+ )", tail.lstrip())
        return len(text) if paragraph is None else _trim_remarks(text, found, last)
    told = text[: found[last].end]
    if split_choices(text)[1] is not None and split_choices(told)[1] is None:
        return _after_options(text, found[last].end)
    if "[asy]" in text or _POINTS.search(told) is not None or _LATEX_OPTIONS.match(tail):
        return _trim_remarks(text, found, last)
    if not _NUMBERS.search(told) and len(_NUMBERS.findall(tail)) > 1 and not told.rstrip().endswith("**"):
        return _trim_remarks(text, found, last)  # the question comes before its numbers
    end = found[last].end
    for sentence in found[last + 1 :]:
        said = text[sentence.start : sentence.end]
        between = text[found[last].end : sentence.start]
        in_brackets = between.count("(") > between.count(")")
        if not in_brackets and not _belongs(said, text, sentence, question):
            break
        end = sentence.end
    return end


def _belongs(said: str, text: str, sentence: Sentence, question: str) -> bool:
    """Whether a sentence behind a question is a part of the problem."""
    if is_remark(said):
        return False
    line = text[text.rfind("\n", 0, sentence.start) + 1 : sentence.end]
    if _OPTION_LINE.match(line) and text[: sentence.start].rstrip(" \t-*•+–").endswith("\n"):
        return True
    if _EQUATION_IN_BRACKETS.match(said) or _NOTE_IN_BRACKETS.match(said) or _BELONGS.match(said):
        return True
    asked = question.rstrip('*_ )"”').endswith(("?", "？", "؟"))
    words = _WORD.findall(re.sub(r"\\[a-zA-Z]+", "", said))
    if "print" in text or "```" in text:
        return True
    return not asked and not words and re.search(r"[=<>]|[-+*/^\\]", said) is not None


def _after_options(text: str, at: int) -> int:
    """The end of the last option: its line, or its paragraph."""
    end = at
    for line in re.finditer(r"[^\n]*(?:\n|\Z)", text[at:]):
        said = line[0].strip()
        if not said:
            continue
        if (
            line.start()
            and not _OPTION_LINE.match(line[0])
            and not _belongs(said, text, Sentence(at + line.start(), at + line.end(), False), "?")
        ) and end > at:
            break
        end = at + line.start() + len(line[0].rstrip())
    return end


def _trim_remarks(text: str, found: list[Sentence], last: int) -> int:
    for sentence in found[last + 1 :]:
        if is_remark(text[sentence.start : sentence.end]):
            return sentence.start
    return len(text)
