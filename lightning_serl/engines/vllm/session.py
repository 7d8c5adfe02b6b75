"""One started vLLM engine in this process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_serl.engines.base import (
    Receipt,
    Sampling,
    WeightUpdate,
    Who,
    before_stop,
    special_stop_ids,
)
from lightning_serl.engines.transformers import TransformersEngine
from lightning_serl.engines.vllm.isolation import Room, random_numbers_kept, undisturbed
from lightning_serl.engines.vllm.weight_files import Publisher, read_names
from lightning_serl.errors import EngineFailure, PushMismatch
from lightning_serl.types import Completion

if TYPE_CHECKING:
    from lightning_serl.policy.policy import Policy
from lightning_serl.engines.vllm.compat import _reload, _shut_down


class _Parts:
    """What lives between start and close."""

    def __init__(self, policy: Policy, dtype: torch.dtype | None) -> None:
        self.policy = policy
        self.room: Room | None = None
        self.llm: Any = None
        self.names = count()
        self.adapters = count(1)
        self.adapter: Any = None
        self.has_base = self.takes_adapters = self.sleeps = False
        self.asleep = 0
        self.limit = 0
        self.publisher: Publisher | None = None
        self.transformers = TransformersEngine()
        self.transformers.start(policy)
        lm = policy.causal_lm
        weights = [p.dtype for n, p in lm.named_parameters() if p.is_floating_point() and ".lora_" not in n]
        self.dtype = dtype or weights[0]
        self.adapter_config = policy.adapter_config() if policy.has_adapter else {}
        self.adapted = sorted(
            {name.rsplit(".", 1)[-1] for name, module in lm.named_modules() if hasattr(module, "lora_A")}
        )
        self.folder = Path(tempfile.mkdtemp(prefix="lightning-serl-vllm-"))
        config = lm.config.to_dict() | {"use_cache": True, "architectures": [type(lm).__name__]}
        config.pop("quantization_config", None)  # the engine holds what the weights stand for
        type(lm.config).from_dict(config).save_pretrained(self.folder)
        policy.tokenizer.save_pretrained(self.folder)

    @property
    def vllm(self) -> Any:
        import vllm

        return vllm

    @property
    def its_room(self) -> Room:
        if self.room is None:
            raise EngineFailure("the vLLM engine was closed while it worked; start it again")
        return self.room

    @contextmanager
    def inside(self) -> Iterator[None]:
        """In the engine's room, without the trainer's autocast, its random numbers kept; light enough for a step."""
        precision = torch.autocast(self.policy.device.type, enabled=False)
        with random_numbers_kept(accelerators=False), self.its_room.entered(), precision:
            yield

    def close(self) -> None:
        room, llm = self.room, self.llm
        self.room = self.llm = None
        if room is not None:
            with undisturbed(), room.entered():
                _shut_down(llm)
            room.close()
        if self.publisher is not None:
            self.publisher.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- weights ---------------------------------------------------------------------------------------------------

    def take_full(self, update: WeightUpdate) -> Receipt:
        self.drop_adapter()
        arrived: dict[str, int] = {}

        def walk() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in self.its_room.outside(iter(update.tensors())):
                yield name, tensor
                # counted once the loader came back for more: it has this one
                arrived[name] = tensor.numel() * tensor.element_size()

        self.llm.collective_rpc(_reload, args=(walk(),))
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = 0
        self.has_base = True
        return Receipt(update.version, frozenset(arrived), sum(arrived.values()))

    def take_adapter(self, update: WeightUpdate) -> Receipt:
        if not self.takes_adapters:
            raise EngineFailure("this vLLM engine was started without adapters; push merged weights")
        from vllm.lora.request import LoRARequest

        if self.publisher is None:
            self.publisher = Publisher(keep=1)
        published = self.publisher.adapter(self.its_room.outside(iter(update.tensors())), update.meta, update.version)
        self.drop_adapter()
        number = next(self.adapters)
        request = LoRARequest(f"serl-{update.version}-{number}", number, str(published.path))
        engine = self.llm.llm_engine
        engine.add_lora(request)
        if number not in set(engine.list_loras()):
            raise PushMismatch(f"vLLM does not list the adapter of version {update.version} after it was added")
        self.adapter = request
        names, size = read_names(published.path)
        return Receipt(update.version, frozenset(names), size)

    def drop_adapter(self) -> None:
        if self.adapter is not None:
            self.llm.llm_engine.remove_lora(self.adapter.lora_int_id)
            self.adapter = None

    # -- requests --------------------------------------------------------------------------------------------------

    def answers_for(self, who: Who) -> TransformersEngine | None:
        """The live model, for a frozen copy that this engine does not hold."""
        copies = {*self.policy.frozen, *getattr(self.policy, "frozen_adapters", ())}
        if who == "policy" or (who == "reference" and who not in copies and self.adapter is not None):
            return None
        return self.transformers

    def check_length(self, prompt: int, wanted: int) -> None:
        if prompt + wanted > self.limit:
            raise EngineFailure(
                f"a prompt of {prompt} tokens and {wanted} more do not fit into vLLM's context of {self.limit}; raise "
                "the engine's max_model_len, or lower max_tokens"
            )

    def sampling(self, how: Sampling, seed: int) -> Any:
        special = special_stop_ids(self.policy.tokenizer, how.stop)
        return self.vllm.SamplingParams(
            n=1,
            seed=seed,
            max_tokens=how.max_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k or -1,
            presence_penalty=how.presence_penalty,
            stop=list(how.stop) or None,
            # the policy's end tokens, not those that vLLM reads from files
            stop_token_ids=[*self.policy.end_ids, *special],
            ignore_eos=True,
            logprobs=0,
            detokenize=bool(how.stop),
            skip_special_tokens=True,
            spaces_between_special_tokens=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def completion(self, output: Any, how: Sampling, version: int) -> Completion:
        (one,) = output.outputs
        ids = tuple(int(i) for i in one.token_ids)
        if one.finish_reason not in ("stop", "length"):
            raise EngineFailure(f"vLLM ended a completion with {one.finish_reason!r}; resume from the last checkpoint")
        text = self.policy.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        finished = one.finish_reason == "stop"
        if finished and how.stop:
            cut = before_stop(text, how.stop)
            text = text if cut is None else cut
        logps = tuple(float(row[i].logprob) for row, i in zip(one.logprobs, ids, strict=True))
        return Completion(ids, text, logps, finished, version)
