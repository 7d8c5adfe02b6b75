"""Removes what only dresses a text: emphasis, code ticks, quotation marks around values, signs of money before numbers.

What is emphasised is also returned on its own, because a value in bold type at the end of a response is its answer.
All steps are linear in the text.
"""

from __future__ import annotations

import re
import unicodedata

from lightning_serl.answers.math.normal_form import ascii_digits

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[a-zA-Z]*[ \t]*$\n?", re.MULTILINE)
_TICKS = re.compile(r"(`{1,3})([^`\n]{1,200})\1")
_STRONG = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*\n]{1,200}?)(?<=[^\s*])\1(?![*])")
_UNDERLINED = re.compile(r"(?<![\w_\\])(_{1,3})(?=[^\s_])([^_\n]{1,200}?)(?<=[^\s_])\1(?![\w_])")
_MARKUP = re.compile(r"(?i)<(b|strong|em|i|u|mark)>([^<>\n]{1,200})</\1>")
_QUOTED = re.compile(
    r"(?<![\w\d])[\"“”„‟«»‹›「『‘’'＂]\s?([-+−–]?[$€£¥]?\d[^\"“”„‟«»‹›「」『』‘’'＂\n]{0,40}?)\s?[\"“”„‟«»‹›」』‘’'＂](?!\w)"
)
_MONEY = re.compile(r"(?:(?<![A-Za-z$])(?:US|CA|AU|NZ|HK|SG|C|A)?(?<!\\)\\?\$|(?<![A-Za-z])\\\$|[€£¥₹₩])\s?(?=[\d.])")
# A dollar sign that opens a formula: another one closes it on its line after digits and signs.
_FORMULA = re.compile(r"\$[^$\n]{0,200}\$")
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(?=$|\s*[.,;:!?)*]*(?:\s|$)|\s+[a-zA-Z]{2}|-)")
_WORD = re.compile(r"(?<!\\)\b(?!(?:and|or|to)\b)[a-zA-Z]{2,}")
_AFTER_CJK = re.compile(r"(?<=[\u3001-\u30ff\u3400-\u9fff\uac00-\ud7af\uff1a\uff0c])(?=[-+]?[\d¥€$])")
_BEFORE_CJK = re.compile(r"(?<=\d)(?=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])")
_MINUS = re.compile(r"(?<![\w)\]}])[‐‑‒–—−－](?=\d)")
_VULGAR = re.compile("(\\d*)[ \u00a0]?([\u00bc-\u00be\u2150-\u215e])")
_VALUE_MARKS = ("`", "*", "_", "<", '"', "'", "“", "”", "‘", "„", "«", "「", "『", "$", "€", "£", "¥", "₹", "₩")
_END = 1000
_BLANKS = re.compile("[\u00a0\u2009\u202f\u3000]")


def undressed(text: str) -> str:
    """The text without emphasis, code ticks, quotation marks around numbers and signs of money."""
    if not text.isascii():
        text = _BLANKS.sub(" ", text)
        text = _MINUS.sub("-", text)
        text = _VULGAR.sub(_fraction, text)
        text = text.replace("。", ". ").replace("、", ", ")
        text = _BEFORE_CJK.sub(" ", _AFTER_CJK.sub(" ", ascii_digits(text)))
    if "`" in text or "~~~" in text:
        text = _TICKS.sub(r"\2", _FENCE.sub("", text))
    if "*" in text:
        text = _STRONG.sub(r"\2", text)
    if "_" in text:
        text = _UNDERLINED.sub(r"\2", text)
    if "<" in text:
        text = _MARKUP.sub(r"\2", text)
    if not text.isascii() or '"' in text or "'" in text:
        text = _QUOTED.sub(r"\1", text)
    return without_money(text)


def _fraction(match: re.Match[str]) -> str:
    """``2½`` as ``2 1/2``."""
    whole, fraction = match[1], unicodedata.normalize("NFKC", match[2]).replace("\u2044", "/")
    return f"{whole} {fraction}" if whole else fraction


def without_money(text: str) -> str:
    """The text without signs of money before numbers; dollar signs around formulas stay."""
    if not any(sign in text for sign in "$€£¥₹₩"):
        return text
    pieces: list[str] = []
    at = 0
    for match in _MONEY.finditer(text):
        if match.start() < at:
            continue
        if match.group().strip().endswith("$") and "\\" not in match.group():
            formula = _FORMULA.match(text, match.end() - 1 - (match.group()[-1] == " "))
            if formula is not None and not _is_money(text, formula):
                pieces.append(text[at : formula.end()])
                at = formula.end()
                continue
        pieces.append(text[at : match.start()])
        at = match.end()
    pieces.append(text[at:])
    return "".join(pieces)


def _is_money(text: str, formula: re.Match[str]) -> bool:
    """Whether a passage between two dollar signs is a sentence that begins with a number."""
    start, end = formula.span()
    if _NUMBER.match(text, start + 1, start + 60) is None:
        return False
    return text[end - 2].isspace() or text[end : end + 1].isdigit() or _WORD.search(text, start, end) is not None


def emphasised(text: str) -> list[tuple[int, str]]:
    """Where emphasised, quoted and coded passages of a text stop, with their contents, in their order."""
    found: list[tuple[int, str]] = []
    for pattern in (_STRONG, _UNDERLINED, _TICKS, _MARKUP):
        if pattern is _TICKS and "`" not in text:
            continue
        found += [(match.end(), match[2]) for match in pattern.finditer(text)]
    return sorted(found)


def undressed_end(text: str) -> str:
    """The text with its end undressed, unless that holds formulas of LaTeX."""
    end = text[-_END:]
    if "$" in end and any(not _is_money(end, formula) for formula in _FORMULA.finditer(end)):
        return text
    return text if "\\" in end.replace("\\$", "") else text[:-_END] + undressed(end)
