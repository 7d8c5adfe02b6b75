"""Several vLLM servers with the same weights: what they hold, new weights for all, and work spread over them."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lightning_serl.engines.vllm.server_client import Refusal, Replica, Unreachable
from lightning_serl.engines.vllm.weight_files import Published
from lightning_serl.errors import EngineFailure, PushMismatch

# Completions of one prompt that stay on one server, whose prefix cache then holds the prompt.
_TOGETHER = 16
# Times a request is sent before its server's refusal is believed.
_TRIES = 3
#: The model of a job that each server knows under a name of its own.
BASE = ""

RESUME = "start it again and continue with --ckpt_path last"
DEV = "start it with VLLM_SERVER_DEV_MODE=1"
LORA = "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"

#: Key of a job, address of the server that did it, and its answer.
Answer = tuple[Any, str, Any]


@dataclass
class Job:
    """One request: its body, and which others it should travel with."""

    key: Any
    body: dict[str, Any]
    together: int
    tries: int = field(default=0, compare=False)


class Fleet:
    """Servers that all hold the same weights; everything ``async`` here runs in one event loop.

    Args:
        replicas: The servers.
        max_in_flight: Requests under way on one of them at one time.
        last_words: Of a server that was started here and has ended, else ``None``.

    Attributes:
        base: Name, never given twice, of the full weights that every server should hold; ``None`` before the first.
        adapter: The same of the adapter on top.
        base_lost: Some server was found without ``base``.
        news: What the user should be told, and was not yet.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        max_in_flight: int,
        last_words: Callable[[Replica], str | None] = lambda replica: None,
    ) -> None:
        self.replicas, self.max_in_flight, self.last_words = list(replicas), max_in_flight, last_words
        self.base: str | None = None
        self.adapter: str | None = None
        self.base_lost = False
        self.news: list[str] = []
        self._probes: set[asyncio.Task[None]] = set()

    async def leave(self, unload: bool) -> None:
        """Close all connections.

        Args:
            unload: Also take the adapter, whose directory goes away, off the servers' lists.
        """
        for probe in self._probes:
            probe.cancel()
        for replica in self.replicas:
            if unload and self.adapter is not None and replica in self.live():
                await self._forget(replica, self.adapter)
            await replica.close()

    # -- what they hold --------------------------------------------------------------------------------------------

    async def survey(self) -> bool:
        """Look at every server; whether all that can be reached hold what was pushed last.

        Raises:
            EngineFailure: if none can be reached.
        """
        all_gone = all(replica.state == "gone" for replica in self.replicas)
        held = await asyncio.gather(*(self._look_after(r, all_gone) for r in self.replicas))
        self._require_one()
        return all(h for h in held if h is not None)

    def live(self) -> list[Replica]:
        """The servers that work."""
        return [replica for replica in self.replicas if replica.state == "live"]

    async def _look_after(self, replica: Replica, all_gone: bool) -> bool | None:
        """Whether it holds what it should; ``None`` without an answer."""
        try:
            await self._sign_of_life(replica, replica.patience if replica.state != "gone" or all_gone else 0.0)
            held = await self._holds(replica)
        except (Unreachable, Refusal) as error:
            self._lose(replica, str(error))
            return None
        replica.state, replica.why = "live", ""
        replica.down.clear()
        return held

    async def _sign_of_life(self, replica: Replica, seconds: float) -> None:
        """Wait for an answer, unless it is a server of ours that has ended."""
        deadline = time.monotonic() + seconds
        while True:
            if (words := self.last_words(replica)) is not None:
                raise Unreachable(words)
            try:
                await replica.ask("/health", min(5.0, seconds))
                return
            except (Unreachable, Refusal):
                if time.monotonic() > deadline:
                    raise

    async def _holds(self, replica: Replica) -> bool:
        """Whether it has the weights and the adapter that it was given last, by their names."""
        if self.base is not None and (await replica.facts("/weight_info")).get("weight_version") != self.base:
            self.base_lost = True  # it was started anew, or somebody else pushed
            return False
        if self.adapter is not None:
            return any(card["id"] == self.adapter for card in (await replica.facts("/v1/models"))["data"])
        return True

    def _lose(self, replica: Replica, why: str) -> None:
        if replica.state != "gone":
            self.news.append(f"the vLLM server at {replica.url} is gone ({why[:150]}); the run goes on without it")
        replica.state, replica.why = "gone", why
        replica.down.set()

    def _require_one(self) -> None:
        if all(replica.state == "gone" for replica in self.replicas):
            words = self.last_words(self.replicas[0])
            if words is not None:
                self.replicas[0].why = words
            raise self.replicas[0].lost(RESUME if words is None else "continue with --ckpt_path last")

    # -- pushing ------------------------------------------------------------------------------------------------------

    async def deliver(self, kind: str, published: Published) -> None:
        """Have every server read a publication.

        Raises:
            EngineFailure: if one refuses, or none is left.
        """
        name = f"serl-v{published.version}-{uuid.uuid4().hex[:10]}"
        former, self.adapter = self.adapter, None
        if kind == "full":
            self.base = None
        there = [r for r in self.replicas if r.state != "gone"]
        work = self._give_full if kind == "full" else self._give_adapter
        outcomes = await asyncio.gather(*(self._give(r, work, published, name) for r in there), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        self._require_one()
        if former is not None:
            await asyncio.gather(*(self._forget(r, former) for r in self.live()))
        if kind == "full":
            self.base, self.base_lost = name, False
        else:
            self.adapter = name
        for replica in self.live():
            if not await self._holds(replica):
                raise PushMismatch(
                    f"the vLLM server at {replica.url} does not hold version {published.version} after its push; "
                    "see that nobody else pushes to it"
                )

    async def _give(self, replica: Replica, work: Callable[..., Any], published: Published, name: str) -> None:
        try:
            await replica.guarded(work(replica, published, name))
            replica.state = "live"
        except Unreachable as error:
            self._lose(replica, str(error))
        except Refusal as error:
            if error.status >= 500:
                self._lose(replica, f"it fails: {error}")
                return
            raise EngineFailure(
                f"the vLLM server at {replica.url} refuses a step of a push ({error.message[:100]}); see its log"
            ) from error

    async def _give_full(self, replica: Replica, published: Published, name: str) -> None:
        """Pause, reload from the new directory, forget prefixes, go on, and only then name what is there."""
        try:
            await replica.insist("/pause?mode=keep")
        except Refusal as error:
            if not error.no_route:
                raise
            raise EngineFailure(
                f"the vLLM server at {replica.url} has no routes for new weights ({error.message[:60]}); {DEV}"
            ) from error
        try:
            await self._reload(replica, published)
        except BaseException:
            with suppress(Refusal, Unreachable):
                await replica.call("POST", "/resume", seconds=replica.patience)
            raise
        await replica.insist("/resume")
        try:
            await replica.call("POST", "/update_weight_version", {"new_version": name})
        except Refusal as error:
            raise EngineFailure(
                f"the vLLM server at {replica.url} cannot say which weights it holds ({error.message[:60]}); update "
                "vLLM to a release with /weight_info"
            ) from error

    async def _reload(self, replica: Replica, published: Published) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(published.path)}}
        try:
            await replica.call("POST", "/collective_rpc", body)
        except Refusal as error:
            raise EngineFailure(_unread(replica, published, error)) from error
        for _ in range(20):  # blocks of requests that were just ended are given back a moment later
            told = await replica.insist("/reset_prefix_cache")
            if not isinstance(told, dict) or told.get("success", True):
                break
            await asyncio.sleep(0.25)
        else:
            raise PushMismatch(
                f"the vLLM server at {replica.url} keeps prefixes computed with old weights because it works for "
                "somebody else too; give this run a server of its own"
            )

    async def _give_adapter(self, replica: Replica, published: Published, name: str) -> None:
        try:
            await replica.call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(published.path)})
        except Refusal as error:
            raise EngineFailure(_no_adapter(replica, published, error)) from error

    async def _forget(self, replica: Replica, name: str) -> None:
        """Take an old adapter off a server's list; one that does not know it any more is fine."""
        with suppress(Refusal, Unreachable):
            await replica.call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, seconds=replica.patience)

    # -- work --------------------------------------------------------------------------------------------------------

    async def serve(self, jobs: Sequence[Job], deliver: Callable[[Answer], None], most: int | None = None) -> None:
        """Spread jobs over the servers, ask another where one breaks off, and hand over the answers.

        Args:
            jobs: What to do.
            deliver: Called with each answer, in the thread of the loop.
            most: Requests under way on one server, if not ``max_in_flight``.

        Raises:
            EngineFailure: if no server is left, or one refuses a job.
        """
        limit = most or self.max_in_flight
        waiting = _pieces(jobs, min(_TOGETHER, limit))
        running: set[asyncio.Task[list[Job]]] = set()
        used: set[str] = set()
        health = asyncio.ensure_future(self._watch_health())
        try:
            while waiting or running:
                while waiting and (replica := self._freest(len(waiting[0]), limit)) is not None:
                    piece = waiting.popleft()
                    replica.in_flight += len(piece)
                    used.add(replica.url)
                    running.add(asyncio.ensure_future(self._run_piece(replica, piece, deliver)))
                if not running:
                    self._require_one()
                    await asyncio.sleep(0.1)  # suspects are being looked at
                    continue
                finished, running = await asyncio.wait(running, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                errors = [error for task in finished if (error := task.exception()) is not None]
                if errors:
                    raise errors[0]
                for task in finished:
                    if left := task.result():
                        waiting.appendleft(left)
            await self._still_there(used)
        finally:
            for open_task in (*running, health):
                open_task.cancel()
            await asyncio.gather(*running, health, return_exceptions=True)

    def _freest(self, size: int, limit: int) -> Replica | None:
        """The live server with the fewest requests, if it has room for so many more."""
        if not self.live():
            return None
        chosen = min(self.live(), key=lambda r: r.in_flight)
        return chosen if chosen.in_flight == 0 or chosen.in_flight + size <= limit else None

    async def _run_piece(self, replica: Replica, piece: list[Job], deliver: Callable[[Answer], None]) -> list[Job]:
        """Ask one server; returns what it left unanswered because it broke off."""
        tasks = {asyncio.ensure_future(self._complete(replica, job)): job for job in piece}
        down = asyncio.ensure_future(replica.down.wait())
        left: list[Job] = []
        pending: set[asyncio.Future[Any]] = set(tasks)
        try:
            while pending and not down.done():
                await asyncio.wait({*pending, down}, return_when=asyncio.FIRST_COMPLETED)
                for task in [t for t in pending if t.done()]:
                    pending.discard(task)
                    job = tasks[task]  # type: ignore[index]
                    try:
                        deliver((job.key, replica.url, task.result()))
                    except Unreachable as error:
                        self._suspect(replica, str(error))
                        left.append(job)
            return left + [tasks[t] for t in pending]  # type: ignore[index]
        finally:
            replica.in_flight -= len(piece)  # before the next await, which may be cancelled too
            for task in (*pending, down):
                task.cancel()
            await asyncio.gather(*pending, down, return_exceptions=True)

    async def _complete(self, replica: Replica, job: Job) -> Any:
        """One request; completions depend on their seed alone, so that asking again is harmless."""
        while True:
            job.tries += 1
            try:
                body = job.body | {"model": job.body["model"] or replica.model}
                answer = await replica.call("POST", "/v1/completions", body)
                if not isinstance(answer, dict) or not answer.get("choices"):
                    raise Unreachable("its answer holds no completion")
                return answer
            except Refusal as error:
                if error.status == 404:  # it lost the adapter
                    if job.tries >= _TRIES * len(self.replicas):
                        self._lose(replica, f"it does not know its own model: {error}")
                    raise Unreachable("it was started anew") from error
                if error.status < 500 and error.status != 429:
                    raise EngineFailure(
                        f"the vLLM server at {replica.url} refuses a prompt: {error.message[:180].rstrip('. ')}"
                    ) from error
                if job.tries >= _TRIES:
                    if all(other is replica for other in self.live()):
                        raise EngineFailure(
                            f"the vLLM server at {replica.url} fails ({error.status}: {error.message[:100]}); see its "
                            "log, then continue with --ckpt_path last"
                        ) from error
                    self._lose(replica, f"it fails: {error}")
                    job.tries = 0
                    raise Unreachable(str(error)) from error
            except Unreachable:
                if job.tries >= _TRIES * len(self.replicas):
                    self._lose(replica, "it breaks off again and again")
                raise
            await asyncio.sleep(0.25 * 2**job.tries)

    def _suspect(self, replica: Replica, why: str) -> None:
        """Send it nothing more until it was looked at."""
        if replica.state != "live":
            return
        replica.state, replica.why = "suspect", why
        replica.down.set()
        probe = asyncio.ensure_future(self._probe(replica))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe(self, replica: Replica) -> None:
        """Take a suspect back if it still holds what it should, else do without it."""
        try:
            await self._sign_of_life(replica, replica.patience)
            if await self._holds(replica):
                replica.state = "live"
                replica.down.clear()
                return
            why = "it was started anew and has lost the policy's weights"
        except (Unreachable, Refusal) as error:
            why = str(error)
        self._lose(replica, why)

    async def _watch_health(self) -> None:
        """A server that hangs says nothing and breaks nothing off; after the patience it counts as gone."""
        while True:
            await asyncio.sleep(min(r.patience for r in self.replicas) / 3)
            busy = [r for r in self.live() if r.in_flight]
            outcomes = await asyncio.gather(*(r.ask("/health") for r in busy), return_exceptions=True)
            for replica, outcome in zip(busy, outcomes, strict=True):
                if isinstance(outcome, Exception) and replica.state == "live":
                    self._lose(replica, str(outcome))

    async def _still_there(self, used: set[str]) -> None:
        """What was written must have been written with the policy's weights to the end."""
        for replica in self.live():
            if replica.url not in used:
                continue
            try:
                held = await self._holds(replica)
            except (Unreachable, Refusal):
                continue  # its answers came before it went
            if not held:
                raise EngineFailure(
                    f"the vLLM server at {replica.url} was started anew or got other weights while it wrote; see "
                    "that it serves this run alone, and continue with --ckpt_path last"
                )


def _pieces(jobs: Sequence[Job], most: int) -> deque[list[Job]]:
    """Neighbouring jobs of one group, so many that they stay on one server."""
    pieces: deque[list[Job]] = deque()
    for job in jobs:
        if pieces and pieces[-1][0].together == job.together and len(pieces[-1]) < most:
            pieces[-1].append(job)
        else:
            pieces.append([job])
    return pieces


def _no_adapter(replica: Replica, published: Published, error: Refusal) -> str:
    said, url = error.message, replica.url
    if error.no_route:
        return f"the vLLM server at {url} has no route for adapters; {LORA}"
    if "not enabled" in said:
        return f"the vLLM server at {url} takes no adapters; {LORA}"
    if found := re.search(r"rank (\d+) is greater than max_lora_rank (\d+)", said):
        return (
            f"the vLLM server at {url} takes adapters up to rank {found[2]}, this one has {found[1]}; start it with a "
            "larger --max-lora-rank"
        )
    if "No adapter found" in said:
        return (
            f"the vLLM server at {url} does not see {published.path.parent.parent}; give data.engine.publish_to, a "
            "folder that it sees under the same path"
        )
    return f"the vLLM server at {url} refuses the adapter of version {published.version} ({said[:120]}); see its log"


def _unread(replica: Replica, published: Published, error: Refusal) -> str:
    said, url = error.message, replica.url
    if error.no_route:
        return f"the vLLM server at {url} has no routes for new weights; {DEV}"
    if str(published.path) in said or "Cannot find any model weights" in said:
        return (
            f"the vLLM server at {url} does not see {published.path.parent.parent}; give data.engine.publish_to, a "
            "folder that it sees under the same path"
        )
    return (
        f"the vLLM server at {url} refuses the weights of version {published.version} ({said[:110]}); start it with "
        "the model of model.model_name_or_path"
    )
