r"""Finds answers announced in words ("the answer is ...") in responses without ``\boxed{...}``."""

from __future__ import annotations

import re

from lightning_serl.answers.math.normal_form import ascii_digits
from lightning_serl.answers.math.quantities import quantity

# Words for "answer" in the languages that graders read.
ANSWER_WORDS = (
    r"\b(?:answer|respuesta|réponse|antwort|risposta|resposta|jawaban|ответ)\b"
    r"|答案|答え|答|回答|정답|الجواب|الإجابة|उत्तर"
)
#: Such a word and its link to the answer ("is", a colon).
ANNOUNCEMENT = re.compile(
    rf"(?i)(?:{ANSWER_WORDS})[*_ ]*(?:\s(?:is|es|est|ist|è|é)\b\s*[:：]?|[:：=]|是|为|為|は|은|는)[*_ ]*"
)
# Characters at the end of a response in which the announcement is searched.
_TAIL = 4000
# "Cannot be determined" is an answer in words; a text with more words than this is an explanation.
_FEW_WORDS = 8
_LINE = 200
_MOST_TRIED = 20
_SPELLINGS = ("answer", "Answer", "ANSWER")
_ANNOUNCED = re.compile(r"(?i)\banswer[*_ ]*(?:is|:|=)[*_:\s]*")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(
    r"([-+]?)\s*[$€£¥]?\s*([-+]?(?:\d(?:,?\d)*(?:\.\d+)?|\.\d+)(?:/\d+)?)"
    r"(?=\s*(?:$|[.*!]+(?:\s|$)|(?!(?i:perc|pct))[a-zA-Z]))"
)
# "A: 18" on the last line.
_LABELLED = re.compile(r"(?:A|Ans|####)\s*:?\s*[$€£¥]?(-?\d{1,20}(?:,\d{3})*(?:\.\d+)?)\s*\.?")
# The last number of a text, if it is no part of a longer expression.
_LAST_NUMBER = re.compile(
    r"(?:^|[^\d\s.,+*/^()×÷-]\s+|=\s*)[$€£¥]?(-?\d{1,20}(?:,\d{3})*(?:\.\d+)?)"
    r"(?:\.?$|(?!\s*(?:[-+*/^=(×÷%\\]|perc|pct))[\s.,:;!?)a-zA-Z][^\d\\$%=]*$)"
)
# The start of a number or a fraction outside formulas.
_CANDIDATE = re.compile(r"(?:^|[\s=])(?:\*\*)?[$€£¥]?-?\(?-?[\d.]|\\frac\{-?\d[\d.,]*\}\{-?\d")
# A number or formula soon after this word takes precedence.
_ANCHORED = re.compile(r"(?i:answer).{0,120}?[\d$\\]", re.DOTALL)
_WORD_ANSWER = re.compile(r"(?i)answer")
_PLAIN = re.compile(r"-?\d{1,15}(?:,\d{3})*(?:\.\d{1,15})?")
# Closing words of worked examples that models imitate; they take precedence over everything.
_HOPED = re.compile(r"(?i:final answer is):?\s*\$(-?\d{1,15}(?:\.\d{1,15})?)\$\.?\s?I hope")
_DOUBT = re.compile(r"[=$\\%]")
_SEVERAL = re.compile(r"\$([^$\n,]+)\$\s*,?\s*(?:and|or)\s*\$([^$\n,]+)\$\s*[.*!]*(?: I hope.*)?")
_SENTENCE_END = re.compile(r"[.!]\**(?:\s|$)|\*\*")
_END_ANYWHERE = re.compile(r"[。！？؟;；!]|\.(?:\s|$)|\*\*|\s(?:porque|car|weil)\b")
# A comma followed by words; numbers after a comma belong to the answer.
_MORE_SAID = re.compile(r"\s*[,，،](?=\s*[^\W\d_]{2}|\s*[\u3040-\u9fff])")
_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[a-zA-Z]{3,}")


def announced_answer(text: str) -> str | None:
    r"""The formula, number or quantity after the last "answer is" or "answer:" on its line, ``None`` if there is none.

    Other languages are tried where no English announcement is understood.

    Example:
        >>> announced_answer("So the answer is 18."), announced_answer("答案是42千克。")
        ('18', '42千克')
        >>> announced_answer("La respuesta es: 3, porque sí")
        '3'
    """
    found = _in_english(text)
    return _in_other_languages(text[-_TAIL:]) if found is None else found


def _in_english(text: str) -> str | None:
    """The formula or number after the last "answer is" or "answer:" on its line."""
    tail = text[-_TAIL:]
    at, last = len(tail), None
    for _ in range(_MOST_TRIED):
        at = max(tail.rfind(word, 0, at) for word in _SPELLINGS)
        last = None if at == -1 else _ANNOUNCED.match(tail, at)
        if at == -1 or last is not None:
            break
    if last is None:
        return None
    line = tail[last.end() :].split("\n", 1)[0].strip()
    math = _MATH.match(line)
    if math is not None:
        inside = next(part for part in math.groups() if part is not None).strip()
        several = _SEVERAL.fullmatch(line)
        if several is not None and all(is_formula(part) for part in several.groups()):
            return f"{several[1]},{several[2]}"
        # This rule cannot read a longer continuation ("$3$, or $-3$, if").
        after = line[math.end() :].strip(" .*!")
        return inside if is_formula(inside) and not re.search(r"[$\\\d]|\b(?:and|or)\b", after) else None
    number = _NUMBER.match(line)
    if number is not None and not re.match(r"\s*(?:and|or)\b", line[number.end() :]):
        return number.group(1) + number.group(2)
    end = _SENTENCE_END.search(line)
    whole = (line if end is None else line[: end.start()]).strip()
    return whole if is_formula(whole) else None


def _in_other_languages(tail: str) -> str | None:
    """The answer after the last announcement in another language, or with a full-width colon."""
    found = [m for m in ANNOUNCEMENT.finditer(tail) if "：" in m.group() or not m.group().lower().startswith("answer")]
    if not found:
        return None
    line = ascii_digits(tail[found[-1].end() :].split("\n", 1)[0].strip(" \t*_:："))[:_LINE]
    math = _MATH.match(line)
    if math is not None:
        inside = next(part for part in math.groups() if part is not None).strip()
        return inside if is_formula(inside) and not re.search(r"[$\\\d]", line[math.end() :]) else None
    end = _END_ANYWHERE.search(line)
    whole = line if end is None else line[: end.start()]
    whole = _MORE_SAID.split(whole, maxsplit=1)[0].strip(" .,*_")
    if quantity(whole) is not None or (whole.isascii() and is_formula(whole)):
        return whole
    return None


def undisputed_number(text: str) -> str | None:
    r"""The number that a response without a box announces or ends with, if all rules read the same one."""
    if "boxed" in text:
        return None
    hoped = _HOPED.findall(text) if text.count("I hope") == 1 else []
    if hoped:
        return str(hoped[0])
    words = list(_WORD_ANSWER.finditer(text))
    found = _in_english(text) if len(words) == 1 else closing_number(text)
    if found is None or _PLAIN.fullmatch(found) is None:
        return None
    # Soon after the word, an equated number or one in a formula takes precedence over the nearest number.
    doubtful = words and _DOUBT.search(text, words[0].end(), words[0].end() + _LINE)
    return None if doubtful else found


def closing_number(text: str) -> str | None:
    r"""The number that a response without a box ends with, if no rule could read another."""
    if "boxed" in text or _ANCHORED.search(text):
        return None
    labelled = _LABELLED.fullmatch(text.rstrip().rsplit("\n", 1)[-1].strip())
    if labelled is not None:
        return labelled.group(1)
    text = text.replace("\\[", "$$").replace("\\]", "$$").rstrip(" .\n")
    if text.count("$$") % 2:
        return None  # cut off inside a formula
    for line in reversed(text.splitlines()):
        line = line.rstrip(" .")
        if line.endswith("$$"):
            return None
        opened = "$$" not in line and line.count("$") == 1
        if _CANDIDATE.search(line) or (any(c.isdigit() or c in "$\\" for c in line) and not opened):
            number = _LAST_NUMBER.search(line[-_LINE:])
            return None if number is None else number.group(1)
    return None


def formula_after(line: str) -> str | None:
    """The formula that a line begins with; empty if words and more formulas follow, ``None`` without one."""
    math = _MATH.match(line)
    if math is None:
        return None
    inside = next(part for part in math.groups() if part is not None).strip(" .")
    several = _SEVERAL.fullmatch(line)
    if several is not None and all(is_formula(part) for part in several.groups()):
        return f"{several[1]},{several[2]}"
    after = line[math.end() :].strip(" .*!")
    more = re.search(r"[$\\\d]|\b(?:and|or)\b", _MORE_SAID.split(after, maxsplit=1)[0])
    return inside if is_formula(inside) and not more else ""


def is_formula(text: str) -> bool:
    """Whether a text is short, has a digit or a letter, and no words outside LaTeX commands."""
    bare = _COMMAND.sub(" ", text)
    if not 0 < len(text) <= 120 or "boxed" in text or _WORD.search(bare) is not None:
        return False
    return any(c.isalnum() for c in text)


def is_prose(answer: str) -> bool:
    """Whether an answer consists of sentences, not of a formula or a short phrase."""
    if len(answer) < 4 * _FEW_WORDS:
        return False  # too short for more than that many words of three letters
    return len(_WORD.findall(_COMMAND.sub(" ", answer))) > _FEW_WORDS
