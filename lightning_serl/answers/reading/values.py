r"""Finds values in sentences: numbers with units, times, dates, remainders, ratios, ranges, relations, roots."""

from __future__ import annotations

import re

from lightning_serl.answers.math.compare import is_understood
from lightning_serl.answers.math.normal_form import normal_form, number
from lightning_serl.answers.math.quantities import quantity
from lightning_serl.answers.math.regions import region
from lightning_serl.answers.math.spelling import NAMED_VALUE, plain_spelling
from lightning_serl.answers.math.wholes import whole
from lightning_serl.answers.reading.number_words import Spelled, digits, spelled, spelling
from lightning_serl.answers.reading.numerals import last_numeral

_LONGEST = 120
_MOST_WORDS = 4
_FEWEST_WORDS = 3
_N = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,18})(?:\.\d{1,18})?"
_U = r"(?:\s?[^\W\d_]{1,15}\.?)?"
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre"
    r"|diciembre|janvier|février|mars|avril|mai|juin|juillet|août|septembre|octobre|novembre|décembre|Januar|Februar"
    r"|März|Mai|Juni|Juli|Oktober|Dezember|janeiro|fevereiro|março|maio|junho|julho|setembro|outubro|novembro|dezembro"
    r"|gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre)"
)
_SIDE = r"[-+]?(?:\d+(?:\.\d+)?|[a-zA-Z])(?![a-zA-Z\d])"
_SIGN = r"(?:<=|>=|=<|!=|<>|[<>≤≥≠]|\\(?:leq?|geq?|neq?|lt|gt)\b)"
_ROOT = r"[√∛∜](?:\d+(?:\.\d+)?|[a-zA-Z]|\([^()]{1,30}\))"
# What several numbers mean together: kind, signs of which a sentence must hold one, and a linear pattern.
_REST = r"(?:[rR]emainder|Rest|rest|resto|reste|resta|余数?|나머지|あまり)"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?\b"
_LARGE = r"hours?|h|hrs?|feet|foot|ft|days?|weeks?|minutes?|min|pounds?|lbs?|years?|kg|km|m|dollars?"
# hours in Spanish, Portuguese, French, German, Italian; the same for minutes
_HOURS = r"horas?|heures?|Stunden?|ora|ore"
_MINUTES = r"minutos?|minutes?|Minuten?|minut[oi]|min|segundos?|secondes?|Sekunden?|second[oi]"
_SMALL = r"minutes?|mins?|min|inch(?:es)?|in|hours?|seconds?|secs?|s|ounces?|oz|months?|days?|cm|m|g|cents?"
_END = r"∞|\\infty|infinity"
_M = rf"(?:[-+]?\d{{1,15}}(?:\.\d{{1,15}})?(?:/\d{{1,15}})?|[-+]?(?:{_END})|-?[a-z])"
_PAIR = rf"[\[(]\s?(?:{_M})\s?,\s?(?:{_M})\s?[\])]"
_VALUE_OF = rf"(?:the\s)?(?:value\sof\s)?[a-zA-Z]\s?(?:=|is|equals)\s?{_N}"
_ENUMERATED = (
    r"(?<=\bare\s)(?<!there are\s)(?<!They are\s)-?\d{1,9}(?:\.\d{1,9})?(?:,\s-?\d{1,9}(?:\.\d{1,9})?)*,?\s(?:and|or)\s"
    r"-?\d{1,9}(?:\.\d{1,9})?(?=\s*[.!]?\s*$)"
)
_LENGTH = r"(?:[cmk]?m|ft|in|feet|foot|inch(?:es)?|met(?:er|re)s?|centimet(?:er|re)s?|yards?|units?|miles?)"
_KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "clock",
        (":", "am", "pm", ".m", "AM", "PM", "clock"),
        r"\b\d{1,2}(?::\d{2}){1,2}\s?(?:[apAP]\.?\s?[mM]\b\.?|noon|midnight|o'?clock|Uhr|h\b)"
        r"|\b\d{1,2}\s?(?:[apAP]\.?[mM]\b\.?|o'?clock\b)",
    ),
    (
        "ratio",
        (":",),
        r"(?<![\d.:])\d{1,9}(?:\.\d{1,4})?(?:\s?:\s?\d{1,9}(?:\.\d{1,4})?){1,5}(?![\d:])",
    ),
    (
        "remainder",
        ("r", "R", "余", "나머지", "あまり"),
        rf"{_N}\s*(?:,?\s*(?:with|and)?\s*(?:an?\s)?{_REST}(?:\s(?:of|von|de|is))?|[rR])\s?{_N}\b"
        rf"|quotient\s(?:of\s|is\s)?{_N},?\s(?:and\s)?(?:a\s)?remainder\s(?:of\s|is\s)?{_N}",
    ),
    (
        "range",
        (" to ", "etween", "ntre", "wischen", "–", "-", "bis", "到", "至", "~"),
        rf"\b(?:between|entre|zwischen)\s\$?{_N}{_U}\s(?:and|y|et|und|e)\s\$?{_N}{_U}"
        rf"|{_N}{_U}\s?(?:\bto\b|bis|[–至到~])\s?{_N}{_U}|\b\d{{1,6}}-\d{{1,6}}\s[^\W\d_]{{2,15}}",
    ),
    (
        "date",
        (
            "Jan",
            "Feb",
            "Mar",
            "Apr",
            "May",
            "Jun",
            "Jul",
            "Aug",
            "Sep",
            "Oct",
            "Nov",
            "Dec",
            "/",
            "-",
            "年",
            " de ",
            "Okt",
            "Dez",
            "Mär",
            "Mai",
            "er",
            "ier",
            "et",
            "ars",
            "vril",
            "mai",
            "juin",
            "août",
        ),
        rf"{_MONTH}\.?\s{_DAY}(?:,?\s\d{{4}})?|\b\d{{1,2}}(?:st|nd|rd|th|\.)?\s(?:of\s|de\s)?{_MONTH}\b\.?(?:,?\s(?:de\s)?\d{{4}})?"
        r"|\b\d{4}-\d{1,2}-\d{1,2}\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b|\d{4}\s?年\s?\d{1,2}\s?月\s?\d{1,2}\s?日",
    ),
    (
        "interval",
        (",",),
        rf"(?<![\w\d]){_PAIR}(?:\s?(?:∪|\\cup|U)\s?{_PAIR}){{0,4}}|(?<![\w\d])\(\s?{_M}(?:\s?,\s?{_M}){{2,5}}\s?\)",
    ),
    (
        "relation",
        ("<", ">", "≤", "≥", "≠", "!=", "\\"),
        rf"(?<![\w$\\</]){_SIDE}\s?{_SIGN}\s?{_SIDE}(?:\s?{_SIGN}\s?{_SIDE})?(?:\s(?:or|and)\s{_SIDE}\s?{_SIGN}\s?{_SIDE})?",
    ),
    ("tied", ("=", "is", "equals"), rf"\b{_VALUE_OF}(?:,?\s(?:and\s)?{_VALUE_OF}){{1,3}}"),
    ("list", ("are ", "are: ", "son ", "sont ", "sind "), _ENUMERATED),
    ("size", (" by ", " x ", "×"), rf"{_N}\s?{_LENGTH}?\s?(?:by|x|×)\s?{_N}\s?{_LENGTH}\b|{_N}\sby\s{_N}\b"),
    (
        "mixed",
        ("/",),
        r"(?<![\d/.,])\d{1,6}\s\d{1,3}/\d{1,3}(?![\d/])(?:\s(?!and|or|of|is|are)[a-z]{2,12}\b)?",
    ),
    ("scale", ("illion", "housand"), rf"{_N}\s(?:thousand|million|billion|trillion)\b"),
    ("plusminus", ("±", "+/-"), rf"{_N}\s?(?:±|\+/-)\s?{_N}"),
    (
        "root",
        ("√", "∛", "∜"),
        rf"\(?\s?-?(?:\d+(?:\.\d+)?\s?[-+*]\s?)?-?(?:\d+(?:\.\d+)?)?\s?{_ROOT}(?:\s?[-+]\s?\d+)?\s?\)?(?:\s?/\s?\d+)?",
    ),
    ("pi", ("π",), r"-?(?:\d+(?:\.\d+)?(?:/\d+)?)?\s?π(?:\s?/\s?\d+)?"),
    (
        "measure",
        (
            "hour",
            "h ",
            "hr",
            "f",
            "day",
            "week",
            "min",
            "pound",
            "lb",
            "year",
            "kg",
            "km",
            "m ",
            "dollar",
            "hor",
            "heure",
            "tund",
            " ora",
            " ore",
        ),
        rf"\b\d{{1,9}}\s?(?:{_LARGE})\b,?\s(?:and\s)?\d{{1,9}}(?:\.\d+)?\s?(?:{_SMALL})\b"
        rf"|\b\d{{1,9}}\s?(?:{_HOURS})\b,?\s(?:(?:y|et|und|e)\s)?\d{{1,9}}\s?(?:{_MINUTES})\b",
    ),
)
_WHOLES = tuple((kind, signs, re.compile(pattern)) for kind, signs, pattern in _KINDS)
_FORMULA_WORD = re.compile(
    r"(?<![\\a-zA-Z])(?!(?:sin|cos|tan|ln|log|exp|sqrt|pi|ab|xy|yz|xyz|bc|ac|abc|mg|kx|nx|rs|pq)\b)[a-zA-Z]{2,}"
)
_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_PI = re.compile(r"^-?(?:\d+(?:\.\d+)?(?:/\d+)?)?\s?π(?:\s?/\s?\d+)?(?:\s[^\W\d_]{1,12})?$")
_WORDS = re.compile(r"[^\W\d_]{2,}")
_UNKNOWN = re.compile(r"(?i)(?:n/?a|n\.a\.?|none|null|nan|unknown|undefined|tbd|idk|\?+)\.?")
# "3, 4 and 5", "x = 3 and y = 4"
_ITEM = r"(?:[a-zA-Z]\s?=\s?)?-?\d{1,15}(?:\.\d{1,10})?"
_MEMBER = re.compile(_ITEM)
_LIST = re.compile(rf"^{_ITEM}(?:\s?,\s?{_ITEM})*,?\s(?:and|or|y|und|et|e|o|oder|ou)\s{_ITEM}$")
_IN_WORDS = re.compile(rf"({_N})\sto\s({_N})")
_DATED = re.compile(rf"\b{_MONTH}\b", re.IGNORECASE)
_TIED = re.compile(rf"\b([a-zA-Z])\s?(?:=|is|equals)\s?({_N})")
_NUMBER_FIRST = re.compile(rf"(?:{_N}(?:/\d{{1,9}})?)")


def as_value(text: str) -> str | None:
    """The value that a phrase as a whole is, in digits; ``None`` for sentences and words.

    Example:
        >>> as_value("12 apples"), as_value("two and a half hours"), as_value("2:30 pm"), as_value("no idea")
        ('12', '2.5 hours', '2:30 pm', None)
    """
    text = text.strip()
    if not text or len(text) > _LONGEST or _UNKNOWN.fullmatch(text):
        return None
    if NAMED_VALUE.fullmatch(text):
        return text
    if _LIST.match(text):
        return ", ".join(_MEMBER.findall(text))
    plain = plain_spelling(text)
    form = normal_form(plain)
    if number(form) is not None:
        return plain if "," not in plain else form.replace(",", "")
    if _DATED.search(plain) is not None and whole(plain) is not None:
        return plain
    measured = quantity(plain)
    if measured is not None:
        first = _NUMBER_FIRST.match(plain)
        bare = not measured.known and first is not None and "^" not in plain
        if len(_WORDS.findall(plain)) > _MOST_WORDS and not measured.known:
            return None
        return first.group().replace(",", "") if bare and first is not None else plain
    if whole(plain) is not None or region(plain) is not None:
        return plain
    if any(c.isdigit() for c in plain):
        if _PI.match(plain) or (_is_formula(plain) and is_understood(form)):
            return plain
        return _with_words(plain)
    return None


def _with_words(plain: str) -> str | None:
    """The number or fraction in front of a few words of no known unit."""
    match = re.match(rf"(\\frac\{{\d+\}}\{{\d+\}}|{_N}(?:/\d+)?(?:\\%)?)(?=\s)", plain)
    if match is None or len(_WORDS.findall(plain)) > _MOST_WORDS:
        return None
    return match.group() if not any(c.isdigit() for c in plain[match.end() :]) else None


def is_sentence(text: str) -> bool:
    """Whether a text has at least three words, or several lines."""
    return "\n" in text.strip() or len(_WORDS.findall(_COMMAND.sub(" ", text))) >= _FEWEST_WORDS


def _is_formula(text: str) -> bool:
    return _FORMULA_WORD.search(_COMMAND.sub(" ", text)) is None


def last_whole(sentence: str) -> tuple[int, int, str] | None:
    """Where the last time, date, range and so on of a sentence stands, and its spelling."""
    last: tuple[int, int, str] | None = None
    for kind, signs, pattern in _WHOLES:
        if not any(sign in sentence for sign in signs):
            continue
        for match in pattern.finditer(sentence):
            if last is None or match.end() > last[1] or (match.end() == last[1] and match.start() < last[0]):
                found = _spelled_whole(match, kind)
                last = last if found is None else (match.start(), match.end(), found)
    if last is not None and "ratio" in sentence and (words := _IN_WORDS.fullmatch(last[2])):
        return last[0], last[1], f"{words[1]}:{words[2]}"
    return last


def first_whole(sentence: str) -> tuple[int, int, str] | None:
    """The time, date, range and so on that a sentence begins with."""
    for kind, signs, pattern in _WHOLES:
        match = pattern.match(sentence) if any(sign in sentence for sign in signs) else None
        found = None if match is None else _spelled_whole(match, kind)
        if match is not None and found is not None:
            return match.start(), match.end(), found
    return None


def _spelled_whole(match: re.Match[str], kind: str) -> str | None:
    """The spelling of a match that is what its pattern looks for."""
    text = match.group().strip().rstrip(",")
    if kind in ("interval", "relation"):
        found = region(plain_spelling(text))
        is_tuple = kind == "interval" and text[0] == "(" and text[-1] == ")" and "∞" not in text
        return text if found is not None or is_tuple else None
    if kind == "list":
        return as_value(text)
    if kind == "tied":
        return ", ".join(f"{name} = {value}" for name, value in _TIED.findall(text))
    if kind == "mixed":
        return as_value(text)
    if kind == "root":
        return rooted(text)
    if kind == "pi":
        return text.replace("π", r"\pi ").strip()
    if kind == "scale":
        return plain_spelling(text)
    if kind == "plusminus":
        return text
    plain = plain_spelling(text)
    if whole(plain) is not None:
        return text
    if kind == "range":  # the word behind it was no unit
        shorter = re.sub(r"\s[^\W\d_]+\.?$", "", text)
        return shorter if whole(plain_spelling(shorter)) is not None else None
    return None


def rooted(text: str) -> str:
    r"""A term with a root sign of Unicode in LaTeX."""
    text = re.sub(r"√\s?(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[a-zA-Z]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    for sign, degree in (("∛", 3), ("∜", 4)):
        text = re.sub(rf"{sign}\s?(?:\(([^()]*)\)|(\d+))", rf"\\sqrt[{degree}]{{\1\2}}", text)
    text = text.strip()
    if text.count("(") != text.count(")"):
        text = text.strip("() ")
    return text


def last_spelled(sentence: str) -> tuple[int, int, str] | None:
    """The last number in words of a sentence; "one" counts only where it cannot be a pronoun."""
    found: Spelled | None = None
    for candidate in spelled(sentence):
        if _counts(sentence, candidate):
            found = candidate
    if found is None:
        return last_numeral(sentence)
    text = digits(sentence[found.start : found.stop]) or spelling(found)
    return found.start, found.stop, text


_PRONOUN = frozenset(
    (
        *(
            "one",
            "a",
            "an",
            "un",
            "una",
            "uno",
            "une",
            "um",
            "uma",
            "ein",
            "eine",
            "einen",
            "einer",
            "eins",
            "la",
            "half",
        ),
        *(
            "once",
            "due",
            "cent",
            "sept",
            "elf",
            "null",
            "sei",
            "mille",
            "mil",
            "set",
            "sex",
            "die",
            "second",
            "quarter",
        ),
        *("medio", "media", "meio", "meia", "demi", "mezzo", "mezza", "meta", "halb", "halbe", "point", "million"),
    )
)
_SURE = re.compile(r"(?i)\b(?:is|are|only|exactly|has|have|just|was|were|be|equals?|left|leaves|get|gets|of)\s+$")
_DETERMINED = re.compile(
    r"(?i)\b(?:the|these|those|both|our|its|their|his|her|first|last|next|other|any|all|each|every|los|las|les|die|der)\s+$"
)
_NOT_AFTER = re.compile(r"(?i)^\s*(?:of|another|can|must|who|that|which|by|is|side|way|day|should|more)\b")


def _counts(sentence: str, found: Spelled) -> bool:
    """Whether words are a number here, and no pronoun, article or word of another language."""
    if _DETERMINED.search(sentence, 0, found.start):
        return False
    if found.word not in _PRONOUN:
        return True
    if found.word != "one":
        return False
    before, after = sentence[: found.start], sentence[found.stop :]
    return _SURE.search(before) is not None and _NOT_AFTER.match(after) is None
