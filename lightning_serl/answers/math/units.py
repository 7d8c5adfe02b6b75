"""Names of units in several languages, each with the unit's symbol, and words that are no unit."""

from __future__ import annotations

import re
import unicodedata

# In lower case, without accents. A word that is not listed, like "apples", is no known unit.
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
_PREFIXES = {
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
_SYMBOLS = {name: symbol for symbol, names in _NAMES.items() for name in names.split()} | {
    prefix + name: letter + symbol
    for symbol, names in _STEMS.items()
    for name in names.split()
    for prefix, letter in _PREFIXES.items()
}
#: Symbols that stand for several units with their powers.
COMPOUND = {"mph": (("mi", 1), ("h", -1)), "kph": (("km", 1), ("h", -1)), "kmh": (("km", 1), ("h", -1))}
#: Words that raise the next or the last unit to a power.
RAISES_NEXT = {"square": 2, "sq": 2, "cubic": 3}
RAISES_LAST = {
    **dict.fromkeys(("squared", "cuadrado", "cuadrados", "carre", "carres", "quadrado", "quadrados"), 2),
    **dict.fromkeys(("cubed", "cubico", "cubicos", "cube", "cubes"), 3),
}
#: Chinese and German forms, which are prefixes of the unit's name.
RAISING_PREFIXES = {"平方": 2, "立方": 3, "quadrat": 2, "kubik": 3}
PER = frozenset(["per", "por", "par", "pro", "每", "/"])

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


def is_word(name: str) -> bool:
    """Whether a name may be a unit in words: not in capitals, and no word that changes the number before it."""
    short = len(name) < _SHORTEST and _ONE_SIGN.search(name) is None
    if short or _GREEK.search(name) or not (name == name.lower() or name.istitle()):
        return False
    return _CHANGES.fullmatch(_folded(name)) is None


def symbol_of(name: str) -> str | None:
    """The symbol of the unit that a word names, ``None`` for other words.

    Example:
        >>> symbol_of("Kilometers"), symbol_of("kilómetros"), symbol_of("千克"), symbol_of("apples")
        ('km', 'km', 'kg', None)
    """
    folded = _folded(name)
    return _SYMBOLS.get(folded) or _SYMBOLS.get(_MULTIPLE.sub("", folded))


def _folded(name: str) -> str:
    """The name in lower case, Latin letters without accents."""
    if name.isascii():
        return name.lower()
    split = unicodedata.normalize("NFD", name.lower())
    return unicodedata.normalize("NFC", "".join(c for c in split if not "\u0300" <= c <= "\u036f"))
