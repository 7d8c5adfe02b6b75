"""Starts the math-verify worker on first use and sends it requests; graders share one worker and cache its verdicts."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightning_serl.answers.verifier.worker import WALL_FACTOR
from lightning_serl.errors import SeRLError

START_SECONDS = 120.0
# Wall-clock seconds that the client waits beyond the worker's own limits before it kills the worker.
_GRACE_SECONDS = 3.0
_SHORTEST_WAIT = 1e-3
# The folder that holds the package. It is on the worker's path for this one import: nothing else may come from there.
_ROOT = str(Path(__file__).resolve().parents[__name__.count(".")])
_BOOT = (
    "import sys; root = sys.argv.pop(); sys.path.insert(0, root); "
    "import lightning_serl.answers.verifier.worker as worker; sys.path.remove(root); worker.main()"
)
_MOST_CACHED = 20_000
K = TypeVar("K")


class VerdictCache(Generic[K]):
    """Holds a bounded number of verdicts and drops the oldest first."""

    def __init__(self) -> None:
        self._entries: dict[K, bool] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> bool | None:
        """The stored verdict, or ``None``."""
        return self._entries.get(key)

    def put(self, key: K, verdict: bool) -> bool:
        """Store and return ``verdict``."""
        while len(self._entries) >= _MOST_CACHED:
            # The default covers another thread that removed it first.
            self._entries.pop(next(iter(self._entries)), None)
        self._entries[key] = verdict
        return verdict


class WorkerClient:
    """One worker process and the socket to it; safe to use from several threads.

    ``multiprocessing`` is not used: its children import the main script again, which a training script without an
    ``if __name__ == "__main__"`` guard does not survive, and daemonic processes (``DataLoader`` workers) may not have
    any. ``requests`` counts the requests, ``seconds`` their processor time; a request that ended with the worker's
    death counts with its full limit.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = False
        self._buffer = b""

    def start(self) -> None:
        """Start the process without waiting for it; a second call does nothing."""
        with self._lock:
            self._start()

    def ask(self, op: str, limit: float, **fields: str) -> dict[str, Any] | None:
        """The reply to one request (see the module ``worker``), or ``None`` if the worker died of it.

        ``limit`` is in seconds of processor time and does not include the start of the process. Raises
        :class:`SeRLError` if the worker cannot be started at all.
        """
        with self._lock:
            connection = self._connected()
            self.requests += 1
            request = {"id": self.requests, "op": op, "limit": limit, **fields}
            # ASCII carries NUL and lone surrogates safely.
            data = json.dumps(request, ensure_ascii=True).encode("ascii") + b"\n"
            deadline = time.monotonic() + limit * WALL_FACTOR + _GRACE_SECONDS
            self._drop_old_replies(connection)
            try:
                connection.settimeout(deadline - time.monotonic())
                connection.sendall(data)
                while True:
                    reply = self._read_line(connection, deadline)
                    if reply is None or "died" in reply:
                        break
                    if reply.get("id") == request["id"]:
                        self.seconds += reply["seconds"]
                        return reply
            except OSError:
                reply = None  # the process is gone, or took no request within its time
            self.seconds += limit
            if reply is None:
                self._stop()
            return None

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """Drop the process without ending it: in a forked child it belongs to the parent."""
        self._lock = threading.Lock()
        process = self._release()
        if process is not None:
            process.returncode = 0  # the parent waits for it, not this process

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._stop()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, _ROOT],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,  # nothing that a library prints may reach the socket
                stderr=subprocess.DEVNULL,
                # A new session: Ctrl-C in the terminal does not reach it, and one signal ends it and its child.
                start_new_session=True,
                # sympy orders some things by hash; verdicts must not depend on the run's hash seed.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )

    def _connected(self) -> socket.socket:
        """The socket to a worker that is ready."""
        self._start()
        assert self._socket is not None
        if self._ready:
            return self._socket
        try:
            reply = self._read_line(self._socket, time.monotonic() + START_SECONDS)
            why = "its process ended" if reply is None else reply.get("failed", "its process died")
        except OSError:
            reply, why = None, f"it gave no answer within {START_SECONDS:.0f} seconds"
        if reply is None or "ready" not in reply:
            self._stop()
            raise SeRLError(f"the math grader's worker did not start ({why}); check that `import math_verify` works")
        self._ready = True
        return self._socket

    def _release(self) -> subprocess.Popen[bytes] | None:
        """Close the socket and hand over the process, if there is one."""
        process, connection = self._process, self._socket
        self._process, self._socket, self._ready, self._buffer = None, None, False, b""
        if connection is not None:
            connection.close()
        return process

    def _stop(self) -> None:
        process = self._release()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _drop_old_replies(self, connection: socket.socket) -> None:
        """Discard lines that belong to no request, such as the death of an idle child."""
        self._buffer = b""
        connection.settimeout(0)
        with contextlib.suppress(OSError):  # nothing there; a lost connection shows in the request that follows
            while connection.recv(65536):
                pass

    def _read_line(self, connection: socket.socket, deadline: float) -> dict[str, Any] | None:
        """The next reply, or ``None`` if the process ended; after the deadline it raises ``OSError``."""
        while b"\n" not in self._buffer:
            connection.settimeout(max(deadline - time.monotonic(), _SHORTEST_WAIT))
            chunk = connection.recv(65536)
            if not chunk:
                return None
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        reply: dict[str, Any] = json.loads(line)
        return reply


_SHARED = WorkerClient()
atexit.register(_SHARED.close)
os.register_at_fork(after_in_child=_SHARED.forget)


def shared_client() -> WorkerClient:
    """The client of this process."""
    return _SHARED
