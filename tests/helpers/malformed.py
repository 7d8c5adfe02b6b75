"""What the tests of broken inputs share: a time limit, the form of a message, broken parts of a user's."""

import contextlib
import signal
from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.types import Group, Verdict

LIMIT = 60  # seconds that a case may take on a machine that is busy with other work
LONGEST = 300  # characters of an error


class Overdue(BaseException):
    """Not an ordinary error: nothing may swallow it."""


@contextlib.contextmanager
def time_limit(seconds=LIMIT):
    """Raise :class:`Overdue` in what runs longer."""

    def ring(number, frame):
        raise Overdue(f"still at work after {seconds} s")

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def one_sentence(error, *words):
    """The message of an error, which must be one sentence of ours that holds these words."""
    said = str(error)
    assert "\n" not in said
    assert "Traceback" not in said
    assert len(said.split()) >= 4
    assert len(said) <= LONGEST, len(said)
    for word in words:
        assert word in said, said
    return said


# -- broken parts of a user's own, by class path -----------------------------------------------------------------


class Reward:
    """Scores alternate; from the second call on it does what ``how`` says."""

    needs: frozenset[str] = frozenset()

    def __init__(self, how: str):
        self.how, self.calls = how, 0

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        self.calls += 1
        verdicts = [Verdict(torch.arange(len(g)) % 2) for g in groups]
        if self.calls < 2:
            return verdicts
        return {
            "too few": lambda: verdicts[:-1],
            "too many": lambda: [*verdicts, *verdicts],
            "too few scores": lambda: [Verdict(v.scores[:-1]) for v in verdicts],
            "no number": lambda: [Verdict(v.scores / 0) for v in verdicts],
            "weight no number": lambda: [Verdict(v.scores, weight=v.scores * float("nan")) for v in verdicts],
            "nothing": lambda: None,
            "bare numbers": lambda: [0.5 for _ in verdicts],
            "words": lambda: [Verdict(["good"] * len(v.scores)) for v in verdicts],
            "missing key": lambda: {}["score"],
            "many lines": lambda: (_ for _ in ()).throw(RuntimeError("first line\nsecond line\n" + "x" * 1000)),
            "surrogate": lambda: (_ for _ in ()).throw(RuntimeError("half \ud800 a pair")),
            "assertion": lambda: (_ for _ in ()).throw(AssertionError),
        }[self.how]()


class Grader:
    """Reads the whole text; after some readings it does what ``how`` says."""

    def __init__(self, how: str = ""):
        self.how, self.calls = how, 0

    def extract(self, text: str) -> str | None:
        self.calls += 1
        if self.calls < 20:
            return text
        if self.how == "extract raises":
            raise RecursionError("too deep")
        return {"number": 7, "bytes": text.encode("utf-8", "replace"), "list": [text]}.get(self.how, text)

    def same(self, a: str, b: str) -> bool:
        if self.how == "same raises" and self.calls >= 20:
            raise ZeroDivisionError("by zero")
        return a == b


class NoExtract:
    def same(self, a: str, b: str) -> bool:
        return a == b


class NoSame:
    def extract(self, text: str) -> str | None:
        return text


class Uncallable:
    needs: frozenset[str] = frozenset()


class Swapped:
    def __call__(self, ctx, groups):
        return []


class OneParameter:
    def __call__(self, groups):
        return []


class ThreeParameters:
    def __call__(self, groups, ctx, temperature):
        return []


class UnknownNeeds:
    needs = frozenset({"gradients"})

    def __call__(self, groups, ctx):
        return []


class NeedsText(UnknownNeeds):
    needs = "entropy"


class RaisesAtOnce:
    def __init__(self):
        raise ValueError("no key was given in MY_KEY; set it")
