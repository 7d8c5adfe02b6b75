"""Finds the sentences of a text that ask for something: questions, tasks and blanks, in about a dozen languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from lightning_serl.prompts.phrases import is_remark

# Abbreviations whose dot ends no sentence, and the initials of names.
_NO_END = re.compile(r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Sr|Sra|vs|No|Nr|approx|etc|e\.g|i\.e|z\.B|p\.ej|U\.S|a\.m|p\.m))$")
# A sentence ends at a mark before a blank, or at a mark of a script that writes no blanks, or with its line.
_END = re.compile(
    r"[.!?؟।][\"'”’»)\]*_]{0,4}(?=\s|$)|[?](?=[^\s\d\"'”’»)\]*_.,;:$?!])|[。！？；][”」』）*_]{0,3}|\x01|\n"
)
# Formulas are no text: their dots and line breaks end nothing, but a dot at their end does.
_FORMULA = re.compile(
    r"\\\[.{1,2000}?\\\]|\$\$.{1,2000}?\$\$|\$(?!\s)[^$]{0,500}(?<!\s)\$(?!\d)|\$\s[^$\n]{0,500}\s\$(?!\d)|\\\(.{1,500}?\\\)|\[asy\].{0,9000}?\[/asy\]|"
    r"\\begin\{(\w{1,20}\*?)\}.{1,3000}?\\end\{\1\}",
    re.DOTALL,
)
_FORMULA_END = re.compile(r"[.?!]\s*(?:\\\]|\$\$?|\\\))\Z")

_QUESTION_MARK = re.compile(r"[?？؟\u037e]")
_BLANK = re.compile(
    r"_{2,}|\b(?:is|are|equals?|was|of|by|called|est|son|ist|es|sono)\s?[:：]?$|=\s*$|\\_\\_|\\underline|\\boxed\{\s*\\?[?]?\s*\}|□|（\s+）|\(\s{2,}\)|\[blank\]|\b\.\.\.$|,\s*\.\.\."
)

_ENGLISH_TASKS = (
    r"find|compute|calculate|determine|solve|evaluate|simplify|factori[sz]e|factor|expand|prove|show|"
    r"state(?! of\b)|give|name(?! (?:is|of)\b)|list(?! of\b)|"
    "write|rewrite|express|convert|estimate|approximate|round|describe|explain|justify|identify|select|choose|pick|"
    "complete|fill|translate|arrange|order|sort|rank|count|add|subtract|multiply|divide|reduce|graph|sketch|"
    "draw|plot|"
    r"construct|differentiate|integrate|derive|verify|compare|classify|match|tell|mention|define|apply|"
    r"answer(?!s?\s*[*_]*[:：=])|decide|"
    "predict|suggest|provide|recommend|summari[sz]e|put|change|correct|spell|guess|work out|figure out|"
    "discuss|outline|"
    "analy[sz]e|compose|create|design|propose|replace|combine|recall|indicate|label|locate|assign|transform|insert|"
    r"place(?! of\b)|circle|underline|use|read|test|examine|minimi[sz]e|maximi[sz]e|sum|square|double|halve|"
    r"invert|diagnose|"
    "balance|draft|report|trace|check|true or false|yes or no|deduce|obtain|represent|break|make|say|"
    "interpret|enter|type|extend|build"
)
_SPANISH_TASKS = (
    "calcul[ae][rn]?|hall[ae]r?|encuentr[ae]|encontrar|determin[ae]r?|resuelv[ae]|resolver|simplific?[aqu]+e?r?|"
    "escrib[ae]|escribir|di|diga|nombr[ae]|menciona|indi[cq]u?[ae]|expres[ae]r?|conviert[ae]|factori[zc][ae]|"
    "demuestr[ae]|"
    "eval[uú][ae]|obt[eé]n|obtenga|complet[ae]|elig[ea]|elija|seleccion[ae]|orden[ae]|traduc[ea]|traduzca|"
    "expli[cq]u?[ae]|"
    "describ[ae]|redonde[ae]|sum[ae]|rest[ae]|multipli[cq]u?[ae]|divid[ae]|compar[ae]|defin[ae]|identifi[cq]u?[ae]"
)
_OTHER_TASKS = (
    # Portuguese, French, German, Italian
    "calcular|encontre|ache|determinar|resolva|simplifique|escreva|diga|cite|indique|expresse|converta|mostre|prove|"
    "complete|escolha|traduza|explique|"
    "calcule[rz]|calculer|trouve[rz]?|détermine[rz]?|résou[sd](?:re|ez)?|résolvez|simplifie[rz]?|écri(?:s|vez|re)|"
    "donne[rz]?|nomme[rz]?|cite[rz]?|exprime[rz]?|convertis(?:sez)?|montre[rz]?|démontre[rz]?|complète[rz]?|"
    "complétez|"
    "choisis(?:sez)?|tradui(?:s|sez|re)|explique[rz]|"
    "berechnen?|bestimmen?|finden?|löse|lösen|vereinfachen?|schreiben?|nennen?|gib|geben sie|zeigen?|beweisen?|"
    "ergänzen?|wähle|übersetzen?|erklären?|ermitteln?|runden?|"
    "calcola(?:re|te)?|trova(?:re|te)?|determina(?:re|te)?|risolvi|risolvere|semplifica(?:re)?|scrivi|"
    "esprimi|converti|"
    "dimostra(?:re)?|completa(?:re)?|scegli|traduci|spiega(?:re)?|elenca"
)
_WORDS_THAT_ASK = (
    "what|what's|which|who|whom|whose|how|why|where|when (?:is|was|are|were|did|does|do|will|can)|"
    "qué|cuál(?:es)?|cuánt[oa]s?|quién(?:es)?|dónde|cómo|por qué|"
    "qual|quais|quant[oa]s|quem|onde|combien|quel(?:le)?s?|est-ce|pourquoi|comment|"
    "was (?:ist|sind|war)|wer|wie|wo|wann|welche[rsnm]?|warum|wieviele?|quale|quali|quant[aie]|dove|perché|chi"
)
# A clause starts a sentence, or follows a comma, a colon or a joining word.
_LEAD = (
    r"(?:(?:please|now|then|also|and|hence|thus|so|next|to|can you|could you|por favor|bitte|veuillez|ahora|"
    r"using [^,.\n]{1,80},|by [^,.\n]{1,80},|in [^,.\n]{1,60},|for [^,.\n]{1,60},|without [^,.\n]{1,60},)\s+)?"
)
# Behind a comma "which", "who" and "where" rather tell: "He barked, which woke her."
_BEHIND_COMMA = (
    "what|how (?:many|much|long|far|old|tall|big|fast|often)|qué|cuál(?:es)?|cuánt[oa]s?|combien|quant[oa]s?"
)
_OPENING = rf"{_WORDS_THAT_ASK}|(?:in|on|at|by|of|for|from|to|with|under) (?:what|which|whom|whose)"
_CLAUSE = re.compile(
    rf"(?:^|:\$?\s|\\\]\s{{0,9}})[\W_]{{0,8}}{_LEAD}(?:{_OPENING})(?![\w’'-])|"
    rf"(?:^|[,:;]\$?\s|\\\]\s{{0,9}})[\W_]{{0,8}}{_LEAD}"
    rf"(?:{_ENGLISH_TASKS}|{_SPANISH_TASKS}|{_OTHER_TASKS}|{_BEHIND_COMMA})(?![\w’'-])",
    re.IGNORECASE,
)
_JOINED = re.compile(
    r"\b(?:and|then) (?:find|compute|calculate|determine|solve|evaluate|simplify|state|name|give|prove|show that)\b|"
    r"\b(?:show|prove) that\b|\bis (?:what|how (?:many|much)|which|who)\b|\bin terms of\b.{0,80}\bfind\b|"
    r"[\]}$]\s{0,9}(?-i:Find|Compute|Evaluate|Determine|Calculate|Solve|Simplify|Enter|What|How|Which)\b|"
    r"\btrue or false\b|\bfind the\b|\bhow (?:many|much)\b|\bwhich of the following\b",
    re.IGNORECASE,
)
_OTHER_SCRIPTS = re.compile(
    r"多少|幾|几[个個只条本元天人岁歲种種次张張点]|哪|什么|什麼|甚麼|谁|誰|怎[么麼样樣]|为何|何时|吗|嗎|呢[?？。]?$|[求试試請请]|计算|計算|"
    r"解方程|化简|證明|证明|写出|寫出|列出|填空|判断|选择|比较|翻译|说出|说明|解释|"
    r"か[。？]?$|いくつ|いくら|何[個本人円時分回枚匹歳度%でがをのと]|なに|どれ|どの|どこ|だれ|いつ|求めよ|求めなさい|なさい|答えよ|ください|せよ|"
    r"까|시오|하라|[으하]?세요|얼마|몇|무엇|누구|어디|언제|구하|어느|"
    r"كم|ما\s|ماذا|هل|أين|متى|لماذا|كيف|أي[ّ ]|من هو|من هي|أوجد|احسب|اجمع|اطرح|اضرب|اقسم|اكتب|اذكر|حل|"
    r"क्या|कितन|कौन|कहाँ|कहां|कब|कैसे|किस|क्यों|ज्ञात|बताइए|बताओ|कीजिए|करो|लिखिए|लिखो|"
    r"กี่|เท่าไร|เท่าไหร่|เท่าใด|อะไร|ใคร|ที่ไหน|เมื่อใด|เมื่อไร|ไหม|จงหา|ใด|"
    r"(?i:\b(?:сколько|как(?:ой|ая|ое|ие|ов[аоы]?|им|их)?|кто|что такое|где|когда|почему|зачем|чему|найди(?:те)?|"
    r"вычисли(?:те)?|определи(?:те)?|реши(?:те)?|докажи(?:те)?|упрости(?:те)?|назови(?:те)?|запиши(?:те)?|"
    r"переведи(?:те)?|сравни(?:те)?|объясни(?:те)?|укажи(?:те)?)\b)",
)
# An expression of numbers without its result asks for it: "12 + 5 * 3".
_EXPRESSION = re.compile(r"\d\s*[-+*/×÷·^−]\s*\(?\d")


class Sentence(NamedTuple):
    """A sentence as the slice ``start:end`` of its text, and whether it asks for something."""

    start: int
    end: int
    asks: bool


def sentences(text: str) -> Iterator[Sentence]:
    """The sentences of a text in order; blanks around them are left out. Linear in the length of the text."""
    start, masked = 0, text
    if "$" in text or "\\" in text or "[asy]" in text:
        masked = _FORMULA.sub(_mask, text)
    ends = [mark.end() for mark in _END.finditer(masked) if _ends(masked, mark, text)]
    for end in [*ends, len(text)]:
        piece = text[start:end]
        if piece.strip():
            left = start + len(piece) - len(piece.lstrip())
            right = start + len(piece.rstrip())
            yield Sentence(left, right, _asks(text[left:right]))
        start = end


def _mask(formula: re.Match[str]) -> str:
    ends = formula.string[formula.end() : formula.end() + 1] not in tuple(".?!,;") and _FORMULA_END.search(formula[0])
    return "x" * (len(formula[0]) - 1) + ("\x01" if ends else "x")


def _ends(masked: str, mark: re.Match[str], text: str) -> bool:
    if mark[0] == "\n":  # a line that goes on in small letters or with a formula was only wrapped
        after = text[mark.end() : mark.end() + 40].lstrip(" \t")[:1]
        return not (after.islower() or after in ("\\", "$")) or masked[: mark.start()].rstrip()[-1:] in (":", "")
    return _NO_END.search(masked, max(0, mark.start() - 8), mark.start()) is None


def asks(text: str) -> bool:
    """Whether any sentence of a text is a question, a task or has a blank to fill in."""
    return any(sentence.asks for sentence in sentences(text)) or (
        _EXPRESSION.search(text) is not None and "=" not in text
    )


def _asks(sentence: str) -> bool:
    if is_remark(sentence):
        return False
    return (
        _QUESTION_MARK.search(sentence) is not None
        or _BLANK.search(sentence) is not None
        or _CLAUSE.search(sentence) is not None
        or _JOINED.search(sentence) is not None
        or (not sentence.isascii() and _OTHER_SCRIPTS.search(sentence) is not None)
    )


# Frequent words of the Latin languages whose questions and tasks are known; scripts that stand for one such language.
_KNOWN_WORDS = re.compile(
    r"(?i)\b(?:the|is|are|was|has|have|of|and|with|el|los|las|es|tiene|una|del|les|des|une|est|der|die|das|"
    r"ist|und|hat|"
    r"ein|eine|il|gli|della|sono|uma|são|tem|dos|não|pelo|it|you|he|she|they|this|that|from|would|can)\b"
)
_KNOWN_SCRIPTS = re.compile(
    r"[\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af\u0900-\u097f\u0e00-\u0e7f]|[\u0410-\u044f]|[\u0627-\u064a]"
)
_OTHER_LETTERS = re.compile(r"[іїєґўјљњћџқңғөұәһ]|[پچژگٹڈںےۓ]", re.IGNORECASE)


def language_known(text: str) -> bool:
    """Whether a text is in a language whose questions and tasks :func:`asks` knows."""
    if _KNOWN_SCRIPTS.search(text) is not None:
        return _OTHER_LETTERS.search(text) is None
    return _KNOWN_WORDS.search(text) is not None


_PART = re.compile(r"(?:^|(?<=[\s.?:;]))[(（]?(?:[a-h]|i{1,3}|iv|[1-9])[)）.](?=\s|[^\x00-\x7f])", re.MULTILINE)
_MARKED = re.compile(
    r"(?:^[ \t]{0,9}|(?<=[.?!][ \t]))[*#_(（\[]{0,6}[ \t]?(?:(?:problem|question|exercise|problema|pregunta|"
    r"ejercicio|aufgabe|exercice|задача|题目|问题)[ \t]?)\d{1,3}\b",
    re.MULTILINE | re.IGNORECASE,
)


def asks_several(text: str) -> bool:
    """Whether a text asks for several answers: lettered parts, a second numbered problem, or two whole questions."""
    if _MARKED.search(text) is not None:
        return True
    found = [text[s.start : s.end] for s in sentences(text) if s.asks]
    if len(found) < 2:
        return False
    masked = _FORMULA.sub(_mask, text)
    marks = list(_PART.finditer(masked))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    parts = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=False)]
    if sum(any(s.asks for s in sentences(part)) for part in parts) > 1:
        return True
    questions = [q for q in found if q.rstrip("*_\"'”’») ").endswith(("?", "？", "؟"))]
    return sum(_OPENS_QUESTION.search(q) is not None and (len(q.split()) > 3 or not q.isascii()) for q in questions) > 1


_OPENS_QUESTION = re.compile(
    rf"(?:^|[,;:]\s)[\W_]{{0,6}}(?:and |but |so )?(?:{_WORDS_THAT_ASK})(?![\w’'-])", re.IGNORECASE
)


# A question about a person, or about what is left or in total, that names neither a person nor a number.
_PERSON = re.compile(r"\b(?:he|she|him|his|her|hers)\b", re.IGNORECASE)
_NAMES = re.compile(
    r"(?<![.?!])\s[A-ZÀ-Þ][\w’'-]+|\b(?:an?|the|his|her|my|one|two|every|each|some|whose|who|whom)\s+[a-z]+|"
    r"^[A-Z][a-z]+ (?:has|is|was|had|buys|and)\b"
)
_AMOUNT = re.compile(
    r"\b(?:left|remain\w*|in total|altogether|in all|now have|have now|total cost|the difference)\b", re.IGNORECASE
)
_COUNTED = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|half|dozen|twice|double|hundred|"
    r"thousand|[a-z]+teen|[a-z]+ty)\b|\$|\\",
    re.IGNORECASE,
)


def lacks_context(text: str) -> bool:
    """Whether an English question leans on a story that is not there: "How many does she have left?"."""
    found = list(sentences(text)) if len(text) <= 300 else []
    if len(found) != 1:
        return False
    person = _PERSON.search(text)
    if person is not None and _NAMES.search(text[: person.start()]) is None:
        before = text[: person.start()].split()
        if not any(word[:1].isupper() and word.lower().strip(",") not in _OPENERS for word in before):
            return True
    return _AMOUNT.search(text) is not None and _COUNTED.search(text) is None and "?" in text and len(text.split()) < 16


_OPENERS = frozenset(
    [
        "how",
        "what",
        "which",
        "who",
        "whose",
        "when",
        "where",
        "why",
        "if",
        "is",
        "are",
        "was",
        "were",
        "does",
        "do",
        "did",
        "can",
        "could",
        "will",
        "would",
        "in",
        "on",
        "at",
        "by",
        "for",
        "to",
        "after",
        "before",
        "then",
        "now",
        "suppose",
        "find",
        "calculate",
        "compute",
        "determine",
        "the",
        "and",
        "so",
    ]
)
