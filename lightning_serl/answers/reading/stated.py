r"""Finds the answer that a response states: after "the answer is", under a heading or a label, or in a JSON object."""

from __future__ import annotations

import re

from lightning_serl.answers.reading.announced import ANSWER_WORDS, formula_after, is_formula
from lightning_serl.answers.reading.final_value import concluded
from lightning_serl.answers.reading.surface import undressed
from lightning_serl.answers.reading.values import as_value, first_whole

# Characters at the end of a response that are searched, for labels fewer.
_TAIL, _LABEL_TAIL = 4000, 600
_LINE = 300
_MOST_TRIED = 20
_MOST_READ = 4
_SPELLINGS = ("answer", "Answer", "ANSWER")
_LINK = (
    r"(?:\s+(?:is|are|was|will be|would be|must be|should be|has to be|comes? (?:out )?to(?: be)?|equals?"
    r"|turns out to be|becomes?)\b"
    r"\s*[:：]?|\s*(?:[:：=→⇒]|=>|->)|\s+[-–—](?=\s))"
)
_ENGLISH = re.compile(rf"(?i)answers?['’\"”)\]*_ ]*(?:\s+(?=isn't|is not|are not)|{_LINK})['‘\"“*_:\s]*?(?=[^\s:])")
_HEADING = re.compile(r"(?im)^[#*_ \t>]*(?:final |the |short )?answer[*_ \t#]*[:：]?[*_ \t]*$")
_OTHERS = re.compile(
    rf"(?i)(?:{ANSWER_WORDS}|\b(?:odpowiedź|cevap|svar|antwoord|vastaus)\b|đáp án)[*_ ]*"
    r"(?:\s(?:es|est|ist|è|é|jest|är|er|is|on|là|adalah|lautet|sera|será|:|-|–)(?=\s)\s*[:：]?|[:：=]|是|为|為|は|은|는"
    r"|이|가|то|[-–—](?=\s))[*_ ]*"
)
_LABEL = re.compile(
    r"(?im)(?:^|(?<=[.!?]\s))[>\-*•#\s_]*(?:(?:so|thus|hence|therefore),?\s)?(?:the\s)?(?:final(?:\s(?:answer"
    r"|result|value))?|results?|solution"
    r"|ans(?:wer)?|total|output|conclusion|resultado|solución|solution finale|résultat|ergebnis|lösung"
    r"|risultato|soluzione|solução"
    r"|合计|合計|总计|总共|结果|答|解|답)[*_ ]*(?:[:：=]|=>|->|→|\.(?=\s\d)|\s(?:is|-)\s)[*_ ]*"
)
# Parts of these labels, for a quick test.
_LABEL_WORDS = ("inal", "esul", "olution", "Ans", "ans", "ANS", "otal", "utput", "onclusion", "rgebnis", "soluz")
_MARK = re.compile(r"(?m)^[ \t]*####[ \t]*(.+)$|^[ \t]*A(?:ns)?[ \t]*:[ \t]*(.+)$")
_JSON = re.compile(
    r"[\"'](?:final[_ ]?)?(?:answer|result|solution|respuesta|réponse|antwort|答案)[\"']\s*:\s*(?:\"((?:[^\"\\\n]"
    r"|\\.){1,300})\"|'([^'\n]{1,300})'"
    r"|(-?[\d.,/eE+]{1,60})|\[([^\]\n]{1,200})\])"
)
_FILLER = re.compile(
    r"(?i)^(?:(?:therefore|thus|then|hence|simply|just|only|exactly|approximately|about|around|roughly"
    r"|precisely|equal to|given by"
    r"|a total of|in total|option|the number|also|indeed|clearly|:|=|≈|~|即|约)[,:]?\s+)+"
)
_CLAUSE = re.compile(
    r",\s*(?=[a-zA-Zà-ÿ]{2}|[\u3040-\u9fff\uac00-\ud7af])|[，、；;](?=\s*[^\d\s])|\s[-–—]\s|\.(?=\s|$)|[。！!?？]"
    r"|\s\((?![\d,\s.\-∞a-zπ]+[)\]])|（|\*\*"
    r"|\s(?:because|since|porque|weil|car|ya que|perché|as)\s|\.\s|\s(?:after|when|which|where|so|if)\s"
)
_COMMA_WORDS = re.compile(r"^\s*(?:and|or|y|und|et|e|o|oder|ou)\b")
# Most lines hold a number and nothing else.
_SIMPLE = re.compile(r"\$?(-?(?:\d{1,15}|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d{1,15})?)\.?")
_START = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,40})(?:[.,]\d{1,20})?(?:\s?/\s?\d{1,20})?(?:\s?\\?%)?")
_AFTER_START = re.compile(r"\s*(?:$|[.,;:!)\]]|(?:[a-zA-Zà-ÿ°€£¥$]|[\u3040-\u9fff\uac00-\ud7af])|[-–—]\s)")
_PERCENT_WORD = re.compile(r"(?i)\s*(?:percent|per cent|pct)")
_REFUSES = re.compile(r"(?i)^\W*(?:unknown|not |cannot|can't|undefined|n/?a\b|none|unclear|impossible|no )")
_DERIVED = re.compile(r"(?i)[,;]\s(?:and\s)?(?:so|thus|hence|therefore|giving|which gives|we (?:get|have|find))\s")
_SENTENCE_END = re.compile(r"[.!](?:\s|$)|[,;]\s(?=[a-zA-Z]{2})")
_NOT = re.compile(r"(?i)^\s*(?:not|n't|(?:is|are|was|were)(?:n['’]t|\s+not)|nicht|no|pas|não|non)\s")


def stated_answer(text: str) -> str | None:
    r"""The answer after the last statement of it that can be read, ``None`` if there is none.

    Example:
        >>> stated_answer("So the answer is 72, which is the total."), stated_answer('{"answer": "12"}')
        ('72', '12')
        >>> stated_answer("Final Answer\n\n**12**"), stated_answer("La respuesta es doce."), stated_answer("I see 3.")
        ('12', '12', None)
    """
    tail = text[-_TAIL:]
    if "{" in tail and ('"' in tail or "'" in tail):
        objects = list(_JSON.finditer(tail))
        if objects:
            inside = next(group for group in objects[-1].groups() if group is not None)
            found = _read(inside.replace("\\\\", "\\"))
            if found is not None:
                return found
    # Most often the last line states it; then nothing else is searched.
    at = max(tail.rfind(word) for word in _SPELLINGS)
    last = None if at == -1 else _ENGLISH.match(tail, at)
    if last is not None and "\n" not in tail[last.end() :].rstrip():
        found, _ = _after(tail, last.end(), False)
        if found is not None:
            return found
    places = _places(tail)
    for start, label in sorted(places, reverse=True)[:_MOST_READ]:
        found, refused = _after(tail, start, label)
        if found is not None or (refused and not label):
            return found
    return None


def _places(tail: str) -> set[tuple[int, bool]]:
    """Where statements stop and their answers begin, and whether only a label such as "Total:" stands before."""
    places: set[tuple[int, bool]] = set()
    at = len(tail)
    for _ in range(_MOST_TRIED):
        at = max(tail.rfind(word, 0, at) for word in _SPELLINGS)
        if at == -1 or len(places) >= _MOST_READ:
            break
        match = _ENGLISH.match(tail, at)
        if match is not None:
            places.add((match.end(), False))
    if "nswer" in tail or "NSWER" in tail:
        places.update((match.end(), False) for match in _HEADING.finditer(tail))
    if (
        not tail.isascii()
        or "respuesta" in tail
        or "ntwort" in tail
        or "rispos" in tail
        or "ponse" in tail
        or "respo" in tail
    ) or any(word in tail for word in ("vap", "Svar", "svar", "antwoord", "Antwoord", "astaus", "awaban")):
        places.update((match.end(), False) for match in _OTHERS.finditer(tail))
    end = tail[-_LABEL_TAIL:]
    shift = len(tail) - len(end)
    if not end.isascii() or any(word in end for word in _LABEL_WORDS):
        places.update((shift + match.end(), True) for match in _LABEL.finditer(end))
    if "####" in end or "A:" in end or "Ans" in end:
        places.update((shift + match.start(match.lastindex or 0), True) for match in _MARK.finditer(end))
    return places


def _after(tail: str, start: int, label: bool) -> tuple[str | None, bool]:
    """The answer on the line that starts at a place, or on the next one, and whether it is refused there."""
    rest = tail[start : start + 2 * _LINE].lstrip(" \t*_:：")
    line = rest.lstrip().split("\n", 1)[0][:_LINE]
    if not rest.strip():
        return None, False
    derived = _DERIVED.search(line) if label else None
    found = (None if derived is None else _read(line[derived.end() :])) or _read(line)
    if found is None and not label and "$" not in line:
        found = _short_formula(undressed(line))
    return found, _REFUSES.match(line) is not None


def _read(line: str) -> str | None:
    """The answer that a line begins with."""
    simple = _SIMPLE.fullmatch(line)
    if simple is not None:
        return simple[1].replace(",", "")
    formula = formula_after(line)
    if formula is not None:
        return formula or None
    line = concluded(undressed(line)).strip().strip("*_")
    line = _FILLER.sub("", line).lstrip("~≈:= ")
    if _NOT.match(line):
        return None
    if "$" in line and line.count("$") > 1:
        return None  # words around formulas
    found = first_whole(line)
    if found is not None:
        return found[2]
    for phrase in _phrases(line):
        value = as_value(phrase)
        if value is not None:
            return value
    number = _START.match(line)
    if number is None or _AFTER_START.match(line, number.end()) is None:
        return None
    if _COMMA_WORDS.match(line[number.end() :].lstrip()) or _PERCENT_WORD.match(line, number.end()):
        return None
    return as_value(number.group())


def _short_formula(line: str) -> str | None:
    """The formula in letters that a line begins with, up to the end of its sentence."""
    end = _SENTENCE_END.search(line)
    whole = (line if end is None else line[: end.start()]).strip(" .")
    return whole if is_formula(whole) else None


def _phrases(line: str) -> list[str]:
    """The line, and its beginning up to the first clause behind it."""
    line = line.strip(" .!。")
    cut = _CLAUSE.search(line)
    return [line] if cut is None or not cut.start() else [line, line[: cut.start()].strip(" .!。,，")]
