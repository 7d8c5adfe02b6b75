"""An HTTP client for one vLLM server, and the event loop in a thread that its requests run in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from lightning_serl.errors import EngineFailure

X = TypeVar("X")
#: Environment variable with the API key, the one that vLLM's server reads; its value is never logged.
KEY = "VLLM_API_KEY"
# Statuses that may be gone when the request is sent again.
_TRANSIENT = (429, 502, 503, 504)


class Unreachable(Exception):
    """The server gave no answer: it refused the connection, cut it, or was too late."""


class Refusal(Exception):
    """The server answered with an error status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message

    @property
    def no_route(self) -> bool:
        """Whether the server lacks this path; it also answers 404 for unknown models and adapters."""
        return self.status in (404, 405) and self.message in ("Not Found", "Method Not Allowed")


def clean_url(url: str) -> str:
    """A server's address without trailing slash and ``/v1``; ValueError if it is none, or contains credentials."""
    parts = urlsplit(url if isinstance(url, str) else "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"data.engine.urls: {url!r} is no address; give one like http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query:
        raise ValueError(f"data.engine.urls: give {parts.hostname} without credentials and set {KEY} instead")
    try:
        parts.port  # noqa: B018 - raises for a number out of range
    except ValueError as error:
        raise ValueError(
            f"data.engine.urls: the port of {url!r} is not valid; give an address like http://127.0.0.1:8000"
        ) from error
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_local(url: str) -> bool:
    """Whether the address belongs to this machine."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe, contextlib.suppress(OSError):
                probe.bind(address)  # fails for addresses of other machines
                return True
    return False


class ServerClient:
    """One server: its address, its state, and the requests sent to it.

    Attributes:
        patience: Seconds without any answer after which it counts as gone.
        model: Name of the base model it serves.
        context: Most tokens of prompt and completion together; ``None`` if the server does not say.
        config: vLLM's configuration, as far as the server reports it.
        in_flight: Number of this process's requests that it works on.
        state: ``live``; ``suspect``, being checked after a failed request; or ``gone``.
        why: Why it is not live; ``down`` is set while it is not.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.url, self.patience = url, patience
        self.model = ""
        self.context: int | None = None
        self.config: dict[str, Any] = {}
        self.in_flight = 0
        self.state, self.why = "live", ""
        self.down = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    async def request(self, method: str, path: str, body: Any = None, seconds: float | None = None) -> Any:
        """Send one request with ``body`` as JSON; returns the JSON answer, or ``None`` if it is not an object or list.

        Raises:
            Unreachable: without an answer, by default without a time limit.
            Refusal: for any status but 200.
        """
        if self._session is None:
            key = os.environ.get(KEY)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
                headers={"Authorization": f"Bearer {key}"} if key else {},
            )
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=min(10.0, seconds or 10.0))
        try:
            async with self._session.request(
                method, self.url + path, json=body, timeout=limits, allow_redirects=False
            ) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(_connection_error(error)) from error
        if answer.status != 200:
            raise Refusal(answer.status, _error_message(data))
        try:
            return json.loads(data) if data[:1] in (b"{", b"[") else None
        except ValueError as error:
            raise Unreachable("its answer is not JSON") from error

    async def get(self, path: str, seconds: float | None = None) -> Any:
        """GET, repeated until there is an answer or ``seconds`` are over; by default the patience."""
        limit = self.patience if seconds is None else seconds
        deadline, pause = time.monotonic() + limit, 0.1
        while True:
            try:
                return await self.request("GET", path, seconds=max(1.0, min(limit, deadline - time.monotonic())))
            except (Unreachable, Refusal) as error:
                transient = isinstance(error, Unreachable) or error.status in _TRANSIENT
                if not transient or time.monotonic() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    async def get_object(self, path: str) -> dict[str, Any]:
        """As :meth:`get`, but Unreachable also for an answer that is not a JSON object."""
        answer = await self.get(path)
        if not isinstance(answer, dict):
            raise Unreachable(f"its answer to {path} is not a JSON object")
        return answer

    async def post(self, path: str) -> Any:
        """POST without a body, sent up to three times if the refusal is transient; only for idempotent requests."""
        for pause in (0.25, 1.0):
            try:
                return await self.request("POST", path)
            except Refusal as error:
                if error.status not in _TRANSIENT:
                    raise
            await asyncio.sleep(pause)
        return await self.request("POST", path)

    async def while_healthy(self, work: Awaitable[X]) -> X:
        """Await long work of the server; Unreachable if it answers no health check for longer than the patience."""
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=self.patience / 3)
                if done:
                    return task.result()
                try:
                    await self.get("/health")
                except Refusal as error:
                    raise Unreachable(f"its health check fails: {error}") from error
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def gone(self, remedy: str) -> EngineFailure:
        """The error for a server that is gone."""
        return EngineFailure(f"the vLLM server at {self.url} is gone ({self.why[:100]}); {remedy}")


def _connection_error(error: Exception) -> str:
    """Why there was no answer, in the operating system's words where it has some."""
    if isinstance(error, TimeoutError):
        return "it gives no answer"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _error_message(data: bytes) -> str:
    """The message in an error answer of vLLM or FastAPI."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            found = found.get("error", found.get("detail", found.get("message", found)))
        if isinstance(found, dict):
            found = found.get("message", found)
        text = found if isinstance(found, str) else json.dumps(found)
    return " ".join(text.split())


class BackgroundLoop:
    """An event loop in a thread, so that requests proceed while the caller grades finished completions."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-server-client", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def running(self, work: Coroutine[Any, Any, X]) -> Iterator[Future[X]]:
        """Start the work and yield its future; on leaving, unfinished work is cancelled and its clean-up awaited."""
        future: Future[X] = Future()
        tasks: list[asyncio.Task[X]] = []
        ended = threading.Event()

        def finish(task: asyncio.Task[X]) -> None:
            if task.cancelled():
                future.cancel()
            elif (error := task.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result())
            ended.set()

        def begin() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(finish)

        self._loop.call_soon_threadsafe(begin)
        try:
            yield future
        finally:
            if not ended.is_set():
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                # connections close at once; the longest clean-up, resuming a server after a cancelled push, is one call
                ended.wait(timeout=15)

    def run(self, work: Coroutine[Any, Any, X], poll: Callable[[], None]) -> X:
        """Run the work and return its result; ``poll`` is called while waiting, and an error it raises cancels it."""
        with self.running(work) as future:
            while True:
                with contextlib.suppress(TimeoutError):
                    return future.result(timeout=0.1)
                if future.done():
                    return future.result()
                poll()

    def close(self) -> None:
        """Stop the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()
