"""A vLLM server of our own on this machine: started, waited for, and always ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_serl.errors import EngineFailure

_WATCHDOG = Path(__file__).with_name("watchdog.py")


@dataclass(frozen=True)
class Launch:
    """How local servers are started where no ``urls`` are given.

    Args:
        python: Interpreter that has vLLM; by default the one that runs this.
        devices: One server for each entry, which it gets as ``CUDA_VISIBLE_DEVICES`` (``["1", "2,3"]`` starts two); by
            default one server that sees what this process sees.
        arguments: More arguments of vLLM's server, such as ``--gpu-memory-utilization=0.5``.
        log_to: Folder of ``vllm-server-K.log``; by default the run folder.
    """

    python: str | None = None
    devices: list[str] | None = None
    arguments: list[str] | None = None
    log_to: str | None = None

    def __post_init__(self) -> None:
        if self.devices is not None and not self.devices:
            raise ValueError("engine.launch.devices must name the devices of at least one server, or be null")
        for argument in self.arguments or ():
            name = argument.split("=")[0]
            if name in _OURS:
                raise ValueError(f"engine.launch.arguments: {name} is set by the engine; remove it")


# What the engine decides itself: the rest of the run relies on it.
_OURS = ("--model", "--host", "--port", "--served-model-name", "--logprobs-mode", "--generation-config", "--api-key")


class LocalServer:
    """One vLLM server on 127.0.0.1 under a watchdog that ends it, and all its processes, when this process is gone.

    Args:
        model: Directory or hub name.
        log: File that its output is appended to.
        python: Interpreter that has vLLM.
        arguments: More arguments of its command line.
        environment: Variables set for it beside those of this process.

    Attributes:
        url: Where it will answer.
    """

    def __init__(
        self,
        model: str,
        log: Path,
        python: str | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        if python is None and importlib.util.find_spec("vllm") is None:
            raise EngineFailure(
                "a vLLM server is to be started and vLLM is not installed here; pip install vllm, or name a server in "
                "data.engine.urls, or an interpreter that has vLLM in data.engine.launch.python"
            )
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        python = python or sys.executable
        # the console script of vLLM looks for a distribution of that name, which the CPU build does not have
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "serl"]
        # the log-probs of what was drawn, and sampling defaults from the requests alone
        command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
        # no line for every request in the log
        command += ["--uvicorn-log-level", "warning", *arguments]
        log.parent.mkdir(parents=True, exist_ok=True)
        self._began_at = log.stat().st_size if log.exists() else 0
        # routes for weights and adapters, on the loopback interface only
        extra = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
        try:
            self._watchdog: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-I", str(_WATCHDOG), str(os.getpid()), str(log), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C in the terminal is for the run, which then ends the server
                start_new_session=True,
                env={**os.environ, **extra, **(environment or {})},
            )
        except OSError as error:
            raise EngineFailure(f"the local vLLM server cannot be started: {error}; see data.engine.launch") from error

    @property
    def running(self) -> bool:
        """Whether its process is there; that it answers is another matter."""
        return self._watchdog is not None and self._watchdog.poll() is None

    def wait(self, healthy: Callable[[], bool], seconds: float, poll: Callable[[], None]) -> None:
        """Wait until it answers.

        Args:
            healthy: Asks it once.
            seconds: How long to wait.
            poll: Called in between; raises when the run should stop.

        Raises:
            EngineFailure: if it ends or the time runs out, with the last useful line of its log.
        """
        deadline = time.monotonic() + seconds
        while not healthy():
            poll()
            if not self.running:
                raise EngineFailure(f"the local vLLM server did not start ({self.last_words()}); see {self.log}")
            if time.monotonic() > deadline:
                raise EngineFailure(
                    f"the local vLLM server gave no answer within {seconds:.0f} s ({self.last_words()}); raise "
                    f"data.engine.start_seconds or see {self.log}"
                )
            time.sleep(0.2)

    def last_words(self) -> str:
        """The last line of its log that says what went wrong, at most 120 characters."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(self._began_at, self.log.stat().st_size - 200_000))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return "it left no log"
        return last_useful(lines)

    def stop(self) -> None:
        """End it with all its processes; calling it twice is harmless."""
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            return
        assert watchdog.stdin is not None
        watchdog.stdin.close()
        try:
            watchdog.wait(timeout=20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.kill(watchdog.pid, signal.SIGKILL)  # which ends the server by its death signal
            watchdog.wait()


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^(\([^)]*pid=\d+\)\s*)?((INFO|WARNING|ERROR|DEBUG) \S+ \S+ (\[[^\]]*\] ?)?)?")
_ERROR = re.compile(r"^(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt|Exit))\b:? ?(.*)")
# True, and yet no reason: what stands further up is.
_SECOND_HAND = ("Engine core initialization failed", "See root cause", "Engine process failed", "Worker failed")


def last_useful(lines: Sequence[str]) -> str:
    """The last line of a vLLM log that names an error of its own, else the last line that says anything."""
    said = [_PREFIX.sub("", _COLOUR.sub("", line)).strip() for line in lines]
    said = [line for line in said if line]
    errors = [line for line in said if _ERROR.match(line) and not any(s in line for s in _SECOND_HAND)]
    usage = [line.partition("error: ")[2] for line in said if "error: " in line and not _ERROR.match(line)]
    chosen = next(iter([*reversed(errors), *reversed(usage), *reversed(said)]), "it said nothing")
    return chosen if len(chosen) <= 120 else f"{chosen[:117]}..."


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch_all(
    launch: Launch, model: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> list[LocalServer]:
    """Start every server of a :class:`Launch`; they load at the same time."""
    servers: list[LocalServer] = []
    try:
        for number, devices in enumerate(launch.devices or [None]):
            more: dict[str, Any] = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
            log = Path(launch.log_to or folder).expanduser() / f"vllm-server-{number}.log"
            given = [*arguments, *(launch.arguments or ())]
            servers.append(LocalServer(model, log, launch.python, given, {**environment, **more}))
    except BaseException:
        for server in servers:
            server.stop()
        raise
    return servers
