"""Several vLLM servers with the same weights: checks what they hold, pushes new weights, and spreads requests."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lightning_serl.engines.vllm.server_client import Refusal, ServerClient, Unreachable
from lightning_serl.engines.vllm.weight_files import SavedWeights
from lightning_serl.errors import EngineFailure, PushMismatch

# Completions of one prompt that go to one server, whose prefix cache then contains the prompt.
_BATCH = 16
# Times a request is sent before a failure of its server is taken for permanent.
_TRIES = 3
#: The model of a job for the base model, which each server may serve under another name.
BASE_MODEL = ""

_DEV_MODE = "start it with VLLM_SERVER_DEV_MODE=1"
_RESTART = "start it again and continue with --ckpt_path last"
#: The remedy for a server that takes no adapters.
ENABLE_LORA = "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"

#: Key of a job, address of the server that did it, and its answer.
Answer = tuple[Any, str, Any]


@dataclass
class Job:
    """One request for ``/v1/completions``, whose answer carries ``key``.

    Neighbouring jobs with equal ``together`` are sent to one server; ``tries`` counts how often it was sent.
    """

    key: Any
    body: dict[str, Any]
    together: int
    tries: int = 0


class ServerPool:
    """Servers that all hold the same weights; every ``async`` method runs in one event loop.

    At most ``max_in_flight`` requests are open on each. ``exit_reason`` returns why a server that was started here has
    ended, or ``None`` if it runs or was not.

    Attributes:
        base: Unique name of the full weights that every server should hold; ``None`` before the first push.
        adapter: The same for the adapter.
        base_lost: Whether some server was found without ``base``.
        warnings: Pending warnings for the user.
    """

    def __init__(
        self,
        servers: Sequence[ServerClient],
        max_in_flight: int,
        exit_reason: Callable[[ServerClient], str | None] = lambda server: None,
    ) -> None:
        self.servers, self.max_in_flight, self._exit_reason = list(servers), max_in_flight, exit_reason
        self.base: str | None = None
        self.adapter: str | None = None
        self.base_lost = False
        self.warnings: list[str] = []
        self._probes: set[asyncio.Task[None]] = set()

    async def close(self, unload: bool) -> None:
        """Close all connections; ``unload`` the adapter before, because its directory is removed."""
        for probe in self._probes:
            probe.cancel()
        for server in self.servers:
            if unload and self.adapter is not None and server in self.live():
                await self._unload_adapter(server, self.adapter)
            await server.close()

    # -- state of the servers ------------------------------------------------------------------------------------------

    def live(self) -> list[ServerClient]:
        """The servers that work."""
        return [server for server in self.servers if server.state == "live"]

    def mark_gone(self, server: ServerClient, why: str) -> None:
        """Send a server nothing more until a later :meth:`hold_weights` finds that it answers."""
        if server.state != "gone":
            self.warnings.append(f"the vLLM server at {server.url} is gone ({why[:150]}); the run goes on without it")
        server.state, server.why = "gone", why
        server.down.set()

    async def hold_weights(self) -> bool:
        """Whether all servers that answer hold the weights pushed last; EngineFailure if none answers."""
        all_gone = all(server.state == "gone" for server in self.servers)
        waits = [s.patience if all_gone or s.state != "gone" else 0.0 for s in self.servers]
        held = await asyncio.gather(*map(self._revive, self.servers, waits))
        self._require_one()
        return all(h for h in held if h is not None)

    async def _revive(self, server: ServerClient, seconds: float) -> bool | None:
        """Mark a server live if it answers, else gone; returns whether it holds the weights, ``None`` if it is gone."""
        try:
            await self._await_health(server, seconds)
            held = await self._holds_weights(server)
        except (Unreachable, Refusal) as error:
            self.mark_gone(server, str(error))
            return None
        server.state, server.why = "live", ""
        server.down.clear()
        return held

    async def _await_health(self, server: ServerClient, seconds: float) -> None:
        """Wait until a server is healthy, or raise after ``seconds``, or if it was started here and has ended."""
        deadline = time.monotonic() + seconds
        while True:
            if (why := self._exit_reason(server)) is not None:
                raise Unreachable(why)
            try:
                await server.get("/health", min(5.0, seconds))
                return
            except (Unreachable, Refusal):
                if time.monotonic() > deadline:
                    raise

    async def _holds_weights(self, server: ServerClient) -> bool:
        """Whether the server reports the names of the weights and of the adapter pushed last."""
        if self.base is not None and (await server.get_object("/weight_info")).get("weight_version") != self.base:
            self.base_lost = True  # it was restarted, or another client pushed
            return False
        if self.adapter is not None:
            return any(card["id"] == self.adapter for card in (await server.get_object("/v1/models"))["data"])
        return True

    def _require_one(self) -> None:
        if all(server.state == "gone" for server in self.servers):
            first, ended = self.servers[0], self._exit_reason(self.servers[0])
            first.why = ended or first.why
            raise first.gone("continue with --ckpt_path last" if ended else _RESTART)

    # -- pushing -------------------------------------------------------------------------------------------------------

    async def push(self, kind: str, saved: SavedWeights) -> None:
        """Have every server load weights, ``full`` or an ``adapter``, from their directory.

        EngineFailure if a server refuses them or none is left; PushMismatch if one does not report them afterwards.
        """
        name = f"serl-v{saved.version}-{uuid.uuid4().hex[:10]}"
        former, self.adapter = self.adapter, None
        if kind == "full":
            self.base = None
        reached = [s for s in self.servers if s.state != "gone"]
        load = self._load_full if kind == "full" else self._load_adapter
        outcomes = await asyncio.gather(*(self._push_to(s, load, saved, name) for s in reached), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        self._require_one()
        if former is not None:
            await asyncio.gather(*(self._unload_adapter(s, former) for s in self.live()))
        if kind == "full":
            self.base, self.base_lost = name, False
        else:
            self.adapter = name
        for server in self.live():
            try:
                held = await self._holds_weights(server)
            except (Unreachable, Refusal) as error:
                self.mark_gone(server, str(error))
                continue
            if not held:
                raise PushMismatch(
                    f"the vLLM server at {server.url} does not hold version {saved.version} after its push; make sure "
                    "that no other run uses it"
                )
        self._require_one()

    async def _push_to(self, server: ServerClient, load: Callable[..., Any], saved: SavedWeights, name: str) -> None:
        try:
            await server.while_healthy(load(server, saved, name))
            server.state = "live"
        except Unreachable as error:
            self.mark_gone(server, str(error))
        except Refusal as error:
            if error.status >= 500:
                self.mark_gone(server, f"it fails: {error}")
                return
            raise EngineFailure(
                f"the vLLM server at {server.url} refuses a step of a push ({error.message[:100]}); see its log"
            ) from error

    async def _load_full(self, server: ServerClient, saved: SavedWeights, name: str) -> None:
        """Pause, reload, drop prefixes, resume, and only then set the name that the server reports."""
        try:
            await server.post("/pause?mode=keep")
        except Refusal as error:
            if not error.no_route:
                raise
            raise EngineFailure(
                f"the vLLM server at {server.url} has no routes for new weights ({error.message[:60]}); {_DEV_MODE}"
            ) from error
        try:
            await self._reload(server, saved)
        except BaseException:
            with suppress(Refusal, Unreachable):
                await server.request("POST", "/resume", seconds=server.patience)
            raise
        await server.post("/resume")
        try:
            await server.request("POST", "/update_weight_version", {"new_version": name})
        except Refusal as error:
            raise EngineFailure(
                f"the vLLM server at {server.url} cannot say which weights it holds ({error.message[:60]}); update "
                "vLLM to a release with /weight_info"
            ) from error

    async def _reload(self, server: ServerClient, saved: SavedWeights) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(saved.path)}}
        try:
            await server.request("POST", "/collective_rpc", body)
        except Refusal as error:
            raise EngineFailure(_full_refused(server, saved, error)) from error
        for _ in range(20):  # cache blocks of requests that were just aborted are freed a moment later
            answer = await server.post("/reset_prefix_cache")
            if not isinstance(answer, dict) or answer.get("success", True):
                break
            await asyncio.sleep(0.25)
        else:
            raise PushMismatch(
                f"the vLLM server at {server.url} keeps prefixes computed with old weights because it works on other "
                "requests; give this run a server that no other run uses"
            )

    async def _load_adapter(self, server: ServerClient, saved: SavedWeights, name: str) -> None:
        try:
            await server.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(saved.path)})
        except Refusal as error:
            raise EngineFailure(_adapter_refused(server, saved, error)) from error

    async def _unload_adapter(self, server: ServerClient, name: str) -> None:
        """Unload an old adapter; it does not matter if the server no longer has it."""
        with suppress(Refusal, Unreachable):
            await server.request("POST", "/v1/unload_lora_adapter", {"lora_name": name}, seconds=server.patience)

    # -- completions ---------------------------------------------------------------------------------------------------

    async def run(self, jobs: Sequence[Job], deliver: Callable[[Answer], None], limit: int | None = None) -> None:
        """Spread jobs over the servers; those of a server that fails are sent to another one.

        ``deliver`` is called with each answer in the thread of the event loop; ``limit`` replaces ``max_in_flight``.
        EngineFailure if no server is left, or one refuses a job.
        """
        limit = limit or self.max_in_flight
        waiting = _batches(jobs, min(_BATCH, limit))
        running: set[asyncio.Task[list[Job]]] = set()
        used: set[str] = set()
        health = asyncio.ensure_future(self._watch_health())
        try:
            while waiting or running:
                while waiting and (server := self._least_busy(len(waiting[0]), limit)) is not None:
                    batch = waiting.popleft()
                    server.in_flight += len(batch)
                    used.add(server.url)
                    running.add(asyncio.ensure_future(self._run_batch(server, batch, deliver)))
                if not running:
                    self._require_one()
                    await asyncio.sleep(0.1)  # suspects are being checked
                    continue
                finished, running = await asyncio.wait(running, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                errors = [error for task in finished if (error := task.exception()) is not None]
                if errors:
                    raise errors[0]
                for task in finished:
                    if unanswered := task.result():
                        waiting.appendleft(unanswered)
            await self._check_weights_kept(used)
        finally:
            for open_task in (*running, health):
                open_task.cancel()
            await asyncio.gather(*running, health, return_exceptions=True)

    def _least_busy(self, size: int, limit: int) -> ServerClient | None:
        """The live server with the fewest requests, if ``size`` more do not exceed the limit."""
        chosen = min(self.live(), key=lambda server: server.in_flight, default=None)
        full = chosen is not None and chosen.in_flight > 0 and chosen.in_flight + size > limit
        return None if full else chosen

    async def _run_batch(self, server: ServerClient, batch: list[Job], deliver: Callable[[Answer], None]) -> list[Job]:
        """Send jobs to one server; returns those left unanswered because it failed."""
        tasks = {asyncio.ensure_future(self._complete(server, job)): job for job in batch}
        down = asyncio.ensure_future(server.down.wait())
        unanswered: list[Job] = []
        pending: set[asyncio.Future[Any]] = set(tasks)
        try:
            while pending and not down.done():
                await asyncio.wait({*pending, down}, return_when=asyncio.FIRST_COMPLETED)
                for task in [t for t in pending if t.done()]:
                    pending.discard(task)
                    job = tasks[task]  # type: ignore[index]
                    try:
                        deliver((job.key, server.url, task.result()))
                    except Unreachable as error:
                        self._suspect(server, str(error))
                        unanswered.append(job)
            return unanswered + [tasks[t] for t in pending]  # type: ignore[index]
        finally:
            server.in_flight -= len(batch)  # before the next await, which may be cancelled too
            for task in (*pending, down):
                task.cancel()
            await asyncio.gather(*pending, down, return_exceptions=True)

    async def _complete(self, server: ServerClient, job: Job) -> Any:
        """Send one job until it is answered; repeating it is safe, since its seed determines the completion."""
        while True:
            job.tries += 1
            try:
                body = job.body | {"model": job.body["model"] or server.model}
                answer = await server.request("POST", "/v1/completions", body)
                if not isinstance(answer, dict) or not answer.get("choices"):
                    raise Unreachable("its answer holds no completion")
                return answer
            except Refusal as error:
                if error.status == 404:  # it lost the adapter
                    if job.tries >= _TRIES * len(self.servers):
                        self.mark_gone(server, f"it does not know its own model: {error}")
                    raise Unreachable("it was restarted") from error
                if error.status < 500 and error.status != 429:
                    raise EngineFailure(
                        f"the vLLM server at {server.url} refuses a prompt: {error.message[:180].rstrip('. ')}"
                    ) from error
                if job.tries >= _TRIES:
                    if all(other is server for other in self.live()):
                        raise EngineFailure(
                            f"the vLLM server at {server.url} fails ({error.status}: {error.message[:100]}); see its "
                            "log, then continue with --ckpt_path last"
                        ) from error
                    self.mark_gone(server, f"it fails: {error}")
                    job.tries = 0
                    raise Unreachable(str(error)) from error
            except Unreachable:
                if job.tries >= _TRIES * len(self.servers):
                    self.mark_gone(server, "it fails again and again")
                raise
            await asyncio.sleep(0.25 * 2**job.tries)

    def _suspect(self, server: ServerClient, why: str) -> None:
        """Send a server nothing more until it was checked."""
        if server.state != "live":
            return
        server.state, server.why = "suspect", why
        server.down.set()
        probe = asyncio.ensure_future(self._probe(server))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe(self, server: ServerClient) -> None:
        """Mark a suspect live if it still holds the weights, else gone."""
        if await self._revive(server, server.patience) is False:
            self.mark_gone(server, "it was restarted and has lost the policy's weights")

    async def _watch_health(self) -> None:
        """Detect hung servers, whose connections stay open, by polling /health."""
        while True:
            await asyncio.sleep(min(s.patience for s in self.servers) / 3)
            busy = [s for s in self.live() if s.in_flight]
            outcomes = await asyncio.gather(*(s.get("/health") for s in busy), return_exceptions=True)
            for server, outcome in zip(busy, outcomes, strict=True):
                if isinstance(outcome, Exception) and server.state == "live":
                    self.mark_gone(server, str(outcome))

    async def _check_weights_kept(self, used: set[str]) -> None:
        """Check that the servers that were used held the policy's weights until the end."""
        for server in self.live():
            if server.url not in used:
                continue
            try:
                held = await self._holds_weights(server)
            except (Unreachable, Refusal):
                continue  # its answers came before it failed
            if not held:
                raise EngineFailure(
                    f"the vLLM server at {server.url} was restarted or got other weights while it wrote; make sure "
                    "that no other run uses it, and continue with --ckpt_path last"
                )


def _batches(jobs: Sequence[Job], size: int) -> deque[list[Job]]:
    """Neighbouring jobs of one group, in batches of at most ``size``."""
    batches: deque[list[Job]] = deque()
    for job in jobs:
        if batches and batches[-1][0].together == job.together and len(batches[-1]) < size:
            batches[-1].append(job)
        else:
            batches.append([job])
    return batches


def _adapter_refused(server: ServerClient, saved: SavedWeights, error: Refusal) -> str:
    said, url = error.message, server.url
    if error.no_route:
        return f"the vLLM server at {url} has no route for adapters; {ENABLE_LORA}"
    if "not enabled" in said:
        return f"the vLLM server at {url} takes no adapters; {ENABLE_LORA}"
    if found := re.search(r"rank (\d+) is greater than max_lora_rank (\d+)", said):
        return (
            f"the vLLM server at {url} takes adapters up to rank {found[2]}, this one has {found[1]}; start it with a "
            "larger --max-lora-rank"
        )
    if "No adapter found" in said:
        return _not_visible(server, saved)
    return f"the vLLM server at {url} refuses the adapter of version {saved.version} ({said[:120]}); see its log"


def _full_refused(server: ServerClient, saved: SavedWeights, error: Refusal) -> str:
    said, url = error.message, server.url
    if error.no_route:
        return f"the vLLM server at {url} has no routes for new weights; {_DEV_MODE}"
    if str(saved.path) in said or "Cannot find any model weights" in said:
        return _not_visible(server, saved)
    return (
        f"the vLLM server at {url} refuses the weights of version {saved.version} ({said[:110]}); start it with the "
        "model of model.model_name_or_path"
    )


def _not_visible(server: ServerClient, saved: SavedWeights) -> str:
    return (
        f"the vLLM server at {server.url} does not see {saved.path.parent.parent}; set data.engine.publish_to to a "
        "folder that it sees under the same path"
    )
