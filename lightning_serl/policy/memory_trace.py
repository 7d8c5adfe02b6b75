"""Traces the memory of one forward and backward pass with fake tensors, so that nothing is allocated.

torch's ``MemTracker`` reports the same peaks for full training, but takes three times as long and fails on frozen
weights, which LoRA has: it registers gradient hooks on every parameter.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from lightning_serl.distributed.sharding import replace_tensors
from lightning_serl.policy.fused_logprobs import TABLES, table_bytes
from lightning_serl.policy.loading import prepare_for_training
from lightning_serl.policy.lora import LoraOptions

# Bytes per weight of nf4 with double quantisation: 4 bits, a byte per 64 weights, 4 bytes per 256 of those bytes.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Work:
    """What one process does, as far as it takes memory.

    Attributes:
        rows: Rows of a micro-batch.
        length: Tokens of a row, prompt included.
        sampled: Completions that are written at one time.
        autocast: The dtype of mixed precision, or ``None``.
        checkpointing: Whether activations are computed again in the backward pass.
        state: Bytes of optimizer state per trained weight.
        reference: Whether a frozen copy of all weights is held.
        offload: Whether that copy is kept on the CPU.
        ranks: Processes that weights are sharded over.
        replicated: Whether gradients are held a second time for their reduction, as under DDP.
        engine: Bytes that a separate engine takes; ``None`` where the policy itself writes.
        device: ``cpu`` or ``cuda``.
    """

    rows: int
    length: int
    sampled: int
    autocast: torch.dtype | None = None
    checkpointing: bool = False
    state: float = 8.0
    reference: bool = False
    offload: bool = False
    ranks: int = 1
    replicated: bool = False
    engine: int | None = None
    device: str = "cpu"


class Traced(NamedTuple):
    """What a model takes in one pass.

    Attributes:
        weights: Bytes of parameters and buffers.
        trained: Number of trained weights.
        gradients: Bytes of their gradients.
        peak: Most bytes at one time beyond ``weights``, gradients included.
        largest: Bytes of the largest trained parameter.
    """

    weights: int
    trained: int
    gradients: int
    peak: int
    largest: int


def trace(config: Any, dtype: torch.dtype, work: Work, lora: LoraOptions | None, quantized: bool) -> Traced:
    """Trace one pass of the model that a configuration describes; see :func:`~.memory_plan.plan` for the arguments."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = _stand_in(config, dtype, work.checkpointing, lora, quantized)
    with FakeTensorMode():
        # autocast does nothing on the meta device, so the fake tensors claim to be on the CPU
        replace_tensors(model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        trained = [p for p in model.parameters() if p.requires_grad]
        # shared tensors count once
        weights = sum(t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
        peak = _peak(model, work)
    sizes = [p.nbytes for p in trained]
    return Traced(weights, sum(p.numel() for p in trained), sum(sizes), peak, max(sizes))


def _stand_in(
    config: Any, dtype: torch.dtype, checkpointing: bool, lora: LoraOptions | None, quantized: bool
) -> nn.Module:
    """The model as it will be trained, on the default device."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    head = model.get_output_embeddings()
    model = prepare_for_training(model, checkpointing, lora, load=False)
    if quantized:
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                # the factors of adapters are in module dicts, one per layer
                is_factor = "lora_" in name or isinstance(parent, nn.ModuleDict)
                if type(layer) is nn.Linear and layer is not head and not is_factor:
                    setattr(parent, name, _FourBitLinear(layer))
    return model.train()


class _FourBitLinear(nn.Module):
    """A linear layer whose weight takes 4 bits, and is whole only while it is multiplied."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("packed", torch.empty(int(layer.weight.numel() * _NF4_BYTES), dtype=torch.uint8))
        self.bias, self.dtype = layer.bias, layer.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return _FourBitProduct.apply(x, self.out_features, self.dtype)  # type: ignore[no-untyped-call]


class _FourBitProduct(torch.autograd.Function):
    """A product with a weight that is made for it, in the forward and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: int, dtype: torch.dtype) -> Tensor:
        ctx.shape = (out, x.shape[-1])
        ctx.dtype = dtype
        return nn.functional.linear(x, x.new_empty(ctx.shape, dtype=dtype).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape, dtype=ctx.dtype).to(grad.dtype), None, None


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that were made inside and still exist, and their largest sum."""

    def __init__(self, ignored: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in ignored)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, size: int) -> None:
        self.now -= size


def _peak(model: Any, work: Work) -> int:
    """The most bytes beyond the weights in one forward and backward pass, gradients included."""
    lm = model.get_base_model() if hasattr(model, "peft_config") else model
    text = lm.config.get_text_config()
    ids = torch.zeros(work.rows, work.length, dtype=torch.long)
    autocast: AbstractContextManager[Any] = nullcontext()
    if work.autocast is not None:
        autocast = torch.autocast("cpu", dtype=work.autocast)
    logits = TABLES * min(table_bytes(work.device), 4 * work.rows * work.length * text.vocab_size)
    with _LiveBytes(t for t in (*model.parameters(), *model.buffers())) as live:
        with autocast:
            hidden = lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
        # the fused log-probs hold tables of logits, the gradient of the head's weight, and that of the hidden states
        head = lm.get_output_embeddings().weight
        if head.requires_grad:
            head.grad = torch.zeros_like(head)
        gradient = torch.zeros_like(hidden)
        live.most = max(live.most, live.now + logits)
        hidden.backward(gradient)
    return live.most
