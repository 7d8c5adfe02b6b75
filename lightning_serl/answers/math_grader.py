"""Grader for math answers: rules where they decide, else math-verify in a worker process."""

from __future__ import annotations

import re
from typing import Any

from lightning_serl.answers.math.decide import decide_default, decide_unambiguous
from lightning_serl.answers.math.normal_form import is_abridged, normal_form
from lightning_serl.answers.reading.announced import is_prose, undisputed_number
from lightning_serl.answers.reading.answer_tag import answer_tag_span, bare
from lightning_serl.answers.reading.boxed import MAX_ANSWER, last_box, last_boxed
from lightning_serl.answers.reading.final_value import final_value
from lightning_serl.answers.reading.last_formula import first_formula, is_doubtful, last_formula
from lightning_serl.answers.reading.stated import stated_answer
from lightning_serl.answers.reading.surface import undressed, undressed_end
from lightning_serl.answers.reading.thinking import strip_thinking
from lightning_serl.answers.reading.values import as_value, is_sentence
from lightning_serl.answers.verifier.client import VerdictCache, shared_client
from lightning_serl.errors import check_choice

MODES = ("fast", "exact")

# Limits in seconds of the worker's processor time. In fast mode they keep any group below a second. In exact mode a
# group gets over twice the time of the slowest of 600 recorded groups; after an answer that took too long, or long to
# fail, the rest of its group gets at most _AFTER_SECONDS.
REQUEST_SECONDS = {"fast": 0.3, "exact": 0.5}
PROBE_SECONDS = 0.08
READ_SECONDS = {"fast": 0.4, "exact": 0.6}
# Every formula of a long derivation is parsed; its delimiters are counted to extend the limit.
_READ_SECONDS_A_MARK = 0.01
_MOST_READ_SECONDS = 2.5
GROUP_SECONDS = {"fast": 0.6, "exact": 4.0}
_AFTER_SECONDS = {"fast": 0.4, "exact": 0.25}
# A comparison takes 1 to 20 ms as a rule and then costs no budget, so that many honest answers never exhaust it.
FREE_SECONDS = 0.06
# Longer answers are compared by their normal forms only; in fast mode so are answers over the second length that the
# rules cannot decide.
_MAX_COMPARED = 1000
_MAX_UNDECIDED = 120
# Full extraction reads the end of a response; its regexes are slow on very long texts.
MAX_READ = 16_000
# An answer that cannot be compared with this one in time cannot be compared with anything.
_NEUTRAL = "7919"
# Less text behind a box is no statement of another answer.
_SHORTEST_STATEMENT = 8
_MARK = re.compile(r"(?m)^[ \t]*####[ \t]*(\S.*)$")
# Characters at the end in which a percentage counts as the one that a bare number repeats.
_RESTATED = 300
_STATES = re.compile(r"(?i)\W{0,4}(?:the |final |short |correct )*(?:answer|ans|solution|result)\b")
# "The answer is not 40."
_RULED_OUT = re.compile(r"(?i)\banswer (?:isn['’]t|is not) [^.;\n]{1,40}(?:[.;](?=\s)|$)")
_SAYS_SOMETHING = re.compile(r"[^\W_]|[\\∅∞]")

_CALCULATION = re.compile(
    r"\s*(?=[^=]*\d\s*(?:[-+*/^×÷·]|\\(?:times|div|cdot)\b))(?:[-+*/^×÷·()\d.,\s]|\\(?:times|div|cdot)\b)+"
    r"(?:=(?:[-+*/^×÷·()\d.,\s]|\\(?:times|div|cdot)\b)+)*=\s*([^=]*\d[^=]*)"
)


class MathGrader:
    r"""Reads ``\boxed{...}`` or "answer is ...", and compares numbers, LaTeX expressions, sets and equations.

    In ``"fast"`` mode equal normal forms are equal, plain numbers are compared exactly (to six places if one is a
    decimal) and formulas by their values at fixed points; math-verify compares the rest. ``"exact"`` mode gives
    math-verify's verdicts: it is asked unless two answers differ in value under every reading, or are the same whole
    number. Verdicts are cached across groups. An answer that math-verify cannot handle within its limits counts as
    equal to itself only; once a group's budget is spent, undecided answers count as different.

    ``timeouts`` counts the requests to the worker that ended with its death.

    Args:
        mode: ``"fast"`` or ``"exact"``; any other raises :class:`InputError`.

    Example:
        >>> grader = MathGrader()
        >>> grader.extract(r"Thus $x = \boxed{\dfrac{1}{2}}$.")
        '\\dfrac{1}{2}'
        >>> grader.same(r"\dfrac{1}{2}", "0.5")
        True
    """

    name = "math"

    def __init__(self, mode: str = "fast") -> None:
        check_choice("mode of the grader", mode, MODES)
        self.mode = mode
        self.timeouts = 0
        self._verdicts: VerdictCache[tuple[str, str]] = VerdictCache()
        self._comparable: VerdictCache[str] = VerdictCache()
        self._budget = GROUP_SECONDS[mode]

    def warm_up(self) -> None:
        """Start the worker without waiting for it, so that its imports do not delay the first group."""
        shared_client().start()

    def start_group(self, seconds: float | None = None) -> None:
        """Set the budget of processor time for the next group, by default the mode's."""
        self._budget = GROUP_SECONDS[self.mode] if seconds is None else seconds

    def extract(self, text: str) -> str | None:
        """The answer of a finished response: the last box, else the announced answer, else the last formula or number.

        From a box full of sentences the formula in it is read if there is no doubt which. In exact mode math-verify
        reads responses without a box unless all rules agree; where it takes too long, the text is read as in fast mode.
        """
        text = strip_thinking(text)
        box = last_box(text)
        tag = answer_tag_span(text)
        if tag is not None and (box is None or box.start < tag[1]):
            inside = text[tag[0] : tag[1]]
            return self._in_tag(inside) if "boxed" not in inside else tidy(last_boxed(inside))
        boxed = None if box is None else tidy(box.content)
        if self.mode == "fast" and box is not None and len(text) - box.stop > _SHORTEST_STATEMENT:
            later = stated_answer(text[box.stop :])
            if later is not None:
                return tidy(later)
        if boxed is not None and not is_prose(boxed):
            return boxed
        if boxed is not None:
            return self._read_sentences(boxed) if self.mode == "fast" else self._read(text, boxed)
        if self.mode == "exact":
            return undisputed_number(text) or self._read(text)
        return self._unboxed(text)

    def _in_tag(self, content: str) -> str | None:
        """The answer between tags: a formula or number as it stands, or the one that a sentence comes down to."""
        content = bare(content)
        value = as_value(undressed(content))
        if value is not None or not is_sentence(content):
            return value or tidy(content)
        return self._unboxed(content) or tidy(content)

    def _unboxed(self, text: str) -> str | None:
        """The answer of a response without a box in fast mode."""
        found = stated_answer(text) or final_value(text)
        if found is not None and found.isdigit() and re.search(rf"(?<![\d.]){found}%", text[-_RESTATED:]):
            found += r"\%"  # "... = 50%\nA: 50"
        if found is None:
            end = _RULED_OUT.sub("", text[-MAX_READ:]) if "nswer is" in text else text[-MAX_READ:]
            found = last_formula(undressed_end(end))
            if found is not None and is_doubtful(found):
                return self._read(text)
        return tidy(found)

    def _read_sentences(self, boxed: str) -> str:
        """The formula in a box full of sentences if its first and last formula are equal, else the sentences.

        A derivation need not end with its result, and a wrong vote is worse than a lost one.
        """
        last = tidy(last_formula(boxed))
        first = None if last is None else tidy(first_formula(boxed))
        return last if last is not None and first is not None and self.same(last, first) else boxed

    def _read(self, text: str, boxed: str | None = None) -> str | None:
        """The answer that math-verify finds in a text, else the box; if it takes too long, the box or last formula."""
        text = text[-MAX_READ:]
        limit = READ_SECONDS[self.mode]
        if self.mode == "exact":
            marks = sum(map(text.count, ("$", r"\(", r"\[")))
            limit = min(limit + _READ_SECONDS_A_MARK * marks, _MOST_READ_SECONDS)
        reply = self._ask("read", limit, text=text)
        if reply is None:
            return boxed or tidy(last_formula(text))
        return tidy(reply.get("answer")) or boxed

    def extract_truncated(self, text: str) -> str | None:
        """The last complete box or answer tag; a truncated response without one has no answer."""
        text = strip_thinking(text)
        box, tag = last_box(text), answer_tag_span(text, finished=False)
        if tag is not None and (box is None or box.start < tag[1]):
            return self._in_tag(text[tag[0] : tag[1]])
        return None if box is None else tidy(box.content)

    def label(self, text: str) -> str | None:
        r"""A gold label: bare (``\frac{1}{2}``), in dollars, after "Answer:", or at the end of a whole solution.

        A solution states its answer in a box, behind ``####`` or between answer tags.
        """
        box = tidy(last_boxed(text))
        if box is not None:
            return box
        mark = _MARK.findall(text)
        if mark:
            return tidy(mark[-1])
        tag = answer_tag_span(text)
        if tag is not None:
            return self._in_tag(text[tag[0] : tag[1]])
        if _STATES.match(text) or is_sentence(text):
            return tidy(stated_answer(text)) or tidy(text)
        return tidy(text)

    def same(self, a: str, b: str) -> bool:
        """Whether two answers are equal; symmetric, never raises, bounded in time."""
        if self.mode == "fast":
            a, b = _result(a), _result(b)
        if a == b:
            return True
        verdict = decide_default(a, b) if self.mode == "fast" else decide_unambiguous(a, b)
        if verdict is not None:
            return verdict
        a, b = sorted((a, b))
        known = self._verdicts.get((a, b))
        return self._compare(a, b) if known is None else known

    def _compare(self, a: str, b: str) -> bool:
        if self._budget < FREE_SECONDS or any(self._is_text(x) for x in (a, b)):
            return normal_form(a) == normal_form(b)
        full = self._budget >= REQUEST_SECONDS[self.mode]
        reply = self._ask("same", a=_box(a), b=_box(b))
        if reply is not None:
            # An error inside math-verify counts as its verdict that the two are not equal.
            return self._verdicts.put((a, b), bool(reply.get("same", False)))
        if full:
            # The verdict is cached only if the pair had its full time.
            self._verdicts.put((a, b), normal_form(a) == normal_form(b))
            for answer in (a, b):
                self._probe(answer)
        return normal_form(a) == normal_form(b)

    def _is_text(self, answer: str) -> bool:
        """Whether an answer is compared by its normal form only: too long, words, or known to take too long."""
        too_long = len(answer) > (_MAX_COMPARED if self.mode == "exact" else _MAX_UNDECIDED)
        return too_long or is_prose(answer) or is_abridged(answer) or self._comparable.get(answer) is False

    def _probe(self, answer: str) -> None:
        """Find out whether this answer was the one that took too long, so that it costs later groups nothing."""
        if answer in self._comparable or self._budget < PROBE_SECONDS:
            return
        reply = self._ask("same", limit=PROBE_SECONDS, a=_box(answer), b=_box(_NEUTRAL))
        self._comparable.put(answer, reply is not None)

    def _ask(self, op: str, limit: float | None = None, **fields: str) -> dict[str, Any] | None:
        """One request within the group's budget; ``None`` if the worker died of it or too little budget was left."""
        if self._budget < FREE_SECONDS:
            return None  # even an ordinary request would hit its limit and end the worker
        limit = min(limit or REQUEST_SECONDS[self.mode], self._budget)
        reply = shared_client().ask(op, limit, **fields)
        if reply is None:
            self.timeouts += 1
        spent = limit if reply is None else float(reply["seconds"])
        if spent > FREE_SECONDS:
            self._budget -= spent
            if reply is None or "error" in reply:
                self._budget = min(self._budget, _AFTER_SECONDS[self.mode])
        return reply


def _result(answer: str) -> str:
    """What a calculation with numbers alone comes to: 15 of ``7 + 8 = 15``; any other answer as it is.

    math-verify equates calculations whatever they come to, since their left sides are equal or both are true.
    """
    found = _CALCULATION.fullmatch(answer)
    return answer if found is None else found[1].strip()


def _box(answer: str) -> str:
    """The spelling that math-verify reads as one answer."""
    return "\\boxed{" + answer + "}"


def tidy(answer: str | None) -> str | None:
    """The answer without surrounding dollar signs and white space; ``None`` if nothing is left or it is too long."""
    if answer is None or len(answer) > MAX_ANSWER:
        return None
    answer = answer.strip()
    while len(answer) > 1 and answer[0] == answer[-1] == "$":
        answer = answer[1:-1].strip()
    return answer if _SAYS_SOMETHING.search(answer) else None
