"""Runs the arms of a comparison as separate processes, some at a time, whose output goes to log files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from lightning_serl.cli.run_folder import CommandState

#: Seconds between two lines that relay what a running arm says.
EVERY = 60.0
# Seconds between two looks at the running processes.
_POLL = 0.1

#: The processes of an arm, one after another: each is yielded when it has started, and its exit status is sent.
Steps: TypeAlias = Generator["ArmProcess", int, None]


class ArmProcess:
    """A process of ``lightning-serl`` whose output is appended to a log.

    Args:
        arguments: Of ``lightning-serl``.
        log: The file.
        relay: Gets the newest line of the log once a minute.
        threads: ``OMP_NUM_THREADS`` of the process; ``None`` leaves the environment as it is.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, relay: Callable[[str], None], threads: int | None = None
    ) -> None:
        self.log, self.relay, self._said = log, relay, time.monotonic()
        env = None if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with log.open("ab") as file:
            # in a new session, so that Ctrl-C reaches it once, from here
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "lightning_serl", *arguments],
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=env,
            )  # fmt: skip

    def poll(self) -> int | None:
        """Its exit status, negative where a signal ended it; ``None`` while it runs, and then its log is relayed."""
        status = self.popen.poll()
        if status is None and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            self.relay(last_line(self.log))
        return status

    def interrupt(self) -> None:
        """Hand Ctrl-C on, so that it saves a checkpoint."""
        with contextlib.suppress(OSError):
            self.popen.send_signal(signal.SIGINT)


def run_arms(arms: Iterable[Callable[[], Steps]], jobs: int, state: CommandState) -> None:
    """Run arms in their order, ``jobs`` at a time.

    Ctrl-C, or any exception, is handed on to all running processes once. When they have ended it is raised again, also
    inside the steps of each arm.
    """
    waiting, running = deque(arms), dict[int, tuple[Steps, ArmProcess]]()
    state.children = lambda: [process.popen for _, process in running.values()]
    number = 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, steps = number + 1, waiting.popleft()()
                running[number] = steps, next(steps)
            time.sleep(_POLL)
            for key, (steps, process) in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                try:
                    running[key] = steps, steps.send(status)
                except StopIteration:
                    del running[key]
    except BaseException as error:
        for _, process in running.values():
            process.interrupt()
        for steps, process in running.values():
            process.popen.wait()
            with contextlib.suppress(type(error), StopIteration):
                steps.throw(error)
        raise
    finally:
        state.children = list


def threads_of(jobs: int, ranks: int) -> int | None:
    """``OMP_NUM_THREADS`` of each process where several arms run at a time; ``None`` for one arm, or if it is set."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (jobs * ranks))


def seconds_left(ended: Sequence[float], running: Sequence[float], waiting: int, jobs: int) -> float:
    """Seconds until all arms have ended, if each takes the mean of those that have ended, in their order.

    Args:
        ended: Seconds of each arm that has ended, at least one.
        running: Seconds that each running arm has taken so far.
        waiting: Arms that are still to start.
        jobs: Arms that run at a time.
    """
    mean = sum(ended) / len(ended)
    lanes = [max(0.0, mean - taken) for taken in running] + [0.0] * (jobs - len(running))
    for _ in range(waiting):
        lanes[lanes.index(min(lanes))] += mean
    return max(lanes)


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
