r"""Grader for multiple-choice answers: one letter from A to J.

A response that names several options has chosen none; otherwise votes and labels would count the first of a list.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from lightning_serl.answers.choices_in_text import split_choices
from lightning_serl.answers.reading import letters as read
from lightning_serl.answers.reading.answer_tag import answer_tag_span
from lightning_serl.answers.reading.boxed import last_boxed
from lightning_serl.answers.reading.letters import LETTERS
from lightning_serl.answers.reading.option_texts import option_of, options_in
from lightning_serl.answers.reading.thinking import strip_thinking

_TAIL = 4000
_HEAD = 400
_MOST_BOXES = 5
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boldsymbol)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+|\\.|[{}$*]")
_SPACING = re.compile(r"\\(?:quad|qquad|left|right|displaystyle|Large|large)(?![a-zA-Z])|\\[ ,;:!{}()\[\]$%]")
_OF_FORMULAS = re.compile(r"\\|[=^_+<>]")
_MARKUP = re.compile(
    r"[*`$\"“”„«»「」『』\u200e\u200f]|\\[()\[\],;:! ]|"
    r"(?<![^\W_])_+|_+(?![^\W_])|(?<!\w)['‘’]|['’](?!\w)|</?[a-z]{1,12}>"
)
_BRACKETS = str.maketrans("【】〔〕［］〈〉", "()()()()")
_LINE_START = re.compile(r"(?m)^[^\w\n(\[{<\\]+")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_IN_BOX = re.compile(
    r"(?:(?i:option|choice|answer|letter)\s*:?\s*)?[(\[]?\s*([A-Ja-j])\s*(?:[)\]]|[.:,]|\s[–—-]\s|[–—]|$)"
)
_IN_BRACKETS = re.compile(r"\(\s?([A-J])\s?\)[\s.!]*$")
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
_BETWEEN = re.compile(rf"(?:{_JOINT}|[.$()]|\\[()\[\],;! ])*")
_MAX_BETWEEN = 60
_SENTENCE_END = re.compile(r"[.!?。！？\n]")


class _Found(NamedTuple):
    """The letter that was found at some place; a place that names several options decides for none."""

    letter: str | None
    decided: bool = True


_NOTHING = _Found(None, False)


class ChoiceGrader:
    r"""Reads an option's letter: boxed, announced ("the answer is (C)"), or alone, with or without the option's text.

    With the problem's options it also reads an option's own text where exactly one is named. A response that names
    several options ("A, C", "\boxed{A} or \boxed{B}") chooses none, and an option that is rejected ("not B", "B is
    wrong") is not chosen.

    Args:
        choices: The options of the problem, in order; without them only letters are read.

    Example:
        >>> grader = ChoiceGrader()
        >>> [grader.extract(text) for text in ("It's C.", r"\boxed{\text{b}}", "So:\n**D) tin**", "答えはAです。")]
        ['C', 'B', 'D', 'A']
        >>> [grader.extract(text) for text in ("I think the answer is a dog.", r"\boxed{A, C}")]
        [None, None]
        >>> ChoiceGrader(["iron", "iron oxide"]).extract("Rust is iron oxide.")
        'B'
    """

    name = "choice"

    def __init__(self, choices: Sequence[str] | None = None) -> None:
        self.choices = tuple(map(str, choices or ()))
        self._letters = LETTERS[: len(self.choices)] if choices else LETTERS

    def for_problem(self, prompt: str, choices: Sequence[str] | None = None) -> ChoiceGrader:
        """The grader that knows a problem's options: those given, or those listed in its text."""
        if choices:
            return ChoiceGrader(choices)
        grader = ChoiceGrader(self.choices or split_choices(prompt)[1])
        # A list that was found in a text may be incomplete.
        grader._letters = self._letters
        return grader

    def extract(self, text: str) -> str | None:
        """The letter a finished response chooses, in upper case, or ``None``."""
        text = strip_thinking(text)
        span = answer_tag_span(text)
        if span is not None and text.rfind("\\boxed", span[1]) == -1:
            return self._phrase(text[span[0] : span[1]]).letter
        boxed = self._boxed(text)
        if boxed.decided:
            # A letter that is announced behind the last box takes its place.
            later = self._announced(read.sentences(_clean(_after_boxes(text)[:_TAIL])))
            return later.letter or boxed.letter
        return self._worded(text).letter

    def extract_truncated(self, text: str) -> str | None:
        """A boxed letter; a truncated response without one has no answer."""
        return self._boxed(strip_thinking(text)).letter

    def label(self, text: str) -> str | None:
        """A gold label such as ``C``, ``(C)``, ``C. 42`` or an option's text; ``None`` if it names several options."""
        match = _IN_BOX.match(text.strip())
        if match is None:
            return self.extract(text)
        return None if _names_several(_bare(text)) else self._known(match[1])

    def same(self, a: str, b: str) -> bool:
        """Whether two letters are the same."""
        return a == b

    def _known(self, letter: str) -> str | None:
        """The letter in upper case, unless the problem has no such option."""
        letter = letter.upper()
        return letter if letter in self._letters else None

    def _one(self, letters: Sequence[str]) -> _Found:
        """One letter, or a decision for none if there are several."""
        return _Found(letters[0] if len(letters) == 1 else None, bool(letters))

    def _own_text(self, phrase: str) -> str | None:
        """The option whose text a phrase is; letters stand for their options."""
        return option_of(phrase, self.choices) if len(phrase.strip("() .")) > 1 else None

    def _phrase(self, phrase: str) -> _Found:
        """The option that a text of nothing but the answer names."""
        own = self._own_text(phrase)
        if own is not None:
            return _Found(own)
        content = _bare(phrase)
        if _OF_FORMULAS.search(_SPACING.sub(" ", _WRAPPED.sub(r" \1 ", phrase))) is None and _names_several(content):
            return _Found(None)
        match = _IN_BOX.match(content)
        letter = None if match is None or _is_formula(phrase) else self._known(match[1])
        return _Found(letter) if letter is not None else self._worded(phrase)

    def _boxed(self, text: str) -> _Found:
        """The option that the last box names; a box that names none, such as a formula, decides nothing."""
        box = last_boxed(text)
        if box is None:
            return _NOTHING
        own = self._own_text(box)
        if own is not None:
            return _Found(own)
        content = _bare(box)
        if _offers_several(text[-_TAIL:]) or (not _is_formula(box) and _names_several(content)):
            return _Found(None)
        match = _IN_BOX.match(content)
        if match is not None and not (_is_formula(box) and match.end() == len(content)):
            return _Found(self._known(match[1]))
        return self._one(options_in(content, self.choices))

    def _worded(self, text: str) -> _Found:
        """The option that a response names in words, outside boxes."""
        tail = _clean(_BOX.sub(" ", text[-_TAIL:]))
        statements = read.sentences(tail)
        found = self._announced(statements)
        if found.decided or not statements:
            return found
        lines = [line.strip() for line in tail.splitlines()]
        if len(text) > _TAIL:
            lines = [_clean(text[:_HEAD]).strip().split("\n", 1)[0].strip(), "", *lines]
        found = self._solitary(lines)
        if found.decided:
            return found
        own = self._own_text(text.strip()[-_HEAD:].rsplit("\n", 1)[-1]) if self.choices else None
        if own is not None:
            return _Found(own)
        for statement in reversed(statements):
            weak = [x for x in read.said(statement).weak if self._known(x)]
            if weak and not statement.endswith("?"):
                return self._one(weak)
        if _IN_BRACKETS.search(statements[-1]):
            return self._one(read.last_letters(statements[-1]))
        for statement in reversed(statements):
            named = options_in(statement, self.choices)
            if named:
                return self._one(named)
        return _NOTHING

    def _announced(self, statements: Sequence[str]) -> _Found:
        """The option of the last statement that announces one, by letter or by its text."""
        for statement in reversed(statements):
            if statement.endswith("?"):
                continue
            phrase = read.announced_phrase(statement) if self.choices else None
            own = None if phrase is None else self._own_text(phrase)
            if own is not None:
                return _Found(own)
            letters = read.said(statement).strong
            if len(letters) > 1:  # unless they are part of an option's text
                named = options_in(statement, self.choices)
                return _Found(
                    named[0] if len(named) == 1 and any(x in letters for x in _letters_of(named[0], self)) else None
                )
            if letters and (known := self._known(letters[0])):
                return _Found(known)
            named = [] if phrase is None else options_in(phrase, self.choices)
            if named or letters:
                return self._one(named or ["", ""])
        return _NOTHING

    def _solitary(self, lines: Sequence[str]) -> _Found:
        """The letter that stands alone on a line, with or without the option's text."""
        found = [
            (i, *m) for i, line in enumerate(lines) if (m := read.marked(line)) and m[0] != "I" and self._known(m[0])
        ]
        used = [i for i, line in enumerate(lines) if line]
        if not found:
            return _NOTHING
        if any(_names_several(lines[i]) for i in (used[0], used[-1])):
            return _Found(None)
        if found[-1][0] == used[-1] and not found[-1][2]:
            return _Found(found[-1][1])
        first = found[0]
        if first[0] == used[0] and (len(used) == 1 or not lines[first[0] + 1]):
            return _Found(first[1])
        letters = list(dict.fromkeys(letter for _, letter, _ in found))
        return _Found(letters[0]) if len(letters) == 1 else _NOTHING


def _letters_of(letter: str, grader: ChoiceGrader) -> list[str]:
    """The letters in an option's text."""
    return re.findall(r"\b[A-J]\b", grader.choices[LETTERS.index(letter)])


def _clean(text: str) -> str:
    """The text in compatibility forms without markup and list marks."""
    text = unicodedata.normalize("NFKC", text.translate(_BRACKETS))
    return _LINE_START.sub("", _MARKUP.sub("", _SPACING.sub(" ", _WRAPPED.sub(r" \1 ", text))))


def _after_boxes(text: str) -> str:
    """What follows the last box."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    match = None if at == -1 else _BOX.match(text, at)
    return "" if match is None else text[match.end() :]


def _bare(text: str) -> str:
    """The text without typesetting."""
    return unicodedata.normalize("NFKC", _COMMAND.sub(" ", _WRAPPED.sub(r" \1 ", text))).strip()


def _is_formula(text: str) -> bool:
    """Whether a text has commands or signs of formulas, in which letters are no options."""
    return _OF_FORMULAS.search(_SPACING.sub(" ", _WRAPPED.sub(r" \1 ", text))) is not None


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
