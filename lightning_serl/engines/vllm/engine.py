"""Rollouts by vLLM in the trainer's process, one engine per rank."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_serl.engines.base import Receipt, Request, RolloutEngine, WeightUpdate, Who
from lightning_serl.engines.vllm import compat
from lightning_serl.engines.vllm.isolation import IsolatedGroups, preserve_process_state
from lightning_serl.engines.vllm.session import VLLMSession, by_request
from lightning_serl.errors import EngineFailure, InputError, PushMismatch, check_range, reason
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Completion

# Started engines of this process: vLLM keeps its parallel state in module variables, which allows one at a time.
_started: weakref.WeakSet[Any] = weakref.WeakSet()


class VLLMEngine(RolloutEngine):
    """Samples from a copy of the policy's weights in vLLM (Kwon et al., 2309.06180), inside the trainer's process.

    vLLM is built from the live policy's configuration and tokenizer, not from the files the policy was loaded from, and
    starts without weights: the first push brings those that the policy has now. Its process groups are separate from
    the trainer's, whose random numbers, threads, signal handlers and environment stay as they are (see ``isolation``).

    Each completion is a request with its own seed. A completion can still differ with the other requests of its batch,
    with the release and with the device: sums are taken in another order, which can decide between two tokens of equal
    probability.

    Under LoRA, ``who="reference"`` is the model without its adapter. Other frozen copies, whose weights vLLM does not
    hold, answer through transformers, which is slower.

    Args:
        memory_share: Share of the accelerator's memory for weights and cache together; without effect on CPUs, where
            ``kv_cache_gb`` sets the cache.
        kv_cache_gb: GiB of key/value cache; by default what ``memory_share`` leaves, or 1 on CPUs.
        max_model_len: Most tokens of prompt and completion together; by default the model's own limit.
        max_rows: Completions written at one time.
        dtype: Dtype of vLLM's weights: ``auto`` for the policy's, or ``float32``, ``bfloat16``, ``float16``
            (``bfloat16`` fits ``bf16-mixed`` precision).
        lora: How LoRA is pushed: as an ``adapter``, or ``merged`` into a copy of the full weights, which makes pushes
            slower and decoding faster.
        sleep_level: What vLLM frees while the trainer works, on devices where it can: 0 nothing; 1 its cache, while the
            weights wait in host memory; 2 its cache and weights. By default 1 under LoRA and 2 otherwise.
        enforce_eager: Run without CUDA graphs; by default on CPUs only.
        extra: Further arguments of ``vllm.LLM``.

    Raises:
        InputError: if vLLM is not installed.
        EngineFailure: in :meth:`start`, if vLLM refuses the model or finds no memory for its cache.
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
        check_range("data.engine.memory_share", memory_share, above=0, at_most=1)
        check_range("data.engine.kv_cache_gb", kv_cache_gb, above=0)
        check_range("data.engine.max_rows", max_rows, at_least=1)
        check_range("data.engine.max_model_len", max_model_len, at_least=2)
        if (found := find_spec("vllm")) is None or found.origin is None:
            raise InputError(
                f"VLLMEngine needs vLLM, which is not installed; {compat.INSTALL}, or set data.engine to "
                "TransformersEngine"
            )
        self.memory_share, self.kv_cache_gb, self.max_model_len = memory_share, kv_cache_gb, max_model_len
        self.max_rows, self.dtype_name, self.lora, self.sleep_level = max_rows, dtype, lora, sleep_level
        self.enforce_eager, self.extra = enforce_eager, dict(extra or {})
        self._version = -1
        #: The started vLLM; ``None`` before :meth:`start`, after :meth:`close`, and after vLLM died.
        self.session: VLLMSession | None = None
        self._close: weakref.finalize[..., Any] | None = None

    # -- start and close -----------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version pushed last; -1 before the first push, and after the weights were dropped."""
        return self._version

    @property
    def needs_base(self) -> bool:
        """Whether no full weights have arrived yet, or they were dropped by :meth:`sleep`."""
        return self.session is None or not self.session.has_base

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of vLLM's weights."""
        return None if self.session is None else self.session.dtype

    @property
    def context_length(self) -> int | None:
        """What vLLM was built for; before :meth:`start` the option ``max_model_len``."""
        return self.max_model_len if self.session is None else self.session.context_length

    def _started_session(self) -> VLLMSession:
        if self.session is None:
            raise EngineFailure("the vLLM engine was asked to work before it was started, or after it failed")
        return self.session

    def takes_adapter(self, config: Mapping[str, Any]) -> bool:
        """Whether adapters are pushed as such: plain LoRA of linear layers, unless ``lora`` is ``merged``."""
        return self.lora == "adapter" and compat.plain_lora(config)

    def start(self, policy: Policy | None, ranks: Any = None) -> None:
        """Build vLLM from the policy's configuration; it holds no weights until the first push."""
        if policy is None:
            raise EngineFailure("the vLLM engine needs a policy; use ReplayEngine for recordings")
        self.close()
        if any(engine is not self for engine in _started):
            raise EngineFailure("another VLLMEngine lives in this process and vLLM allows one; close it first")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # keeps the engine in this process
        session = VLLMSession(policy, getattr(torch, self.dtype_name) if self.dtype_name != "auto" else None)
        try:
            with preserve_process_state():
                vllm = session.vllm = compat.import_vllm()
                session.groups = IsolatedGroups(policy.device)
                with session.groups.active(), compat.single_process_launch(policy.device.index or 0):
                    session.llm = vllm.LLM(**self._arguments(session))
                    # a missing kernel raises at the first token, not before
                    one = vllm.SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
                    session.llm.generate([{"prompt_token_ids": [policy.pad_id] * 2}], one, use_tqdm=False)
            session.context_length = int(session.llm.llm_engine.model_config.max_model_len)
        except BaseException as error:
            session.close()
            if isinstance(error, EngineFailure) or not isinstance(error, Exception):
                raise
            raise EngineFailure(compat.start_failure(error)) from error
        self.session, self._version, self.proven = session, -1, False
        self._close = weakref.finalize(self, session.close)  # also closes an engine that is garbage collected
        _started.add(self)

    def _arguments(self, session: VLLMSession) -> dict[str, Any]:
        """Arguments of ``vllm.LLM``, as far as this release knows them."""
        policy = session.policy
        on_cpu = policy.device.type == "cpu"
        session.takes_adapters = policy.has_adapter and self.takes_adapter(session.adapter_config)
        session.can_sleep = not on_cpu and self.sleep_level != 0 and compat.can_sleep()
        wanted: dict[str, Any] = {
            "model": str(session.folder),
            "runner": "generate",
            "dtype": str(session.dtype).removeprefix("torch."),
            "load_format": "dummy",  # the first push brings the weights
            "generation_config": "vllm",  # sampling defaults of vLLM, not of the model's files
            "logprobs_mode": "processed_logprobs",
            "max_logprobs": 20,
            "enable_prefix_caching": True,
            "max_num_seqs": self.max_rows,
            "seed": 0,  # unused: every request has its own
            "enforce_eager": on_cpu if self.enforce_eager is None else self.enforce_eager,
            "distributed_executor_backend": "external_launcher",
            "gpu_memory_utilization": self.memory_share,
            "trust_remote_code": False,
            "disable_log_stats": True,
        }
        if on_cpu:  # a prompt run in pieces rewinds its generator, which CPU generators cannot do
            longest = self.max_model_len or policy.context_length or 0
            wanted |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, longest)}
        if self.max_model_len is not None:
            wanted["max_model_len"] = self.max_model_len
        elif policy.steady_length is not None:  # with a longer context vLLM takes the positions of long rows for all
            wanted["max_model_len"] = policy.context_length
        if self.kv_cache_gb is not None or on_cpu:
            wanted["kv_cache_memory_bytes"] = int((self.kv_cache_gb or 1.0) * 1024**3)
        if session.can_sleep:
            wanted["enable_sleep_mode"] = True
        if session.takes_adapters:
            rank = compat.max_lora_rank(session.adapter_config)
            wanted |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 2, "max_lora_rank": rank}
            # without this vLLM wraps the output layer too, whose LoRA kernels confuse the rows of a scored prompt
            modules = policy.causal_lm.named_modules()
            wanted["lora_target_modules"] = sorted({n.rsplit(".", 1)[-1] for n, m in modules if hasattr(m, "lora_A")})
        known = compat.known_arguments(session.vllm)
        # an older release may lack some; these four change results, the others change only speed
        if lacking := sorted({"logprobs_mode", "dtype", "model", "load_format"} - known):
            raise EngineFailure(f"this vLLM has no option {lacking[0]}; install a newer one, such as 0.32")
        return {k: v for k, v in wanted.items() if k in known} | self.extra

    def close(self) -> None:
        """Free vLLM's memory and destroy its process groups; the trainer's groups stay."""
        if self._close is not None:
            self._close()
        self._close, self.session, self._version = None, None, -1
        _started.discard(self)

    # -- weights -------------------------------------------------------------------------------------------------------

    def push(self, update: WeightUpdate) -> Receipt:
        """See :meth:`RolloutEngine.push`; PushMismatch also if vLLM keeps prefixes of the old weights."""
        session = self._started_session()
        self._version = -1  # if the push fails, the old version may be partly overwritten
        try:
            with session.inside():
                receipt = session.load_adapter(update) if update.kind == "adapter" else session.load_full(update)
                if session.llm.reset_prefix_cache() is False:
                    raise PushMismatch("vLLM kept prefixes computed with the old weights; let its requests end first")
        except (EngineFailure, PushMismatch):
            raise
        except Exception as error:
            what, remedy = "adapter", "set data.engine.lora to merged"
            if update.kind == "full":
                session.has_base = False
                what, remedy = "weights", "set data.engine to TransformersEngine"
            raise EngineFailure(
                f"vLLM refused the {what} of version {update.version} ({reason(error)}); {remedy}"
            ) from error
        self._version = update.version
        return receipt

    def sleep(self) -> None:
        """Free accelerator memory, where the device can."""
        session = self.session
        if session is None or not session.can_sleep or session.asleep:
            return
        level = self.sleep_level or (1 if session.adapter is not None else 2)
        with session.inside():
            session.llm.sleep(level=level)
        session.asleep = level
        if level == 2:
            session.has_base, self._version = False, -1

    def wake(self) -> None:
        """Allocate the memory again; after level 2 the cache waits for the next push, which brings the weights."""
        session = self.session
        if session is None or not session.asleep:
            return
        with session.inside():
            if session.asleep == 1:
                session.llm.wake_up()
                session.asleep = 0
            else:
                session.llm.wake_up(tags=["weights"])

    # -- completions and scores ----------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """See :meth:`RolloutEngine.generate`."""
        session = self._started_session()
        if not session.serves(who):
            session.fallback.poll = self.poll
            yield from session.fallback.generate(requests, who)
            return
        for request in requests:
            session.check_length(len(request.prompt_ids), request.sampling.longest)
        jobs = [
            (request.prompt_ids, session.sampling_params(request.sampling, seed), (i, k))
            for i, request in enumerate(requests)
            for k, seed in enumerate(request.seeds)
        ]
        version, adapter = (self._version, session.adapter) if who == "policy" else (-1, None)
        written = (
            (key, session.completion_of(out, requests[key[0]].sampling, version))
            for key, out in self._run(jobs, adapter)
        )
        yield from by_request(requests, written)

    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score`."""
        session = self._started_session()
        if not session.serves(who):
            return session.fallback.score(token_ids, who)
        out = [torch.zeros(0) for _ in token_ids]
        params = session.vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        jobs = [(tuple(ids), params, i) for i, ids in enumerate(token_ids) if len(ids) > 1]
        for ids, _, _ in jobs:
            session.check_length(len(ids), 1)
        for i, output in self._run(jobs, None if who == "reference" else session.adapter):
            rows = zip(output.prompt_logprobs[1:], token_ids[i][1:], strict=True)
            out[i] = torch.tensor([row[int(token)].logprob for row, token in rows], dtype=torch.float32)
        return out

    def score_from(self, rows: Sequence[tuple[Sequence[int], int]], who: Who = "policy") -> list[Tensor]:
        """See :meth:`RolloutEngine.score_from`."""
        session = self._started_session()
        return super().score_from(rows, who) if session.serves(who) else session.fallback.score_from(rows, who)

    def _run(self, jobs: Sequence[tuple[tuple[int, ...], Any, Any]], adapter: Any) -> Iterator[tuple[Any, Any]]:
        """Run (token ids, ``SamplingParams``, key) and yield (key, vLLM's output) in the order they finish."""
        session = self._started_session()
        engine = session.llm.llm_engine
        waiting: dict[str, Any] = {}
        try:
            with session.inside():
                for ids, params, key in jobs:
                    name = f"serl-{next(session.request_numbers)}"
                    waiting[name] = key
                    engine.add_request(name, {"prompt_token_ids": list(ids)}, params, lora_request=adapter)
            while waiting:
                self.poll()
                with session.inside():
                    outputs = engine.step()
                for output in outputs:
                    if output.finished:
                        yield waiting.pop(output.request_id), output
        except Exception as error:
            if not compat.raised_by_vllm(error):
                raise
            waiting.clear()
            self.close()
            raise EngineFailure(
                f"the vLLM engine died while it worked ({reason(error)}); continue with --ckpt_path last, and lower "
                "data.engine.memory_share or data.engine.max_rows if memory ran out"
            ) from error
        finally:
            if waiting and self.session is not None:  # the caller left, or poll raised
                with session.inside():
                    engine.abort_request(list(waiting))
                    while engine.has_unfinished_requests():
                        engine.step()
