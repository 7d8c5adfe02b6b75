"""Errors for users: each message is one sentence that says what was wrong, where, and how to fix it."""

from __future__ import annotations

import difflib
import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

_PACKAGE = str(Path(__file__).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class SeRLError(Exception):
    """Base of this package's errors: ``str(error)`` is one sentence, which the command line prints after ``error:``."""


class InputError(SeRLError, ValueError):
    """A file, option or model directory cannot be used (exit status 2 before work began)."""


class PushMismatch(SeRLError):
    """The rollout engine does not hold the weights it should (wrong version, names, bytes or log-probs)."""


class RankFailure(SeRLError):
    """A stage failed on another rank; the message is that of the first rank that failed."""


class RankLoss(RankFailure):
    """A rank ended before the run did, by a signal or an error; nothing that waits for it can succeed."""


class EmptyRound(SeRLError):
    """A round has no group to train on after ``max_attempts`` attempts; the events of ``played`` say why.

    ``agreed`` says that the responses to every problem agree on a label, so that nothing is left to learn from it.
    """

    def __init__(self, message: str, played: Any = None, agreed: bool = False) -> None:
        super().__init__(message)
        self.played, self.agreed = played, agreed


class StorageFailure(SeRLError):
    """A file of the run cannot be written: disk full, no permission, or the disk is gone."""


class NotFinite(SeRLError):
    """Weights, or too many optimizer steps in a row, hold values that are NaN or infinite; nothing of them is saved."""


class EngineFailure(SeRLError):
    """The rollout engine cannot generate: it is gone, refused the model, or is out of memory."""


class HubFailure(SeRLError):
    """The hub did not take what was pushed: it is gone, refused the token or the files, or was interrupted."""


def short(name: str) -> str:
    """The name in quotes, shortened at its start to 100 characters so that the rest of a message fits."""
    return repr(name if len(name) <= 100 else f"...{name[-97:]}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean NAME?`` for the known name that a wrong one is near to or the beginning of; empty if none is.

    Upper and lower case are alike.
    """
    typed, by_lower = name.lower(), {one.lower(): one for one in known}
    near = [one for one in by_lower if len(typed) > 2 and one.startswith(typed)]
    near = near or difflib.get_close_matches(typed, by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def reason(error: BaseException) -> str:
    """The first line of another library's message, in at most 120 characters."""
    lines = [" ".join(line.split()) for line in str(error).strip().splitlines()] or [type(error).__name__]
    heading = lines[0].endswith(":") or " validation error" in lines[0]  # the second is pydantic's
    first = (" ".join(lines[:2]) if heading else lines[0]).rstrip(".: ")
    return first if len(first) <= 120 else f"{first[:117]}..."


def own_place(error: BaseException) -> str | None:
    """``file.py:12 (Class.method)`` of the innermost frame in code of the user's that this package called.

    The errors that an error was raised from are looked at too. A syntax error has its own file and line. ``None`` if no
    such code took part.
    """
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        if isinstance(one, SyntaxError) and one.filename and not _is_library(one.filename):
            return f"{Path(one.filename).name}:{one.lineno}"
        # the traceback of an error that another one was raised from begins where it was caught, inside of this package
        if place := _innermost(one.__traceback__, ours=one is not error):
            return place
        one = one.__cause__ or one.__context__
    return None


def said_by(error: BaseException) -> str:
    """Type and message of an error in one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return ": ".join([type(error).__name__, *(" ".join(text.split()),) * bool(text)])


def _innermost(trace: TracebackType | None, ours: bool) -> str | None:
    """The place of the innermost frame of the user's own code below this package's, or anywhere if ``ours``."""
    place = None
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith(_PACKAGE):
            ours = True
        elif ours and not _is_library(code.co_filename):
            place = f"{Path(code.co_filename).name}:{trace.tb_lineno}" + _function(code.co_qualname)
        trace = trace.tb_next
    return place


def _is_library(filename: str) -> bool:
    installed = "site-packages" in filename or "dist-packages" in filename
    return filename.startswith(("<", _PACKAGE, *_LIBRARIES)) or installed


def _function(name: str) -> str:
    """The name of a frame's function in brackets; empty for the code of a module."""
    return "" if name == "<module>" else f" ({name.replace('.<locals>', '')})"


def check_range(
    option: str,
    value: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> None:
    """Refuse a number outside its range. NaN is outside every range; ``None``, an option that is not set, passes.

    ``option`` is what the user types, such as ``data.writing.sampling.top_p``; ``hint`` gives the reason or the remedy
    where the bounds alone do not say it. The InputError names option, bounds and value.
    """
    if value is None:
        return
    inside = (
        (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    if not inside or value != value:
        bounds = (("at least", at_least), ("above", above), ("at most", at_most), ("below", below))
        said = " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)
        raise InputError(f"{option} must be {said}, got {value}{hint and '; ' + hint}")


def check_target(option: str, path: Path) -> None:
    """Refuse a file that could not be written once the work is done, with an InputError that names the option."""
    shown = short(str(path))
    if path.is_dir():
        raise InputError(f"{option} {shown} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise InputError(f"{option}: the folder of {shown} does not exist; make it, or name another file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{option}: {shown} cannot be written (no permission); name another file")


def check_choice(option: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is none of the choices, with an InputError that names option, choices and value."""
    known = list(choices)
    if value not in known:
        listed = " or ".join([", ".join(map(str, known[:-1])), str(known[-1])])
        raise InputError(f"{option} must be {listed}, got {value!r}")
