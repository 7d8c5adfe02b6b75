"""Multiple-choice answers: one letter from A to J."""

from __future__ import annotations

import re
import unicodedata

from lightning_serl.answers.boxed import last_boxed
from lightning_serl.answers.thinking import strip_thinking

LETTERS = "ABCDEFGHIJ"
_TAIL = 4000
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_NOISE = r"[\s*_$\"'`\\({\[]*"
# A letter that a word follows is an article or a pronoun ("the answer is a dog", "I think"), not a choice.
_END = r"(?=[*_$\"'`}\]]*(?:[).:,;!\]。，、：；]|\s*$|\s*\n|\s+[-–—(]|\s+(?:because|since|as|is|as)\b))"
_ANNOUNCED = re.compile(
    rf"(?i:answer|choice|option|答案|选项|respuesta|réponse|antwort|risposta|resposta|ответ|答え|정답){_NOISE}"
    rf"(?i:is|are|es|est|ist|è|é|是|为|は|은|는)?[\s:：=*_]*(?i:option|choice)?{_NOISE}([A-J]){_END}"
)
_PARENTHESISED = re.compile(r"(?i:answer|choice|option)[\s*_]*(?i:is)?[\s:=*_]*\(([a-j])\)")
_LONE = re.compile(rf"{_NOISE}([A-J])[\s*_$\"'`)}}\].。]*")
_IN_BOX = re.compile(r"\(?\s*([A-Ja-j])\s*(?:\)|[.:,]|$)")


class ChoiceGrader:
    r"""Reads a boxed letter, "the answer is (C)", or a letter that stands alone at the end.

    Example:
        >>> grader = ChoiceGrader()
        >>> [grader.extract(text) for text in ("The answer is (C).", r"\boxed{\text{b}}", "So:\n**D**")]
        ['C', 'B', 'D']
        >>> grader.extract("I think the answer is a dog.") is None
        True
    """

    name = "choice"

    def extract(self, text: str) -> str | None:
        """The letter a finished response chooses, in upper case, or ``None``."""
        text = strip_thinking(text)
        found = _from_box(text)
        if found is not None:
            return found
        tail = unicodedata.normalize("NFKC", text[-_TAIL:])
        matches = [*_ANNOUNCED.finditer(tail), *_PARENTHESISED.finditer(tail)]
        if matches:
            return max(matches, key=lambda m: m.end()).group(1).upper()
        lines = [line for line in tail.splitlines() if line.strip()]
        lone = _LONE.fullmatch(lines[-1].strip()) if lines else None
        if lone is None and lines:
            # "... therefore (C)." at the end of a sentence
            lone = re.search(r"\(([A-J])\)[\s*_.]*$", lines[-1])
        return None if lone is None else lone.group(1)

    def extract_truncated(self, text: str) -> str | None:
        """A boxed letter; a response cut off before it chooses nothing."""
        return _from_box(strip_thinking(text))

    def label(self, text: str) -> str | None:
        """A gold label such as ``C``, ``(C)`` or ``C. 42``."""
        match = _IN_BOX.match(text.strip())
        return match.group(1).upper() if match is not None else self.extract(text)

    def same(self, a: str, b: str) -> bool:
        """Letters are equal or not."""
        return a == b


def _from_box(text: str) -> str | None:
    """The letter in the last box, if it holds one."""
    box = last_boxed(text)
    if box is None:
        return None
    content = unicodedata.normalize("NFKC", _WRAPPED.sub(r"\1", box)).replace("$", "").strip()
    match = _IN_BOX.match(content)
    return None if match is None else match.group(1).upper()
