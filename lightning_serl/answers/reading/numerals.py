"""Reads the numerals of Chinese, Japanese and Korean, such as 二十一 and 四分之三."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = {c: n for n, c in enumerate("〇一二三四五六七八九")}
_DIGITS |= dict(zip("零壹贰叁肆伍陆柒捌玖两兩", (*range(10), 2, 2), strict=True))
_DIGITS |= dict(zip("일이삼사오육칠팔구영공", (*range(1, 10), 0, 0), strict=True))
_TENS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000, "십": 10, "백": 100, "천": 1000}
_SCALES = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "만": 10**4, "억": 10**8}
_CHINESE = "〇一二三四五六七八九零壹贰叁肆伍陆柒捌玖两兩十拾百佰千仟万萬亿億"
_COUNT = f"[{_CHINESE}]{{1,20}}"
_WHOLE = re.compile(rf"[负負]?(?:{_COUNT}点{_COUNT}|{_COUNT}又{_COUNT}分之{_COUNT}|{_COUNT}分之{_COUNT}|{_COUNT})")
_KOREAN = re.compile(r"[일이삼사오육칠팔구영공십백천만억]{2,20}")
# Measure words and units; what follows them is no part of the number.
_MEASURE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,4}[。．.]?")
_IN_SENTENCE = re.compile(
    rf"(?<!第)((?:[负負]?(?:{_COUNT}点{_COUNT}|{_COUNT}分之{_COUNT}|[{_CHINESE}]{{2,20}}))|[二三四五六七八九十两](?=[个個只本条張张支块元天人岁件辆次位朵棵颗頭头瓶页枚つ冊]))"
)
_HALF = frozenset(["一半", "半", "반", "半分", "二分之一"])


def numerals(text: str) -> str | None:
    r"""A numeral, alone or with a measure word, in digits; ``None`` for other texts.

    Example:
        >>> numerals("二十一"), numerals("四分之三"), numerals("十二本"), numerals("北京")
        ('21', '\\frac{3}{4}', '12本', None)
    """
    if not text or text[0] < "\u3000":
        return None
    if text in _HALF:
        return r"\frac{1}{2}"
    korean = _KOREAN.fullmatch(text)
    match = _WHOLE.match(text) if korean is None else korean
    if match is None:
        return None
    value = _value(match.group())
    rest = text[match.end() :]
    if value is None or (rest and _MEASURE.fullmatch(rest) is None):
        return None
    return value + rest.rstrip("。．.")


def last_numeral(sentence: str) -> tuple[int, int, str] | None:
    """The last numeral of a sentence, of several signs or before a measure word, with its value in digits."""
    last = None
    for match in _IN_SENTENCE.finditer(sentence) if not sentence.isascii() else ():
        value = _value(match[1])
        if value is not None:
            last = (match.start(1), match.end(1), value)
    return last


def _value(text: str) -> str | None:
    sign = "-" if text[0] in "负負" else ""
    text = text.lstrip("负負")
    if "分之" in text:
        before, top_text = text.split("分之", 1)
        whole_text, _, bottom_text = before.rpartition("又")
        bottom, top = _whole(bottom_text), _whole(top_text)
        whole = _whole(whole_text) if whole_text else 0
        if not bottom or top is None or whole is None:
            return None
        if bottom_text in ("百", "一百") and not whole:
            return rf"{sign}{top}\%"
        share = whole + Fraction(top, bottom)
        if share.denominator == 1:
            return sign + str(share.numerator)
        return rf"{sign}\frac{{{share.numerator}}}{{{share.denominator}}}"
    head, point, tail = text.partition("点")
    whole = _whole(head)
    if whole is None or any(c not in _DIGITS for c in tail):
        return None
    return sign + str(whole) + ("." + "".join(str(_DIGITS[c]) for c in tail) if point else "")


def _whole(text: str) -> int | None:
    if len(text) > 1 and all(c in _DIGITS for c in text):
        return int("".join(str(_DIGITS[c]) for c in text))  # 二〇二四
    total = section = 0
    digit: int | None = None
    for c in text:
        if c in _DIGITS:
            digit = _DIGITS[c]
        elif c in _TENS:
            section += (1 if digit is None or digit == 0 else digit) * _TENS[c]
            digit = None
        else:
            section += digit or 0
            total = (total + (section or 1)) * _SCALES[c] if _SCALES[c] > 10**4 else total + (section or 1) * _SCALES[c]
            section, digit = 0, None
    return total + section + (digit or 0) if text else None
