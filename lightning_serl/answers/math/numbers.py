r"""Rewrites the numbers of an answer: repeating decimals, powers of ten, decimal commas, bases, currencies, scales."""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_EXPONENT = 300
# 0.\overline{3}, 0.1\dot{6}, 0.(27), 0.333...
_OVERLINE = re.compile(r"(?<![\d.])(\d{1,12})\.(\d{0,12})\\(?:overline|bar|widehat|overbar)\s*\{?\s*(\d{1,18})\s*\}?")
_DOTS = re.compile(r"(?<![\d.])(\d{1,12})\.(\d{0,12})\\dot\s*\{?(\d)\}?(?:(\d{0,16})\\dot\s*\{?(\d)\}?)?")
_IN_BRACKETS = re.compile(r"(?<![\d.])(\d{1,12})\.(\d{0,12})\((\d{1,18})\)(?![\d(])")
_COMBINING = re.compile(
    "(?<![\\d.])(\\d{1,12})\\.((?:\\d(?![\u0305\u0304\u0307])){0,12})((?:\\d[\u0305\u0304\u0307]){1,18})"
)
_AND_SO_ON = re.compile(r"^(-?)(\d{1,12})\.(\d{2,40})(?:\.\.\.|…|\\[lc]?dots(?![a-zA-Z]))\s*$")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?![\w.])")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX*⋅∗]\s*10\s*\^")
_CURRENCY = re.compile(r"^([-+]?)\s*(?:US|CA|AU|NZ|HK|SG|MX|[ACS])\s*\\?\$\s*(?=\d)")
_CODE = re.compile(
    r"^([-+]?)\s*(R\$|USD|EUR|GBP|INR|JPY|CNY|RMB|KRW|CAD|AUD|CHF|Rs\.?|₹|₩|₽|₺|₫|฿)\s*(?=[\d.])(.*)$", re.DOTALL
)
_CODES = {"CAD": "$", "AUD": "$", "USD": "$", "EUR": "€", "R$": "reais", "Rs": "₹", "Rs.": "₹", "GBP": "£"}
_EUROPEAN = re.compile(r"(?<![\d.,])(\d{1,3}(?:[. ]\d{3})+),(\d{1,20})(?![\d,.])")
_DECIMAL_COMMA = re.compile(
    r"^([-+]?)\s*([€£¥$]?)\s*(\d{1,12}),(\d{1,20})(?=\s*(?:[^\W\d_]|%|\\%|\\text|\\mathrm|\\ |\\,|°|€|£|¥|\$|$))"
)
_GROUPS = re.compile(
    r"^([-+]?\d{1,3})(?:\.(\d{3})){2,}(?![\d,.])|^([-+]?\d{1,3})(?:'(\d{3}))+(?!\d)|^([-+]?\d{1,3})(?:’\d{3})+(?!\d)"
)
_NAMED_COMMA = re.compile(r"^(\s*\\?[a-zA-Z]+(?:_\w)?\s*=\s*[-+]?\d+),(\d+)\s*$")
# The LaTeX of a decimal comma; three digits behind it are thousands.
_THIN_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d{1,2}(?!\d)|\d{4})")
_SCALE = re.compile(
    r"^([-+]?\s*[€£¥$]?\s*)(\d[\d,]*(?:\.\d+)?)\s*(?:\\text\s*\{\s*)?"
    r"(thousand|million|billion|trillion|mil(?:lones|lón|lion|lions|hões|hão|ioni|ione)?|mille|millionen"
    r"|milliarden?|milliards?"
    r"|tausend|mila|[万萬亿億千]|만|억)(?![a-zA-Z\u3400-\u9fff])\s*\}?\s*(.*)$",
    re.IGNORECASE | re.DOTALL,
)
# A mixed number before a unit.
_MIXED = re.compile(r"^(-?)(\d{1,9})\s+(\d{1,4})/(\d{1,4})(?=\s*(?:\\text|[a-zA-Z]{2}|$))")
# A fraction before a unit.
_PART = re.compile(r"^(-?)(\d{1,9})/(\d{1,4})(?=\s+(?!pi|sqrt|sin|cos|tan|log|ln|exp|and|or)[a-zA-Z]{2})")
_SCALES = {
    **dict.fromkeys(("thousand", "mil", "mille", "tausend", "mila", "千"), 3),
    **dict.fromkeys(("billion", "milliarde", "milliarden", "milliard", "milliards"), 9),
    **dict.fromkeys(("万", "萬", "만"), 4),
    **dict.fromkeys(("亿", "億", "억"), 8),
    "trillion": 12,
}
_BASES = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen binary octal decimal hex"
)
_BASE_OF = dict(zip(_BASES.split(), (*range(2, 17), 2, 8, 10, 16), strict=True))
_BASE = re.compile(
    r"^\(?\s*(?:\\text\s*\{)?([0-9A-Fa-f]{1,40})\}?\s*\)?\s*(?:_\s*\{?|\s*(?:\\text\s*\{)?\s*\(?\s*(?:in\s+)?base[ -]?)"
    r"\s*(?:\\text\s*\{)?\s*\(?\s*(?:base[ -]?|\\?\s)*\}?\s*(\d{1,2}|[a-z]{3,8})\s*\)?\s*\}?\s*\}?\s*\)?$"
)


def plain_numbers(text: str) -> str:
    r"""The answer with its numbers in plain digits.

    Example:
        >>> plain_numbers(r"0.1\overline{6}"), plain_numbers("1.5e-3"), plain_numbers("3,5 kg")
        ('\\frac{1}{6}', '0.0015', '3.5 kg')
        >>> plain_numbers(r"204_{\text{five}}"), plain_numbers("USD 27")
        ('204_{5}', '27 $')
    """
    if "." in text:
        text = _repeating(text)
    if "e" in text or "E" in text:
        text = _SCIENTIFIC.sub(_power, text)
    text = _TIMES_TEN.sub(r"\\times 10^", text)
    if "{,}" in text:
        text = _THIN_COMMA.sub(".", text).replace("{,}", ",")
    if "$" in text:
        text = _CURRENCY.sub(r"\1$", text)
    code = _CODE.match(text)
    if code is not None:
        text = f"{code[1]}{code[3].strip()} {_CODES.get(code[2], code[2].rstrip('.'))}"
    if "," in text or "'" in text or "." in text:
        text = _separators(text)
    base = _BASE.match(text)
    if base is not None and (base[2].isdigit() or base[2] in _BASE_OF):
        return f"{base[1].upper()}_{{{base[2] if base[2].isdigit() else _BASE_OF[base[2]]}}}"
    part = _PART.match(text)
    if part is not None and int(part[3]) and 10**6 % int(part[3]) == 0:
        value = Fraction(int(part[2]), int(part[3]))
        return f"{part[1]}{decimal_spelling(value)} {text[part.end() :].strip()}"
    mixed = _MIXED.match(text)
    if mixed is not None and int(mixed[4]):
        value = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        if 10**6 % value.denominator == 0:
            return f"{mixed[1]}{decimal_spelling(value)} {text[mixed.end() :].strip()}".strip()
    scale = _SCALE.match(text)
    if scale is not None:
        return _scaled(scale)
    return text


def _repeating(text: str) -> str:
    """Repeating decimals as fractions."""
    if "\\" in text:
        text = _OVERLINE.sub(lambda m: _endless(m[1], m[2], m[3]), text)
        text = _DOTS.sub(lambda m: _endless(m[1], m[2], m[3] + (m[4] or "") + (m[5] or "")), text)
    if not text.isascii():
        text = _COMBINING.sub(lambda m: _endless(m[1], m[2], re.sub(r"[^\d]", "", m[3])), text)
    if "(" in text:
        text = _IN_BRACKETS.sub(lambda m: _endless(m[1], m[2], m[3]), text)
    go_on = _AND_SO_ON.match(text)
    if go_on is not None:
        decimals = go_on[3]
        for size in range(1, len(decimals) // 2 + 1):
            period = decimals[-size:]
            times = 3 if size < 3 else 2
            if decimals.endswith(period * times):
                while decimals.endswith(period):
                    decimals = decimals[:-size]
                return go_on[1] + _endless(go_on[2], decimals, period)
    return text


def _endless(whole: str, decimals: str, period: str) -> str:
    """The fraction whose decimals end in a period."""
    shift, nines = 10 ** len(decimals), 10 ** len(period) - 1
    value = int(whole) + Fraction(int(decimals or "0"), shift) + Fraction(int(period), shift * nines)
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _power(match: re.Match[str]) -> str:
    """``1.5e-3`` as a decimal if that is short, else as a power of ten."""
    exponent = int(match[2])
    if abs(exponent) > _MAX_EXPONENT:
        return match.group()
    if abs(exponent) > 15:
        return rf"{match[1]}\times 10^{{{exponent}}}"
    return decimal_spelling(Fraction(match[1]) * Fraction(10) ** exponent)


def decimal_spelling(value: Fraction) -> str:
    """A terminating decimal without an exponent."""
    places = 0
    while value.denominator != 1 and (value * 10**places).denominator != 1:
        places += 1
    digits = str(abs(int(value * 10**places))).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def _separators(text: str) -> str:
    """Decimal commas as points, thousands without marks; a comma before three digits marks thousands."""
    text = _EUROPEAN.sub(lambda m: re.sub(r"[. ]", "", m[1]) + "." + m[2], text)
    comma = _DECIMAL_COMMA.match(text)
    if (
        comma is not None
        and (len(comma[4]) != 3 or comma[3] == "0")
        and (comma.end() < len(text) or comma[3] == "0" or comma[2])
    ):
        return f"{comma[1]}{comma[2]}{comma[3]}.{comma[4]}{text[comma.end() :]}"
    named = _NAMED_COMMA.match(text)
    if named is not None and len(named[2]) != 3:
        return f"{named[1]}.{named[2]}"
    groups = _GROUPS.match(text)
    if groups is not None:
        return re.sub(r"[.'’]", "", groups.group()) + text[groups.end() :]
    return text


def _scaled(match: re.Match[str]) -> str:
    word = match[3].lower()
    value = Fraction(match[2].replace(",", "")) * 10 ** _SCALES.get(word, 6)
    return f"{match[1]}{decimal_spelling(value)} {match[4].strip()}".strip()
