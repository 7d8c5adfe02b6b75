"""Started vLLM engines: what both kinds share, and the one in this process."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_serl.engines.base import Receipt, Request, Sampling, WeightUpdate, Who
from lightning_serl.engines.transformers import TransformersEngine
from lightning_serl.engines.vllm.compat import reload_weights, shut_down
from lightning_serl.engines.vllm.isolation import IsolatedGroups, preserve_process_state, preserve_rng
from lightning_serl.engines.vllm.weight_files import WeightWriter, read_names
from lightning_serl.errors import EngineFailure, PushMismatch
from lightning_serl.policy.policy import Policy
from lightning_serl.types import Completion


class Session(ABC):
    """The part of a started vLLM engine that knows the live policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        #: Answers for frozen copies of the policy, whose weights vLLM does not hold.
        self.fallback = TransformersEngine()
        self.fallback.start(policy)

    @property
    @abstractmethod
    def has_adapter(self) -> bool:
        """Whether vLLM holds an adapter over the policy's base weights."""

    def serves(self, who: Who) -> bool:
        """Whether vLLM holds the weights of ``who``: the policy's, and under LoRA those of the base as reference."""
        return who == "policy" or (who == "reference" and who not in self.policy.copies and self.has_adapter)

    def completion(
        self, ids: tuple[int, ...], logprobs: Sequence[float], stopped: bool, how: Sampling, version: int
    ) -> Completion:
        """A completion as vLLM returned it, with its text decoded by the policy's tokenizer.

        ``ids`` include the end token, ``stopped`` means ended by it or a stop string, and ``version`` is
        ``Policy.version`` of the weights, -1 for those of the base.
        """
        (text,) = self.policy.texts([ids])
        if stopped and (cut := how.before_stop(text)) is not None:
            text = cut
        return Completion(ids, text, tuple(logprobs), stopped, version)


class VLLMSession(Session):
    """What a :class:`VLLMEngine` holds between ``start`` and ``close``; ``dtype`` by default is the policy's.

    Attributes:
        folder: Configuration and tokenizer, which vLLM reads from files.
        has_base: Whether full weights were pushed and not dropped since.
        adapter: The ``LoRARequest`` of the adapter pushed last.
        takes_adapters: Whether vLLM was started with support for adapters.
        asleep: vLLM's sleep level, 0 while it is awake.
        weight_writer: Writes adapters, which vLLM reads from files; ``None`` before the first.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype | None) -> None:
        super().__init__(policy)
        self.groups: IsolatedGroups | None = None
        self.vllm: Any = None  # the module
        self.llm: Any = None
        self.adapter: Any = None
        self.has_base = self.takes_adapters = self.can_sleep = False
        self.asleep = 0
        self.context_length = 0
        self.weight_writer: WeightWriter | None = None
        self.request_numbers = count()  # the names of requests must be unique
        self._adapter_numbers = count(1)
        lm = policy.causal_lm
        weights = [p.dtype for n, p in lm.named_parameters() if p.is_floating_point() and ".lora_" not in n]
        self.dtype = dtype or weights[0]
        self.adapter_config = policy.adapter_config() if policy.has_adapter else {}
        self.folder = Path(tempfile.mkdtemp(prefix="lightning-serl-vllm-"))
        config = lm.config.to_dict() | {"use_cache": True, "architectures": [type(lm).__name__]}
        config.pop("quantization_config", None)  # dequantized weights are pushed
        type(lm.config).from_dict(config).save_pretrained(self.folder)
        policy.tokenizer.save_pretrained(self.folder)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is loaded."""
        return self.adapter is not None

    @property
    def _open_groups(self) -> IsolatedGroups:
        if self.groups is None:
            raise EngineFailure("the vLLM engine was closed while it worked; start it again")
        return self.groups

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Call vLLM in here: under its own process groups, without autocast, and with the random state preserved."""
        precision = torch.autocast(self.policy.device.type, enabled=False)
        with preserve_rng(accelerators=False), self._open_groups.active(), precision:
            yield

    def close(self) -> None:
        """End vLLM, its groups and its files."""
        groups, llm = self.groups, self.llm
        self.groups = self.llm = None
        if groups is not None:
            with preserve_process_state(), groups.active():
                shut_down(llm)
            groups.close()
        if self.weight_writer is not None:
            self.weight_writer.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- weights -------------------------------------------------------------------------------------------------------

    def load_full(self, update: WeightUpdate) -> Receipt:
        """Replace all weights in place, layer by layer; returns what vLLM's loader took."""
        self._drop_adapter()
        arrived: dict[str, int] = {}

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in self._open_groups.iterate_outside(iter(update.tensors())):
                yield name, tensor
                # counted when the loader asks for the next one: only then has it taken this one
                arrived[name] = tensor.numel() * tensor.element_size()

        self.llm.collective_rpc(reload_weights, args=(tensors(),))
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = 0
        self.has_base = True
        return Receipt(update.version, frozenset(arrived), sum(arrived.values()))

    def load_adapter(self, update: WeightUpdate) -> Receipt:
        """Load an adapter under a new id, name and directory, by which vLLM caches; returns what its file contains."""
        if not self.takes_adapters:
            raise EngineFailure("this vLLM engine was started without adapters; push merged weights")
        from vllm.lora.request import LoRARequest

        if self.weight_writer is None:
            self.weight_writer = WeightWriter(keep=1)
        tensors = self._open_groups.iterate_outside(iter(update.tensors()))
        saved = self.weight_writer.write_adapter(tensors, update.meta, update.version)
        self._drop_adapter()
        number = next(self._adapter_numbers)
        request = LoRARequest(f"serl-{update.version}-{number}", number, str(saved.path))
        engine = self.llm.llm_engine
        engine.add_lora(request)
        if number not in set(engine.list_loras()):
            raise PushMismatch(f"vLLM does not list the adapter of version {update.version} after it was added")
        self.adapter = request
        return Receipt(update.version, *read_names(saved.path))

    def _drop_adapter(self) -> None:
        if self.adapter is not None:
            self.llm.llm_engine.remove_lora(self.adapter.lora_int_id)
            self.adapter = None

    # -- requests ------------------------------------------------------------------------------------------------------

    def check_length(self, prompt: int, new: int) -> None:
        """Refuse a prompt that leaves no room for ``new`` tokens."""
        if prompt + new > self.context_length:
            raise EngineFailure(
                f"a prompt of {prompt} tokens and {new} more do not fit into vLLM's context of {self.context_length}; "
                "raise data.engine.max_model_len, or lower max_tokens"
            )

    def sampling_params(self, how: Sampling, seed: int) -> Any:
        """The ``SamplingParams`` of one completion."""
        return self.vllm.SamplingParams(
            n=1,
            seed=seed,
            max_tokens=how.longest,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k or -1,
            presence_penalty=how.presence_penalty,
            # the ids that the tokenizer cannot write, which have no probability in the policy
            logit_bias=dict.fromkeys(self.policy.spare_ids, -100.0) or None,
            stop=list(how.stop) or None,
            # the policy's end tokens, not those that vLLM reads from files
            stop_token_ids=[*self.policy.end_ids, *how.special_stop_ids(self.policy.tokenizer)],
            ignore_eos=True,
            logprobs=0,
            detokenize=bool(how.stop),
            skip_special_tokens=True,
            spaces_between_special_tokens=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def completion_of(self, output: Any, how: Sampling, version: int) -> Completion:
        """The one completion of vLLM's output, which a token, a stop string or its length must have ended."""
        (one,) = output.outputs
        ids = tuple(int(i) for i in one.token_ids)
        if one.finish_reason not in ("stop", "length"):
            raise EngineFailure(f"vLLM ended a completion with {one.finish_reason!r}; continue with --ckpt_path last")
        logprobs = [float(row[i].logprob) for row, i in zip(one.logprobs, ids, strict=True)]
        return self.completion(ids, logprobs, one.finish_reason == "stop", how, version)


def by_request(
    requests: Sequence[Request], written: Iterable[tuple[tuple[int, int], Completion]]
) -> Iterator[tuple[int, list[Completion]]]:
    """Collect ``((index of the request, index of the completion), completion)``, which come as they finish.

    Yields ``(index of the request, its completions)`` once the last of them is finished; requests of none come first.
    """
    yield from ((i, []) for i, request in enumerate(requests) if not request.n)
    collected: dict[int, dict[int, Completion]] = {}
    for (i, k), completion in written:
        group = collected.setdefault(i, {})
        group[k] = completion
        if len(group) == requests[i].n:
            del collected[i]
            yield i, [group[j] for j in range(requests[i].n)]
