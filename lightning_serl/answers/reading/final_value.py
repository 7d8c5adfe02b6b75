"""Finds the value that a response without a box or an announcement ends with: alone, emphasised, or in a sentence."""

from __future__ import annotations

import re

from lightning_serl.answers.reading.last_formula import last_formula
from lightning_serl.answers.reading.surface import emphasised, undressed
from lightning_serl.answers.reading.values import as_value, last_spelled, last_whole

_TAIL = 1000
_LONGEST_LINE = 400
_SHORT = 120
# In front of a value that stands alone: marks of lists and headings, arrows, a label.
_LEAD = re.compile(
    r"^(?:[\s>#•·*\-–—]*\s)?(?:(?:\(?[a-z]\)|\d{1,2}[.)])\s+)?(?:(?:=>|->|=+>|→|⇒|⟹|∴|≈|~|=|:)\s*)?"
    r"(?:(?:[^\W\d_][^\W\d_'’]*[ \t]?){1,4}(?:[:：=→]|=>|->)\s*)?(?:(?:=>|->|→|⇒|∴|=)\s*)?"
)
_SIDES, _END = " \t*_`", " \t.!。！．;*_`"
_SENTENCE = re.compile(r"(?<=[.!?。！？])(?:\s+|(?=[^\x00-\x7f]))|\n+")
# Clauses behind a result, and what is ruled out.
_CLAUSE = re.compile(
    r",?\s+(?:which|since|because|given|as (?:we|he|she|it|they|the|there)|instead of|rather than|not|and not"
    r"|compared (?:to|with)|"
    r"out of|than|ya que|porque|weil|da|car|puisque|parce que|perché|não|nicht|no)\s.*$|"
    r"[（(](?!\s*[-+\d∞a-z./]+(?:\s*,\s*[-+\d∞a-z./]+)+\s*[)）])[^()（）]*[)）]\s*[.。]?$"
    r"|,\s(?:(?:exactly|about|almost|nearly)\s)?(?:twice|double|half|triple|\w+ times|more|less|fewer|up|down"
    r"|while|whereas|although"
    r"|though|unlike|just like|like|assuming|instead)\s.*$"
    r"|[,;(]?\s(?:or|which is|that is|i\.e\.,?)\s(?:approximately|about|roughly|around|nearly|≈|~)\s?.*$"
    r"|\s(?:in|by|since|until)\s(?:the year\s)?(?:1[5-9]|20)\d{2}\s*[.!]?$"
    r"|[,，](?:因为|而不是|不是).*$",
    re.DOTALL,
)
_BUT = re.compile(
    r"(?i)\b(?:not|isn't|aren't|no (?:son|es)|nicht|n'est pas|não (?:são|é)|non)\s(?:[^.\n]|\.(?=\d)){1,40}?[,;]?\s"
    r"(?:but(?: rather)?|sino|sondern|mais|mas|ma|it is|it['’]s|they are)\s|(?:不是)[^。\n]{1,30}(?:而是|是)"
)
_CONCLUDES = re.compile(
    r"(?i)\b(?:so|therefore|thus|hence|finally|total|altogether|left|remain(?:s|ing)?|result|answer|is|are|equals?"
    r"|quedan?|bleiben|reste(?:nt)?|entonces|donc|also|quindi|portanto)\b"
)
# ", which makes 7 apples": such a clause is the result.
_IS_RESULT = re.compile(
    r",?\s+which\s(?:(?!is|are|was|were|means)\w+\s|(?:is|are|was|were|means)\s(?!.*\b(?:more|less|fewer|than"
    r"|times|of|greater)\b)[^\d]{0,12}"
    r"[\d.,]+\s?[a-zA-Z°]*\^?\d?[^\d]{0,40}$)"
)
_NAMED = re.compile(
    r"(?i)\b(?:has|have|is|are|exists?|get|yields?|gives?)\s(no\s(?:real\s|integer\s|valid\s)?(?:solutions?|roots?)"
    r"|infinitely\smany\ssolutions|infinite(?:ly)?\ssolutions)\b"
)
_DELIMITED = re.compile(r"\$|\\[()\[\]]|\\boxed|\\begin|[a-zA-Z]{2,}\s+[a-zA-Z]{2,}")
_HAS_DIGIT = re.compile(r"(?<!\^)\d")
_STEP = re.compile(r"(?i)step|schritt|paso|étape|part|case|day|week|note|example|problem|question|method|option")


def final_value(text: str) -> str | None:
    r"""The value that a text ends with where it is certain, else ``None``.

    It stands alone on the last line, is emphasised there, or is several numbers that mean one thing in its last
    sentence. All other texts are left to :func:`~.last_formula.last_formula`.

    Example:
        >>> final_value("3 * 4 = 12\n\n12 apples"), final_value("She has **12** of 20."), final_value("It is 2:30 pm.")
        ('12', '12', '2:30 pm')
    """
    tail = text[-_TAIL:]
    lines = [line for line in tail.splitlines() if any(c.isalnum() for c in line)]
    if not lines:
        return None
    last = lines[-1]
    if len(last) > _LONGEST_LINE:
        last = last[-_LONGEST_LINE:]
    alone = alone_on(last)
    return alone or _emphasised(last) or in_sentence(undressed(last), text)


def alone_on(line: str) -> str | None:
    """The value that a line consists of, after a label or an arrow."""
    if len(line) > _SHORT:
        return None
    if "\\" in line.replace("\\$", "").replace("\\%", ""):
        return _formula_alone(line)
    plain = undressed(line).strip()
    if "$" in plain or "&" in plain:
        return None
    lead = _LEAD.match(plain)
    starts = [lead.end() if lead is not None else 0, 0]
    if "," in plain or plain.count("=") > 1:
        starts.reverse()
    for start in dict.fromkeys(starts):
        found = as_value(plain[start:].strip(_SIDES).rstrip(_END))
        if found is not None:
            return found
    return None


def _formula_alone(line: str) -> str | None:
    """A line that is one formula of LaTeX without delimiters."""
    bare = line.strip(_SIDES).rstrip(".,")
    if _DELIMITED.search(bare) is not None or not bare.startswith(("\\frac", "\\dfrac", "\\sqrt", *"-0123456789")):
        return None
    return as_value(bare)


def _emphasised(last: str) -> str | None:
    """The last emphasised value of the last line that has one, if no number but this one concludes the text."""
    if not any(mark in last for mark in "*_`<"):
        return None
    for _, inside in reversed(emphasised(last)):
        inside = inside.strip(" .:!")
        if "\\" in inside:
            continue
        if _STEP.match(inside):
            continue
        found = as_value(undressed(inside))
        if found is None and ":" in inside:
            found = as_value(undressed(inside.rpartition(":")[2]).strip(_SIDES).rstrip(_END))
        if found is not None:
            return found
    return None


def in_sentence(line: str, text: str) -> str | None:
    """Several numbers that mean one thing, or a number in words, at the end of the last sentence of a line."""
    pieces = [piece for piece in _SENTENCE.split(line) if any(c.isalnum() for c in piece)]
    if not pieces:
        return None
    sentence = concluded(pieces[-1])
    if "$" in sentence or "\\" in sentence:
        return None
    named = _NAMED.search(sentence)
    if named is not None and _HAS_DIGIT.search(sentence, named.end()) is None:
        return named[1]
    found = last_whole(sentence)
    if found is not None and _HAS_DIGIT.search(sentence, found[1]) is None:
        return found[2]
    if _HAS_DIGIT.search(sentence) is not None:
        return last_formula(sentence) if sentence != pieces[-1] else None
    if line.rstrip()[-1:] not in ",:;":
        words = last_spelled(sentence)
        if words is not None and (_HAS_DIGIT.search(text) is None or _CONCLUDES.search(sentence)):
            return words[2]
    return None


def concluded(sentence: str) -> str:
    """The sentence without numbers that are ruled out and without clauses behind its result."""
    if "ot " in sentence or "n" in sentence or "不" in sentence:
        sentence = _BUT.sub(" ", sentence)
    cut = _CLAUSE.search(sentence)
    if cut is not None and _IS_RESULT.match(cut.group()):
        return sentence
    if cut is not None and cut.start() and _HAS_DIGIT.search(sentence, 0, cut.start()):
        return sentence[: cut.start()]
    return sentence
