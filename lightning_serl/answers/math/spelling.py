r"""Rewrites an answer to a plain spelling: typesetting, quotation marks, labels, currencies and number words removed.

What remains is one LaTeX expression, a number with a unit, a list, or words. All steps are linear in a text of bounded
length.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lightning_serl.answers.math.normal_form import ascii_digits
from lightning_serl.answers.math.numbers import plain_numbers
from lightning_serl.answers.reading.number_words import digits

_LONGEST = 400
_BARE = re.compile(r"-?\d+(?:\.\d+)?|[a-zA-Z]")
_GROUP = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"

_OPENING, _CLOSING = "\"'`“”‘’«»‹›„‚「」『』＂＇*_", "\"'`“”‘’«»‹›「」『』＂＇*_"
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―﹣－", "-"))
_HTML = re.compile(r"(?i)</?(?:b|i|em|strong|p|span|div|code|u|center|br)(?:\s[^<>]{0,60})?/?>|&nbsp;")
_LABEL = re.compile(
    r"(?i)^\s*(?:\\text(?:bf|it)?\s*\{\s*)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answers?|ans|result|solution)\s*"
    r"(?:is|are|:|=|\.)?\s*:?\s*\}?\s*(?=[^\s}])"
)
_LABELLED = re.compile(r"(?i)^\W{0,3}(?:\\text(?:bf|it)?\s*\{\s*)?(?:the\s|final\s|correct\s|answers?\b|ans\b)")

# Commands that set colour, size, weight or space.
_COLOUR = re.compile(rf"\\(?:textcolor|colorbox|color)\s*\{{[^{{}}]*\}}\s*{_GROUP}")
_COLOUR_SWITCH = re.compile(r"\\color\s*\{[^{}]*\}")
_INVISIBLE = re.compile(
    r"\\(?:phantom|hphantom|vphantom|hspace\*?|vspace\*?|label|tag\*?)\s*\{[^{}]*\}|\\(?:hfill|strut)(?![a-zA-Z])"
)
_SET = re.compile(
    rf"\\(?:mathbf|boldsymbol|bm|mathsf|mathit|mathtt|mathnormal|ensuremath|underline|num|mathstrut)\s*{_GROUP}"
)
_SET_TEXT = re.compile(r"\\(?:textbf|textit|emph|texttt|textsf|textsc|textnormal|textup|fbox|mbox)\s*\{([^{}]*)\}")
_SWITCH = re.compile(
    r"\\(?:bf|rm|it|sf|tt|tiny|scriptsize|footnotesize|small|normalsize|[lL]arge|LARGE|[hH]uge|displaystyle|textstyle"
    r"|scriptstyle|limits|nolimits|bfseries|itshape|mathstrut)(?![a-zA-Z])\s*"
)
_UPRIGHT = re.compile(r"\\(?:mathrm|operatorname|text|textrm|mathit)\s*\{\s*([eidπ])\s*\}")
_UPRIGHT_NUMBER = re.compile(r"\\(?:mathrm|text|textrm|operatorname)\s*\{\s*([-+]?\d[\d.,]*)\s*\}")
_FUNCTION = re.compile(
    r"\\(?:operatorname|mathrm|text)\s*\{\s*(sin|cos|tan|cot|sec|csc|ln|log|exp|arcsin|arccos|arctan)\s*\}"
)
_MEASURED = re.compile(r"\\(?:qty|SI)\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_FRAC = re.compile(r"\\(?:[sdtc]frac|nicefrac|flatfrac|xfrac)(?![a-zA-Z])")
_OVER = re.compile(r"\{?([^{}]{1,60}?)\s*\\over(?![a-zA-Z])\s*([^{}]{1,60}?)\}?$")
_WRAPPED = re.compile(r"\{([^{}]*)\}")
_BIG = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![a-zA-Z])\s*\.?")

_SPELLINGS = (
    (re.compile(r"\\(?:varnothing|empty|emptyset)(?![a-zA-Z])|∅|^\s*\\\{\s*\\\}\s*$|^\s*\{\s*\}\s*$"), r"\\emptyset "),
    (re.compile(r"\\(?:l?brack)(?![a-zA-Z])"), "["),
    (re.compile(r"\\rbrack(?![a-zA-Z])"), "]"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:leqslant|leqq|leq)(?![a-zA-Z])|≤|⩽|=<|<="), r"\\le "),
    (re.compile(r"\\(?:geqslant|geqq|geq)(?![a-zA-Z])|≥|⩾|>="), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])|≠|!=|\\not\s*=|=/=|<>"), r"\\ne "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"∈"), r"\\in "),
    (re.compile(r"∪"), r"\\cup "),
    (re.compile(r"∩"), r"\\cap "),
    (re.compile(r"∞"), r"\\infty "),
    (re.compile(r"¢"), " cents"),
    (re.compile(r"±"), r"\\pm "),
    (re.compile(r"\\varepsilon(?![a-zA-Z])|ε|ϵ"), r"\\epsilon "),
    (re.compile(r"\\(?:thickapprox|approxeq|simeq|cong)(?![a-zA-Z])|≈|≅|≃"), r"\\approx "),
    (re.compile(r"⟨|〈|\\left\s*<"), r"\\langle "),
    (re.compile(r"⟩|〉|\\right\s*>"), r"\\rangle "),
)
_SPECIAL = re.compile(r"[^\x00-\x7f]|\\|[<>=!]")
_ANGLES = re.compile(r"\\langle(?![a-zA-Z])([^<>]*?)\\rangle(?![a-zA-Z])")
_INDEX = re.compile(
    r"_\s*(?:\{\s*)?\\(?:text|textrm|textbf|textit|mathrm|mathit|operatorname|mbox)\s*\{\s*([^{}]*?)\s*\}\s*\}?"
)
_INDEX_COMMAND = re.compile(r"_\s*\{\s*\\(?:rm|bf|it)?\s*(max|min|sup|inf|[a-z]+)\s*\}|_\\(max|min)(?![a-zA-Z])")
_INDEX_ONE = re.compile(r"_\{\s*(\w)\s*\}")
_ORDINAL = re.compile(
    r"^([-+]?\d[\d,]*)\s*(?:\^\s*)?(?:\{\s*)?(?:\\(?:text|textrm|mathrm|rm)\s*)?\{?\s*(?:st|nd|rd|th|[ºª])\s*\}?\s*\}?$"
)
# "approximately" in front; what follows a value of which it is a rounding.
_ABOUT = re.compile(
    r"(?i)^\s*(?:\\approx|\\sim(?![a-zA-Z])|~|about\s|approximately\s|approx\.?\s|roughly\s|around\s|nearly\s)\s*"
)
_PERCENT = re.compile(
    r"(?i)(?<=[\d}])\s*(?:\\text\s*\{)?\s*(?:percent|per\s?cent|pct\.?|por\s?ciento|pour\s?cents?|prozent|por\s?cento"
    r"|процент\w*|퍼센트|بالمئة|بالمائة)\s*\}?$"
)
_ROUNDED = re.compile(r"^(.*?)\s*\\approx\s*(.*)$", re.DOTALL)
_NAME = re.compile(r"\s*\\?[a-zA-Z]+(?:_\{?\w+\}?)?\s*")
# Conditions and remarks behind an expression.
_QUALIFIER = re.compile(
    r"(?:\s|,|;|\\[,;:! ]|\\q?quad)*(?:\\text(?:rm|it)?\s*\{\s*,?\s*(?:for|where|with|whenever|when|if|in total|total"
    r"|altogether|only|each|approximately|\(approx|as|left|units?\s?(?:squared|of))\b.*|\\forall(?![a-zA-Z]).*"
    r"|[,;]\s*(?:\\[,;:! ]|\\q?quad|\s)*(?:where\s|for\s|with\s)?\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\\in(?![a-zA-Z]).*"
    r"|\\text\s*\{\s*\(.*|\((?:approximately|approx\.?|rounded[^)]*|in total)\))$",
    re.DOTALL,
)
_ALL_TEXT = re.compile(r"^\\text(?:rm)?\s*\{([^{}]*)\}$")
_LIST = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}")


# Answers that are no number and yet have a sign.
_NONE = r"(?:there\s(?:is|are)\s)?no\s(?:real\s|integer\s|valid\s)?(?:solutions?|roots?)|(?:the\s)?(?:empty|null)\sset"
_ENDLESS = (
    r"(?:there\sare\s)?(?:infinitely\smany|infinite(?:ly)?)(?:\s(?:number\sof\s)?solutions)?|(?:positive\s)?infinity"
)
# The letters that such names, or the command around them, begin with.
_NAMED_BEGIN = frozenset("tTnNiIpPeE\\")
NAMED_VALUE = re.compile(
    rf"\s*(?:\\text\s*\{{\s*)?(?:(?P<none>{_NONE})|(?P<endless>{_ENDLESS}))\s*\.?\s*\}}?\s*\.?", re.IGNORECASE
)


@lru_cache(maxsize=16384)
def plain_spelling(answer: str) -> str:
    r"""One spelling for answers that differ in typesetting, marks around them, labels, words for numbers.

    Example:
        >>> plain_spelling(r"\color{blue}{17}"), plain_spelling("“–5”"), plain_spelling("twelve apples")
        ('17', '-5', '12 apples')
        >>> plain_spelling(r"\text{Answer: } US\$1.5e3"), plain_spelling(r"x_{\text{max}}"), plain_spelling("x != 5")
        ('$1500', 'x_{max}', 'x \\ne 5')
    """
    if _BARE.fullmatch(answer):
        return answer
    text = answer.strip()
    if not text or len(text) > _LONGEST:
        return ascii_digits(answer)
    text = unquoted(text)
    named = NAMED_VALUE.fullmatch(text) if text[:1] in _NAMED_BEGIN else None
    if named is not None:
        return r"\emptyset" if named["none"] else r"\infty"
    if not text.isascii():
        text = text.translate(_DASHES)
    text = ascii_digits(text)
    if "<" in text or "&" in text:
        text = _HTML.sub("", text)
    if "\\" in text:
        text = _typeset(text)
    if _LABELLED.match(text):
        text = _LABEL.sub("", text, count=1).rstrip("}") if "\\text" in text else _LABEL.sub("", text, count=1)
    if _SPECIAL.search(text) is not None:
        for pattern, spelling in _SPELLINGS:
            text = pattern.sub(spelling, text)
        text = _mathematical(text)
    text = _PERCENT.sub(r"\\%", _ABOUT.sub("", text))
    ordinal = _ORDINAL.match(text)
    if ordinal is not None:
        return ordinal[1]
    text = _ALL_TEXT.sub(r"\1", text) if text.startswith("\\") else text
    return plain_numbers(digits(text) or text) or answer


def unquoted(text: str) -> str:
    """The text without quotation marks, code ticks or emphasis around the whole of it."""
    for _ in range(4):
        if len(text) < 3 or text[0] not in _OPENING or text[-1] not in _CLOSING:
            break
        if text[0] in "*_" and text[-1] != text[0]:
            break
        text = text[1:-1].strip()
    return text


def _typeset(text: str) -> str:
    """The text without commands that change only its looks."""
    text = text.replace("\\\\frac", "\\frac").replace("\\$", "$") if text.count("$") % 2 == 0 else text
    text = _INVISIBLE.sub("", _COLOUR_SWITCH.sub("", _COLOUR.sub(r"\1", text)))
    text = _MEASURED.sub(r"\1 \\text{\2}", text)
    text = _SET.sub(r"\1", text)
    text = _SET_TEXT.sub(_as_text, text)
    text = _UPRIGHT_NUMBER.sub(r"\1", _UPRIGHT.sub(r"\1", _FUNCTION.sub(r"\\\1 ", _SWITCH.sub("", text))))
    text = _FRAC.sub(r"\\frac", text)
    if "_" in text:
        text = _INDEX_ONE.sub(r"_\1", _INDEX_COMMAND.sub(_index, _INDEX.sub(r"_{\1}", text)))
    over = _OVER.fullmatch(text) if "\\over" in text else None
    if over is not None:
        text = rf"\frac{{{over[1].strip()}}}{{{over[2].strip()}}}"
    return text.strip()


def _as_text(match: re.Match[str]) -> str:
    inside = match[1]
    return rf"\text{{{inside}}}" if re.search(r"[^\W\d_]{2}", inside) else inside


def _index(match: re.Match[str]) -> str:
    return f"_{{{match[1] or match[2]}}}"


def _mathematical(text: str) -> str:
    """The text with round brackets for vectors, without conditions behind it and without its roundings."""
    if "\\langle" in text:
        text = _ANGLES.sub(r"(\1)", _BIG.sub("", text))
    qualifier = _QUALIFIER.search(text) if ("\\text" in text or "\\in" in text or "\\forall" in text) else None
    if qualifier is not None and qualifier.start() > 0 and _LIST.match(qualifier.group().strip()) is None:
        text = text[: qualifier.start()].strip()
    rounded = _ROUNDED.match(text) if "\\approx" in text else None
    if rounded is not None and rounded[1].strip():
        exact, value = rounded[1].strip(), rounded[2].strip()
        text = f"{exact}={value}" if _NAME.fullmatch(exact) and value else exact
    wrapped = _WRAPPED.fullmatch(text)
    return (wrapped[1] if wrapped is not None and "," not in text else text).strip()
