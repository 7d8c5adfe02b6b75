r"""Grader for multiple-choice answers: one letter from A to J.

A response that names several options has chosen none; otherwise votes and labels would count the first of a list.
"""

from __future__ import annotations

import re
import unicodedata

from lightning_serl.answers.reading.announced import ANSWER_WORDS
from lightning_serl.answers.reading.boxed import last_boxed
from lightning_serl.answers.reading.thinking import strip_thinking

#: The letters of options that the grader reads.
LETTERS = "ABCDEFGHIJ"
_TAIL = 4000
_LINE = 200
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
# Possessive quantifiers here and below: backtracking on a policy's text could take exponential time.
_NOISE = r"[\s*_$\"'`\\({\[\u200e\u200f]*+"
# A letter followed by a word is an article or a pronoun ("the answer is a dog", "I think"), not a choice.
_RIGHT = r"(?:the\s+|la\s+|le\s+|die\s+|a\s+)?(?:correct|right|true|best|bonne|exact|richtig|certa|giust|esatt)"
_END = (
    r"(?=[*_$\"'`}\]]*(?:[).:,;!\]。，、：；؛،]|\s*$|\s*\n|\s+[-–—(]|\s+(?:because|since|as)\b"
    rf"|\s+is\b(?!\s+(?:not|wrong|incorrect|false)\b)|\s+(?:es|est|ist|è|é)\s+{_RIGHT}|\s*(?:是)?(?:正确|对)))"
)
_CORRECT = r"(?:correct[aeo]?|correta|corretta|exact[ae]|esatta|giusta|certa|الصحيحة|الصحيح)"
_COPULA = r"(?:is|are|es|est|ist|lautet|è|é|应该是|应该为|应选|应为|应是|是|为|選|选|は|은|는|هو|هي)"
_OPTION = r"(?:option|choice|opción|opcion|opção|opzione|choix|letra|lettre|letter|lettera|buchstabe|选项|الخيار|الحرف)"
_ANNOUNCED = re.compile(
    rf"(?:(?i:{ANSWER_WORDS}|choice|alternativa|{_OPTION})"
    # "Choose B" in Chinese, but not "one cannot choose B" or "if one chooses B".
    r"|(?<![不若果])(?<!不能)(?<!不应)(?<!不可)(?:选择|選擇|选|選))"
    rf"{_NOISE}(?i:{_CORRECT})?{_NOISE}(?i:{_COPULA})?[\s:：=*_]*+(?i:(?:la|le|die|der|a)\s|l')?\s*+"
    rf"(?i:{_OPTION})?{_NOISE}([A-J]){_END}"
)
_PARENTHESISED = re.compile(r"(?i:answer|choice|option)[\s*_]*+(?i:is)?[\s:=*_]*+\(([a-j])\)")
_LONE = re.compile(rf"{_NOISE}([A-J])[\s*_$\"'`)}}\].。]*")
_IN_BOX = re.compile(r"\(?\s*([A-Ja-j])\s*(?:\)|[.:,]|$)")

# What joins options: "A, C", "A and C", "A/C", "A或C".
_OR = r"\b(?:or|oder|ou|o|oppure|или)\b|或者|或|أو"
_JOINT = rf"(?:[,;/&|+、،\s–—-]|\b(?:and|und|et|y|и)\b|{_OR}|和|与|及|و)"
_NAME = r"\(?[A-J]\)?"
# A list of letters, unless it begins a sentence ("A, B is wrong") ...
_SEVERAL = re.compile(rf"\s*{_NAME}(?:{_JOINT}++{_NAME})++(?!\s*\w)", re.IGNORECASE)
# ... or letters in alphabetical order as one word.
_RUN = re.compile(r"\(?(?=[A-J]{2})A?B?C?D?E?F?G?H?I?J?(?!\w)")
# "A. iron, C. neon"; a letter without a joint before it ("D. both (A) and (B)") is mentioned, not listed.
_MARK = re.compile(
    rf"(?P<joint>^|[,;/&|、،\n]|\b(?:and|und|et|y)\b|{_OR}|和|与|及)?\s{{0,9}}(?:\(?\b([A-J])\s{{0,9}}([.):]))"
)
_COMMAND = re.compile(r"\\[a-zA-Z]+|\\.|[{}$*]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_BETWEEN = re.compile(rf"(?:{_JOINT}|[.$()]|\\[()\[\],;! ])*")
_MAX_BETWEEN = 60
_SENTENCE_END = re.compile(r"[.!?。！？\n]")
_AT_THE_END = re.compile(rf"((?:\([A-J]\){_JOINT}++)*)\(([A-J])\)[\s*_.]*$")


class ChoiceGrader:
    r"""Reads a boxed letter, "the answer is (C)", or a letter alone on the last line.

    A response that names several options at such a place ("A, C", "\boxed{A} or \boxed{B}") chooses none.

    Example:
        >>> grader = ChoiceGrader()
        >>> [grader.extract(text) for text in ("The answer is (C).", r"\boxed{\text{b}}", "So:\n**D**")]
        ['C', 'B', 'D']
        >>> [grader.extract(text) for text in ("I think the answer is a dog.", r"\boxed{A, C}")]
        [None, None]
    """

    name = "choice"

    def extract(self, text: str) -> str | None:
        """The letter a finished response chooses, in upper case, or ``None``."""
        text = strip_thinking(text)
        found, hedged = _from_box(text)
        if found is not None or hedged:
            return found
        tail = unicodedata.normalize("NFKC", text[-_TAIL:])
        matches = [*_ANNOUNCED.finditer(tail), *_PARENTHESISED.finditer(tail)]
        if matches:
            last = max(matches, key=lambda m: m.end())
            # After a semicolon a response often discusses the other options.
            rest = re.split(r"[\n;；]", tail[last.start(1) :], maxsplit=1)[0]
            return None if _names_several(rest) else last.group(1).upper()
        line = next((line for line in reversed(tail.splitlines()) if line.strip()), "")
        lone = _LONE.fullmatch(line.strip())
        if lone is not None:
            return lone.group(1)
        closing = _AT_THE_END.search(line[-_LINE:])  # "... therefore (C)." at the end of a sentence
        return None if closing is None or set(re.findall("[A-J]", closing[1])) - {closing[2]} else closing[2]

    def extract_truncated(self, text: str) -> str | None:
        """A boxed letter; a truncated response without one has no answer."""
        return _from_box(strip_thinking(text))[0]

    def label(self, text: str) -> str | None:
        """A gold label such as ``C``, ``(C)`` or ``C. 42``; ``None`` if it names several options."""
        match = _IN_BOX.match(text.strip())
        if match is None:
            return self.extract(text)
        return None if _names_several(_bare(text)) else match.group(1).upper()

    def same(self, a: str, b: str) -> bool:
        """Whether two letters are the same."""
        return a == b


def _from_box(text: str) -> tuple[str | None, bool]:
    """The letter in the last box, if there is one, and whether the last boxes name several."""
    box = last_boxed(text)
    if box is None:
        return None, False
    content = _bare(box)
    if _names_several(content) or _offers_several(text[-_TAIL:]):
        return None, True
    match = _IN_BOX.match(content)
    return (None if match is None else match.group(1).upper()), False


def _bare(text: str) -> str:
    """The text without typesetting."""
    return unicodedata.normalize("NFKC", _COMMAND.sub(" ", _WRAPPED.sub(r" \1 ", text))).strip()


def _names_several(text: str) -> bool:
    """Whether a text begins with a list of different options."""
    bare = _SEVERAL.match(text) or _RUN.match(text)
    if bare is not None:
        return len(set(re.findall(r"(?<![a-z])[a-j](?![a-z])|[A-J]", bare.group()))) > 1
    marks = list(_MARK.finditer(text))
    listed = [m for m in marks if m[3] == marks[0][3]]
    if not listed or listed[0].start() or any(m["joint"] is None for m in listed):
        return False
    return len({m[2] for m in listed}) > 1


def _offers_several(text: str) -> bool:
    """Whether the last two boxes hold different letters, with only a joint or one sentence with "or" between them."""
    boxes = list(_BOX.finditer(text))[-2:]
    if len(boxes) < 2:
        return False
    letters = {m.group(1).upper() for m in map(_IN_BOX.match, (_bare(box[1]) for box in boxes)) if m is not None}
    between = text[boxes[0].end() : boxes[1].start()]
    if len(letters) < 2 or len(between) > _MAX_BETWEEN:
        return False
    if _BETWEEN.fullmatch(between):
        return True
    return _SENTENCE_END.search(between) is None and re.search(_OR, between, re.IGNORECASE) is not None
