r"""Parses how an answer is built: a value, a list, an interval, a matrix, an equation, or words.

A value keeps all its readings: ``20\%`` may be 20 or 0.2, ``9:24`` a ratio or a time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from lightning_serl.answers.math.expression import NotUnderstood

_FEW_WORDS = 3
PRODUCT = re.compile(r"\\(?:cdot|times|ast)(?![a-zA-Z])|[×·⋅∗]")
_QUOTIENT = re.compile(r"\\div(?![a-zA-Z])|÷")
_TEXT = re.compile(r"(?<=.)\s*\\(?:text|textrm|textbf|mathrm|mbox)\s*\{[^{}]*\}(?:\s*\^\s*(?:\{\d\}|\d))?$")
_OR = re.compile(r"(?:,?\s*\\text\s*\{\s*(?:and|or)\s*\}|(?<![a-zA-Z]),?\s*(?:and|or)(?![a-zA-Z]))")
_NAMED = re.compile(r"(?<![\\a-zA-Z])(pi|sin|cos|tan|cot|sec|csc|ln|log|exp|theta|alpha|beta)(?![a-zA-Z])")
_ROOT_WORD = re.compile(r"(?<![\\a-zA-Z])sqrt(?=\s*[({\d])")
_UNIT_TAIL = re.compile(r"(?<=[\d})])\s*(?:[cdghlmost]|[a-zA-Z]{2,}[a-zA-Z ./]*)(?:\^\{?[23]\}?)?$")
_MIXED = re.compile(r"(?<![\d.}])(\d+)(?:\s*(\\frac\{\d+\}\{\d+\})| (\d+/\d+)(?![\d/]))")
_RATIO = re.compile(r"(\d+):(\d+)")
_IN_BASE = re.compile(r"(\d{1,30})_(?:\{(\d{1,2})\}|(\d))")
_RELATION = re.compile(r"[<>≤≥≠∈]|\\(?:leq?|geq?|lt|gt|neq?|in|cup|cap|setminus)(?![a-zA-Z])")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}|\\(?:text|mathrm|mbox)(?![a-zA-Z])")
_SAYS = re.compile(r"(?:is|are|=)\s*(-?\d+(?:\.\d+)?)\.?$|^There (?:is|are)\s*(\d+)[^\d]*$")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_NAME = re.compile(r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_(?:\w|\{\w+\}))?")
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Structure:
    """How an answer is built."""

    # "value", "equation", "list", "matrix", "union" (of intervals), "relation" (such as an inequality), or "text" for
    # sentences and formulas cut short.
    kind: str
    # The items of a list, the rows of a matrix (lists), the intervals of a union, or the last side of an equation.
    parts: tuple[Structure, ...] = ()
    brackets: str = ""  # around a list: "", "{}", "()", "[]", "(]" or "[)"
    spellings: tuple[str, ...] = ()  # readings of a value, or the difference of the two sides of an equation
    name: str = ""  # the first side of an equation if it is a single name; the base of a number


@lru_cache(maxsize=16384)
def structure(form: str) -> Structure | None:
    """The structure of a normal form, ``None`` if a part of it is not understood."""
    try:
        text = form.replace('"', "").replace("∞", r"\infty").replace("π", r"\pi ").replace("infinity", r"\infty")
        if ";" in text and "," in text:
            return None  # a list of lists
        text = _OR.sub(",", text.replace(";", ","))
        return _parse(_TEXT.sub("", text).strip(), 0)
    except (NotUnderstood, RecursionError):
        return None


def _parse(text: str, depth: int) -> Structure:
    if depth > 3 or not text:
        raise NotUnderstood
    if _is_sentence(text):
        said = _SAYS.search(text)
        return Structure("text") if said is None else Structure("value", spellings=(said[1] or said[2],))
    items = _split(text, ",")
    if len(items) > 1:
        return Structure("list", tuple(_parse(item, depth + 1) for item in items))
    sides = _split(text, "=")
    matrix = _MATRIX.fullmatch(sides[-1])
    if matrix is not None and len(sides) == 1:
        return _matrix(matrix.group(2))
    if matrix is None and "\\begin" in text:
        raise NotUnderstood
    if matrix is None and text[-1] in "+-*/=":
        return Structure("text")
    if matrix is None and _RELATION.search(text):
        return _union(text, depth) or Structure("relation")
    based = _IN_BASE.fullmatch(text)
    if based is not None:
        base = based[2] or based[3]
        return Structure("value", spellings=(based[1], _in_base(based[1], int(base))), name=base)
    if len(sides) > 1:
        name = sides[0].strip()
        name = name if _NAME.fullmatch(name) else ""
        difference = (f"({sides[0]})-({sides[1]})",) if len(sides) == 2 else ()
        return Structure("equation", (_parse(sides[-1].strip(), depth + 1),), spellings=difference, name=name)
    inner = text.replace(r"\{", "{").replace(r"\}", "}")
    if inner[0] in _OPENING and inner[-1] in _CLOSING and _split(inner[1:-1], ",", closed=True)[1:]:
        brackets = inner[0] + inner[-1]
        if (inner[0] == "{") != (inner[-1] == "}"):
            raise NotUnderstood
        return Structure("list", tuple(_parse(i, depth + 1) for i in _split(inner[1:-1], ",")), brackets)
    return Structure("value", spellings=tuple(dict.fromkeys(_readings(inner if inner[0] == "{" else text))))


def _split(text: str, separator: str, closed: bool = False) -> list[str]:
    """The pieces between separators outside of all brackets.

    A bracket that closes before it opens raises, or with ``closed`` leaves the text whole. All kinds of brackets share
    one depth, because intervals may open and close with different ones.
    """
    if separator not in text:
        return [text]
    pieces, depth, last = [], 0, 0
    for at, c in enumerate(text):
        if c in _OPENING:
            depth += 1
        elif c in _CLOSING:
            depth -= 1
            if depth < 0:
                if closed:
                    return [text]
                raise NotUnderstood
        elif c == separator and depth == 0:
            pieces.append(text[last:at].strip())
            last = at + 1
    return [*pieces, text[last:].strip()]


def _is_sentence(text: str) -> bool:
    """Whether a text has several words and does not begin with a number, as quantities do."""
    return len(_WORD.findall(_NAMED.sub("", text))) >= _FEW_WORDS and text[0] not in "-+.0123456789\\"


def _union(text: str, depth: int) -> Structure | None:
    r"""Intervals joined by ``\cup``, ``None`` for other texts."""
    pieces = [piece.strip() for piece in text.split("\\cup")]
    if len(pieces) == 1 or any(_RELATION.search(piece) for piece in pieces):
        return None
    parts = tuple(_parse(piece, depth + 1) for piece in pieces)
    return Structure("union", parts) if all(is_interval(part) for part in parts) else None


def is_interval(a: Structure) -> bool:
    """Whether a list could be an interval: two members between round or square brackets."""
    return a.kind == "list" and len(a.parts) == 2 and a.brackets in ("()", "[]", "(]", "[)")


def _matrix(body: str) -> Structure:
    rows = [row.split("&") for row in re.split(r"\\\\(?![a-zA-Z])", body.strip()) if row.strip()]
    lists = (Structure("list", tuple(_parse(cell.strip(), 1) for cell in row), "()") for row in rows)
    return Structure("matrix", tuple(lists))


def _readings(text: str) -> list[str]:
    """The spellings of everything that one value may mean."""
    text = _QUOTIENT.sub("/", PRODUCT.sub("*", _ROOT_WORD.sub(r"\\sqrt", text)))
    text = _MIXED.sub(lambda m: f"({m[1]}+{m[2] or m[3]})", text)
    if len(_WORD.findall(_NAMED.sub("", text))) > 1 and any(c.isdigit() for c in text):
        said = _SAYS.search(text)
        if said is not None:
            return [said[1] or said[2]]
        # "At most 5 of them": the value is one of the numbers in the text, or none.
        return [*(n for match in _NUMBER.findall(text)[:6] for n in (match, match.lstrip("-"))), "w_{text}"]
    ratio = _RATIO.fullmatch(text)
    if ratio is not None:
        return [f"{ratio[1]}/{ratio[2]}", f"{ratio[1]}+{ratio[2]}/60"]
    if "%" in text:
        text = text.replace(r"\%", "%")
        if text.index("%") != len(text) - 1:
            raise NotUnderstood
        return [text[:-1], f"({text[:-1]})/100"]
    found = [text, _UNIT_TAIL.sub("", text)]
    return [*found, *(_NAMED.sub(r"\\\1 ", t) for t in found)]


def _in_base(digits: str, base: int) -> str:
    try:
        return str(int(digits, base))
    except ValueError:
        return digits
