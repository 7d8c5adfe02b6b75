"""The servers of one started VLLMServerEngine."""

from __future__ import annotations

import asyncio
import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import Request, Sampling, Who, before_stop
from lightning_serl.engines.transformers import TransformersEngine
from lightning_serl.engines.vllm.background_loop import Background
from lightning_serl.engines.vllm.local_server import LocalServer
from lightning_serl.engines.vllm.server_client import KEY, Refusal, Replica, Unreachable
from lightning_serl.engines.vllm.server_pool import BASE, Fleet
from lightning_serl.engines.vllm.weight_files import Publisher
from lightning_serl.errors import EngineFailure
from lightning_serl.types import Completion

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy


class _Parts:
    """What lives between start and close."""

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        self.policy, self.ranks = policy, ranks
        self.background = Background()
        self.fleet = Fleet((), 1)
        self.servers: list[LocalServer] = []
        self.publisher: Publisher | None = None
        self.version = -1
        self.pushes_base = True
        self.transformers = TransformersEngine()
        self.transformers.start(policy)
        special = policy.tokenizer.added_tokens_decoder.items()
        self.special = {t.content: i for i, t in special if t.special}

    @property
    def needs_base(self) -> bool:
        """Whether some server lacks the full weights that adapters sit on."""
        return self.fleet.base_lost or (self.pushes_base and self.fleet.base is None)

    def last_words(self, replica: Replica) -> str | None:
        """What a server that was started here said when it ended."""
        ended = (s for s in self.servers if s.url == replica.url and not s.running)
        return next((server.last_words() for server in ended), None)

    def tell(self) -> None:
        """Warn of servers that were lost."""
        while self.fleet.news:
            warnings.warn(self.fleet.news.pop(0), stacklevel=3)

    def close(self) -> None:
        with suppress(Exception):  # whatever is wrong with a server, the others and the files are let go
            self.background.wait(self.fleet.leave(unload=not self.servers and self.ranks.leads), lambda: None)
        self.background.close()
        for server in self.servers:
            server.stop()
        if self.publisher is not None:
            self.publisher.close()

    # -- what the servers are ------------------------------------------------------------------------------------------

    def healthy(self, replica: Replica) -> bool:
        """Whether it answers now."""

        async def once() -> bool:
            try:
                await replica.call("GET", "/health", seconds=5)
            except (Unreachable, Refusal) as error:
                replica.why = str(error)
                return False
            return True

        return self.background.wait(once(), lambda: None)

    async def look(self) -> None:
        """Ask every server for its model, its context and its configuration.

        Raises:
            EngineFailure: if one does not serve the policy's model.
        """
        await asyncio.gather(*(self._look(replica) for replica in self.fleet.replicas))

    async def _look(self, replica: Replica) -> None:
        url = replica.url
        try:
            cards = (await replica.ask("/v1/models"))["data"]
            card = next(c for c in cards if not c.get("parent"))
            replica.model, replica.context = card["id"], card.get("max_model_len")
        except Unreachable as error:
            raise EngineFailure(f"the vLLM server at {url} cannot be reached ({error}); check that it runs") from error
        except (Refusal, KeyError, TypeError, StopIteration) as error:
            if isinstance(error, Refusal) and error.status in (401, 403):
                raise EngineFailure(f"the vLLM server at {url} asks for a key; set {KEY} to it") from error
            raise EngineFailure(f"what answers at {url} is no vLLM server; check data.engine.urls") from error
        with suppress(Refusal, Unreachable):  # not every release tells; then the pushes must
            told = await replica.ask("/server_info?config_format=json", max(60.0, replica.patience))
            if isinstance(told, dict) and isinstance(told.get("vllm_config"), dict):
                replica.config = told["vllm_config"]
        await self._check_model(replica, str(card.get("root") or ""))

    async def _check_model(self, replica: Replica, root: str) -> None:
        """The server's model must have the policy's shape; its weights are replaced anyway."""
        ours = self.policy.causal_lm.config.get_text_config()
        said = f"the vLLM server at {replica.url} serves another model ({root[-60:] or replica.model})"
        remedy = "start it with the model of model.model_name_or_path"
        with suppress(OSError, ValueError):
            theirs = json.loads((Path(root) / "config.json").read_text(encoding="utf-8"))
            for name in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
                here, there = getattr(ours, name, None), theirs.get(name)
                if here is not None and there is not None and here != there:
                    raise EngineFailure(f"{said}: its {name} is {there}, the policy's {here}; {remedy}")
        rows = self.policy.causal_lm.get_input_embeddings().weight.shape[0]
        body = {"model": replica.model, "max_tokens": 1, "temperature": 0.0}
        for token, fits in ((min(rows, len(self.policy.tokenizer)) - 1, True), (2 * rows, False)):
            try:
                await replica.call("POST", "/v1/completions", {**body, "prompt": [token]}, max(300.0, replica.patience))
                known = True
            except Refusal as error:
                if error.status not in (400, 422):
                    raise EngineFailure(
                        f"the vLLM server at {replica.url} does not work: {error.message[:150]}"
                    ) from error
                known = False
            except Unreachable as error:
                raise EngineFailure(
                    f"the vLLM server at {replica.url} broke off its first completion; see its log"
                ) from error
            if known != fits:
                raise EngineFailure(f"{said}: its vocabulary is not the policy's {rows} tokens; {remedy}")

    # -- requests -----------------------------------------------------------------------------------------------------

    def model_of(self, who: Who) -> str | None:
        """The adapter's name, or ``BASE``; ``None`` for a frozen copy that the servers do not hold."""
        if who == "policy":
            return self.fleet.adapter or BASE
        held = who == "reference" and who not in self.policy.copies and self.fleet.adapter is not None
        return BASE if held else None

    def check_length(self, prompt: int, wanted: int, what: str) -> None:
        for replica in self.fleet.replicas:
            if replica.context is not None and prompt + wanted > replica.context:
                raise EngineFailure(
                    f"a {what} of {prompt} tokens and {wanted} more do not fit into the context of the vLLM server at "
                    f"{replica.url} ({replica.context}); start it with a larger --max-model-len, or lower max_tokens"
                )

    def body(self, request: Request, seed: int, model: str) -> dict[str, Any]:
        """One completion as vLLM's ``/v1/completions`` takes it; nothing is left to the server's own defaults."""
        how = request.sampling
        ends = [*self.policy.end_ids, *(self.special[s] for s in how.stop if s in self.special)]
        return {
            "model": model,
            "prompt": list(request.prompt_ids),
            "n": 1,
            "seed": seed,
            "max_tokens": how.max_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "min_p": 0.0,
            "presence_penalty": how.presence_penalty,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "stop": [s for s in how.stop if s not in self.special],
            "stop_token_ids": ends,
            "ignore_eos": True,  # the policy's end tokens, not those that the server reads from files
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": True,
        }

    def completion(self, answer: Any, how: Sampling, url: str) -> Completion:
        """What a server wrote.

        Raises:
            EngineFailure: if it ended for another reason than an end token, a stop string or its length.
        """
        choice = answer["choices"][0]
        ids = choice.get("token_ids")
        if ids is None:
            raise EngineFailure(f"the vLLM server at {url} returns no token ids; update vLLM")
        ids, reason = tuple(map(int, ids)), choice["finish_reason"]
        if reason not in ("stop", "length") or (reason == "length" and len(ids) < how.max_tokens):
            raise EngineFailure(
                f"the vLLM server at {url} ended a completion after {len(ids)} tokens ({reason}); "
                "start it with --generation-config vllm"
            )
        text = self.policy.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if reason == "stop":
            cut = before_stop(text, how.stop)
            text = text if cut is None else cut
        logprobs = tuple(map(float, choice["logprobs"]["token_logprobs"]))
        if len(logprobs) != len(ids):
            raise EngineFailure(f"the vLLM server at {url} sent {len(logprobs)} log-probs for {len(ids)} tokens")
        return Completion(ids, text, logprobs, reason == "stop", self.version)
