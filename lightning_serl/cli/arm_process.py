"""Runs one arm of a comparison as a separate process, whose output goes to a log file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_serl.cli.run_folder import CommandState

#: Seconds between two lines that relay what a running arm says.
EVERY = 60.0


def run_arm(arguments: Sequence[str], log: Path, state: CommandState, relay: Callable[[str], None]) -> int:
    """Run ``lightning-serl`` with arguments and append its output to ``log``; returns its exit status.

    It is negative where a signal ended the process. Ctrl-C is handed on once, so that the arm saves a checkpoint, and
    raised again when it has ended. ``relay`` gets the newest line of the log once a minute.
    """
    command = [sys.executable, "-m", "lightning_serl", *arguments]
    with log.open("ab") as file:
        # in a new session, so that Ctrl-C reaches it once, from here
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    state.children = lambda: [process]
    try:
        while True:
            try:
                return process.wait(EVERY)
            except subprocess.TimeoutExpired:
                relay(last_line(log))
    except BaseException:
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        state.children = list


def last_line(log: Path) -> str:
    """The newest line of a log; empty if there is none."""
    lines = _tail(log)
    return lines[-1] if lines else ""


def reason_of(status: int, log: Path) -> str:
    """Why an arm ended with a status other than 0, in one sentence."""
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        hint = ", which the system sends where memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    said = [line for line in _tail(log) if line.startswith("error: ")]
    return said[-1].removeprefix("error: ") if said else f"it ended with status {status} and no message"


def _tail(log: Path, size: int = 4096) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]
