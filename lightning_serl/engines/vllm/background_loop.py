"""Runs an asyncio event loop in a background thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

X = TypeVar("X")


class Background:
    """An event loop in a thread of its own, so that requests go on while their caller grades what is finished."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-server-client", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def running(self, work: Coroutine[Any, Any, X]) -> Iterator[Future[X]]:
        """The work, begun; on leaving it is cancelled if it is not done, and has cleaned up behind itself."""
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
                # connections close at once; a resume after a broken off push is one short call
                ended.wait(timeout=15)

    def wait(self, work: Coroutine[Any, Any, X], poll: Callable[[], None]) -> X:
        """Its result; ``poll`` is called in between, and what it raises ends the work."""
        with self.running(work) as future:
            while True:
                with contextlib.suppress(TimeoutError):
                    return future.result(timeout=0.1)
                if future.done():
                    return future.result()
                poll()

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()
