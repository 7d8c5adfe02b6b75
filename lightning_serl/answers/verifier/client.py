"""The parent's side of the math-verify worker: started on first use, shared by all graders of a process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lightning_serl.answers.verifier.worker import WALL_FACTOR
from lightning_serl.errors import SeRLError

START_SECONDS = 120.0
# The worker's own timers end a request; this much later the parent no longer believes in them.
_GRACE_SECONDS = 3.0
_ROOT = str(Path(__file__).resolve().parents[3])
# The package is found where this file is, whatever the working directory; nothing else is imported from there.
_BOOT = (
    "import sys; root = sys.argv.pop(); sys.path.insert(0, root); "
    "import lightning_serl.answers.verifier.worker as worker; sys.path.remove(root); worker.main()"
)


class WorkerClient:
    """One worker process and the pipes to it; safe to use from several threads.

    Attributes:
        deaths: How many requests ended with the worker's death (time or memory).
        requests: How many requests were made.
        seconds: The processor time they took, a death at its full limit; starting a process is not counted.
    """

    def __init__(self) -> None:
        self.deaths = 0
        self.requests = 0
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._buffer = b""

    def start(self) -> None:
        """Start the process without waiting for it; a second call does nothing."""
        with self._lock:
            self._start()

    def ask(self, op: str, limit: float, **fields: str) -> dict[str, Any] | None:
        """Make one request.

        Args:
            op: ``"same"`` or ``"read"``, see :mod:`lightning_serl.answers.verifier.worker`.
            limit: Seconds of processor time; starting the process is not counted.
            fields: What the operation needs.

        Returns:
            The reply, or ``None`` if the worker died of it.

        Raises:
            SeRLError: if the worker cannot start at all.
        """
        with self._lock:
            self._await_ready()
            self.requests += 1
            request = {"id": self.requests, "op": op, "limit": limit, **fields}
            # ensure_ascii carries NUL and lone surrogates through the pipe.
            data = json.dumps(request, ensure_ascii=True).encode("ascii") + b"\n"
            deadline = time.monotonic() + limit * WALL_FACTOR + _GRACE_SECONDS
            self._drain()
            try:
                self._write(data, deadline)
                while True:
                    reply = self._read_line(deadline)
                    if reply is None or "died" in reply:
                        break
                    if reply.get("id") == request["id"]:
                        self.seconds += reply["seconds"]
                        return reply
            except OSError:
                reply = None  # a broken pipe: the process is gone, and with it the request
            self.deaths += 1
            self.seconds += limit
            if reply is None:
                self._stop()
            return None

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            self._stop()

    def abandon(self) -> None:
        """Forget the process without ending it: in a forked child it belongs to the parent."""
        process, self._process, self._ready, self._buffer = self._process, None, False, b""
        self._lock = threading.Lock()
        if process is not None and process.stdin is not None and process.stdout is not None:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # not ours to wait for

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._stop()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # Its own session: Ctrl-C in the terminal is for the run, and one signal ends the whole group.
            start_new_session=True,
            # sympy orders some things by hash; verdicts must not depend on the run's hash seed.
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    def _await_ready(self) -> None:
        self._start()
        if self._ready:
            return
        reply = self._read_line(time.monotonic() + START_SECONDS)
        if reply is None or "ready" not in reply:
            self._stop()
            why = "it gave no sign of life" if reply is None else reply.get("failed", "it died at once")
            raise SeRLError(f"the math grader's worker did not start ({why}); check that `import math_verify` works")
        self._ready = True

    def _stop(self) -> None:
        process, self._process, self._ready, self._buffer = self._process, None, False, b""
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _drain(self) -> None:
        """Throw away lines that belong to no request, such as the death of an idle child."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._buffer = b""
        while True:
            try:
                if not os.read(self._process.stdout.fileno(), 65536):
                    return
            except BlockingIOError:
                return

    def _write(self, data: bytes, deadline: float) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        view, descriptor = memoryview(data), self._process.stdin.fileno()
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                if not _wait(descriptor, select.POLLOUT, deadline):
                    raise TimeoutError("the worker takes no requests") from None

    def _read_line(self, deadline: float) -> dict[str, Any] | None:
        """The next reply, or ``None`` if the process ended or the deadline passed."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        chunks = [self._buffer]
        while b"\n" not in chunks[-1]:
            if not _wait(descriptor, select.POLLIN, deadline):
                return None
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return None
            chunks.append(chunk)
        line, self._buffer = b"".join(chunks).split(b"\n", 1)
        reply: dict[str, Any] = json.loads(line)
        return reply


def _wait(descriptor: int, event: int, deadline: float) -> bool:
    """Whether the descriptor became usable before the deadline."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


_SHARED = WorkerClient()
atexit.register(_SHARED.close)
os.register_at_fork(after_in_child=_SHARED.abandon)


def shared_client() -> WorkerClient:
    """The worker of this process."""
    return _SHARED
