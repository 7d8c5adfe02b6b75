"""Rollouts by vLLM servers over HTTP, here or elsewhere."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import Receipt, Request, RolloutEngine, WeightUpdate, Who
from lightning_serl.engines.vllm.local_server import Launch, launch_all
from lightning_serl.engines.vllm.lora_support import largest_rank, plain_lora
from lightning_serl.engines.vllm.server_client import Replica, clean_url, is_here
from lightning_serl.engines.vllm.server_pool import Answer, Fleet, Job
from lightning_serl.engines.vllm.weight_files import Publisher, read_names
from lightning_serl.errors import EngineFailure, RankFailure
from lightning_serl.types import Completion

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy
from lightning_serl.engines.vllm.server_requirements import (
    _arguments,
    _check_adapters,
    _environment,
    _mixes_up_scores,
    _weight_bytes,
)
from lightning_serl.engines.vllm.server_session import _Parts

# Rows scored by one request.
_ROWS = 16


class VLLMServerEngine(RolloutEngine):
    """Samples from one or more vLLM servers (Kwon et al., 2309.06180), all with the same weights.

    Every completion is a request with a seed of its own; up to ``max_in_flight`` of them are under way on each server,
    spread by load, and groups are handed over as they finish. New weights go through a directory: rank 0 writes it,
    every server reads it, and what each holds is asked again before every round, so that a server that was restarted
    or given other weights is noticed and gets them anew. A server that breaks off is done without as long as another
    is there.

    Servers of your own need ``VLLM_SERVER_DEV_MODE=1``, ``--logprobs-mode processed_logprobs`` and, for adapters,
    ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 --enable-lora --max-lora-rank R --max-loras 2``. Those routes let anyone who
    reaches the server replace its weights: bind it to 127.0.0.1 or a private network.

    Args:
        urls: Address of a running server, or of several; without, one is started here, on 127.0.0.1, and ended with
            the run.
        launch: How it is started.
        publish_to: Folder for weights that trainer and servers see under the same path, needed where a server runs on
            another machine; by default one in RAM.
        push_base: Under LoRA, push the base weights once before the first adapter. Without, the base that each server
            was started with is trusted as far as the probe of ``RolloutRefresh`` goes, and no development routes are
            needed.
        max_in_flight: Requests that each rank has under way on one server at one time.
        start_seconds: How long servers may take to answer for the first time.
        patience: Seconds without a sign of life after which a server counts as gone.

    The key of the servers is taken from the environment variable ``VLLM_API_KEY``.

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
            raise ValueError("engine.urls is empty; name a server, or leave it out to have one started")
        urls = [urls] if isinstance(urls, str) else urls
        self.urls = None if urls is None else [clean_url(url) for url in urls]
        if self.urls is not None and len(set(self.urls)) < len(self.urls):
            raise ValueError("engine.urls names a server twice; list each once")
        if max_in_flight < 1:
            raise ValueError(f"engine.max_in_flight must be at least 1, got {max_in_flight}")
        if start_seconds <= 0 or patience <= 0:
            raise ValueError("engine.start_seconds and engine.patience must be above 0")
        self.launch, self.publish_to, self.push_base = launch, publish_to, push_base
        self.max_in_flight, self.start_seconds, self.patience = max_in_flight, start_seconds, patience
        self._parts: _Parts | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def _live(self) -> _Parts:
        if self._parts is None:
            raise EngineFailure("the vLLM server engine was asked to work before it was started")
        return self._parts

    @property
    def version(self) -> int:
        """The version that every reachable server was found to hold just now; -1 if one of them does not.

        Raises:
            EngineFailure: if no server can be reached.
        """
        parts = self._parts
        if parts is None or (parts.fleet.base is None and parts.fleet.adapter is None):
            return -1
        held = parts.background.wait(parts.fleet.survey(), self.poll)
        parts.tell()
        if not held:
            parts.version, self.proven = -1, False
        return parts.version

    @property
    def needs_base(self) -> bool:
        """Whether an adapter cannot be pushed before the full weights it sits on."""
        return self._parts is None or self._parts.needs_base

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the servers' weights, if they say."""
        said = str(self._live.fleet.replicas[0].config.get("model_config", {}).get("dtype", "")).removeprefix("torch.")
        found = getattr(torch, said, None)
        return found if isinstance(found, torch.dtype) else None

    @property
    def context_length(self) -> int | None:
        """Of the server that takes the fewest tokens, as far as they say."""
        replicas = () if self._parts is None else self._parts.fleet.replicas
        return min((r.context for r in replicas if r.context is not None), default=None)

    def takes_adapter(self, config: Mapping[str, Any]) -> bool:
        """Plain LoRA of linear layers; what vLLM's loader refuses arrives merged."""
        return plain_lora(config)

    def start(self, policy: Policy | None, ranks: Any = None) -> None:
        """Start servers if none were named, wait for all to answer, and look at what they serve.

        Raises:
            EngineFailure: naming the server and the remedy.
        """
        if policy is None:
            raise EngineFailure("the vLLM server engine needs a policy; use ReplayEngine for recordings")
        self.close()
        parts = _Parts(policy, ranks or Ranks())
        try:
            if self.urls is None:
                urls = self._launch(parts)
            else:
                urls = self.urls
                if parts.ranks.leads:
                    parts.publisher = self._publisher(policy)
            parts.pushes_base = self.urls is None or self.push_base
            parts.fleet = Fleet([Replica(url, self.patience) for url in urls], self.max_in_flight, parts.last_words)
            self._await_health(parts)
            parts.background.wait(parts.look(), self.poll)
            self._check(parts)
        except BaseException:
            parts.close()
            raise
        self._parts, self.proven = parts, False

    def _publisher(self, policy: Policy) -> Publisher:
        return Publisher(self.publish_to, room=3 * _weight_bytes(policy))

    def _launch(self, parts: _Parts) -> list[str]:
        """Rank 0 starts the servers; every rank gets their addresses, or raises."""
        policy, urls = parts.policy, []
        error: BaseException | None = None
        # its weights are replaced by the first push: any directory of the same model will do
        model = str(getattr(policy.causal_lm, "name_or_path", "") or "")
        weights = iter(()) if model else policy.named_weights()
        if parts.ranks.leads:
            try:
                parts.publisher = self._publisher(policy)
                model = model or str(
                    parts.publisher.full(weights, -1, [policy.causal_lm.config, policy.tokenizer]).path
                )
                parts.servers = launch_all(self.launch, model, _arguments(policy), self.folder, _environment(policy))
                urls = [server.url for server in parts.servers]
            except BaseException as caught:  # the other ranks wait for the addresses
                error = caught
        for _ in weights:  # sharded ones are gathered by all ranks in step
            pass
        told = parts.ranks.gather((socket.gethostname(), urls, None if error is None else str(error)))
        if error is not None:
            raise error
        if told[0][2] is not None:
            raise RankFailure(f"rank 0 failed while starting the vLLM server: {told[0][2]}")
        if len({host for host, _, _ in told}) > 1:
            raise EngineFailure(
                "a vLLM server started here answers this machine alone, and the run spans several; start one yourself "
                "and name it in data.engine.urls"
            )
        return told[0][1]

    def _await_health(self, parts: _Parts) -> None:
        deadline = time.monotonic() + self.start_seconds
        for server, replica in zip(parts.servers, parts.fleet.replicas, strict=False):
            server.wait(lambda r=replica: parts.healthy(r), deadline - time.monotonic(), self.poll)  # type: ignore[misc]
        for replica in parts.fleet.replicas[len(parts.servers) :]:
            while not parts.healthy(replica):
                self.poll()
                if time.monotonic() > deadline:
                    raise EngineFailure(
                        f"the vLLM server at {replica.url} cannot be reached ({replica.why[:90]}); start it, check "
                        "data.engine.urls, or raise data.engine.start_seconds"
                    )
                time.sleep(0.2)

    def _check(self, parts: _Parts) -> None:
        """Refuse before any work what could not work."""
        for replica in parts.fleet.replicas:
            url, config = replica.url, replica.config.get("model_config", {})
            if (mode := config.get("logprobs_mode", "processed_logprobs")) != "processed_logprobs":
                raise EngineFailure(
                    f"the vLLM server at {url} reports {mode}, not those of what it draws; start it with "
                    "--logprobs-mode processed_logprobs"
                )
            if self.publish_to is None and not is_here(url):
                raise EngineFailure(
                    f"the vLLM server at {url} runs on another machine; give data.engine.publish_to, a folder for "
                    "weights that both see under the same path"
                )
            if parts.policy.has_adapter:
                adapter = parts.policy.adapter_config()
                if plain_lora(adapter):
                    _check_adapters(replica, largest_rank(adapter))

    def close(self) -> None:
        """Let go of the servers, end those that were started here, and remove what was published."""
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    # -- weights -----------------------------------------------------------------------------------------------------

    def push(self, update: WeightUpdate) -> Receipt:
        """Rank 0 publishes the weights and has every server read them; all ranks agree on what arrived.

        The receipt is read from the published files, which is what the servers were given; each server is then asked
        for the name of what it holds.

        Raises:
            PushMismatch: if a server does not confirm what it was given.
            EngineFailure: if the weights cannot be written, or a server is gone or refuses them.
        """
        parts = self._live
        parts.version = -1  # whatever happens, the old version is not there any more
        tensors, failure, published = update.tensors(), None, None
        if parts.ranks.leads:
            assert parts.publisher is not None
            try:
                if update.kind == "adapter":
                    published = parts.publisher.adapter(tensors, update.meta, update.version)
                else:
                    published = parts.publisher.full(tensors, update.version)
            except EngineFailure as error:
                failure = error
        for _ in tensors:  # sharded weights are gathered by all ranks in step, whatever became of the files
            pass
        receipt: Receipt | None = None
        with parts.ranks.stage("pushing weights to the vLLM servers"):
            if failure is not None:
                raise failure
            if published is not None:
                names, size = read_names(published.path)
                parts.background.wait(parts.fleet.deliver(update.kind, published), self.poll)
                receipt = Receipt(update.version, frozenset(names), size)
        fleet = parts.fleet
        receipt, fleet.base, fleet.adapter = parts.ranks.gather((receipt, fleet.base, fleet.adapter))[0]
        fleet.base_lost = False
        parts.version = update.version
        assert receipt is not None
        return receipt

    # -- work --------------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """See :meth:`RolloutEngine.generate`; groups come as they finish, while the rest is still being written.

        Raises:
            EngineFailure: if no server is left, or one refuses a request.
        """
        parts = self._live
        model = parts.model_of(who)
        if model is None:  # a frozen copy that lives in the trainer
            parts.transformers.poll = self.poll
            yield from parts.transformers.generate(requests, who)
            return
        for request in requests:
            parts.check_length(len(request.prompt_ids), request.sampling.max_tokens, "prompt")
        yield from ((i, []) for i, request in enumerate(requests) if not request.n)
        jobs = [
            Job((i, k), parts.body(request, seed, model), together=i)
            for i, request in enumerate(requests)
            for k, seed in enumerate(request.seeds)
        ]
        written: dict[int, dict[int, Completion]] = {}
        for (i, k), url, answer in self._run(jobs):
            group = written.setdefault(i, {})
            group[k] = parts.completion(answer, requests[i].sampling, url)
            if len(group) == requests[i].n:
                yield i, [group[j] for j in range(requests[i].n)]
                del written[i]

    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score`; at temperature 1, whatever the policy's."""
        parts = self._live
        model = parts.model_of(who)
        if model is None:
            return parts.transformers.score(token_ids, who)
        out = [torch.zeros(0)] * len(token_ids)
        rows = sorted((i for i, ids in enumerate(token_ids) if len(ids) > 1), key=lambda i: len(token_ids[i]))
        for i in rows:
            parts.check_length(len(token_ids[i]), 1, "text")
        jobs = []
        alone = any(_mixes_up_scores(replica) for replica in parts.fleet.replicas)
        size = 1 if alone else _ROWS
        for first in range(0, len(rows), size):
            chosen = rows[first : first + size]
            body = {"model": model, "prompt": [list(token_ids[i]) for i in chosen], "max_tokens": 1}
            jobs.append(Job(tuple(chosen), body | {"temperature": 0.0, "prompt_logprobs": 0}, together=first))
        for chosen, _, answer in self._run(jobs, 1 if alone else None):
            for i, choice in zip(chosen, sorted(answer["choices"], key=lambda c: c["index"]), strict=True):
                pairs = zip(token_ids[i][1:], choice["prompt_logprobs"][1:], strict=True)
                out[i] = torch.tensor([row[str(token)]["logprob"] for token, row in pairs], dtype=torch.float32)
        return out

    def _run(self, jobs: Sequence[Job], most: int | None = None) -> Iterator[Answer]:
        """(key, server, answer) of each job in the order they finish; polls while it waits."""
        parts = self._live
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        with parts.background.running(parts.fleet.serve(jobs, answers.put, most)) as future:
            missing = len(jobs)
            while missing:
                self.poll()
                try:
                    answer = answers.get(timeout=0.1)
                except queue.Empty:
                    if future.done() and answers.empty():
                        future.result()  # raises: it ends before its last answer only by an error
                    continue
                missing -= 1
                yield answer
            future.result()
        parts.tell()
