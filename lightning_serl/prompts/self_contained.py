"""Tells problems that cannot be understood without the passage that they were written from."""

from __future__ import annotations

import re

# -- references to the text ------------------------------------------------------------------------------------------

_TEXT = (
    "(?:passage|text|excerpt|extract|paragraph|article|story|document|snippet|reading|narrative|essay|author|narrator)"
)
# "The text of the treaty" and "the story about Zorin" name something: only the bare noun refers to the passage.
_BARE = (
    r"(?! (?:(?:of|by|on|called|titled|entitled|named|\d\w*|"
    r"size|format|file|files|editor|field|box|message|messages|string|mode|type|color|colour)\b|about \w))"
)
_TOLD = "(?:mentioned|described|stated|listed|discussed|given|shown|quoted|explained)"
_REFERENCES = (
    # English
    rf"\b(?:the|this|that) (?:above |given |provided |following |preceding |previous )?{_TEXT}s?\b{_BARE}",
    r"\b(?:according to|based on|(?:as )?(?:stated|described|mentioned|noted|written|given) in) (?:the|this|that) "
    rf"(?:\w+ )?(?:{_TEXT}|information|context)\b{_BARE}",
    rf"\b{_TOLD} (?:above|below|earlier|here)\b|\b(?:above|below)[- ](?:mentioned|described|text|passage)\b",
    r"\bin (?:the )?(?:lines?|sentences?) \d+\b|\bas (?:mentioned|stated|described|noted) (?:above|earlier|before)\b",
    # French
    r"\b(?:dans|selon|d['’]après) (?:le|ce|cet|l['’]) ?(?:texte|passage|extrait|article|document|récit)\b"
    r"(?! (?:de|du|des)\b)",
    r"\bci-(?:dessus|dessous)\b|\bl['’](?:auteur|autrice|auteure) (?:du texte|dit|pense|explique)\b",
    # Spanish, Portuguese, Italian
    r"\b(?:en|según|de acuerdo con|conforme a) (?:el|este|la|esta) "
    r"(?:texto|pasaje|fragmento|artículo|documento|lectura)\b(?! (?:de|del)\b)",
    r"\b(?:mencionad|descrit|citad)[oa]s? (?:anteriormente|arriba|más arriba)\b",
    r"\b(?:no|segundo o|de acordo com o) (?:texto|trecho|artigo|documento)\b(?! d[eoa])|\bcitad[oa]s? acima\b",
    r"\b(?:nel|secondo il|in base al) (?:testo|brano|passo|documento|passaggio)\b(?! d[ie])",
    r"\bsopra (?:citat|menzionat)[oaie]\b",
    # German, Dutch
    r"\b(?:im|laut|nach) (?:dem |diesem )?(?:Text|Abschnitt|Auszug|Artikel|Dokument)\b(?! (?:des|der|von)\b)",
    r"\b(?:oben|unten) (?:genannt|erwähnt|beschrieben)\w*|\bder Verfasser\b",
    r"\b(?:in|volgens) (?:de|deze|het|dit) (?:tekst|passage|artikel|alinea)\b(?! van\b)",
    # Russian, Chinese, Japanese, Korean, Arabic
    r"\b(?:в|согласно|из) (?:этом |данном |данному |этому )?(?:текст[еуа]|отрывк[еуа]|стать[еи]|абзац[еу])\b",
    r"(?:根据|按照|依据)(?:上述|上面的?|本|该|这段|以上)?(?:短文|文章|段落|材料|文本|原文|文中)",
    "文中|上文|本文|短文中|文章中|段落中|(?:文章|この文|上の文|上記)(?:によると|によれば|では|の中で)",
    "(?:이|위|윗|본) ?(?:글|본문|지문|문단)(?:에서|에 따르면|의)",
    "(?:في|وفق|بحسب|حسب) (?:هذا )?(?:النص|المقطع|المقال|الفقرة)",
)
_REFERENCE = re.compile("|".join(_REFERENCES), re.IGNORECASE)
# "The story Red Roof", "the text “On Bees”": here case matters, which tells names from other words.
_TITLED = re.compile(rf"\b(?:[Tt]he|[Tt]his|[Tt]hat) {_TEXT}s? [A-Z\"“«'‘]")

# -- pronouns without a noun before them -----------------------------------------------------------------------------

_PRONOUN = re.compile(r"\b(he|she|they|him|her|his|hers|their|theirs|them|it|its|this|these|those)\b", re.IGNORECASE)
# "How long does it take", "Is it true that", "What time is it": the pronoun stands for nothing.
_EMPTY_IT = re.compile(
    r"\bit (?:take|takes|took|rain|rains|snow|mean|means|possible|true|false|correct|important|necessary|legal|safe|"
    r"common|known|cost|called when)\b|\b(?:time|date|day|year|season) is it\b|\bit (?:is|was) (?:\w+ )?(?:to|that)\b",
    re.IGNORECASE,
)
# "These two numbers: 3 and 4" refers to what follows.
_COLON_AFTER = re.compile(r"\b(?:this|these|those)\b[^?.!]{0,60}:", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_NOUN = re.compile(r"\b(?:an?|the|each|every|two|three|four|five|some|any|all|no|\d+)\s+([^\W\d_]{3,})", re.IGNORECASE)
# Words that open or join questions, and nouns that a pronoun does not stand for: "What is the name of his dog?".
_OPENERS = (
    "how what which who whose whom when where why if is are was were does do did can could will would should has "
    "have had in on at by for to from of with about after before during then now and or but so the an a many much "
    "long old tall far often first last kind type sort name color colour number year main been be not there i you "
    "we purpose reason height length size age date time day place title result effect cause role meaning amount "
    "total difference capital population tell me say"
)
_NO_NOUNS = frozenset(_OPENERS.split())

# -- "the village", where no village is named ------------------------------------------------------------------------

_GENERIC = re.compile(
    r"\bthe (?:main |old |young |new |small |little )?(?:man|woman|boy|girl|child|children|people|family|village|city|"
    "town|country|company|team|king|queen|book|film|movie|river|bridge|building|house|castle|event|war|battle|study|"
    "experiment|project|species|animal|place|person|character|protagonist|speaker|writer|researchers|scientists|"
    r"group|organi[sz]ation|festival|museum|island|region|ship|machine|device)(?:['’]s)?\b"
    r"(?! (?:of|that|who|which|whose|in|with|where)\b)",
    re.IGNORECASE,
)
_SPECIFIC = re.compile(r"\d|[\"“«‘]|(?<!^)(?<![.?!:]\s)\b[A-ZÀ-ÞА-ЯΑ-Ω][\w’'-]+")


def needs_passage(text: str) -> bool:
    """Whether a problem leans on a text that its reader does not see.

    It refers to the text ("according to the passage", in a dozen languages), opens with an English pronoun that no noun
    or name comes before ("When was it built?"), or asks in English about "the village" without naming anything.
    """
    return refers_to_text(text) or _has_loose_pronoun(text) or _is_unnamed(text)


def refers_to_text(text: str) -> bool:
    """Whether a text speaks of a passage, as in "the author says" or "in the text above"."""
    return _REFERENCE.search(_TITLED.sub(" ", text)) is not None


def _has_loose_pronoun(text: str) -> bool:
    for found in _PRONOUN.finditer(text):
        word = found[1].lower()
        if word == "it" and _EMPTY_IT.search(text) is not None:
            continue
        if word in ("this", "these", "those") and _COLON_AFTER.search(text, found.start()) is not None:
            continue
        return not _names_something(text[: found.start()])
    return False


def _names_something(before: str) -> bool:
    """Whether a pronoun that follows can stand for something: a name, a noun with its article, or a subject."""
    words = _WORD.findall(before)
    if any(word[:1].isupper() and word.lower() not in _NO_NOUNS for word in words):
        return True
    if any(noun.lower() not in _NO_NOUNS for noun in _NOUN.findall(before)):
        return True
    # bare plurals and mass nouns, as in "Why do plants need light and how do they ..."
    return sum(word.lower() not in _NO_NOUNS for word in words) >= 2


def _is_unnamed(text: str) -> bool:
    return _GENERIC.search(text) is not None and _SPECIFIC.search(text) is None
