"""Finds the letters of options in a response, and whether each is chosen or rejected, in many languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from lightning_serl.answers.reading.announced import ANSWER_WORDS

#: The letters of options that are read.
LETTERS = "ABCDEFGHIJ"

_WINDOW = 80
_MOST_MENTIONS = 40
_MOST_LINES = 200
_LONGEST_JOINT = 30

# Words before a letter. Between such a word and the letter only words that link them may stand: "the answer is in
# vitamin C" announces no option.
_ADJECTIVE = (
    r"correct[aeo]?|correcte|right|best|better|true|final|likely|only|proper|korrekte?|richtige?|beste|bonne?|exacte?|juste|"
    r"correta|certa|corretta|giusta|esatta|juiste?|verdadera|mejor|melhor|única|unica|seule?|einzige?"
)
_NOUN = (
    r"answer|choice|option|letter|pick|selection|guess|one|alternative|statement|opción|opcion|alternativa|letra|"
    r"respuesta|réponse|choix|lettre|antwort|wahl|buchstabe|möglichkeit|aussage|risposta|scelta|opzione|lettera|"
    r"resposta|opção|antwoord|keuze|optie|ans|solution|solución|lösung|solução|soluzione|conclusion|vote"
)
_LINK = (
    r"is|are|be|to|was|must|should|would|will|has|have|can|only|most|very|then|thus|hence|therefore|so|clearly|"
    r"surely|"
    r"definitely|probably|indeed|here|actually|obviously|the|a|an|as|of|for|this|question|likely|option|choice|"
    r"letter|"
    r"answer|number|labell?ed|given|by|in|our|my|es|la|el|lo|le|les|ser|sería|seria|debe|est|donc|serait|doit|être|"
    r"ist|"
    r"lautet|die|der|das|also|somit|daher|wäre|muss|sein|é|è|ê|o|seria|deve|essere|il|quindi|portanto|logo|entonces|"
    rf"então|dus|het|de|moet|zijn|{_ADJECTIVE}|opción|opcion|letra|alternativa|inciso|lettre|réponse|buchstabe|"
    r"antwort|lettera|risposta|opzione|resposta|opção|optie|respuesta"
)
_GAP = rf"(?:[\s:=,>|→⇒~-]|\b(?:{_LINK})\b|['’]s\b|[–—])*+"
_OPEN = r"[(\[{]?\s?$"
_ANSWER = (
    rf"{ANSWER_WORDS}|\b(?:ans|solution|solución|solucion|lösung|solução|soluzione|antwoord|conclusion|final|"
    rf"richtig ist|"
    rf"correct(?:a|e|o)? (?:is|es|est)|(?:{_ADJECTIVE}|my|our|mi|ma|meine|minha|mia|mijn)\s+(?:{_NOUN})|"
    rf"(?:{_NOUN})\s+(?:{_ADJECTIVE})|(?:choice|option|pick|selection|vote|opción|opción|wahl|choix)\s*(?:is|es|"
    rf"est|ist|for|:|=))\b|####"
)
_CHOOSE = (
    r"\b(?:choose|chose|pick|select|go(?:ing)? (?:with|for)|opt(?:ing)? for|settle (?:on|for)|say|vote for|"
    r"stick with|"
    r"elijo|elegir|elegimos|escojo|selecciono|marco|escolho|marque|assinale|choisis|choisir|prends|wähle|nehme|"
    r"entscheide mich für|scelgo|scegliamo|kies|kiezen)\b"
)
_KNOWN = re.compile(rf"(?i)(?:{_ANSWER}|{_CHOOSE}){_GAP}{_OPEN}")
# Languages whose linking words are not listed: up to three short words, or some characters of another script.
#: Words for an answer, an option or a choice in languages whose linking words are not listed.
OTHER_LATIN = (
    r"odpowied[źz]\w*|odpov[ěe][ďd]\w*|wybieram|wybór|cevap|cevabı|yanıt|yanıtı|seçenek|şık|seçiyorum|đáp án|"
    r"câu trả lời|"
    r"lựa chọn|chọn|svaret?|svar|väljer|vælger|velger|alternativ(?:et)?|vastaus|vaihtoehto|valitsen|oikea|jawaban\w*|"
    r"pilihan\w*|memilih|pilih|válasz\w*|răspuns\w*|aleg|odgovor\w*|atsakymas|vastus|sagot|jibu|jawapan\w*|resposta|"
    r"prawidłowa|poprawna|doğru|đúng"
)
_OTHER = re.compile(
    rf"(?i)\b(?:{OTHER_LATIN})(?:[\s:=,.>→–—'’-]*+(?!not\b|nie\b|ne\b|inte\b|ikke\b|ei\b|bukan\b|tidak\b|không\b)"
    rf"[^\W\d_]{{1,9}}){{0,3}}?[\s:=,>→–—-]*+{_OPEN}"
)
_SCRIPT_WORDS = (
    r"答案|答え|答|回答|解答|正解|選択肢|选项|選項|正确|正確|应?[选選][择擇]?|정답|답|선택|보기|الجواب|الإجابة|"
    r"الاجابة|الخيار|أختار|نختار|الصحيح|"
    r"जवाब|उत्तर|विकल्प|सही|คำตอบ|ตอบ|ตัวเลือก|เลือก|ข้อ|ถูกต้อง|ответ\w*|вариант\w*|выбираю|выбираем|верно|"
    r"верн\w+|правильн\w*|"
    r"відповідь|варіант|обираю|απάντηση|επιλογή|επιλέγω|σωστ\w+|תשובה|התשובה|בוחר|پاسخ|جواب|گزینه|উত্তর|பதில்|"
    r"సమాధానం|ഉത്തരം|"
    r"პასუხი|պատասխան\w*|ጥያቄ|መልስ"
)
_SCRIPT = re.compile(rf"(?i)(?:{_SCRIPT_WORDS})[^A-Za-z0-9\n.。!?！？]{{0,24}}$")
_BEGINS = re.compile(rf"(?i)(?:{_ANSWER}|{_CHOOSE}|\b(?:{OTHER_LATIN})\b){_GAP}")
_SCRIPT_BEGINS = re.compile(rf"(?i)(?:{_SCRIPT_WORDS})\s*(?:[:：=–—-]|是|为|為|は|은|는|이|है|है:|คือ|είναι|هو|هي)*\s*")
_WEAK = re.compile(
    r"(?i)(?:\b(?:definitely|probably|certainly|surely|clearly|obviously|most likely|is|it['’]?s|that['’]?s|be|"
    r"remains?|leaves?|left with|leaving|so|thus|hence|therefore|then|es|est|"
    r"ist|"
    rf"also|daher|somit|donc|entonces|logo|quindi|dus|ergo|option|choice|letter|opción|buchstabe)\b|[:：→⇒>=]){_GAP}"
    rf"(?:\b(?:either|both|entweder)\s+)?{_OPEN}"
)
_BUT = r"but|sondern|sino|mais|mas|ma|bensì|maar|utan|vaan|ale|lecz|men|ама|а|но|tetapi|melainkan|więc|so|then"
_NOT = (
    r"not|never|neither|cannot|(?:is|are|was|do|does|did|wo|would|should|could|ca)n['’]t|rather than|instead of|"
    r"unlike|"
    r"except|than|without|eliminat\w+|exclud\w+|rul(?:e|es|ed|ing) out|discard\w*|reject\w*|cross\w* out|nicht|"
    r"kein\w*|"
    r"no (?:es|era|puede|elij\w+)|ni|pas|jamais|non|não|niet|nie|inte|ikke|ei|не|değil|bukan|tidak|không phải|no"
)
_REJECTED_LEFT = re.compile(
    rf"(?i)(?:\b(?:{_NOT})\b|[不非]是?|并非|不能|不选)(?:(?!\b(?:{_BUT})\b|而是)[^.,;:!?，。；：\n]){{0,30}}$"
)
_WRONG = (
    r"incorrect\w*|wrong|false|out|eliminated|excluded|ruled out|impossible|invalid|untrue|falsch|falso|falsa|"
    r"fausse?|"
    r"faux|errad[ao]|incorret[ao]|sbagliat[ao]|onjuist|fout|inexact\w*|неверно|неправильно|błędn\w+|yanlış\w*|sai"
)
_VERBS = r"is|are|was|would be|seems?|can be|es|son|est|sont|ist|sind|é|è|jest|är|on|being|too|also|both|all|clearly"
_REJECTED_RIGHT = re.compile(
    rf"(?i)\s*[)\]]?\s*(?:(?:[,:–—(-]\s*)?(?:(?:{_VERBS})\s+)*(?:{_WRONG})\b"
    rf"|(?:(?:{_VERBS})\s+)+(?:not|nicht|no|pas|não|non|n['’]est|niet|nie)\b(?!\s*[(\[]?[A-J]\b)"
    r"|(?:is|are|was|can|does|do)n['’]t\b|cannot\b|no (?:es|puede)\b|n['’]est\b"
    r"|ではな[くい]|じゃな|が誤り|は誤り|は違|[가이는]? ?아니|不?是?错|错|錯|不正确|不正確|不对|不對|ผิด|ไม่ใช่|"
    r"خطأ|गलत)"
)
_INSTEAD = re.compile(
    rf"(?i)(?:\b(?!(?:so|as) (?:is|are|was)\b)(?:{_BUT})\b|[,;.])"
    rf"(?!\s*(?:so|nor|neither|as)\s+(?:is|are|was)\b)(?:{_GAP}|[\s,、]*){_OPEN}"
)
_LIKEWISE = re.compile(r"(?i)\b(?:so|neither|nor|as) (?:is|are|was|were|does|do)\s*[(\[]?\s?$")
_NOT_THIS_BUT = re.compile(r"(?:而是|ではなく|じゃなく|아니라)[\s,、]*[(\[]?\s?$")
_RIGHT_WORD = (
    rf"(?:{_ADJECTIVE})\b(?:\s+(?:{_NOUN}|fit|match)\b|(?!\s+[a-z]))|correct\b|(?:{_NOUN})\b|correto|correcto|"
    rf"vrai\w*|wahr|"
    r"verdadeir\w+|vera?|juist|goed|oikein|rätt|riktig|rigtig\w*|poprawn\w+|prawidłow\w+|správn\w+|doğru\w*|đúng|"
    r"benar|"
    r"верн\w+|правильн\w+|σωστ\w+|helyes|corect\w*"
)
_CHOSEN_RIGHT = re.compile(
    rf"(?i)\s*(?:(?:\s*(?:is|are|was|must|should|would|has|to|be|seems?|appears?|looks?|the|a|an|most|clearly|"
    rf"therefore|"
    rf"thus|es|est|ist|son|sont|sind|é|è|jest|är|er|on|is|je|este|la|le|el|die|der|das|de|het|a|o|il|also|both|all|"
    rf"indeed|definitely|probably)\b)+\s*(?:{_RIGHT_WORD}|left\b)|\s+(?:fits|matches|works|remains|satisfies|"
    rf"applies)\b"
    rf"|\s+(?:doğru|đúng|benar|correct)\w*|\s*[=:–—-]\s*(?:correct|right|richtig|true)\b"
    r"|(?:が|は|も)(?:正しい|正解|答え|適切|妥当)|を(?:選|えら)|[가이] ?(?:정답|맞|옳)|[를을] ?(?:선택|고르|고른)"
    r"|\s?[项項]?(?:是|为|為)?(?:正确|正確|对的|對的|答案)|\s*ถูก(?:ต้อง)?|\s*(?:هو|هي)? ?(?:الصحيح|صحيح|الجواب|"
    r"الإجابة)"
    r"|\s*(?:सही|ही सही)|\s+(?:верн|правильн|является)\w*|\s+είναι (?:η |το )?σωστ\w+)"
)
_BECAUSE = (
    r"because|since|as|for|due|which|where|given|and|or|not|rather|instead|but|in|on|at|here|with|porque|pues|"
    r"ya que|car|"
    r"parce|puisque|weil|denn|da|perché|poiché|pois|want|omdat|oder|ou|o|y|e|et|und"
)
_STOP = r"[.:,;!?)\]}|，。；：、！？।؛،]|$|[–—-]\s|\s+[–—(\[-]|\s*[^\x00-\x7f\w]|[^\x00-\x7f]|['’](?!s\b)"
_END = re.compile(rf"\s*(?:{_STOP}|\s(?:{_BECAUSE})\b|(?:is|es|est|ist|è|é)\s)")
_END_OF_STATEMENT = re.compile(r"\s*[)\]}]?\s*(?:[.!,;)]|$|\(|[–—-]\s|(?:because|since|as|weil|car|porque)\b)")
_WORD_FOLLOWS = re.compile(r"\s+[^\W\d_A-Z]{2}")

# A letter that stands by itself. Letters of other scripts may touch it ("答えはCです").
_LATIN = "A-Za-z0-9À-ɏ"
MENTION = re.compile(
    rf"(?<![{_LATIN}'’\\_^])(?<![{_LATIN}]-)([A-J])(?![{_LATIN}^_]|-[{_LATIN}]|['’](?:m|d|ll|ve|s|re)\b)"
)
_LOWER = re.compile(
    rf"(?<=[(\[\s:])([a-j])(?=[)\]])|(?i:(?<=option )|(?<=choice )|(?<=letter )|(?<=answer is )|"
    rf"(?<=answer: ))([a-j])(?![{_LATIN}'’])"
)
_JOINT = re.compile(
    r"\s*[)\]]?\s*(?:[,;/&|+、，；和与與及或와과]|\b(?:and|or|nor|und|oder|et|ou|y|e|o|i|oraz|lub|en|of|och|eller|"
    r"ja|tai|ve|"
    r"veya|và|hoặc|dan|atau|и|или|و|أو|और|या)\b|と|や|または|والـ|และ|หรือ|\s)+(?:maybe|perhaps|also|option|"
    r"choice)?\s*[(\[]?\s*",
    re.IGNORECASE,
)
_MARKED = re.compile(
    r"\s*[(\[{]?\s*([A-Ja-j])(?:\s*[)\]}.:,!]+(?=\s|$|[^\x00-\x7f]|[\d\\$])|\s+[–—-]+\s|\s*$)\s*(.*)", re.DOTALL
)
_POSITIVE = re.compile(r"(?i)\b(?:correct|right answer|true)\b|[✓✅✔]")
_NEGATIVE = re.compile(rf"(?i)\b(?:not|never|{_WRONG})\b|n['’]t\b|[✗❌✘×]")
# A full stop behind a single letter ends no sentence ("B. iron").
_SENTENCE = re.compile(r"(?<=[.!?])(?<!\b[A-Ja-j]\.)\s+|(?<=[。！？।])|\n+")
_HEADING = re.compile(r"(?i)\W*(?:the\s+)?(?:final |correct )?(?:answer|choice|solution)\W*")


class Said(NamedTuple):
    """What one statement says about options: those that it chooses, for certain or by the way, and rejects."""

    strong: tuple[str, ...]
    weak: tuple[str, ...]
    rejected: frozenset[str]


def sentences(text: str) -> list[str]:
    """The last sentences and lines of a text; a line that only announces an answer is joined to the next one."""
    out: list[str] = []
    for part in [p for p in _SENTENCE.split(text) if p and p.strip()][-_MOST_LINES:]:
        before = out[-1].rstrip() if out else ""
        if (before and (_HEADING.fullmatch(before) or (before[-1] in ":：" and announces(before + " ")))) or (
            before and not marked(part) and _KNOWN.search(before[-_WINDOW:] + " ") and MENTION.match(part.strip())
        ):
            out[-1] = f"{before} {part.strip()}"
        else:
            out.append(part.strip())
    return out


def marked(line: str) -> tuple[str, str] | None:
    """The letter and the text of a line such as ``B) iron``, ``(b)`` or ``C - gold``."""
    match = _MARKED.fullmatch(line)
    return None if match is None else (match[1].upper(), match[2].strip())


def joined(letters: str) -> bool:
    """Whether a text between two letters joins them to a list."""
    return len(letters) <= _LONGEST_JOINT and _JOINT.fullmatch(letters) is not None


def announced_phrase(statement: str) -> str | None:
    """What stands behind the last announcement of an answer in a statement."""
    ends = [m.end() for pattern in (_BEGINS, _SCRIPT_BEGINS) for m in pattern.finditer(statement)]
    rest = statement[max(ends) :].strip() if ends else ""
    return rest or None


def last_letters(statement: str) -> list[str]:
    """The last list of letters in a statement."""
    runs = list(_runs(statement))
    return list(dict.fromkeys(runs[-1][0])) if runs else []


def said(statement: str) -> Said:
    """The options that a sentence chooses and rejects."""
    strong: list[str] = []
    weak: list[str] = []
    rejected: set[str] = set()
    for letters, left, right in _runs(statement):
        if rejected_left(left) or (rejected and _LIKEWISE.search(left)):
            rejected.update(letters)
            continue
        announced = announces(left)
        loose = announced and letters[0] not in "AI" and len(letters) == 1
        if announced and len(letters) > 1 and _REJECTED_RIGHT.match(right):
            # "The answer is A; B and C are wrong."
            strong.append(letters[0])
            rejected.update(letters[1:])
        elif announced and len(letters) == 1 and _REJECTED_RIGHT.match(right):
            rejected.update(letters)
        elif announced and (_END.match(right) or _CHOSEN_RIGHT.match(right) or loose or _OTHER.search(left)):
            # "The answer is A, B is a distractor": a verb belongs to what stands before it.
            several = len(letters) == 1 or _CHOSEN_RIGHT.match(right) or not _WORD_FOLLOWS.match(right)
            strong += letters if several else letters[:1]
        elif _REJECTED_RIGHT.match(right):
            rejected.update(letters)
        elif (
            _CHOSEN_RIGHT.match(right)
            or _NOT_THIS_BUT.search(left)
            or (rejected and not strong and _INSTEAD.search(left) and _END.match(right))
        ):
            strong += letters
        elif _WEAK.search(left) and (_END_OF_STATEMENT.match(right) or not right.strip(" )].!")):
            weak += letters
    if not strong and (line := marked(statement)) is not None and line[1]:
        if _NEGATIVE.search(line[1]):
            rejected.add(line[0])
        elif _POSITIVE.search(line[1]):
            strong.append(line[0])
    return Said(tuple(dict.fromkeys(strong)), tuple(dict.fromkeys(weak)), frozenset(rejected))


def rejected_left(left: str) -> bool:
    """Whether the end of a text rejects what follows it ("not", "rather than")."""
    return _REJECTED_LEFT.search(left[-_WINDOW:]) is not None


def rejected_right(right: str) -> bool:
    """Whether the beginning of a text rejects what stands before it ("is wrong")."""
    return _REJECTED_RIGHT.match(right[:_WINDOW]) is not None


def announces(left: str) -> bool:
    """Whether the text before a letter announces the answer."""
    return any(pattern.search(left) is not None for pattern in (_KNOWN, _OTHER, _SCRIPT))


def _runs(statement: str) -> Iterator[tuple[list[str], str, str]]:
    """Lists of letters in a statement, each with the text before and after it."""
    found = sorted([*MENTION.finditer(statement), *_LOWER.finditer(statement)], key=lambda m: m.start())[
        :_MOST_MENTIONS
    ]
    at = 0
    while at < len(found):
        end = at + 1
        while end < len(found) and joined(statement[found[end - 1].end() : found[end].start()]):
            end += 1
        run = found[at:end]
        letters = [(m[1] or m[2]).upper() if m.re is _LOWER else m[1] for m in run]
        left = statement[max(0, run[0].start() - _WINDOW) : run[0].start()]
        yield letters, left, statement[run[-1].end() : run[-1].end() + _WINDOW]
        at = end
