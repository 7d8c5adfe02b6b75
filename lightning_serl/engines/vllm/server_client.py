"""One vLLM server over HTTP: what is asked of it, and what its refusals mean."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Awaitable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from lightning_serl.engines.vllm.background_loop import X
from lightning_serl.errors import EngineFailure

#: Environment variable with the key of the servers, the one that vLLM's own server reads; never logged.
KEY = "VLLM_API_KEY"
# Answers that the same question may not get a second later.
_PASSING = (429, 502, 503, 504)


class Unreachable(Exception):
    """No answer: refused, cut off, or too late."""


class Refusal(Exception):
    """An answer that is no result.

    Args:
        status: Of HTTP.
        message: The server's reason.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message

    @property
    def no_route(self) -> bool:
        """The server knows no such path, as against a model or adapter that it does not know."""
        return self.status in (404, 405) and self.message in ("Not Found", "Method Not Allowed")


def clean_url(url: str) -> str:
    """A server's address as it is used and shown.

    Raises:
        ValueError: if it is none, or holds what does not belong into a configuration file.
    """
    parts = urlsplit(url if isinstance(url, str) else "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"engine.urls: {url!r} is no address; give one like http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query:
        raise ValueError(f"engine.urls: give {parts.hostname} without credentials and set {KEY} instead")
    try:
        parts.port  # noqa: B018 - looks at the number
    except ValueError as error:
        raise ValueError(f"engine.urls: the port of {url!r} is none; give one like http://127.0.0.1:8000") from error
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_here(url: str) -> bool:
    """Whether the address is one of this machine's own."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe, contextlib.suppress(OSError):
                probe.bind(address)  # only an own address can be bound
                return True
    return False


class Replica:
    """One server and what is known of it.

    Args:
        url: Its address.
        patience: Seconds without any answer after which it counts as gone.

    Attributes:
        model: Name of the base model it serves.
        context: Tokens of prompt and completion together, or ``None`` if it does not say.
        config: vLLM's configuration as far as the server tells it.
        in_flight: Requests it works on for us.
        state: ``live``, ``suspect`` (broke off; being looked at) or ``gone``.
        why: What happened to one that is not live.
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

    async def call(self, method: str, path: str, body: Any = None, seconds: float | None = None) -> Any:
        """Ask once.

        Args:
            method: Of HTTP.
            path: With its query.
            body: Sent as JSON.
            seconds: How long the answer may take; by default as long as it likes.

        Raises:
            Unreachable: without an answer.
            Refusal: with one that is no result.
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
            raise Unreachable(_what(error)) from error
        if answer.status != 200:
            raise Refusal(answer.status, _reason(data))
        try:
            return json.loads(data) if data[:1] in (b"{", b"[") else None
        except ValueError as error:
            raise Unreachable("its answer is no JSON") from error

    async def ask(self, path: str, seconds: float | None = None) -> Any:
        """GET, again and again until ``seconds`` (by default the patience) are over: asking changes nothing."""
        limit = self.patience if seconds is None else seconds
        deadline, pause = time.monotonic() + limit, 0.1
        while True:
            try:
                return await self.call("GET", path, seconds=max(1.0, min(limit, deadline - time.monotonic())))
            except (Unreachable, Refusal) as error:
                passing = isinstance(error, Unreachable) or error.status in _PASSING
                if not passing or time.monotonic() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    async def facts(self, path: str) -> dict[str, Any]:
        """What :meth:`ask` is told, which must be a JSON object.

        Raises:
            Unreachable: also if the answer is something else.
        """
        told = await self.ask(path)
        if not isinstance(told, dict):
            raise Unreachable(f"its answer to {path} is no JSON object")
        return told

    async def insist(self, path: str) -> Any:
        """POST what may be said twice; a refusal that may pass is no answer yet."""
        for pause in (0.25, 1.0):
            try:
                return await self.call("POST", path)
            except Refusal as error:
                if error.status not in _PASSING:
                    raise
            await asyncio.sleep(pause)
        return await self.call("POST", path)

    async def guarded(self, work: Awaitable[X]) -> X:
        """Wait for long work on the server as long as it answers questions about its health.

        Raises:
            Unreachable: if it gives no sign of life for longer than the patience.
        """
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=self.patience / 3)
                if done:
                    return task.result()
                try:
                    await self.ask("/health")
                except Refusal as error:
                    raise Unreachable(f"it calls itself ill ({error})") from error
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def lost(self, remedy: str) -> EngineFailure:
        """The error for a server that is gone."""
        return EngineFailure(f"the vLLM server at {self.url} is gone ({self.why[:100]}); {remedy}")


def _what(error: Exception) -> str:
    """Why there was no answer, in the words of the operating system where it has some."""
    if isinstance(error, TimeoutError):
        return "it gives no answer"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _reason(data: bytes) -> str:
    """The message of an error answer of vLLM or FastAPI."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            found = found.get("error", found.get("detail", found.get("message", found)))
        if isinstance(found, dict):
            found = found.get("message", found)
        text = found if isinstance(found, str) else json.dumps(found)
    return " ".join(text.split())
