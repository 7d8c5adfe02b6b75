"""Finds the phrase that a response gives as its answer, and whether it is an answer or a sentence around one."""

from __future__ import annotations

import re
from typing import NamedTuple

from lightning_serl.answers.reading.announced import ANSWER_WORDS
from lightning_serl.answers.reading.answer_tag import answer_tag_span, bare
from lightning_serl.answers.reading.boxed import last_boxed
from lightning_serl.answers.reading.letters import OTHER_LATIN
from lightning_serl.answers.reading.thinking import strip_thinking

_TAIL = 4000
_HEAD = 400
_MOST_LINES = 200
#: An answer of more words is a sentence.
SHORT_WORDS = 5

_IS = (
    r"(?:must|should|would|will|could|can only|has to)?\s*(?:is|be|are|was|were|es|son|est|ist|lautet|sind|é|è|são|"
    r"sono|"
    r"jest|to|är|er|on|is het|adalah|ialah|là|je|este|van)"
)
_ANNOUNCED = re.compile(
    rf"(?i)(?:{ANSWER_WORDS}|\b(?:ans|antwoord|lösung|solución|solução|soluzione|solution|{OTHER_LATIN})\b"
    r"|解答|正解|答えは|답|απάντηση|відповідь|คำตอบ|תשובה|התשובה|پاسخ|উত্তর|பதில்|####)"
    rf"(?:\s(?:correct\w*|right|final|corret[ao]|giusta|certa|juste|exacte))?(?:[*_\s\"]*(?:(?:to|of|for|here|auf|"
    rf"à|a)\b[^.:：\n]{{0,60}}?)?(?:\s{_IS}\b[*_\s]*[:：]?|[:：=→]|–\s|—\s|-\s)"
    r"|(?<=####)|[*_ ]*(?:是|为|為|は|은|는|이|が|คือ|هي|هو|είναι|है\s*[:：]?))(?:\s*(?:\n|[:：*_\s\"])+)?\s*"
)
_NOT_BUT = re.compile(
    r"(?i)(?:not|nicht|no|non|pas|não)\s.{1,60}?,?\s(?:but|sondern|sino|mais|ma|mas)\s+(?:rather\s+)?(.+)"
)
_ABBREVIATED = (
    r"(?<!\bSt)(?<!\bMt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bJr)(?<!\bNo)(?<!\bvs)(?<!\bProf)(?<!\b[A-Z])"
)
_SENTENCE_END = re.compile(rf"{_ABBREVIATED}[.!?](?:[*_\"'”’)]*)(?:\s|$)|[。！？।]")
_REASON = re.compile(
    r"(?i)\s*[,;，、；]\s*(?:because|since|as|for|which|who|whose|that|where|when|while|so|not|the|an?|it|he|she|"
    r"they|there|this|we|you|i|given|due|being|"
    r"located|known|also|in|on|at|from|during|after|before|around|and (?:it|this|that|he|she|they|not)|rather|if|"
    r"but|with|porque|pues|ya que|que|car|parce|puisque|qui|"
    r"weil|denn|da|der|die|das|perché|poiché|che|pois|want|omdat|потому|так как|который|которая)\b"
    r"|\s+(?:because|since|porque|ya que|car|parce que|weil|denn|perché|omdat|rather than|instead of|потому что)\b"
    r"|\s+(?:in|on|since)\s+(?:the year\s+)?\d{3,4}\b"
    r"|\s+[–—-]+\s|\s+\(|[,，;；]\s*(?:因为|因為|因|而|なぜなら|왜냐하면)|因为|なぜなら"
)
_COPULA_LAST = re.compile(
    r"(?:です|である|でした|となります|だ|입니다|이다|이에요|예요|입니다만|है|हैं|['’]?(?:dır|dir|dur|dür|tır|tir))$"
)
_LEAD = re.compile(
    r"(?i)(?:(?:so|thus|hence|therefore|then|well|also|daher|donc|por tanto|entonces|quindi|logo),?\s+)?"
    r"(?:(?:i|we)(?:\s+would|['’]d)?\s+(?:think|believe|guess|say|answer|choose|pick)(?:\s+that)?\s*:?\s+)?"
    r"(?:(?:it|that|this|he|she|they|these)(?:['’](?:s|re)|\s+(?:is|are|was|were|would be|must be|should be|"
    r"has to be))\s+"
    r"|c['’]est\s+|ce sont\s+|(?:es|das|dies) (?:ist|sind|war)\s+|se trata de\s+|si tratta di\s+|это\s+)?"
    r"(?:(?:written|painted|composed|invented|discovered|founded|directed|sung|played|built|developed|proposed|"
    r"made|won|done)"
    r"\s+by\s+|(?:also\s+)?(?:called|named|known as|referred to as|spelled|pronounced)\s+)?"
)
_NO_ANSWER = re.compile(
    r"(?i)n/?a|[-–—?.]+|null|nil|idk|(?:sorry,?\s*)?(?:i\s+)?(?:do not|don['’]t|can(?:no|['’])t)\s+(?:know|say|"
    r"answer|tell).*"
    r"|(?:i['’]?\s?a?m\s+)?(?:not sure|unsure).*|no (?:idea|answer)|(?:there(?:['’]s| is)\s+)?(?:not enough|"
    r"insufficient|too "
    r"little)\s+(?:information|data|context).*|no lo sé.*|je ne sais pas.*|ich weiß (?:es )?nicht.*|不知道|"
    r"分かりません|わかりません"
)
_QUOTED_LAST = re.compile(r"[^\"“”«»「」]{4}[\"“«「]([^\"“”«»「」]{1,80})[\"”»」][.!]?$")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_PRONOUN = re.compile(r"(?i)(?:it|this|that|he|she|they|these|there)\b")
_EMPHASISED = re.compile(
    r"\*\*\*?([^*\n]{1,120}?)\*?\*\*|(?<!\w)__([^_\n]{1,120}?)__(?!\w)|(?<![\w*])\*([^*\n]{1,80}?)\*(?![\w*])|"
    r"`([^`\n]{1,80})`"
)
_REMARK = re.compile(
    r"(?i)\W*(?:i hope|hope (?:this|that)|let me know|feel free|if you (?:have|need|want|would)|would you like|"
    r"is there any"
    r"|please let|do you (?:have|want|need)|good luck|thank|glad|happy to|you['’]re welcome|great question|"
    r"any (?:other|more) "
    r"questions|espero que|avísame|j['’]espère|n['’]hésite|ich hoffe|lass(?:en)? (?:es )?mich|希望|如果你|如有|"
    r"お役に)|[-=*_`#~\s]+$"
)
_HEADING = re.compile(
    r"(?i)\W*(?:step|solution|explanation|reasoning|analysis|answer|final answer|sure|okay|ok|of course|certainly|"
    r"hello|hi|well|"
    r"hmm+|great question|good question|let['’]s|let us|first|here|thinking|problem|question|note|yes,? here)\b.*"
)
_LABELLED = re.compile(r"(?:final|answer|result|A|Ans)\s*[:：]\s*", re.IGNORECASE)
_VERB = re.compile(
    r"(?i)\b(?:is|are|was|were|be|been|has|have|had|does|did|do|can|could|will|would|must|should|may|might|became|"
    r"becomes|"
    r"means|refers|contains|comes|came|makes?|made|gives?|gave|produces?|invented|discovered|developed|wrote|painted|"
    r"composed|founded|built|created|designed|won|led|lies|lives|lived|uses|took|became|says|said|es|son|fue|era|está|están|est|sont|était|fut|ist|sind|war|waren|heißt|wurde|"
    r"é|são|foi|"
    r"è|sono|fu|jest|są|był|była|är|var|er|on|oli|je|jsou|este|sunt|был[аио]?|является|это|είναι|ήταν|adalah|"
    r"merupakan|là)\b"
    r"|(?:\b(?:it|that|he|she|what|there|here)['’]s|['’](?:re|ve|ll|d|m))\s|[是為为]|です|である|でした|だった|"
    r"입니다|이다|였다|है|हैं|था|थी|คือ|เป็น|هو|هي|كان|dır\b|dir\b"
)
# A line of that many words with a capital in front and a full stop is a statement, with or without a known verb.
_STATEMENT_WORDS = 4
_STATEMENT = re.compile(r"[A-ZÀ-Þ][^\n]*[^.]\.")
_SPACELESS = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_SPACELESS_SENTENCE = 10
_WORD = re.compile(r"\w+(?:['’.-]\w+)*")


class Phrase(NamedTuple):
    """The words that a response ends in or announces."""

    text: str
    #: Whether the phrase is the answer by its place: boxed, tagged, announced, emphasised or alone.
    sure: bool
    #: Whether it is boxed, tagged or announced.
    named: bool = False


_BARE_ANNOUNCEMENT = re.compile(
    r"(?i)(?:(?:so|thus|therefore|hence),?\s)?(?:(?:the|my)\s)?(?:final\s)?answer(?:\sis)?|ans|in total|"
    r"altogether|sorry|hence|therefore|thus|so|then|finally|"
    r"in conclusion|to summari[sz]e|overall|\\boxed\s?\{\s*\}"
)
# A block of code in a programming language is a way to an answer, not the answer.
_PROGRAM = re.compile(
    r"```[ \t]*(?!(?:text|txt|plain|plaintext|markdown|md|latex|tex|math)\b)[a-zA-Z][\w+#-]{0,15}[ \t]*\n[^`]*(?:```|$)"
)


def is_sentence(text: str) -> bool:
    """Whether a text says something about an answer instead of being one: it has a verb, or more than a few words."""
    if _VERB.search(text) is not None or len(_WORD.findall(text)) > SHORT_WORDS:
        return True
    return len(_SPACELESS.findall(text)) >= _SPACELESS_SENTENCE


def says_nothing(phrase: Phrase) -> bool:
    """Whether a phrase says that there is no answer, or only announces one.

    A response may announce that there is none as its answer.
    """
    if _BARE_ANNOUNCEMENT.fullmatch(phrase.text.strip(" .*:")) is not None:
        return True
    return _NO_ANSWER.fullmatch(phrase.text.strip(" .*!?")) is not None and (not phrase.named or len(phrase.text) < 5)


def answer_phrase(text: str) -> Phrase | None:
    r"""The phrase that a finished response gives as its answer, ``None`` if the response says nothing.

    A tag comes first, then a box, unless an answer is announced behind it, then the last announcement. Without any of
    them it is what the last line emphasises, a short line alone at the end or at the beginning, or the last line.

    Example:
        >>> answer_phrase("So the capital is **Paris**.").text, answer_phrase("The answer is Rome, because ...").text
        ('Paris', 'Rome')
        >>> answer_phrase("The capital of France is Paris.")
        Phrase(text='The capital of France is Paris.', sure=False, named=False)
    """
    text = strip_thinking(text)
    span = answer_tag_span(text)
    if span is not None and text.rfind("\\boxed", span[1]) == -1:
        inside = text[slice(*span)]
        box = last_boxed(inside)
        return Phrase(bare(inside) if box is None else box, True, True)
    tail = _PROGRAM.sub("", text[-_TAIL:])
    box = last_boxed(text)
    if box is not None:
        after = max(tail.rfind("\\boxed"), tail.rfind("\\fbox"))
        said = _announced(tail[after:].partition("}")[2])
        return Phrase(box if said is None or "boxed" in said else said, True, True)
    said = _announced(tail)
    if said is not None:
        return Phrase(said, True, True)
    lines = [line.strip() for line in tail.splitlines() if line.strip(" \t`~") and not _FENCE.match(line)][
        -_MOST_LINES:
    ]
    while len(lines) > 1 and _REMARK.match(lines[-1]):
        lines.pop()
    if not lines:
        return None
    if len(text) > _TAIL:
        lines.insert(0, text[:_HEAD].lstrip().split("\n", 1)[0].strip())
    return _of_lines(lines)


def labelled(label: str) -> str:
    """The answer in a gold label: its box, what follows ``####`` or "Answer:", or the whole label."""
    box = last_boxed(label)
    if box is not None:
        return box
    _, mark, rest = label.rpartition("####")
    label = (rest if mark else label).strip()
    match = _LABELLED.match(label)
    return label[match.end() :] if match is not None and label[match.end() :] else label


def _of_lines(lines: list[str]) -> Phrase:
    """The answer among the lines of a response that announces none."""
    last, first = lines[-1], lines[0]
    found = _emphasised(last) or _alone(last)
    # "Paris\n\nIt is the capital of France."
    heads = len(lines) > 1 and not first.endswith((":", "：")) and _HEADING.fullmatch(first) is None
    if heads and (found is None or _PRONOUN.match(last)):
        found = _alone(bare(first)) or found
    return Phrase(last, False) if found is None else Phrase(found, True)


def _announced(text: str) -> str | None:
    """What follows the last announcement on its line or, if nothing does, on the next one."""
    for match in reversed(list(_ANNOUNCED.finditer(text))):
        line = text[match.end() :].lstrip().split("\n", 1)[0].strip()
        if not line.strip(" *_.:`"):
            continue
        strong = _emphasised(line) if line.startswith(("*", "_", "`")) else None
        instead = _NOT_BUT.match(line)
        phrase = _cut(instead[1] if instead is not None else line) if strong is None else strong
        phrase = _COPULA_LAST.sub("", phrase.strip(" *_`.。"))
        if phrase.strip(" *_`.:"):
            return phrase
    return None


def _cut(line: str) -> str:
    """The line up to the end of its sentence, or to a reason or remark after the answer."""
    end = _SENTENCE_END.search(line)
    line = line if end is None else line[: end.start()]
    reason = _REASON.search(line)
    return line if reason is None or not reason.start() else line[: reason.start()]


def _emphasised(line: str) -> str | None:
    """The only emphasised words of a line, or quoted ones at its end, unless they are its heading."""
    found = [next(part for part in m.groups() if part) for m in _EMPHASISED.finditer(line) if not _is_heading(line, m)]
    if not found:
        quoted = _QUOTED_LAST.search(line)
        return None if quoted is None else quoted[1].strip()
    if len({x.strip(" .").casefold() for x in found}) > 1:
        return None
    inside = found[-1].strip()
    said = _announced(inside)
    if said is not None:
        return said
    return inside if len(_WORD.findall(inside)) <= 2 * SHORT_WORDS else None


def _is_heading(line: str, match: re.Match[str]) -> bool:
    """Whether emphasised words name what follows them ("**Explanation:** ...")."""
    inside = next(part for part in match.groups() if part).rstrip()
    return inside.endswith((":", "：")) or line[match.end() :].lstrip().startswith((":", "："))


def _alone(line: str) -> str | None:
    """A short answer that is a line's only statement, without words that lead to it."""
    line = line.lstrip("#>-•→= \t")
    lead = _LEAD.match(line)
    rest = line[lead.end() :] if lead is not None else line
    phrase = bare(_cut(rest)).strip()
    if rest == line and len(_WORD.findall(phrase)) >= _STATEMENT_WORDS and _STATEMENT.fullmatch(line):
        return None
    # "Paris. It is the capital of France."
    if not phrase or is_sentence(phrase) or _HEADING.fullmatch(phrase):
        return None
    return phrase
