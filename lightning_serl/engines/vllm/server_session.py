"""The servers of a started VLLMServerEngine: what they must be, and the requests and answers of their interface."""

from __future__ import annotations

import asyncio
import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import Request, Sampling, Who
from lightning_serl.engines.vllm.compat import largest_rank, plain_lora
from lightning_serl.engines.vllm.local_server import LocalServer
from lightning_serl.engines.vllm.server_client import KEY, BackgroundLoop, Refusal, ServerClient, Unreachable
from lightning_serl.engines.vllm.server_pool import BASE_MODEL, ENABLE_LORA, ServerPool
from lightning_serl.engines.vllm.session import Session
from lightning_serl.engines.vllm.weight_files import WeightWriter
from lightning_serl.errors import EngineFailure
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Completion


class ServerSession(Session):
    """What a :class:`VLLMServerEngine` holds between ``start`` and ``close``; ``ranks`` use the same servers.

    Attributes:
        local_servers: Those that were started here.
        weight_writer: Writes the weights that servers read, on rank 0.
        version: The version pushed last; -1 if some server does not hold it.
        pushes_base: Whether full weights are pushed before the first adapter.
    """

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        super().__init__(policy)
        self.ranks = ranks
        self.loop = BackgroundLoop()
        self.pool = ServerPool((), 1)
        self.local_servers: list[LocalServer] = []
        self.weight_writer: WeightWriter | None = None
        self.version = -1
        self.pushes_base = True
        added = policy.tokenizer.added_tokens_decoder.items()
        self._special_ids = {token.content: i for i, token in added if token.special}

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter was pushed."""
        return self.pool.adapter is not None

    @property
    def needs_base(self) -> bool:
        """Whether full weights must be pushed before an adapter, because some server lacks them."""
        return self.pool.base_lost or (self.pushes_base and self.pool.base is None)

    def exit_reason(self, server: ServerClient) -> str | None:
        """The error in the log of a server that was started here and has ended, else ``None``."""
        ended = (s for s in self.local_servers if s.url == server.url and not s.running)
        return next((local.error() for local in ended), None)

    def emit_warnings(self) -> None:
        """Issue the pool's pending warnings."""
        while self.pool.warnings:
            warnings.warn(self.pool.warnings.pop(0), stacklevel=3)

    def close(self) -> None:
        """Close connections, end the servers that were started here, and remove the weight files."""
        with suppress(Exception):  # a server that fails must not keep the others and the files
            self.loop.run(self.pool.close(unload=not self.local_servers and self.ranks.leads), lambda: None)
        self.loop.close()
        for server in self.local_servers:
            server.stop()
        if self.weight_writer is not None:
            self.weight_writer.close()

    # -- what the servers serve ----------------------------------------------------------------------------------------

    def healthy(self, server: ServerClient) -> bool:
        """Whether the server answers its health check now."""

        async def once() -> bool:
            try:
                await server.request("GET", "/health", seconds=5)
            except (Unreachable, Refusal) as error:
                server.why = str(error)
                return False
            return True

        return self.loop.run(once(), lambda: None)

    async def inspect(self) -> None:
        """Ask every server for its model, which must be the policy's, its context length and its configuration."""
        await asyncio.gather(*(self._inspect(server) for server in self.pool.servers))

    async def _inspect(self, server: ServerClient) -> None:
        url = server.url
        try:
            cards = (await server.get("/v1/models"))["data"]
            card = next(c for c in cards if not c.get("parent"))
            server.model, server.context = card["id"], card.get("max_model_len")
        except Unreachable as error:
            raise EngineFailure(
                f"the vLLM server at {url} cannot be reached ({error}); start it, or check data.engine.urls"
            ) from error
        except (Refusal, KeyError, TypeError, StopIteration) as error:
            if isinstance(error, Refusal) and error.status in (401, 403):
                raise EngineFailure(f"the vLLM server at {url} requires an API key; set {KEY} to it") from error
            raise EngineFailure(f"what answers at {url} is no vLLM server; check data.engine.urls") from error
        with suppress(Refusal, Unreachable):  # some releases lack this route: the pushes find what is wrong
            told = await server.get("/server_info?config_format=json", max(60.0, server.patience))
            if isinstance(told, dict) and isinstance(told.get("vllm_config"), dict):
                server.config = told["vllm_config"]
        await self._check_model(server, str(card.get("root") or ""))

    async def _check_model(self, server: ServerClient, root: str) -> None:
        """Refuse a server whose model differs from the policy's in shape; its weights do not matter."""
        ours = self.policy.causal_lm.config.get_text_config()
        said = f"the vLLM server at {server.url} serves another model ({root[-60:] or server.model})"
        remedy = "start it with the model of model.model_name_or_path"
        with suppress(OSError, ValueError):
            theirs = json.loads((Path(root) / "config.json").read_text(encoding="utf-8"))
            for name in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
                here, there = getattr(ours, name, None), theirs.get(name)
                if here is not None and there is not None and here != there:
                    raise EngineFailure(f"{said}: its {name} is {there}, the policy's {here}; {remedy}")
        rows = self.policy.causal_lm.get_input_embeddings().weight.shape[0]
        body = {"model": server.model, "max_tokens": 1, "temperature": 0.0}
        for token, fits in ((min(rows, len(self.policy.tokenizer)) - 1, True), (2 * rows, False)):
            try:
                await server.request("POST", "/v1/completions", body | {"prompt": [token]}, max(300.0, server.patience))
                known = True
            except Refusal as error:
                if error.status not in (400, 422):
                    raise EngineFailure(
                        f"the vLLM server at {server.url} fails at its first completion: {error.message[:150]}; see "
                        "its log"
                    ) from error
                known = False
            except Unreachable as error:
                raise EngineFailure(
                    f"the vLLM server at {server.url} gave no answer to its first completion ({error}); see its log"
                ) from error
            if known != fits:
                raise EngineFailure(f"{said}: its vocabulary is not the policy's {rows} tokens; {remedy}")

    def check_configuration(self, server: ServerClient) -> None:
        """Refuse a server that reports other log-probs than the engine needs, or cannot load the policy's adapters."""
        mode = server.config.get("model_config", {}).get("logprobs_mode", "processed_logprobs")
        if mode != "processed_logprobs":
            raise EngineFailure(
                f"the vLLM server at {server.url} returns {mode}, not the log-probs it samples from; start it with "
                "--logprobs-mode processed_logprobs"
            )
        config = self.policy.adapter_config() if self.policy.has_adapter else {}
        if not config or not plain_lora(config) or "model_config" not in server.config:  # older releases report nothing
            return
        rank, lora = largest_rank(config), server.config.get("lora_config")
        said = f"the vLLM server at {server.url} takes"
        if not lora:
            raise EngineFailure(f"{said} no adapters; {ENABLE_LORA} --max-lora-rank {rank}")
        if (most := int(lora.get("max_lora_rank", rank))) < rank:
            raise EngineFailure(
                f"{said} adapters up to rank {most}, this one needs {rank}; start it with --max-lora-rank {rank}"
            )

    @property
    def scores_one_by_one(self) -> bool:
        """Whether texts must be scored one at a time.

        On CPUs vLLM crashes on two scored texts in one batch if its output layer is prepared for adapters.
        """
        for config in (server.config for server in self.pool.servers):
            lora = config.get("lora_config") or {}
            on_cpu = config.get("device_config", {}).get("device_type") == "cpu"
            if on_cpu and lora and (not lora.get("target_modules") or "lm_head" in lora["target_modules"]):
                return True
        return False

    # -- requests ------------------------------------------------------------------------------------------------------

    def model_of(self, who: Who) -> str:
        """The name under which servers know the weights of ``who``, see :meth:`serves`."""
        return (self.pool.adapter if who == "policy" else None) or BASE_MODEL

    def check_length(self, tokens: int, new: int, what: str) -> None:
        """Refuse a text that leaves no room for ``new`` tokens on some server."""
        for server in self.pool.servers:
            if server.context is not None and tokens + new > server.context:
                raise EngineFailure(
                    f"a {what} of {tokens} tokens and {new} more do not fit into the context of the vLLM server at "
                    f"{server.url} ({server.context}); start it with a larger --max-model-len, or lower max_tokens"
                )

    def body(self, request: Request, seed: int, model: str) -> dict[str, Any]:
        """One completion as a body for ``/v1/completions``, which leaves nothing to the server's defaults."""
        how = request.sampling
        ends = [*self.policy.end_ids, *(self._special_ids[s] for s in how.stop if s in self._special_ids)]
        return {
            "model": model,
            "prompt": list(request.prompt_ids),
            "n": 1,
            "seed": seed,
            "max_tokens": how.longest,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "min_p": 0.0,
            "presence_penalty": how.presence_penalty,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "stop": [s for s in how.stop if s not in self._special_ids],
            "stop_token_ids": ends,
            "ignore_eos": True,  # the policy's end tokens, not those that the server reads from files
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": True,
            # the ids that the tokenizer cannot write, which have no probability in the policy
            **({"logit_bias": {str(i): -100.0 for i in self.policy.spare_ids}} if self.policy.spare_ids else {}),
        }

    def completion_of(self, answer: Any, how: Sampling, url: str) -> Completion:
        """The completion in a server's answer, which a token, a stop string or its length must have ended."""
        choice = answer["choices"][0]
        ids = choice.get("token_ids")
        if ids is None:
            raise EngineFailure(f"the vLLM server at {url} returns no token ids; update vLLM")
        ids, reason = tuple(map(int, ids)), choice["finish_reason"]
        if reason not in ("stop", "length") or (reason == "length" and len(ids) < how.longest):
            raise EngineFailure(
                f"the vLLM server at {url} ended a completion after {len(ids)} tokens ({reason}); "
                "start it with --generation-config vllm"
            )
        logprobs = [float(p) for p in choice["logprobs"]["token_logprobs"]]
        if len(logprobs) != len(ids):
            raise EngineFailure(
                f"the vLLM server at {url} sent {len(logprobs)} log-probs for {len(ids)} tokens; update vLLM"
            )
        return self.completion(ids, logprobs, reason == "stop", how, self.version)
