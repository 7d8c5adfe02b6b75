r"""Mathematical answers: the last box, plain rules where they decide, math-verify in a worker process where not."""

from __future__ import annotations

import re
from typing import Any

from lightning_serl.answers.math.digits import plain_script
from lightning_serl.answers.math.normal_form import decide, is_abridged, normal_form, settle
from lightning_serl.answers.reading.announced import announced, certain, is_prose
from lightning_serl.answers.reading.boxed import MAX_ANSWER, last_boxed
from lightning_serl.answers.reading.last_formula import is_doubtful, opening, unmarked
from lightning_serl.answers.reading.thinking import strip_thinking
from lightning_serl.answers.verifier.cache import Memo
from lightning_serl.answers.verifier.client import shared_client
from lightning_serl.errors import InputError

MODES = ("fast", "exact")

# Seconds of the worker's processor time. In fast mode they keep one group below a second, whatever it holds. In exact
# mode an honest group has over twice what the slowest of 600 recorded ones needs; where an answer took too long, or
# long to fail, the rest of its group gets little more.
REQUEST_SECONDS = {"fast": 0.3, "exact": 0.5}
PROBE_SECONDS = 0.08
READ_SECONDS = {"fast": 0.4, "exact": 0.6}
# Every formula of a long derivation is parsed; dollars and brackets count its formulas.
_READ_SECONDS_A_MARK = 0.01
_MOST_READ_SECONDS = 2.5
GROUP_SECONDS = {"fast": 0.6, "exact": 4.0}
_AFTER_SECONDS = {"fast": 0.4, "exact": 0.25}
# An ordinary comparison takes 1 to 20 ms and is free, so that many honest answers never exhaust a group's budget.
FREE_SECONDS = 0.06
# Longer answers are compared by their normal form only.
_MAX_COMPARED = 1000
# So are, in fast mode, formulas of this length of which the plain rules know nothing.
_MAX_UNKNOWN = 120
# Full extraction reads the end of a response; its regexes are slow on very long texts.
_MAX_READ = 16_000
# A neutral partner: an answer that cannot be compared with it in time cannot be compared with anything.
_NEUTRAL = "7919"
_SAYS_SOMETHING = re.compile(r"[^\W_]|[\\∅∞]")


class MathGrader:
    r"""Reads ``\boxed{...}`` or "answer is ...", and compares numbers, LaTeX expressions, sets and equations.

    In ``"fast"`` mode equal normal forms are equal, plain numbers are compared exactly (to six places if one is a
    decimal) and formulas by their values at fixed points; math-verify sees only what is left. ``"exact"`` mode gives
    math-verify's verdicts: it is asked unless two answers differ in value under every reading, or are the same whole
    number. Verdicts are remembered across groups. An answer that math-verify cannot handle in time or memory is
    remembered as equal to itself only; once a group's budget is spent, what is left counts as different.

    Args:
        mode: ``"fast"`` or ``"exact"``.

    Attributes:
        timeouts: How many requests to the worker ended with its death.

    Raises:
        InputError: for an unknown mode.

    Example:
        >>> grader = MathGrader()
        >>> grader.extract(r"Thus $x = \boxed{\dfrac{1}{2}}$.")
        '\\dfrac{1}{2}'
        >>> grader.same(r"\dfrac{1}{2}", "0.5")
        True
    """

    name = "math"

    def __init__(self, mode: str = "fast") -> None:
        if mode not in MODES:
            raise InputError(f"the math grader has no mode {mode!r}; use one of {', '.join(MODES)}")
        self.mode = mode
        self.timeouts = 0
        self._verdicts: Memo[tuple[str, str], bool] = Memo()
        self._sound: Memo[str, bool] = Memo()
        self._budget = GROUP_SECONDS[mode]

    def warm_up(self) -> None:
        """Start the worker without waiting for it, so that the first group need not wait for its imports."""
        shared_client().start()

    def start_group(self, seconds: float | None = None) -> None:
        """Grant a new budget of slow processor time, by default the mode's."""
        self._budget = GROUP_SECONDS[self.mode] if seconds is None else seconds

    def extract(self, text: str) -> str | None:
        """The last box, else what is announced or what the text comes down to; ``None`` if nothing.

        A box full of sentences is answered by the formula in it, if there is no doubt which. In exact mode math-verify
        reads the response, unless it holds a box or all rules agree; what it cannot read in time is read as in fast
        mode.
        """
        text = strip_thinking(text)
        boxed = _tidy(last_boxed(text))
        if boxed is not None and not is_prose(boxed):
            return boxed
        if boxed is not None:
            return self._read_sentences(boxed) if self.mode == "fast" else self._read(text, boxed)
        if self.mode == "exact":
            return certain(text) or self._read(text)
        said = announced(text)
        if said is not None:
            return _tidy(said)
        found = unmarked(text)
        return self._read(text) if found is not None and is_doubtful(found) else _tidy(found)

    def _read_sentences(self, boxed: str) -> str:
        """The formula in a box full of sentences if two readings agree on it, else the sentences themselves.

        What a derivation ends with need not be what it arrives at, and a wrong vote is worse than a lost one.
        """
        last = _tidy(unmarked(boxed))
        first = None if last is None else _tidy(opening(boxed))
        return last if last is not None and first is not None and self.same(last, first) else boxed

    def _read(self, text: str, boxed: str | None = None) -> str | None:
        """What math-verify finds in a text; the box where it finds nothing, our own reading where it takes too long."""
        text = text[-_MAX_READ:]
        limit = READ_SECONDS[self.mode]
        if self.mode == "exact":
            marks = sum(map(text.count, ("$", r"\(", r"\[")))
            limit = min(limit + _READ_SECONDS_A_MARK * marks, _MOST_READ_SECONDS)
        reply = self._ask("read", limit, text=text)
        if reply is None:
            return boxed or _tidy(unmarked(text))
        return _tidy(reply.get("answer")) or boxed

    def extract_truncated(self, text: str) -> str | None:
        """The last complete box; a response that was cut off before it says nothing."""
        return _tidy(last_boxed(strip_thinking(text)))

    def label(self, text: str) -> str | None:
        r"""A gold label, bare (``\frac{1}{2}``), in dollars, or a whole solution with a box."""
        return _tidy(last_boxed(text)) or _tidy(text)

    def same(self, a: str, b: str) -> bool:
        """Whether two answers are equal; symmetric, never raises, bounded in time."""
        if self.mode == "fast":
            a, b = plain_script(a), plain_script(b)
        if a == b:
            return True
        plain = decide(a, b) if self.mode == "fast" else settle(a, b)
        if plain is not None:
            return plain
        pair = (a, b) if a < b else (b, a)
        known = self._verdicts.get(pair)
        return self._compare(*pair) if known is None else known

    def _compare(self, a: str, b: str) -> bool:
        if self._budget < FREE_SECONDS or any(self._is_text(x) for x in (a, b)):
            return normal_form(a) == normal_form(b)
        full = self._budget >= REQUEST_SECONDS[self.mode]
        reply = self._ask("same", a=_box(a), b=_box(b))
        if reply is not None:
            # An error inside math-verify means that it cannot equate the two, which is its verdict on them.
            return self._verdicts.put((a, b), bool(reply.get("same", False)))
        if full:
            # A verdict for this pair is final only if it had its full time.
            self._verdicts.put((a, b), normal_form(a) == normal_form(b))
            for answer in (a, b):
                self._probe(answer)
        return normal_form(a) == normal_form(b)

    def _is_text(self, answer: str) -> bool:
        """Whether an answer is compared by its normal form only: too long, words, or known to take too long."""
        if len(answer) > (_MAX_COMPARED if self.mode == "exact" else _MAX_UNKNOWN) or is_prose(answer):
            return True
        return is_abridged(answer) or self._sound.get(answer) is False

    def _probe(self, answer: str) -> None:
        """Find out whether this answer was the one that took too long, so that it costs no further group."""
        if answer in self._sound or self._budget < PROBE_SECONDS:
            return
        self._sound.put(answer, self._ask("same", limit=PROBE_SECONDS, a=_box(answer), b=_box(_NEUTRAL)) is not None)

    def _ask(self, op: str, limit: float | None = None, **fields: str) -> dict[str, Any] | None:
        """One request within the group's budget; ``None`` if it ended with the worker's death or was not made."""
        if self._budget < FREE_SECONDS:
            return None  # too little for an ordinary request: it would only cost the worker its life
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


def _box(answer: str) -> str:
    """The spelling that math-verify reads as one answer."""
    return "\\boxed{" + answer + "}"


def _tidy(answer: str | None) -> str | None:
    """Without dollar signs and blanks around it; ``None`` if nothing is left or it is far too long."""
    if answer is None or len(answer) > MAX_ANSWER:
        return None
    answer = answer.strip()
    while len(answer) > 1 and answer[0] == answer[-1] == "$":
        answer = answer[1:-1].strip()
    return answer if _SAYS_SOMETHING.search(answer) else None
