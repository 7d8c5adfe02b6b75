r"""Reads and compares numbers with units.

``3.5 mol/L``, ``3.5\,\text{mol L}^{-1}`` and ``3.5`` are equal, ``3 g`` and ``3 kg`` are not. A unit that one side
omits makes no difference, nor does a word that names no known unit. Two units must be the same, as symbols or as words;
they are not converted into each other.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

_LONGEST = 80
_MAX_EXPONENT = 300
# Smaller values are told apart by their leading digits.
_SMALL = Fraction(1, 1000)
_SPACE = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|~|\$")
_WRAPPED = re.compile(r"\\(?:text|textrm|mathrm|rm|mbox|operatorname|unit|si)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_DEGREE = re.compile(r"\^?\s*\{?\s*\\circ\s*\}?|\\degree")
_MICRO = re.compile(r"\\mu\s*|[µμ]\s+")
_CELSIUS = re.compile(
    r"(?i)(?:\b(?:degrees?|grados?|grad|degrés?|graus?|gradi)|°)\s*(?:(c|celsius|centigrade|centígrados)|f|fahrenheit)\b"
)
# Dollar signs delimit formulas; a single one, or an escaped one, is a currency.
_DOLLAR = "＄"
_POWER_OF_TEN = re.compile(r"^\s*([-+]?)\s*10\s*(?=\^)")
_NUMBER = re.compile(
    r"\s*([-+]?)\s*([＄€£¥₹₩₽₺₫฿]?)\s*(\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+(?!\d)|\d{1,40})(?:\.(\d{1,40}))?"
    r"(?:\s*(?:\\times|\\cdot|[×·xX*])\s*10\s*\^\s*(?:[{(]\s*(-?\d{1,3})\s*[)}]|(-?\d{1,3})(?!\d))|(?:(?<=\.\d)|(?<=\d))[eE]([-+]?\d{1,3})(?!\w))?"
)
# An exponent without ``^`` follows a letter directly: "m2", while "5 ft 3 in" has two numbers.
_TOKEN = re.compile(
    r"\s*(?:([^\W\d_]+|°[CF]?|[＄€£¥₹₩₽₺₫฿])|(?:\^\s*\{?\s*(-?\d)\s*\}?|(?<=[^\W\d_])(-?\d)(?!\d))|(/)"
    r"|[()·*.⋅]|\\cdot(?![a-zA-Z]))\s*"
)
# "5 J (joules)"
_TWICE = re.compile(r"([^\W\d_]+)\s*\(\s*([^\W\d_]+)\s*\)")
_PREFIXES = ("", "k", "c", "d", "m", "µ", "μ", "n", "p", "f", "M", "G", "T", "h")
_BASES = (
    *("m", "g", "s", "A", "K", "mol", "cd", "L", "l", "J", "W", "Pa", "N", "V", "C", "Hz", "F", "T", "H", "S", "M"),
    *("eV", "cal", "bar", "atm", "h", "min", "t", "Ω", "°C", "°F", "°", "rad", "Bq", "Gy", "Sv", "Da", "u", "Torr"),
    *(
        "mmHg",
        "ppm",
        "ppb",
        "ft",
        "in",
        "lb",
        "oz",
        "mi",
        "rpm",
        "psi",
        "Å",
        "€",
        "£",
        "¥",
        "₹",
        "₩",
        "₽",
        "₺",
        "₫",
        "฿",
    ),
)
_SYMBOLS = frozenset(prefix + base for prefix in _PREFIXES for base in _BASES)

# Names of units under the unit's symbol, in lower case and without accents. A word that is not listed, like "apples",
# is no known unit.
_NAMES = {
    "s": "second seconds sec secs segundo segundos seconde secondes sekunde sekunden secondo 秒 秒钟 секунд ثانية",
    "min": "minute minutes mins minuto minutos minuten minuti 分钟 分鐘 минут دقيقة",
    "h": "hour hours hr hora horas heure heures stunde stunden ora ore 小时 小時 时间 時間 часов часа час ساعة ساعات",
    "day": "day days dia dias jour jours tag tage tagen giorno giorni 天 日 дней дня день يوم أيام",
    "week": "week weeks semana semanas semaine semaines woche wochen settimana settimane 周 星期 недель أسبوع",
    "month": "month months mes meses mois monat monate monaten mese mesi 个月 個月 月 месяцев شهر أشهر",
    "year": "year years yr yrs ano anos annee annees ans jahr jahre jahren anno anni 年 岁 歲 лет года год سنة سنوات",
    "mi": "mile miles milla millas meile meilen 英里",
    "ft": "foot feet pie pies 英尺",
    "in": "inch inches pulgada pulgadas 英寸",
    "yd": "yard yards yd 码",
    "oz": "ounce ounces onza onzas",
    "t": "tonne tonnes tonelada toneladas 吨",
    "°C": "celsius centigrade centigrados 摄氏度 攝氏度",
    "°F": "fahrenheit 华氏度",
    "$": "dollar dollars dolar dolares usd 美元",
    "€": "euro euros eur 欧元 歐元 евро يورو",
    "£": "gbp 英镑",
    "¥": "jpy yen cny rmb yuan 円 元 块",
    "₹": "inr rupee rupees",
    "₩": "krw won 원",
    "₽": "rub рублей рубля рубль",
    "cent": "cent cents centavo centavos centime centimes",
    "km": "公里 千米",
    "cm": "厘米 公分",
    "mm": "毫米",
    "m": "米 公尺",
    "kg": "千克 公斤",
    "g": "克",
    "mg": "毫克",
    "L": "升 公升",
    "mL": "毫升",
}
_PREFIX_NAMES = {
    **{"": "", "kilo": "k", "quilo": "k", "chilo": "k", "centi": "c", "zenti": "c", "milli": "m", "mili": "m"},
    **{"micro": "μ", "mikro": "μ", "nano": "n", "deci": "d", "dezi": "d", "hecto": "h", "hekto": "h", "mega": "M"},
}
_STEMS = {
    "m": "meter meters metre metres metro metros metri metern метров",
    "g": "gram grams gramme grammes gramo gramos gramm grama gramas grammo grammi граммов",
    "L": "liter liters litre litres litro litros litri litern литров",
    **{"J": "joule joules", "W": "watt watts", "N": "newton newtons", "Pa": "pascal pascals", "V": "volt volts"},
    **{"A": "ampere amperes amp amps", "Hz": "hertz", "mol": "mole moles mol", "K": "kelvin kelvins"},
    "Ω": "ohm ohms",
}
_SYMBOL_OF = {name: symbol for symbol, names in _NAMES.items() for name in names.split()} | {
    prefix + name: letter + symbol
    for symbol, names in _STEMS.items()
    for name in names.split()
    for prefix, letter in _PREFIX_NAMES.items()
}
# Symbols that stand for several units with their powers.
_COMPOUND = {"mph": (("mi", 1), ("h", -1)), "kph": (("km", 1), ("h", -1)), "kmh": (("km", 1), ("h", -1))}
# Words that raise the next or the last unit to a power.
_RAISES_NEXT = {"square": 2, "sq": 2, "cubic": 3}
_RAISES_LAST = {
    **dict.fromkeys(("squared", "cuadrado", "cuadrados", "carre", "carres", "quadrado", "quadrados"), 2),
    **dict.fromkeys(("cubed", "cubico", "cubicos", "cube", "cubes"), 3),
}
# Chinese and German forms, which are prefixes of the unit's name; a name without one stands for the unit itself.
_RAISING_PREFIXES = {"": 1, "平方": 2, "立方": 3, "quadrat": 2, "kubik": 3}
_PER = frozenset(["per", "por", "par", "pro", "每", "/"])

# Words after a number that change it or are no unit; in other scripts the word may continue ("万元").
_CHANGES = re.compile(
    r"percent|pct|thousand|million|billion|trillion|milliard|hundred|dozen|factorial|squared|cubed|sqrt|sin|cos|tan|log"
    r"|exp|and|times|plus|minus|over|mod|choose|base|below|zero|half"
    r"|alpha|beta|gamma|delta|theta|lambda|sigma|tau|phi|psi|omega|infinity"
    r"|mil|mill?on(?:es)?|billon(?:es)?|cient\w*|cent|cento|medi[oa]|docenas?|mas|menos|entre|veces|bajo|cero|mille|douzaines?"
    r"|milliards?|demie?|fois|pourcents?|tausend|million\w*|milliarde\w*|prozent|hundert|dutzend|(?:ein)?halb\w*|hoch|mal"
    r"|mila|milion\w*|miliard\w*|milhao|milhoes|bilh\w*|тысяч\w*|миллион\w*|миллиард\w*|процент\w*|половин\w*"
    r"|ألف|آلاف|مليون|ملايين|مليار|مئة|مائة|نصف|بالمئة|بالمائة"
    r"|[十百千万萬亿億兆成折半천만억백조].*|.*(?:半|分之|[或和与與及至到的幂]|次方|퍼센트).*"
)
_MULTIPLE = re.compile("[个個]+")
# Scripts in which one character is a word; Greek letters are variables.
_ONE_SIGN = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_GREEK = re.compile("[\u0370-\u03ff]")
# One letter is a variable, two are a product.
_SHORTEST = 3


# Units by name, each with its power.
Powers = tuple[tuple[str, int], ...]


class Quantity(NamedTuple):
    """A number, whether it was written as a decimal, its unit, and those units that are known and not just words."""

    value: Fraction
    decimal: bool
    unit: Powers
    known: Powers


@lru_cache(maxsize=16384)
def quantity(answer: str) -> Quantity | None:
    r"""The number and unit of an answer, ``None`` if it holds anything else.

    Example:
        >>> quantity(r"1.5 \times 10^{-3}\,\text{mol/L}").unit, quantity("2x"), quantity("5 or 6")
        ((('L', -1), ('mol', 1)), None, None)
    """
    if len(answer) > _LONGEST:
        return None
    text = answer.replace("\\$", _DOLLAR)
    if text.count("$") % 2:
        text = text.replace("$", _DOLLAR, 1)
    text = _SPACE.sub(" ", text)
    text = _DEGREE.sub("°", _WRAPPED.sub(r" \1 ", text)).replace("\\Omega", "Ω")
    text = _CELSIUS.sub(lambda m: "°C" if m[1] else "°F", _MICRO.sub("μ", text))
    text = _POWER_OF_TEN.sub(r"\g<1>1×10", text)
    match = _NUMBER.match(text)
    if match is None:
        return None
    sign, currency, whole, decimals, *exponents = match.groups()
    scientific = exponents[2] is not None
    if scientific and not decimals and "e" in match.group():
        return None  # 2e-3 is also twice Euler's number less three
    power = int(next((e for e in exponents if e), "0"))
    rest = text[match.end() :].strip(" .")
    twice = _TWICE.fullmatch(rest)
    if twice is not None and _named(twice[1]) is not None and _named(twice[1]) == _named(twice[2]):
        rest = twice[1]
    unit = _unit(rest, text[match.end() : match.end() + 1] == " ", currency)
    if unit is None or abs(power) > _MAX_EXPONENT:
        return None
    decimals = decimals or ""
    value = Fraction(int(re.sub("[, ]", "", whole) + decimals), 10 ** len(decimals)) * Fraction(10) ** power
    return Quantity(-value if sign == "-" else value, bool(decimals) or power < 0, *unit)


def _unit(text: str, apart: bool, currency: str) -> tuple[Powers, Powers] | None:
    """All units with their powers, and those of known units; ``None`` if the text is no unit."""
    powers = dict.fromkeys([currency.replace(_DOLLAR, "$")] if currency else [], 1)
    known = set(powers)
    sign, raised, last, at = 1, 1, "", 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        at = match.end()
        name, *exponents, slash = match.groups()
        exponent = next((e for e in exponents if e), None)
        if exponent and not last:
            return None
        if exponent:
            powers[last] += sign * (int(exponent) - 1)
            last = ""
            continue
        # Scripts without spaces write "kilometres per hour" as one word.
        for word in re.split("(每)", name) if name else [slash] if slash else []:
            if not word:
                continue
            if word.lower() in _PER:
                sign, last = -1, ""
            elif word.lower() in _RAISES_NEXT:
                raised = _RAISES_NEXT[word.lower()]
            elif last and word.lower() in _RAISES_LAST:
                powers[last] += sign * (_RAISES_LAST[word.lower()] - 1)
                last = ""
            else:
                named = _named(word)
                if named is None:
                    return None
                for last, power, is_known in named:
                    powers[last] = powers.get(last, 0) + sign * power * raised
                    known |= {last} if is_known else set()
                raised = 1
    # A single letter next to a number is a variable; after a space, or in \\text, it is a unit.
    if raised > 1 or (len(text) == 1 and text.isalpha() and text.isascii() and not apart):
        return None
    return tuple(sorted(powers.items())), tuple(sorted((n, p) for n, p in powers.items() if n in known))


def _named(word: str) -> list[tuple[str, int, bool]] | None:
    """The units that a symbol or word names, with power and whether each is known; ``None`` if it names none."""
    if word in _COMPOUND:
        return [(name, power, True) for name, power in _COMPOUND[word]]
    if word in _SYMBOLS:
        symbol = word.replace("µ", "μ")
        return [(symbol.replace("l", "L") if symbol in ("l", "ml", "dl", "μl", "cl") else symbol, 1, True)]
    if word == _DOLLAR:
        return [("$", 1, True)]
    for prefix, power in _RAISING_PREFIXES.items():
        named = _symbol_of(word[len(prefix) :]) if word.lower().startswith(prefix) else None
        if named is not None:
            return [(named, power, True)]
    return [(word.removesuffix("s"), 1, False)] if _is_word(word) else None


def same_quantity(a: str, b: str) -> bool | None:
    """Whether two answers are equal quantities, ``None`` if one is no quantity or only rounding separates them."""
    left, right = quantity(a), quantity(b)
    if left is None or right is None:
        return None
    if left.value != right.value:
        near = abs(left.value - right.value) <= Fraction(1, 10**6) * max(_SMALL, abs(left.value), abs(right.value))
        return None if near and (left.decimal or right.decimal) else False
    if left.unit == right.unit or not left.unit or not right.unit:
        return True
    if left.unit == left.known and right.unit == right.known:
        return False
    # Words beside known units ("20 km each day") may say what the other side omits.
    powers = set(left.known), set(right.known)
    return powers[0] <= powers[1] or powers[1] <= powers[0]


def _is_word(name: str) -> bool:
    """Whether a name may be a unit in words: not in capitals, and no word that changes the number before it."""
    short = len(name) < _SHORTEST and _ONE_SIGN.search(name) is None
    if short or _GREEK.search(name) or not (name == name.lower() or name.istitle()):
        return False
    return _CHANGES.fullmatch(_folded(name)) is None


def _symbol_of(name: str) -> str | None:
    """The symbol of the unit that a word names in any of the languages, such as "km" for "kilómetros"."""
    folded = _folded(name)
    return _SYMBOL_OF.get(folded) or _SYMBOL_OF.get(_MULTIPLE.sub("", folded))


def _folded(name: str) -> str:
    """The name in lower case, Latin letters without accents."""
    if name.isascii():
        return name.lower()
    split = unicodedata.normalize("NFD", name.lower())
    return unicodedata.normalize("NFC", "".join(c for c in split if not "\u0300" <= c <= "\u036f"))
