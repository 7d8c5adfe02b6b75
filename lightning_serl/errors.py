"""The errors a user can meet: each message is one sentence that says what was wrong, where, and how to mend it."""

from __future__ import annotations

from typing import Any


class SeRLError(Exception):
    """Base of every error this package raises on purpose.

    ``str(error)`` is a single sentence for a person; the command line prints it after ``error:``.
    """


class InputError(SeRLError, ValueError):
    """A file, option or model directory given by the user cannot be used (exit status 2)."""


class PushMismatch(SeRLError):
    """The rollout engine does not hold the weights it should (wrong version, names, bytes or log-probs)."""


class RankFailure(SeRLError):
    """A stage failed on some rank; raised with the first rank's message on all ranks."""


class EmptyRound(SeRLError):
    """No group of a round survived its filters after ``max_attempts`` attempts.

    Args:
        message: The sentence for the user.
        played: The round, whose events say why.
    """

    def __init__(self, message: str, played: Any = None) -> None:
        super().__init__(message)
        self.played = played


class StorageFailure(SeRLError):
    """A file of the run cannot be written: no room, a folder without permission, a disk that is gone."""


class EngineFailure(SeRLError):
    """The rollout engine cannot generate (gone, refused the model, out of memory)."""


def short(name: str) -> str:
    """The name in quotes, its start left out where it is long, so that a message keeps its remedy."""
    return repr(name if len(name) <= 100 else f"...{name[-97:]}")


def reason(error: BaseException) -> str:
    """The first line of another library's message, short enough to stand in a sentence of ours."""
    lines = [" ".join(line.split()) for line in str(error).strip().splitlines()] or [type(error).__name__]
    heading = lines[0].endswith(":") or " validation error" in lines[0]  # the second is pydantic's
    first = (" ".join(lines[:2]) if heading else lines[0]).rstrip(".: ")
    return first if len(first) <= 120 else f"{first[:117]}..."
