"""Rollouts by vLLM in the trainer's process, one engine per rank."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_serl.engines.base import (
    Receipt,
    Request,
    RolloutEngine,
    WeightUpdate,
    Who,
)
from lightning_serl.engines.vllm.isolation import Room, undisturbed
from lightning_serl.engines.vllm.lora_support import plain_lora, served_rank
from lightning_serl.errors import EngineFailure, InputError, PushMismatch
from lightning_serl.types import Completion

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy
from lightning_serl.engines.vllm.compat import (
    _INSTALL,
    _as_local_rank,
    _can_sleep,
    _import_vllm,
    _is_vllms,
    _known_arguments,
    _reason,
    _refused,
)
from lightning_serl.engines.vllm.session import _Parts

_GIB = 1024**3
# The engine of this process: vLLM keeps its parallel state in module variables, so there is one at a time.
_alive: weakref.WeakSet[Any] = weakref.WeakSet()


class VLLMEngine(RolloutEngine):
    """Samples from a copy of the policy's weights in vLLM (Kwon et al., 2309.06180), inside the trainer's process.

    The engine is built from the live policy's configuration and tokenizer, never from the files it came from, and
    begins without weights: the first push brings them, so that both sides hold the same ones whatever the policy went
    through. It lives in a ``isolation.Room`` of its own and never touches the trainer's
    process groups, random numbers or threads.

    Each completion is a request with a seed of its own. What vLLM does not promise: two sums in another order may turn
    a tie, so that a completion can differ with the batch it travelled in, and with another release or device it will.

    Under LoRA, ``who="reference"`` is the model without its adapter; any frozen copy that the engine does not hold
    answers through transformers, more slowly.

    Args:
        memory_share: Share of the accelerator's memory for the engine, weights and cache together; on CPUs, where the
            cache is set by ``kv_cache_gb``, it has no meaning.
        kv_cache_gb: GiB of key/value cache; by default what ``memory_share`` leaves, or 1 on CPUs.
        max_model_len: Most tokens of prompt and completion together; by default what the model was built for.
        max_rows: Completions in flight at one time.
        dtype: Of the engine's weights: ``auto`` for that of the policy's, or ``float32``, ``bfloat16``, ``float16``
            (``bfloat16`` is right under ``bf16-mixed`` precision).
        lora: How LoRA travels: as the ``adapter`` it is, or ``merged`` into full weights out of place, which makes
            pushes slower and decoding faster.
        sleep_level: What the engine gives back while the trainer works, where the device can: 0 nothing, 1 keeps the
            weights in host memory, 2 drops them. By default 1 under LoRA and 2 otherwise.
        enforce_eager: Do without CUDA graphs; by default only on CPUs.
        extra: Further arguments of ``vllm.LLM``.

    Raises:
        EngineFailure: in :meth:`start`, if vLLM is absent, refuses the model or finds no memory for its cache.
    """

    def __init__(
        self,
        memory_share: float = 0.45,
        kv_cache_gb: float | None = None,
        max_model_len: int | None = None,
        max_rows: int = 256,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        lora: Literal["adapter", "merged"] = "adapter",
        sleep_level: Literal[0, 1, 2] | None = None,
        enforce_eager: bool | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < memory_share <= 1:
            raise ValueError(f"memory_share must lie in (0, 1], got {memory_share}")
        if kv_cache_gb is not None and kv_cache_gb <= 0:
            raise ValueError(f"kv_cache_gb must be above 0, got {kv_cache_gb}")
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        if max_model_len is not None and max_model_len < 2:
            raise ValueError(f"max_model_len must be at least 2, got {max_model_len}")
        if (found := find_spec("vllm")) is None or found.origin is None:
            raise InputError(f"VLLMEngine needs vLLM, which is not installed; {_INSTALL}, or leave data.engine out")
        self.memory_share, self.kv_cache_gb, self.max_model_len = memory_share, kv_cache_gb, max_model_len
        self.max_rows, self.dtype_name, self.lora, self.sleep_level = max_rows, dtype, lora, sleep_level
        self.enforce_eager, self.extra = enforce_eager, dict(extra or {})
        self._version = -1
        self._parts: _Parts | None = None
        self._close: weakref.finalize[..., Any] | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version pushed last; -1 until then, and after the weights were dropped."""
        return self._version

    @property
    def needs_base(self) -> bool:
        """Whether no full weights have arrived yet, or they were dropped to sleep."""
        return self._parts is None or not self._parts.has_base

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the engine's weights."""
        return None if self._parts is None else self._parts.dtype

    @property
    def context_length(self) -> int | None:
        """What it was built for, or will be at most."""
        return self.max_model_len if self._parts is None else self._parts.limit

    @property
    def _live(self) -> _Parts:
        if self._parts is None:
            raise EngineFailure("the vLLM engine was asked to work before it was started, or after it failed")
        return self._parts

    def takes_adapter(self, config: Mapping[str, Any]) -> bool:
        """Plain LoRA of linear layers; what vLLM's loader refuses arrives merged."""
        return self.lora == "adapter" and plain_lora(config)

    def start(self, policy: Policy | None, ranks: Any = None) -> None:
        """Build the engine around the policy's configuration; it holds no weights until the first push."""
        if policy is None:
            raise EngineFailure("the vLLM engine needs a policy; use ReplayEngine for recordings")
        self.close()
        if any(engine is not self for engine in _alive):
            raise EngineFailure("another VLLMEngine lives in this process and vLLM allows one; close it first")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else the engine would live in a process of its own
        parts = _Parts(policy, getattr(torch, self.dtype_name) if self.dtype_name != "auto" else None)
        try:
            with undisturbed():
                vllm = _import_vllm()
                parts.room = Room(policy.device)
                with parts.room.entered(), _as_local_rank(policy.device.index or 0):
                    parts.llm = vllm.LLM(**self._arguments(vllm, parts))
                    # a kernel that does not exist here is missed at the first token only
                    one = vllm.SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
                    parts.llm.generate([{"prompt_token_ids": [policy.pad_id] * 2}], one, use_tqdm=False)
            parts.limit = int(parts.llm.llm_engine.model_config.max_model_len)
        except BaseException as error:
            parts.close()
            if isinstance(error, EngineFailure) or not isinstance(error, Exception):
                raise
            raise EngineFailure(_refused(error)) from error
        self._parts, self._version, self.proven = parts, -1, False
        self._close = weakref.finalize(self, parts.close)  # also if the engine is dropped without a word
        _alive.add(self)

    def _arguments(self, vllm: Any, parts: _Parts) -> dict[str, Any]:
        policy = parts.policy
        on_cpu = policy.device.type == "cpu"
        lora = policy.has_adapter and self.takes_adapter(parts.adapter_config)
        sleeps = not on_cpu and self.sleep_level != 0 and _can_sleep()
        wanted: dict[str, Any] = {
            "model": str(parts.folder),
            "runner": "generate",
            "dtype": str(parts.dtype).removeprefix("torch."),
            "load_format": "dummy",  # the first push brings the weights
            "generation_config": "vllm",  # no sampling defaults of the model's
            "logprobs_mode": "processed_logprobs",
            "max_logprobs": 20,
            "enable_prefix_caching": True,
            "max_num_seqs": self.max_rows,
            "seed": 0,  # every request has its own
            "enforce_eager": on_cpu if self.enforce_eager is None else self.enforce_eager,
            "distributed_executor_backend": "external_launcher",
            "gpu_memory_utilization": self.memory_share,
            "trust_remote_code": False,
            "disable_log_stats": True,
        }
        if on_cpu:  # a prompt in pieces would rewind its generator, which CPU generators cannot do
            longest = self.max_model_len or policy.context_length or 0
            wanted |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, longest)}
        if self.max_model_len is not None:
            wanted["max_model_len"] = self.max_model_len
        if self.kv_cache_gb is not None or on_cpu:
            wanted["kv_cache_memory_bytes"] = int((self.kv_cache_gb or 1.0) * _GIB)
        if sleeps:
            wanted["enable_sleep_mode"] = True
        if lora:
            rank = served_rank(parts.adapter_config)
            wanted |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 2, "max_lora_rank": rank}
            # else the output layer is wrapped too, whose kernels mistake the rows of a scored prompt
            wanted["lora_target_modules"] = parts.adapted
        parts.takes_adapters, parts.sleeps = lora, sleeps
        known = _known_arguments(vllm)
        # releases differ; what shapes results must be there, the rest is a matter of speed
        needed = {"logprobs_mode", "dtype", "model", "load_format"}
        if lacking := sorted(name for name in needed if name not in known):
            raise EngineFailure(f"this vLLM has no option {lacking[0]}; install a newer one, such as 0.32")
        return {k: v for k, v in wanted.items() if k in known} | self.extra

    def close(self) -> None:
        """Release the engine's memory and groups; the trainer's groups stay as they are."""
        if self._close is not None:
            self._close()
        self._close, self._parts, self._version = None, None, -1
        _alive.discard(self)

    # -- weights -----------------------------------------------------------------------------------------------------

    def push(self, update: WeightUpdate) -> Receipt:
        """Take new weights and drop every cached prefix.

        Full weights go through one layer-wise reload into the same storages. Adapters get a new id, name and
        directory for every version, and the old one is removed: vLLM caches both files and prefixes by these.

        Raises:
            PushMismatch: if vLLM loads nothing or keeps old prefixes.
            EngineFailure: if it refuses the weights.
        """
        parts = self._live
        self._version = -1  # whatever happens, the old version is not there any more
        try:
            with parts.inside():
                receipt = parts.take_adapter(update) if update.kind == "adapter" else parts.take_full(update)
                if parts.llm.reset_prefix_cache() is False:
                    raise PushMismatch("vLLM kept prefixes computed with the old weights; let its requests end first")
        except (EngineFailure, PushMismatch):
            raise
        except Exception as error:
            parts.has_base = parts.has_base and update.kind == "adapter"
            what = "adapter" if update.kind == "adapter" else "weights"
            remedy = "set the engine's lora to merged" if update.kind == "adapter" else "use TransformersEngine"
            raise EngineFailure(
                f"vLLM refused the {what} of version {update.version} ({_reason(error)}); {remedy}"
            ) from error
        self._version = update.version
        return receipt

    def sleep(self) -> None:
        """Give accelerator memory back where the device can."""
        parts = self._parts
        if parts is None or not parts.sleeps or parts.asleep:
            return
        level = self.sleep_level or (1 if parts.adapter is not None else 2)
        with parts.inside():
            parts.llm.sleep(level=level)
        parts.asleep = level
        if level == 2:
            parts.has_base, self._version = False, -1

    def wake(self) -> None:
        """Take the memory back; after level 2 the next push brings the weights before the cache is there again."""
        parts = self._parts
        if parts is None or not parts.asleep:
            return
        with parts.inside():
            if parts.asleep == 1:
                parts.llm.wake_up()
                parts.asleep = 0
            else:
                parts.llm.wake_up(tags=["weights"])

    # -- work --------------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """See :meth:`RolloutEngine.generate`."""
        parts = self._live
        if (live := parts.answers_for(who)) is not None:
            live.poll = self.poll
            yield from live.generate(requests, who)
            return
        for request in requests:
            parts.check_length(len(request.prompt_ids), request.sampling.max_tokens)
        yield from ((i, []) for i, request in enumerate(requests) if not request.n)
        todo = {i: request.n for i, request in enumerate(requests) if request.n}
        written: dict[int, dict[int, Completion]] = {i: {} for i in todo}
        jobs = [
            (requests[i].prompt_ids, parts.sampling(requests[i].sampling, seed), (i, k))
            for i in todo
            for k, seed in enumerate(requests[i].seeds)
        ]
        lora = None if who == "reference" else parts.adapter
        for (i, k), output in self._run(jobs, lora):
            written[i][k] = parts.completion(output, requests[i].sampling, self._version if who == "policy" else -1)
            if len(written[i]) == todo[i]:
                done = written.pop(i)
                yield i, [done[k] for k in range(todo[i])]

    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score`."""
        parts = self._live
        if (live := parts.answers_for(who)) is not None:
            return live.score(token_ids, who)
        out = [torch.zeros(0) for _ in token_ids]
        params = parts.vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        jobs = [(tuple(ids), params, i) for i, ids in enumerate(token_ids) if len(ids) > 1]
        for ids, _, _ in jobs:
            parts.check_length(len(ids), 1)
        for i, output in self._run(jobs, None if who == "reference" else parts.adapter):
            rows = zip(output.prompt_logprobs[1:], token_ids[i][1:], strict=True)
            out[i] = torch.tensor([row[int(token)].logprob for row, token in rows], dtype=torch.float32)
        return out

    def _run(self, jobs: Sequence[tuple[tuple[int, ...], Any, Any]], lora: Any) -> Iterator[tuple[Any, Any]]:
        """Run requests to their ends; (key, vLLM's output) in the order they finish."""
        parts = self._live
        engine = parts.llm.llm_engine
        waiting: dict[str, Any] = {}
        try:
            with parts.inside():
                for ids, params, key in jobs:
                    name = f"serl-{next(parts.names)}"
                    waiting[name] = key
                    engine.add_request(name, {"prompt_token_ids": list(ids)}, params, lora_request=lora)
            while waiting:
                self.poll()
                with parts.inside():
                    outputs = engine.step()
                for output in outputs:
                    if output.finished:
                        yield waiting.pop(output.request_id), output
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except Exception as error:
            if _is_vllms(error):
                waiting.clear()
                self.close()
                raise EngineFailure(
                    f"the vLLM engine died while it worked ({_reason(error)}); resume from the last checkpoint, with a "
                    "smaller memory_share or max_rows if memory ran out"
                ) from error
            raise
        finally:
            if waiting and self._parts is not None:  # the caller left, or poll said stop
                with parts.inside():
                    engine.abort_request(list(waiting))
                    while engine.has_unfinished_requests():
                        engine.step()
