"""Rollouts by vLLM servers over HTTP, on this machine or others."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import Receipt, Request, RolloutEngine, WeightUpdate, Who
from lightning_serl.engines.vllm.compat import plain_lora
from lightning_serl.engines.vllm.local_server import Launch, launch_all
from lightning_serl.engines.vllm.server_client import ServerClient, clean_url, is_local
from lightning_serl.engines.vllm.server_pool import Answer, Job, ServerPool
from lightning_serl.engines.vllm.server_session import ServerSession
from lightning_serl.engines.vllm.session import by_request
from lightning_serl.engines.vllm.weight_files import WeightWriter, read_names
from lightning_serl.errors import EngineFailure, RankFailure, check_range
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Completion

# Texts scored by one request.
_SCORED_ROWS = 16


class VLLMServerEngine(RolloutEngine):
    """Samples from one or more vLLM servers (Kwon et al., 2309.06180), all with the same weights.

    Every completion is a request with its own seed. At most ``max_in_flight`` of them are open on each server, new ones
    go to the least busy server, and groups are returned as they finish. New weights are pushed through a directory that
    rank 0 writes and every server reads. Before every round each server is asked which weights it holds, so that one
    that was restarted or given other weights gets the policy's again. The run continues without a server that fails as
    long as another one works.

    Servers that you start need ``VLLM_SERVER_DEV_MODE=1``, ``--logprobs-mode processed_logprobs`` and, for adapters,
    ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 --enable-lora --max-lora-rank R --max-loras 2``. These routes let every client
    replace the weights: bind the server to 127.0.0.1 or a private network. The API key is read from the environment
    variable ``VLLM_API_KEY``.

    Args:
        urls: Address of a running server, or several; by default one is started on 127.0.0.1 and ended with the run.
        launch: How it is started.
        publish_to: Folder for weights that trainer and servers see under the same path; required where a server runs on
            another machine, by default a folder in memory.
        push_base: Under LoRA, push the base weights before the first adapter. If false, each server keeps the base it
            was started with, which only the probe of ``RolloutRefresh`` checks, and needs no development routes.
        max_in_flight: Most requests that each rank has open on one server.
        start_seconds: Time limit in seconds for servers to answer for the first time.
        patience: Seconds without any answer after which a server counts as gone.

    Raises:
        EngineFailure: in :meth:`start`, if a server cannot be reached or does not serve what this run needs.
    """

    overlaps = True
    concurrent = True

    def __init__(
        self,
        urls: str | list[str] | None = None,
        launch: Launch = Launch(),  # noqa: B008 - frozen
        publish_to: str | None = None,
        push_base: bool = True,
        max_in_flight: int = 256,
        start_seconds: float = 600.0,
        patience: float = 30.0,
    ) -> None:
        super().__init__()
        if urls is not None and not urls:
            raise ValueError("data.engine.urls is empty; name a server, or leave it out to have one started")
        urls = [urls] if isinstance(urls, str) else urls
        self.urls = None if urls is None else [clean_url(url) for url in urls]
        if self.urls is not None and len(set(self.urls)) < len(self.urls):
            raise ValueError("data.engine.urls names a server twice; list each once")
        check_range("data.engine.max_in_flight", max_in_flight, at_least=1)
        check_range("data.engine.start_seconds", start_seconds, above=0)
        check_range("data.engine.patience", patience, above=0)
        self.launch, self.publish_to, self.push_base = launch, publish_to, push_base
        self.max_in_flight, self.start_seconds, self.patience = max_in_flight, start_seconds, patience
        #: The servers and what they hold; ``None`` before :meth:`start` and after :meth:`close`.
        self.session: ServerSession | None = None

    # -- start and close -----------------------------------------------------------------------------------------------

    def _started_session(self) -> ServerSession:
        if self.session is None:
            raise EngineFailure("the vLLM server engine was asked to work before it was started")
        return self.session

    @property
    def version(self) -> int:
        """The version that every server with an answer holds, asked for now; -1 if one holds other weights.

        Raises :class:`EngineFailure` if no server can be reached.
        """
        session = self.session
        if session is None or (session.pool.base is None and session.pool.adapter is None):
            return -1
        held = session.loop.run(session.pool.hold_weights(), self.poll)
        session.emit_warnings()
        if not held:
            session.version, self.proven = -1, False
        return session.version

    @property
    def needs_base(self) -> bool:
        """Whether full weights must be pushed before an adapter can be."""
        return self.session is None or self.session.needs_base

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the servers' weights; ``None`` if the first one does not report it."""
        config = self._started_session().pool.servers[0].config.get("model_config", {})
        found = getattr(torch, str(config.get("dtype", "")).removeprefix("torch."), None)
        return found if isinstance(found, torch.dtype) else None

    @property
    def context_length(self) -> int | None:
        """The smallest context length of the servers that report one."""
        servers = () if self.session is None else self.session.pool.servers
        return min((s.context for s in servers if s.context is not None), default=None)

    def takes_adapter(self, config: Mapping[str, Any]) -> bool:
        """Whether adapters of this peft configuration are pushed as such: plain LoRA of linear layers."""
        return plain_lora(config)

    def start(self, policy: Policy | None, ranks: Any = None) -> None:
        """Start servers if none were named, wait until all are healthy, and check what they serve.

        Raises :class:`EngineFailure`, naming the server and the remedy.
        """
        if policy is None:
            raise EngineFailure("the vLLM server engine needs a policy; use ReplayEngine for recordings")
        self.close()
        session = ServerSession(policy, ranks or Ranks())
        try:
            urls = self.urls
            if urls is None:
                urls = self._launch(session)
            elif session.ranks.leads:
                session.weight_writer = self._make_writer(policy)
            session.pushes_base = self.urls is None or self.push_base
            clients = [ServerClient(url, self.patience) for url in urls]
            session.pool = ServerPool(clients, self.max_in_flight, session.exit_reason)
            self._await_health(session)
            session.loop.run(session.inspect(), self.poll)
            for server in clients:
                session.check_configuration(server)
                if self.publish_to is None and not is_local(server.url):
                    raise EngineFailure(
                        f"the vLLM server at {server.url} runs on another machine; set data.engine.publish_to to a "
                        "folder that both machines see under the same path"
                    )
        except BaseException:
            session.close()
            raise
        self.session, self.proven = session, False

    def _make_writer(self, policy: Policy) -> WeightWriter:
        size = sum(p.numel() * p.element_size() for p in policy.causal_lm.parameters())
        return WeightWriter(self.publish_to, needed_bytes=3 * size)

    def _launch(self, session: ServerSession) -> list[str]:
        """Start servers on rank 0; every rank returns their addresses, or raises."""
        policy, urls = session.policy, []
        error: BaseException | None = None
        # the first push replaces the weights: any directory of the same model will do
        model = str(getattr(policy.causal_lm, "name_or_path", "") or "")
        weights = iter(()) if model else policy.named_weights()
        if session.ranks.leads:
            try:
                writer = session.weight_writer = self._make_writer(policy)
                if not model:
                    model = str(writer.write_full(weights, -1, [policy.causal_lm.config, policy.tokenizer]).path)
                session.local_servers = launch_all(self.launch, model, policy, self.folder)
                urls = [server.url for server in session.local_servers]
            except BaseException as caught:  # raised below: the other ranks wait for the addresses
                error = caught
        for _ in weights:  # each sharded tensor is gathered by a collective call that every rank must join
            pass
        told = session.ranks.gather((socket.gethostname(), urls, None if error is None else str(error)))
        if error is not None:
            raise error
        if told[0][2] is not None:
            raise RankFailure(f"rank 0 failed while starting the vLLM server: {told[0][2]}")
        if len({host for host, _, _ in told}) > 1:
            raise EngineFailure(
                "a vLLM server started by the run answers only on rank 0's machine, and the run spans several; start "
                "one yourself and name it in data.engine.urls"
            )
        return told[0][1]

    def _await_health(self, session: ServerSession) -> None:
        deadline = time.monotonic() + self.start_seconds
        local = session.local_servers
        for server, client in zip(local, session.pool.servers, strict=False):
            server.wait(lambda c=client: session.healthy(c), deadline - time.monotonic(), self.poll)  # type: ignore[misc]
        for client in session.pool.servers[len(local) :]:
            while not session.healthy(client):
                self.poll()
                if time.monotonic() > deadline:
                    raise EngineFailure(
                        f"the vLLM server at {client.url} cannot be reached ({client.why[:90]}); start it, check "
                        "data.engine.urls, or raise data.engine.start_seconds"
                    )
                time.sleep(0.2)

    def close(self) -> None:
        """Close connections, end the servers that were started here, and remove the weight files."""
        session, self.session = self.session, None
        if session is not None:
            session.close()

    # -- weights -------------------------------------------------------------------------------------------------------

    def push(self, update: WeightUpdate) -> Receipt:
        """Write the weights on rank 0, have every server read them, and agree on the receipt on all ranks.

        The receipt is read from the files that the servers were given; each server is then asked for the name of the
        weights it holds, and PushMismatch is raised if it does not confirm them.
        """
        session = self._started_session()
        session.version = -1  # if the push fails, servers may hold different weights
        tensors, failure, saved = update.tensors(), None, None
        if session.ranks.leads:
            assert session.weight_writer is not None
            try:
                if update.kind == "adapter":
                    saved = session.weight_writer.write_adapter(tensors, update.meta, update.version)
                else:
                    saved = session.weight_writer.write_full(tensors, update.version)
            except EngineFailure as error:
                failure = error
        for _ in tensors:  # each sharded tensor is gathered by a collective call that every rank must join
            pass
        receipt: Receipt | None = None
        with session.ranks.stage("pushing weights to the vLLM servers"):
            if failure is not None:
                raise failure
            if saved is not None:
                receipt = Receipt(update.version, *read_names(saved.path))
                session.loop.run(session.pool.push(update.kind, saved), self.poll)
        pool = session.pool
        receipt, pool.base, pool.adapter = session.ranks.gather((receipt, pool.base, pool.adapter))[0]
        pool.base_lost = False
        session.version = update.version
        assert receipt is not None
        return receipt

    # -- completions and scores ----------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """See :meth:`RolloutEngine.generate`; groups come as they finish, while the servers write the rest.

        Raises :class:`EngineFailure` if no server is left, or one refuses a request.
        """
        session = self._started_session()
        if not session.serves(who):
            session.fallback.poll = self.poll
            yield from session.fallback.generate(requests, who)
            return
        for request in requests:
            session.check_length(len(request.prompt_ids), request.sampling.longest, "prompt")
        jobs = [
            Job((i, k), session.body(request, seed, session.model_of(who)), together=i)
            for i, request in enumerate(requests)
            for k, seed in enumerate(request.seeds)
        ]
        answers = self._run(jobs)
        written = ((key, session.completion_of(a, requests[key[0]].sampling, url)) for key, url, a in answers)
        yield from by_request(requests, written)

    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score`."""
        session = self._started_session()
        if not session.serves(who):
            return session.fallback.score(token_ids, who)
        out = [torch.zeros(0)] * len(token_ids)
        rows = sorted((i for i, ids in enumerate(token_ids) if len(ids) > 1), key=lambda i: len(token_ids[i]))
        for i in rows:
            session.check_length(len(token_ids[i]), 1, "text")
        jobs = []
        alone = session.scores_one_by_one
        size = 1 if alone else _SCORED_ROWS
        for first in range(0, len(rows), size):
            chosen = rows[first : first + size]
            body = {"model": session.model_of(who), "prompt": [list(token_ids[i]) for i in chosen], "max_tokens": 1}
            jobs.append(Job(tuple(chosen), body | {"temperature": 0.0, "prompt_logprobs": 0}, together=first))
        for chosen, _, answer in self._run(jobs, 1 if alone else None):
            for i, choice in zip(chosen, sorted(answer["choices"], key=lambda c: c["index"]), strict=True):
                pairs = zip(token_ids[i][1:], choice["prompt_logprobs"][1:], strict=True)
                out[i] = torch.tensor([row[str(token)]["logprob"] for token, row in pairs], dtype=torch.float32)
        return out

    def score_from(self, rows: Sequence[tuple[Sequence[int], int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score_from`."""
        session = self._started_session()
        return super().score_from(rows, who) if session.serves(who) else session.fallback.score_from(rows, who)

    def _run(self, jobs: Sequence[Job], limit: int | None = None) -> Iterator[Answer]:
        """Send the jobs and yield (key, server, answer) in the order they finish, calling ``poll`` while waiting."""
        session = self._started_session()
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        with session.loop.running(session.pool.run(jobs, answers.put, limit)) as future:
            missing = len(jobs)
            while missing:
                self.poll()
                try:
                    answer = answers.get(timeout=0.1)
                except queue.Empty:
                    if future.done() and answers.empty():
                        future.result()  # raises: before its last answer it ends only by an error
                    continue
                missing -= 1
                yield answer
            future.result()
        session.emit_warnings()
