"""Runs a command and ends it, with every process it started, when the parent process ends.

A script that needs the standard library only: ``python -I watchdog.py PARENT LOG COMMAND...``. Its standard input is a
pipe whose other end the parent holds. When that end closes, through ``LocalServer.stop`` or because the parent died of
any signal, the command's process group gets SIGTERM and, five seconds later, SIGKILL.
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
    """Run the command, its output appended to ``log``, until it or the parent ends; returns its exit status."""
    prctl = _prctl()
    # processes orphaned by the command become children of this one, which ends them too
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with open(log, "ab", buffering=0) as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # for the case that this process is killed; on Linux only
            preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)),
        )
    asked = [False]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.__setitem__(0, True))
    while child.poll() is None and not asked[0]:
        # a process that the parent forked may keep the pipe open, so the parent's death is checked too
        if select.select([0], [], [], 0.5)[0] or os.getppid() != parent:
            break
    _end(child)
    return child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the process group, then SIGKILL to the group and all descendants until none is left."""
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
    with contextlib.suppress(OSError):  # it has ended
        os.killpg(group, number)


def _reap() -> list[int]:
    """Reap ended children; returns the process ids of those that still run."""
    left: list[int] = []
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as listed:
        left = [int(pid) for pid in listed.read().split()]
    for pid in list(left):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                left.remove(pid)
    return left


def _prctl() -> Callable[[int, int], int]:
    """The system call ``prctl``, or a function that does nothing where there is none."""
    try:
        call: Callable[[int, int], int] = ctypes.CDLL(None).prctl
        return call
    except (OSError, AttributeError):
        return lambda option, value: -1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
