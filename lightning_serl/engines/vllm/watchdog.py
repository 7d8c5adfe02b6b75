"""Runs one command and ends it, with everything it started, when whoever asked for it is gone.

Run as a script with the standard library alone: ``python -I watchdog.py PARENT LOG COMMAND...``. Its standard input is
a pipe whose other end its parent holds: when that closes, by :meth:`LocalServer.stop` or by any death of the parent,
SIGKILL included, the command's process group gets SIGTERM and, five seconds later, SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(parent: int, log: str, command: list[str]) -> int:
    """Run the command until it ends, or the parent does; returns its exit status."""
    prctl = _prctl()
    # what the command leaves behind becomes our child, and is ended too
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with open(log, "ab", buffering=0) as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # if we are killed ourselves; only Linux knows it
            preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)),
        )
    asked = [False]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.__setitem__(0, True))
    while child.poll() is None and not asked[0]:
        # the pipe may live on in a process that the parent forked, so its death is looked for as well
        if select.select([0], [], [], 0.5)[0] or os.getppid() != parent:
            break
    _end(child)
    return child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the group, SIGKILL to what is left of it and of our descendants, until there is nothing left."""
    _signal_group(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and (child.poll() is None or _reap()):
        time.sleep(0.05)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        _signal_group(child.pid, signal.SIGKILL)
        child.wait()
        left = _reap()
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.05)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it ended by itself
        os.killpg(group, number)


def _reap() -> list[int]:
    """Collect what was adopted and has ended; returns what still runs of it."""
    left: list[int] = []
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as listed:
        left = [int(pid) for pid in listed.read().split()]
    for pid in list(left):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                left.remove(pid)
    return left


def _prctl() -> Callable[[int, int], int]:
    """The call of that name, or one that does nothing where there is none."""
    try:
        call: Callable[[int, int], int] = ctypes.CDLL(None).prctl
        return call
    except (OSError, AttributeError):
        return lambda option, value: -1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
