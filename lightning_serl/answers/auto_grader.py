"""The default grader: options, numbers and formulas, or words, by what a problem and the answers to it are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lightning_serl.answers.choice_grader import ChoiceGrader
from lightning_serl.answers.choices_in_text import split_choices
from lightning_serl.answers.detect import Kind, asks_for_number, asks_for_words, has_number, is_value
from lightning_serl.answers.math.normal_form import normal_form
from lightning_serl.answers.math.wholes import same_whole, whole
from lightning_serl.answers.math_grader import MathGrader, tidy
from lightning_serl.answers.reading.boxed import last_boxed
from lightning_serl.answers.reading.phrase import answer_phrase, is_sentence, labelled, says_nothing
from lightning_serl.answers.reading.thinking import strip_thinking
from lightning_serl.answers.text_grader import TextGrader, comparison_key, normalise, settle

_COMMAND = re.compile(r"\\[a-zA-Z]+")
_TYPESET = re.compile(r"[\\&]")
_WORD = re.compile(r"[^\W\d_]{4}")


class _Read(NamedTuple):
    """How a response can be read."""

    value: str | None  # as the math grader reads it
    words: str | None  # as the text grader reads it
    kind: str  # "value" or "words" where the answer itself shows it, "either" where only the group can tell
    named: bool = True  # whether it is boxed, tagged or announced


class AutoGrader:
    r"""Reads each problem's answers as what they are, so that no grader has to be chosen.

    Where a problem has options, given or listed in its text, answers are letters (:class:`ChoiceGrader`). Otherwise
    numbers, quantities and formulas are read and compared by :class:`MathGrader`, all other answers as words by
    :class:`TextGrader`. Which of the two reads a sentence with a number in it ("Apollo 11 landed", "So 11 are left") is
    decided for the group: by what most of its unmistakable answers are, else by what the problem asks for, else by
    which reading agrees more. The decision does not depend on the order of the responses.

    Args:
        mode: Of the math grader, ``"fast"`` or ``"exact"``; any other raises :class:`InputError`.

    Example:
        >>> grader = AutoGrader()
        >>> [grader.extract(text) for text in ("12 apples", "The answer is 12.", r"\boxed{\text{Paris}}")]
        ['12', '12', 'Paris']
        >>> grader.same("12", "12 apples"), grader.same("NaCl", "ClNa")
        (True, False)
        >>> grader.for_problem("Which metal is liquid?", ["iron", "mercury"]).extract("It is mercury.")
        'B'
    """

    name = "auto"

    def __init__(self, mode: str = "fast") -> None:
        self.mode = mode
        self._open = OpenGrader(MathGrader(mode))

    def for_problem(self, prompt: str, choices: Sequence[str] | None = None) -> ChoiceGrader | OpenGrader:
        """The grader of a problem's answers."""
        if choices or split_choices(prompt)[1] is not None:
            return ChoiceGrader().for_problem(prompt, choices)
        expects = True if asks_for_number(prompt) else False if asks_for_words(prompt) else None
        return OpenGrader(self._open.math, expects, counts=not prompt or has_number(prompt))

    def kind_of(self, answer: str, prompt: str, choices: Sequence[str] | None = None) -> Kind:
        """As what an answer to a problem was read."""
        if isinstance(self.for_problem(prompt, choices), ChoiceGrader):
            return "choice"
        return "math" if is_value(answer) else "text"

    def warm_up(self) -> None:
        """See :meth:`MathGrader.warm_up`."""
        self._open.math.warm_up()

    def start_group(self, seconds: float | None = None) -> None:
        """See :meth:`MathGrader.start_group`."""
        self._open.math.start_group(seconds)

    def extract(self, text: str) -> str | None:
        """The answer of a finished response to a problem without options, ``None`` if it has none."""
        return self._open.extract(text)

    def extract_truncated(self, text: str) -> str | None:
        """The last complete box; a truncated response without one has no answer."""
        return self._open.extract_truncated(text)

    def label(self, text: str) -> str | None:
        """A gold label of a problem without options."""
        return self._open.label(text)

    def same(self, a: str, b: str) -> bool:
        """Whether two answers to one problem are equal."""
        return self._open.same(a, b)


class OpenGrader:
    """Reads the answers to one problem without options: values by the math grader, words by the text grader.

    Args:
        math: The grader of values, shared by all problems of a run.
        expects_number: Whether the problem asks for a number; ``None`` if that is unknown.
        counts: Whether the problem holds numbers; then a sentence with a number is read as that number in doubt.
    """

    name = "auto"

    def __init__(self, math: MathGrader, expects_number: bool | None = None, counts: bool = True) -> None:
        self.math, self.expects_number, self.counts = math, expects_number, counts
        self.text = TextGrader()

    def extract(self, text: str) -> str | None:
        """The answer of a finished response that is alone in its group, or ``None``."""
        return self.read_group([text], [True])[0]

    def extract_truncated(self, text: str) -> str | None:
        """The last complete box; a truncated response without one has no answer."""
        return self.read_group([text], [False])[0]

    def read_group(self, texts: Sequence[str], finished: Sequence[bool]) -> list[str | None]:
        """The answers of ``n`` responses to the problem, in order; ``None`` for no answer."""
        read: dict[tuple[str, bool], _Read] = {}
        for text, done in sorted(set(zip(texts, map(bool, finished), strict=True))):
            read[text, done] = self._read(text) if done else self._read_box(text)
        each = [read[text, bool(done)] for text, done in zip(texts, finished, strict=True)]
        as_values = self._are_values(each)
        return [_choose(one, as_values) for one in each]

    def label(self, text: str) -> str | None:
        """A gold label: a value as the math grader reads it, words as the text grader does."""
        answer = labelled(text)
        return self.math.label(text) if is_value(answer) else normalise(answer, fold=False)

    def same(self, a: str, b: str) -> bool:
        """Whether two answers are equal in value or in words; symmetric, never raises, bounded in time."""
        if a == b:
            return True
        values = is_value(a), is_value(b)
        if not any(values) and (self.text.same(a, b) or _same_date(a, b)):
            return True
        if self.expects_number and not any(map(_is_phrase, (a, b))):
            return self.math.same(a, b)
        return any(values) and all(is_value(x) or has_number(x) for x in (a, b)) and self.math.same(a, b)

    def settle(self, answers: Sequence[str]) -> dict[str, str]:
        """See :meth:`TextGrader.settle`; values stand for themselves."""
        return settle([a for a in answers if not is_value(a)])

    def _read(self, text: str) -> _Read:
        """Both readings of a finished response."""
        value, phrase = self.math.extract(text), answer_phrase(text)
        words = None if phrase is None or says_nothing(phrase) else normalise(phrase.text, fold=False)
        if phrase is None or words is None:
            return _Read(value, None, "either")
        if phrase.sure and is_value(phrase.text) and (value or phrase.named or not _TYPESET.search(phrase.text)):
            return _Read(value or tidy(phrase.text), words, "value")
        if phrase.sure and not has_number(phrase.text):
            return _Read(value, words, "words", phrase.named)
        return _Read(value, words, "either", phrase.named)

    def _read_box(self, text: str) -> _Read:
        """Both readings of the last box of a response that was cut off."""
        box = last_boxed(strip_thinking(text))
        if box is None:
            return _Read(None, None, "none")
        return _Read(
            self.math.extract_truncated(text), normalise(box, fold=False), "value" if is_value(box) else "words"
        )

    def _are_values(self, each: Sequence[_Read]) -> bool:
        """Whether answers that could be either are values."""
        kinds = Counter(one.kind for one in each)
        if self.expects_number:
            return 2 * kinds["words"] <= sum(one.value is not None or one.words is not None for one in each)
        if kinds["value"] or kinds["words"]:
            return kinds["value"] > kinds["words"]
        if self.expects_number is False:
            return False
        values = Counter(normal_form(one.value) for one in each if one.value is not None)
        words = Counter(comparison_key(one.words) for one in each if one.words is not None)
        most = max(values.values(), default=0), max(words.values(), default=0)
        if most[0] != most[1]:
            return most[0] > most[1]
        if not self.counts:
            return False
        # Whole sentences are no answers, whereas a name such as "Apollo 11" is.
        return any(one.words is None or is_sentence(one.words) for one in each if one.value is not None)


def _same_date(a: str, b: str) -> bool:
    """Whether two answers are one day: "July 4", "4th of July"."""
    if not (a[:20].strip() and any(c.isdigit() for c in a) and any(c.isdigit() for c in b)):
        return False
    found = whole(a)
    return found is not None and found.kind == "date" and same_whole(a, b) is True


def _is_phrase(answer: str) -> bool:
    """Whether an answer is words: a word of four letters or more outside commands, and no value."""
    return not is_value(answer) and _WORD.search(_COMMAND.sub(" ", answer)) is not None


def _choose(one: _Read, as_values: bool) -> str | None:
    """The reading of a response in its group."""
    if one.kind == "value" or (as_values and one.value is not None):
        return one.value
    # Among values, what merely stands at the end in words is no answer.
    return one.words if one.named or not as_values else None
