"""Runs commands in processes forked from one that has imported everything, which saves each of them some six seconds.

``python -m helpers.forks`` is that process. It reads a line of JSON for each command, and writes one with the process
id and one with the exit status when it has ended.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

POLL = 0.02  # seconds between two looks at the forked processes


class Forked:
    """A forked command, with as much of ``subprocess.Popen`` as the tests use.

    Args:
        arguments: Of ``lightning-serl``, or a Python script.
        cwd: The working directory.
        env: The whole environment.
    """

    _server: subprocess.Popen | None = None
    _ended: dict[int, int] = {}  # noqa: RUF012  # one server for all

    def __init__(self, arguments, cwd, env):
        self.returncode: int | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err"))
        order = {"arguments": [str(a) for a in arguments], "out": str(self._out), "err": str(self._err)}
        server = self._running(env)
        server.stdin.write(json.dumps(order | {"cwd": str(cwd), "env": env}) + "\n")
        server.stdin.flush()
        while "pid" not in (said := self._hear(None)):
            pass
        self.pid = said["pid"]

    @property
    def out(self):
        """What it has written to stdout so far."""
        return self._out.read_text() if self._out.exists() else ""

    @property
    def err(self):
        """What it has written to stderr so far."""
        return self._err.read_text() if self._err.exists() else ""

    def communicate(self, timeout=None):
        """Wait for its end; all it wrote."""
        self.wait(timeout)
        return self.out, self.err

    @classmethod
    def _running(cls, env):
        if cls._server is None:
            cls._server = subprocess.Popen(
                [sys.executable, "-m", "helpers.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=env,
            )  # fmt: skip
            atexit.register(cls._server.kill)
        return cls._server

    @classmethod
    def _hear(cls, limit):
        """One line from the server, if there is one within the limit."""
        if not select.select([cls._server.stdout], [], [], limit)[0]:
            return {}
        said = json.loads(cls._server.stdout.readline())
        if "status" in said:
            cls._ended[said["of"]] = said["status"]
        return said

    def poll(self):
        """The exit status, negative for a signal; ``None`` while the process runs."""
        while self.returncode is None and self.pid not in self._ended and self._hear(0):
            pass
        if self.returncode is None:
            self.returncode = self._ended.pop(self.pid, None)
        return self.returncode

    def wait(self, timeout=None):
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("lightning-serl", timeout)
            time.sleep(POLL / 2)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


# -- the process that forks --------------------------------------------------------------------------------------


def preload():
    """Import what a run imports; nothing that starts a thread, which no forked process would have."""
    for name in ("lightning_serl.cli.lightning_cli", "lightning_serl.policy.loading", "peft"):
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "there are threads"


def serve():
    """Fork for every order; returns it in the forked process, and ``None`` at the end of all orders."""
    running = set()
    while True:
        if select.select([sys.stdin], [], [], POLL if running else None)[0]:
            line = sys.stdin.readline()
            if not line:
                return None
            child = os.fork()
            if not child:
                return json.loads(line)
            running.add(child)
            print(json.dumps({"pid": child}), flush=True)
        for child in list(running):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                running.remove(pid)
                print(json.dumps({"of": pid, "status": os.waitstatus_to_exitcode(status)}), flush=True)


def become(order):
    """What the order says, as if this process had been started for it."""
    for name, number in (("/dev/null", 0), (order["out"], 1), (order["err"], 2)):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    first, *rest = order["arguments"]
    if first.endswith(".py"):
        sys.argv = [first, *rest]
        warnings.filterwarnings("error", category=DeprecationWarning, module=r"lightning_serl\Z")
        runpy.run_path(first, run_name="__main__")
        return
    # for Lightning, which starts further ranks by this name
    sys.modules["__main__"].__spec__ = find_spec("lightning_serl.__main__")
    sys.argv = ["lightning_serl", first, *rest]
    from lightning_serl.cli.command import entry

    entry()


if __name__ == "__main__":
    preload()
    mine = serve()
    if mine is not None:
        become(mine)
