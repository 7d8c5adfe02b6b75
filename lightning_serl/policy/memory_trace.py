"""Traces the memory of a forward and backward pass on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_serl.policy.lora import LoraOptions, add_lora

# The fused log-probs hold this many tables of logits at a time, each of at most so many bytes.
_TABLES, _TABLE = 3, {"cpu": 2**25, "cuda": 2**28}
# nf4 with double quantisation: 4 bits, a byte per 64 weights, and four bytes per 256 of those bytes.
_PACKED = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Work:
    """What one process does, as far as it takes memory.

    Attributes:
        rows: Rows of a micro-batch.
        length: Tokens of a row, prompt included.
        sampled: Completions in flight at one time.
        autocast: The dtype of mixed precision, or ``None``.
        checkpointing: Whether activations are computed again in the backward pass.
        state: Bytes of optimizer state per trained weight.
        reference: Whether a frozen copy of all weights is held.
        offload: Whether it waits on the CPU.
        ranks: Processes that weights are sharded over.
        replicated: Whether gradients are held a second time for their exchange, as under DDP.
        engine: Bytes that an engine of its own takes, ``None`` where the policy itself writes.
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


def _trace(
    config: Any, dtype: torch.dtype, work: Work, lora: LoraOptions | None, quantized: bool
) -> tuple[int, int, int, int, int]:
    """Bytes of weights, number of trained weights, their bytes, bytes of a pass beyond weights, the largest of them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = _stand_in(config, dtype, work.checkpointing, lora, quantized)
    with FakeTensorMode():
        _without_content(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        # shared tensors count once
        weights = sum(t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
        peak = _pass(model, work)
    sizes = [p.nbytes for p in trained]
    return weights, sum(p.numel() for p in trained), sum(sizes), peak, max(sizes)


def _stand_in(
    config: Any, dtype: torch.dtype, checkpointing: bool, lora: LoraOptions | None, quantized: bool
) -> nn.Module:
    """The model as it will be trained, without content."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            model.enable_input_require_grads()
    head = model.get_output_embeddings()
    if lora is not None:
        model = add_lora(model, lora, load=False)
    if quantized:
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear and layer is not head and "lora_" not in name and not _in_lora(parent):
                    setattr(parent, name, _Packed(layer))
    return model.train()


def _without_content(model: nn.Module) -> None:
    """Put tensors of the present fake mode in place of those on the meta device, which no autocast knows."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
                        if isinstance(tensor, nn.Parameter):
                            made[id(tensor)] = nn.Parameter(made[id(tensor)], tensor.requires_grad)
                    own[name] = made[id(tensor)]  # type: ignore[assignment]


def _in_lora(parent: nn.Module) -> bool:
    return isinstance(parent, nn.ModuleDict)


class _Packed(nn.Module):
    """A linear layer whose weight takes 4 bits, and is whole only while it is multiplied."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("packed", torch.empty(int(layer.weight.numel() * _PACKED), dtype=torch.uint8))
        self.bias, self.dtype = layer.bias, layer.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.out_features, self.dtype)  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, out: int, dtype: torch.dtype) -> Tensor:
        ctx.shape = (out, x.shape[-1])
        ctx.dtype = dtype
        return nn.functional.linear(x, x.new_empty(ctx.shape, dtype=dtype).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape, dtype=ctx.dtype).to(grad.dtype), None, None


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that were made inside and are still alive, and their greatest sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self.live += storage.nbytes()
                    self.most = max(self.most, self.live)
                    weakref.finalize(storage, self._gone, storage.nbytes())
        return out

    def _gone(self, size: int) -> None:
        self.live -= size

    def hold(self, tensors: Iterator[Tensor]) -> None:
        """Tensors made before count for nothing."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())


def _pass(model: Any, work: Work) -> int:
    """The greatest number of bytes beyond the weights in one forward and backward pass, gradients included."""
    lm = model.get_base_model() if hasattr(model, "peft_config") else model
    text = lm.config.get_text_config()
    ids = torch.zeros(work.rows, work.length, dtype=torch.long)
    autocast: AbstractContextManager[Any] = nullcontext()
    if work.autocast is not None:
        autocast = torch.autocast("cpu", dtype=work.autocast)
    tracker = _Peak()
    tracker.hold(t for t in (*model.parameters(), *model.buffers()))
    table = _TABLES * min(_TABLE[work.device], 4 * work.rows * work.length * text.vocab_size)
    with tracker:
        with autocast:
            hidden = lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
        # the output layer: a table of logits at a time, the gradient of its weight, and that of the hidden states
        head = lm.get_output_embeddings().weight
        if head.requires_grad:
            head.grad = torch.zeros_like(head)
        slope = torch.zeros_like(hidden)
        tracker.most = max(tracker.most, tracker.live + table)
        hidden.backward(slope)
    return tracker.most
