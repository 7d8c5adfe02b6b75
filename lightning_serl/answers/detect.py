"""What kind of answer a problem asks for, and what kind an answer is: an option, a number or formula, or words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from lightning_serl.answers.choices_in_text import split_choices
from lightning_serl.answers.math.normal_form import ascii_digits
from lightning_serl.answers.math.quantities import quantity
from lightning_serl.answers.math.spelling import NAMED_VALUE
from lightning_serl.answers.reading.number_words import digits, spelled

_LONGEST = 5000
_MATH_MARK = re.compile(r"\$[^$\n]*[\\^_=+\d][^$\n]*\$|\\(?:[dt]?frac|sqrt|\(|\[)|\d\s*[-+*/^=×÷]\s*[\d(]")
_MATH_WORD = re.compile(
    r"(?i)\b(?:calculate|compute|evaluate|simplify|solve|find|determine) |"
    r"\b(?:sum|product|average|probability|percent(?:age)?|area|perimeter|equation|integer|remainder|divisible|total|"
    r"difference|ratio|cost|profit|number|count)s?\b|求|计算|calcul|найдите"
)
_HOW_MUCH = re.compile(
    r"(?i)\bhow (?:many|much|far|long|old|tall|fast|heavy|deep|wide|big|large|often)\b|\bwhat (?:year|number|"
    r"percent\w*|time|age)\b"
    r"|\b(?:in|of) (?:what|which) year\b|多少|几|幾|cuánt|combien|wie ?viele?\b|wie (?:lange?|weit|alt|hoch)|"
    r"сколько|quant[oiae]s?\b|"
    r"hoeveel|ile\b|kaç|bao nhiêu|berapa|いくつ|何(?:個|人|本|円|年|枚|時間)|몇|얼마|كم |कितन|hur många|hvor mange|"
    r"kuinka monta"
)
_WHO = re.compile(
    r"(?i)\b(?:who|whom|whose|where|why|which|what is the (?:name|capital|word|term|meaning|color|colour)|name the|"
    r"capital of|"
    r"called|synonym|antonym|opposite|translate|spell|author|wrote|quién|dónde|cuál es la capital|qui (?:a|est)|où|"
    r"wer|wo|welche[rsmn]?|chi|dove|quem|onde|кто|где|как называется)\b|谁|誰|哪|どこ|누구|어디"
)
_CHEMISTRY = re.compile(
    r"\\ce\{|\b(?=[A-Za-z0-9]*[a-z0-9])(?:(?:Na|K|Ca|Mg|Al|Fe|Cu|Zn|Ag|H|C|N|O|S|P|F|Cl|Br|I|Si|Mn|Pb|Ba|"
    r"Li)\d*){2,}\b|"
    r"\b(?:molar|reagent|compound|oxidation|isomer|catalyst|titration|anion|cation|covalent)\w*\b"
)
_DIGIT = re.compile(r"\d")
_NUMBERS = re.compile(r"(?<![\w-])\d+(?![\w-])")

_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SCRIPTS = re.compile(r"[_^{}]")
_COMMAND = re.compile(r"\\(?!ce\b)[a-zA-Z]+")
_EDGES = " \t\n*_`\"'“”‘’«»「」$.。"
_CURRENCY = re.compile(r"(?:US|CA?|AU?|NZ|HK)?\\?[$€£¥](?=\s?[\d.])")
_DELIMITERS = re.compile(r"\\[()\[\],;:! ]|\$")
# Digits, operators, brackets and single letters, and the words that formulas use: 3x+2, (1, 2), x=5, sin x.
_FORMULA = re.compile(
    r"(?:\d|[-+*/^=<>≤≥≠±×÷·√π∞∪∩∈%°′″()\[\]{}.,;:!|_ '&\\~≈∅−–$€£¥]"
    r"|(?<![^\W\d_])(?:sin|cos|tan|log|ln|sqrt|exp|max|min|mod|pi|and|or|to|[^\W\d_])(?![^\W\d_]))+"
)
_SAYS_VALUE = re.compile(r"\d|\\[a-zA-Z]|[-+*^_=<>≤≥≠√π∞∅]|(?<![a-zA-Z])(?:sin|cos|tan|log|ln|sqrt|exp|pi)(?![a-zA-Z])")
# "E = mc^2": a formula with products of letters
_PRODUCTS = re.compile(r"(?=.*[=^])(?:[^\W\d_]{1,3}(?![^\W\d_])|[-+*/^=<>()\[\]{}.,\s\d])+")
_MONTH = re.compile(
    r"(?i)\b(?:january|february|march|april|june|july|august|september|october|november|december|jan|feb|mar|apr|"
    r"jun|jul|"
    r"aug|sept?|oct|nov|dec|enero|febrero|marzo|abril|mayo|junio|julio|agosto|janvier|février|mars|avril|juin|"
    r"juillet|"
    r"août|januar|februar|märz|juni|juli|oktober|dezember)\b\.?(?=\W*\d)|\d\W*(?:月|월)"
)
# "12 apples", "about 12", "2:30 pm", "4 remainder 2", "between 3 and 5"
_APPROXIMATELY = (
    r"about|around|approximately|roughly|nearly|almost|exactly|only|just|between|from|at|over|under|total(?: of|"
    r":)?|a total of|"
    r"up to|at least|at most|ca\.?|etwa|ungefähr|rund|genau|zwischen|environ|entre|unos|unas|aproximadamente|circa|"
    r"约|約|大约|共|一共|около"
)
_COUNTED = re.compile(
    rf"(?i)(?:(?:{_APPROXIMATELY})\s*)*[-+]?\s?(?:(?:US|CA?|AU?|NZ|HK)?[$€£¥])?\s?[-+]?(?:\d[\d.,]*|"
    rf"\.\d+)(?:[/:]\d+)*(?:st|nd|rd|th)?%?"
    r"(?:\s+(?![^\s]*\d[^\s\d]*[A-Z])[^\s]+){0,5}"
)
_COMPOUND = re.compile(
    r"\\ce\b|^[A-Z]\d+$|(?<![a-zA-Z\d])(?:[A-Z][a-z]?\d*){2,}(?![a-z])|[^\W\d_]{2,}-?\d|\d[^\W\d_]*-[^\W\d_]"
)
_ORDINAL_NAME = re.compile(r"(?i)^\d+(?:st|nd|rd|th)\s+\w")
# Number words of one language that are other words in another: "due to heat", "once upon a time".
_ALSO_WORDS = re.compile(r"(?i)(?:due|once|sei|otto|mil|cent|set|six|on|mine|nove|no)\b(?!\s(?:half|third|quarter))")
_MOST_COUNTED = 3
_LAST = 300

Kind = Literal["choice", "math", "text"]


@lru_cache(maxsize=4096)
def asks_for_number(prompt: str) -> bool:
    """Whether a problem asks for a number or contains formulas; false for those that speak of chemical formulas."""
    prompt = prompt[:_LONGEST]
    if _HOW_MUCH.search(prompt) is not None:
        return True
    if _CHEMISTRY.search(prompt) is not None:
        return False
    if _MATH_MARK.search(prompt) is not None:
        return True
    numbers = len(_NUMBERS.findall(prompt))
    return numbers > 0 and (_MATH_WORD.search(prompt) is not None or (numbers > 1 and _WHO.search(prompt) is None))


@lru_cache(maxsize=4096)
def asks_for_words(prompt: str) -> bool:
    """Whether a problem asks for a name, a place or another word, and not for a number."""
    return not asks_for_number(prompt) and _WHO.search(prompt[:_LONGEST]) is not None


def expected_kind(prompt: str, choices: Sequence[str] | None = None) -> Kind:
    """The kind of answer that a problem asks for, judged by the problem alone.

    Example:
        >>> [expected_kind(x) for x in ("Which? A. one B. two", "How many legs has a cat?", "Who was Ada?")]
        ['choice', 'math', 'text']
    """
    if choices or split_choices(prompt)[1] is not None:
        return "choice"
    return "math" if asks_for_number(prompt) else "text"


@lru_cache(maxsize=16384)
def is_value(answer: str) -> bool:
    r"""Whether an answer reads as a number, a quantity or a formula, with or without words beside it.

    Names with digits are words, and so are chemical formulas, whose letters are no factors.

    Example:
        >>> [is_value(x) for x in ("12", "12 apples", r"\frac{1}{2}", "x = 3", "(1, 2)", "twelve")]
        [True, True, True, True, True, True]
        >>> [is_value(x) for x in ("Paris", "NaCl", "COVID-19", "type 2 diabetes", r"\text{even}")]
        [False, False, False, False, False]
    """
    bare = ascii_digits(_DELIMITERS.sub(" ", _CURRENCY.sub("", answer).strip(_EDGES))).strip(_EDGES)
    if not bare or len(answer) > _LONGEST:
        return False
    if NAMED_VALUE.fullmatch(bare) is not None:
        return True
    if _ORDINAL_NAME.match(bare) is not None or _MONTH.search(bare) is not None:
        return False
    spelled_out = digits(bare)
    if spelled_out is not None:
        rest = spelled_out.partition(" ")[2]
        if len(rest.split()) > _MOST_COUNTED or rest[:1].isupper() or (rest and _ALSO_WORDS.match(bare)):
            return False
        bare = spelled_out
    if quantity(bare) is not None:
        return True
    if (
        "\\" in bare
        and _COMPOUND.search(_SCRIPTS.sub("", _WRAPPED.sub(r"\1", bare)))
        and not _COMMAND.search(_WRAPPED.sub(" ", bare))
    ):
        return False  # an upright formula of chemistry
    outside = _WRAPPED.sub(" ", bare)
    if _COMMAND.search(outside) is not None:
        return True
    words = _WRAPPED.sub(r"\1", bare).strip()
    if _COMPOUND.search(words) is not None:
        return False
    if _PRODUCTS.fullmatch(words) is not None:
        return True
    if _FORMULA.fullmatch(outside.strip()) is not None and _SAYS_VALUE.search(outside) is not None:
        return True
    return _COUNTED.fullmatch(words) is not None


def has_number(text: str) -> bool:
    """Whether a text contains a number or a formula."""
    if _DIGIT.search(ascii_digits(text)) is not None or _COMMAND.search(_WRAPPED.sub(" ", text)) is not None:
        return True
    return next(spelled(text[-_LAST:]), None) is not None
