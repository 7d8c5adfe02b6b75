"""The number words of English, Spanish, French, German, Italian and Portuguese, without accents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cache
from typing import NamedTuple


class Language(NamedTuple):
    """The number words of one language, in lower case without accents."""

    counted: dict[str, int]  # 0 to 99: words joined by single blanks, "and" left out
    hundreds: dict[str, int]  # words for 100 to 900
    hundred: frozenset[str]  # words that make hundreds of the number before them
    glued: str  # the same inside of one word
    fixed: dict[str, Fraction]  # other words
    scales: dict[str, int]
    parts: dict[str, int]  # names of fractions, third -> 3
    half: frozenset[str]
    dozen: frozenset[str]
    joins: frozenset[str]  # "and"
    articles: frozenset[str]  # stand for one before a scale, a fraction or a dozen
    minus: frozenset[str]
    point: frozenset[str]
    percent: frozenset[tuple[str, ...]]


@cache
def languages() -> tuple[Language, ...]:
    """The six languages, English first: a word of two languages is read in the first one."""
    return (_english(), _spanish(), _french(), _german(), _italian(), _portuguese())


def _counted(below: Callable[[int], Iterable[str]]) -> dict[str, int]:
    """All spellings of 0 to 99; the first number of a spelling counts."""
    found: dict[str, int] = {}
    for n in range(100):
        for words in below(n):
            found.setdefault(" ".join(words.split()), n)
    return found


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _phrases(text: str) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(phrase.split()) for phrase in text.split(","))


def _numbered(text: str, first: int = 0) -> dict[str, int]:
    """Words by their position; spellings of one number are separated by a slash."""
    return {word: n for n, words in enumerate(text.split(), first) for word in words.split("/")}


def _spellings(table: dict[str, int], n: int) -> list[str]:
    return [word for word, value in table.items() if value == n]


def _regular(units: str, tens: str) -> dict[str, int]:
    """Numbers of a language that puts tens before units; ``units`` go up to 19 or 20, ``tens`` from 20 or 30 on."""
    small = _numbered(units)
    round_tens = {word: 10 * n for word, n in _numbered(tens, 2).items()}

    def below(n: int) -> list[str]:
        found = _spellings(small, n) + _spellings(round_tens, n)
        if n > 20 and n % 10:
            found += [f"{a} {b}" for a in _spellings(round_tens, n - n % 10) for b in _spellings(small, n % 10)]
        return found

    return _counted(below)


def _hundreds(stems: Iterable[str]) -> dict[str, int]:
    """The words for 200 to 900 in both genders."""
    return {f"{stem}{end}": 100 * n for n, stem in enumerate(stems, 2) for end in ("os", "as")}


def _english() -> Language:
    units = (
        "zero/nought one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    )
    tens = "twenty thirty forty/fourty fifty sixty seventy eighty ninety"
    return Language(
        counted=_regular(units, tens),
        hundreds={},
        hundred=_words("hundred"),
        glued="",
        fixed={},
        scales={"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
        parts=_both(
            "third fourth/quarter fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
            "fifteenth sixteenth",
            "s",
        )
        | {"twentieth": 20, "twentieths": 20, "hundredth": 100, "hundredths": 100, "thousandths": 1000},
        half=_words("half halves"),
        dozen=_words("dozen dozens"),
        joins=_words("and"),
        articles=_words("a an one"),
        minus=_words("minus negative"),
        point=_words("point"),
        percent=_phrases("percent,per cent,pct"),
    )


def _both(text: str, plural: str, first: int = 3) -> dict[str, int]:
    """Singular and plural of the names of fractions."""
    single = _numbered(text, first)
    return single | {word + plural: n for word, n in single.items()}


def _spanish() -> Language:
    units = (
        "cero uno/un/una dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciseis "
        "diecisiete dieciocho diecinueve veinte veintiuno/veintiun/veintiuna veintidos veintitres veinticuatro "
        "veinticinco veintiseis veintisiete veintiocho veintinueve"
    )
    tens = "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa"
    stems = ["dosc", "tresc", "cuatroc", "quin", "seisc", "setec", "ochoc", "novec"]
    return Language(
        counted=_regular(units, tens),
        hundreds=_hundreds([f"{stem}ient" for stem in stems]) | {"cien": 100, "ciento": 100},
        hundred=frozenset(),
        glued="",
        fixed={},
        scales={"mil": 10**3, "millon": 10**6, "millones": 10**6},
        parts=_both("tercio cuarto quinto sexto septimo octavo noveno decimo", "s") | {"tercera": 3, "cuarta": 4},
        half=_words("medio media mitad medios"),
        dozen=_words("docena docenas"),
        joins=_words("y"),
        articles=_words("un una uno la"),
        minus=_words("menos"),
        point=_words("punto coma"),
        percent=_phrases("por ciento,porciento"),
    )


def _french() -> Language:
    small = _numbered(
        "zero un/une deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize"
    )
    tens = _numbered("vingt trente quarante cinquante soixante septante huitante/octante nonante", 2)

    def below(n: int) -> list[str]:
        found = _spellings(small, n)
        if 17 <= n < 20:
            found += [f"dix {word}" for word in _spellings(small, n - 10)]
        if n >= 20:
            heads = _spellings(tens, n // 10)
            found += [f"{h} {w}" for h in heads for w in (_spellings(small, n % 10) if n % 10 else [""])]
        if 70 <= n < 80:
            found += [f"soixante {word}" for word in below(n - 60)]
        if n >= 80:
            found += [f"quatre vingt {word}" for word in below(n - 80)] if n > 80 else ["quatre vingt", "quatre vingts"]
        return found

    return Language(
        counted=_counted(below),
        hundreds={},
        hundred=_words("cent cents"),
        glued="",
        fixed={},
        scales={"mille": 10**3, "million": 10**6, "millions": 10**6, "milliard": 10**9, "milliards": 10**9},
        parts=_both("tiers quart cinquieme sixieme septieme huitieme neuvieme dixieme", "s"),
        half=_words("demi demie moitie demis"),
        dozen=_words("douzaine douzaines"),
        joins=_words("et"),
        articles=_words("un une la"),
        minus=_words("moins"),
        point=_words("virgule"),
        percent=_phrases("pour cent,pourcent,pourcents"),
    )


def _german() -> Language:
    small = _numbered(
        "null eins/ein/eine/einen/einer zwei/zwo drei vier funf/fuenf sechs sieben acht neun zehn elf zwolf/zwoelf "
        "dreizehn vierzehn funfzehn/fuenfzehn sechzehn siebzehn achtzehn neunzehn"
    )
    tens = _numbered("zwanzig dreißig/dreissig vierzig funfzig/fuenfzig sechzig siebzig achtzig neunzig", 2)

    def below(n: int) -> list[str]:
        found = _spellings(small, n)
        if n >= 20:
            units = [w for w in _spellings(small, n % 10) if w not in ("eins", "eine", "einen", "einer")]
            found += [f"{u}und{t}" if u else t for t in _spellings(tens, n // 10) for u in (units if n % 10 else [""])]
        return found

    halves = {f"{w}einhalb": Fraction(2 * n + 1, 2) for w, n in small.items() if n < 13}
    return Language(
        counted=_counted(below),
        hundreds={},
        hundred=frozenset(),
        glued="hundert",
        fixed=halves | {"anderthalb": Fraction(3, 2), "eineinhalb": Fraction(3, 2)},
        scales={"tausend": 10**3, "million": 10**6, "millionen": 10**6, "milliarde": 10**9, "milliarden": 10**9},
        parts=_numbered("drittel viertel funftel/fuenftel sechstel siebtel achtel neuntel zehntel", 3),
        half=_words("halb halbe halbes halber halben halfte"),
        dozen=_words("dutzend"),
        joins=_words("und"),
        articles=_words("ein eine einen die"),
        minus=_words("minus"),
        point=_words("komma"),
        percent=_phrases("prozent"),
    )


def _italian() -> Language:
    units = (
        "zero uno/un/una due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici "
        "sedici diciassette diciotto diciannove"
    )
    small = _numbered(units)
    tens = _numbered("venti trenta quaranta cinquanta sessanta settanta ottanta novanta", 2)

    def below(n: int) -> list[str]:
        found = _spellings(small, n)
        if n >= 20:
            for ten in _spellings(tens, n // 10):
                units_ = _spellings(small, n % 10) if n % 10 else [""]
                found += [(ten[:-1] if u[:1] in ("u", "o") and u else ten) + u for u in units_]
        return found

    return Language(
        counted=_counted(below),
        hundreds={},
        hundred=frozenset(),
        glued="cento",
        fixed={},
        scales={"mille": 10**3, "mila": 10**3, "milione": 10**6, "milioni": 10**6, "miliardo": 10**9},
        parts=_numbered("terzo/terzi quarto/quarti quinto/quinti sesto/sesti settimo/settimi ottavo/ottavi", 3),
        half=_words("mezzo mezza meta mezzi"),
        dozen=_words("dozzina dozzine"),
        joins=_words("e"),
        articles=_words("un una la"),
        minus=_words("meno"),
        point=_words("virgola"),
        percent=_phrases("per cento,percento"),
    )


def _portuguese() -> Language:
    units = (
        "zero um/uma dois/duas tres quatro cinco seis sete oito nove dez onze doze treze catorze/quatorze quinze "
        "dezesseis/dezasseis dezessete/dezassete dezoito dezenove/dezanove"
    )
    tens = "vinte trinta quarenta cinquenta sessenta setenta oitenta noventa"
    stems = ["duzent", "trezent", "quatrocent", "quinhent", "seiscent", "setecent", "oitocent", "novecent"]
    return Language(
        counted=_regular(units, tens),
        hundreds=_hundreds(stems) | {"cem": 100, "cento": 100},
        hundred=frozenset(),
        glued="",
        fixed={},
        scales={"mil": 10**3, "milhao": 10**6, "milhoes": 10**6, "bilhao": 10**9, "bilhoes": 10**9},
        parts=_both("terco quarto quinto sexto setimo oitavo nono decimo", "s"),
        half=_words("meio meia metade meios"),
        dozen=_words("duzia duzias"),
        joins=_words("e"),
        articles=_words("um uma a"),
        minus=_words("menos"),
        point=_words("virgula ponto"),
        percent=_phrases("por cento,porcento"),
    )
