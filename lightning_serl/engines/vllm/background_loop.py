"""Runs an asyncio event loop in a background thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

X = TypeVar("X")


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
