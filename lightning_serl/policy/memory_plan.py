"""The memory that a run will take, from the model's configuration alone, before anything is loaded.

Weights are counted on a model without storage. Activations, gradients and temporaries are those of one forward and
backward pass, traced with fake tensors through the code that will run, so that every architecture, adapter, precision
and kind of checkpointing is covered. torch's ``MemTracker`` reports the same peaks for full training, but takes three
times as long and fails on frozen weights, which LoRA has: it registers gradient hooks on every parameter.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
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
from lightning_serl.policy.packing import Packed, attending, prepare
from lightning_serl.policy.parts import decoder
from lightning_serl.policy.traced_experts import trace_experts

# Bytes of the tables that tokens are drawn from, per row and entry of the vocabulary, and the number of tables that are
# held at one time of so many rows as the engine draws for together (see engines/transformers.py).
_SAMPLING_BYTES, _SAMPLING_TABLES = 28, 7
_TABLE_BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}
# Columns of the engine's cache for each that is in use: its buffers grow by a quarter.
_SPARE_COLUMNS = 1.25
# The C library keeps freed blocks below so many bytes for reuse. Blocks of other sizes are needed in the next
# micro-batch, so that it holds this share more of them in the end (measured: docs/memory.md).
_KEPT_BLOCK, _KEPT_SHARE = 32 << 20, 0.5
#: Bytes per weight of nf4 with double quantisation: 4 bits, a byte per 64 weights, 4 bytes per 256 of those bytes.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Work:
    """What one process does, as far as it takes memory."""

    rows: int  # of a micro-batch
    length: int  # tokens of a row, prompt included
    sampled: int  # completions that are written at one time
    autocast: torch.dtype | None = None  # the dtype of mixed precision
    checkpointing: bool = False  # whether activations are computed again in the backward pass
    state: float = 8.0  # bytes of optimizer state per trained weight
    reference: bool = False  # whether a frozen copy of all weights is held
    offload: bool = False  # whether that copy is kept on the CPU
    ranks: int = 1  # processes that weights are sharded over
    replicated: bool = False  # whether gradients are held a second time for their reduction, as under DDP
    engine: int | None = None  # bytes that a separate engine takes; None where the policy itself writes
    device: str = "cpu"  # or cuda
    scored: int = 0  # rows of a pass without gradients, which gives old and reference log-probs
    written: int = 0  # problems that are written at one time, as the answers of `sampled`
    written_length: int = 0  # tokens of such a row, examples included
    group: int = 0  # neighbouring rows with one prompt, in packed micro-batches; 0 for padded ones
    prompt: int = 0  # tokens of that prompt, of the `length` of a row


@dataclass(frozen=True)
class Plan:
    """Bytes per process."""

    weights: int  # parameters and buffers
    gradients: int  # of the trained weights
    optimizer: int  # its state
    frozen: int  # frozen copies on the device
    activations: int  # and temporaries of training
    engine: int  # what writing completions takes
    host: int = 0  # frozen copies on the CPU
    scoring: int = 0  # a pass without gradients
    allocator: int = 0  # what the allocator keeps of freed activations
    # A separate engine holds its memory while training; the policy itself writes and trains in turns, and the peak has
    # the larger of the two.
    separate: bool = False

    @property
    def lasting(self) -> int:
        """What the device holds from the first optimizer step to the last."""
        return self.weights + self.optimizer + self.frozen + (self.engine if self.separate else 0)

    @property
    def training(self) -> int:
        """The most that the device holds during an optimizer step and the passes before it."""
        return self.lasting + max(self.gradients + self.activations + self.allocator, self.scoring)

    @property
    def peak(self) -> int:
        """The most that the device holds at one time."""
        return self.training if self.separate else max(self.training, self.lasting + self.engine)

    def sentence(self, device: str, room: int | None = None, libraries: int = 0) -> str:
        """The plan as one line, with the device's name and the bytes that are free there, if known.

        ``libraries`` are bytes that the process holds already; they are counted as free and as taken.
        """
        names = ("weights", "gradients", "optimizer", "frozen", "activations", "allocator", "engine")
        parts = ", ".join(f"{'frozen copies' if n == 'frozen' else n} {gib(getattr(self, n))}" for n in names)
        held = f"libraries {gib(libraries)}, " if libraries else ""
        total = f" of {gib(room + libraries)} free" if room is not None else ""
        host = f"; frozen copies on the CPU {gib(self.host)}" if self.host else ""
        return f"memory, GiB on {device}: {held}{parts}; peak {gib(self.peak + libraries)}{total}{host}"


def gib(amount: int) -> str:
    """Bytes as a number of GiB with about three digits."""
    value = amount / 2**30
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def plan(config: Any, dtype: torch.dtype, work: Work, lora: LoraOptions | None = None, quantized: bool = False) -> Plan:
    """What a process takes to work on a model of a transformers configuration; 4-bit linear layers if quantized."""
    text = config.get_text_config()
    if _layers_are_alike(config, lora) and text.num_hidden_layers > 4:
        # two small models tell what each further layer takes
        two, three = (trace(_shortened(config, n), dtype, work, lora, quantized) for n in (2, 3))
        more = text.num_hidden_layers - 2
        traced = Traced(*(a + more * (b - a) for a, b in zip(two, three, strict=True)))
    else:
        traced = trace(config, dtype, work, lora, quantized)
    weights, gradients, ranks = traced.weights, traced.gradients, work.ranks
    frozen = weights if work.reference else 0
    activations = max(0, traced.peak - gradients) + (gradients if work.replicated else 0)
    # the optimizer's temporaries, once the activations are freed: on a GPU it updates all weights at once
    step = traced.trained * 4 if work.device == "cuda" else 2 * traced.largest
    whole = 0 if ranks == 1 else weights - weights // ranks  # sharded weights are gathered for writing
    return Plan(
        weights=weights // ranks,
        gradients=gradients // ranks,
        optimizer=int(traced.trained * work.state) // ranks,
        frozen=0 if work.offload else frozen // ranks,
        activations=max(activations, step // ranks),
        engine=writing_bytes(config, dtype, work) + whole if work.engine is None else work.engine,
        host=frozen // ranks if work.offload else 0,
        scoring=traced.scoring + whole if traced.scoring else 0,
        allocator=int(_KEPT_SHARE * traced.blocks) if work.device == "cpu" else 0,
        separate=work.engine is not None,
    )


def writing_bytes(config: Any, dtype: torch.dtype, work: Work) -> int:
    """What writing completions with the policy itself takes: keys, values and the tables that tokens are drawn from."""
    text = config.get_text_config()
    rows = max(work.sampled, work.written)
    tokens = max(work.sampled * work.length, work.written * work.written_length)
    tables = min(rows * text.vocab_size * _SAMPLING_BYTES, _SAMPLING_TABLES * _TABLE_BYTES[work.device])
    return int(tokens * _SPARE_COLUMNS * _kv_bytes(config, work.autocast or dtype)) + tables


def largest_below(amount: Callable[[int], int], most: int, limit: int) -> int:
    """The largest number up to ``most`` whose amount is at most ``limit``; 0 if that of 1 is more.

    ``amount`` grows with the number, nearly in proportion, so that few of them are computed.
    """
    if (high_amount := amount(most)) <= limit:
        return most
    if most == 1 or (low_amount := amount(1)) > limit:
        return 0
    low, high = 1, most
    while high - low > 1:
        share = (limit - low_amount) / max(1, high_amount - low_amount)
        guess = min(max(low + int(share * (high - low)), low + 1), high - 1)
        value = amount(guess)
        if value <= limit:
            low, low_amount = guess, value
        else:
            high, high_amount = guess, value
    return low


def _layers_are_alike(config: Any, lora: LoraOptions | None) -> bool:
    """Whether all layers take the same memory."""
    if lora is not None and (
        lora.start_from or {"rank_pattern", "layers_to_transform", "layers_pattern"} & set(lora.peft or {})
    ):
        return False
    return len(set(getattr(config.get_text_config(), "layer_types", None) or ("",))) == 1


def _shortened(config: Any, layers: int) -> Any:
    """A copy of a configuration with so many layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


def _kv_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token, in all layers and two more, which are copied when a row is finished."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * (text.num_hidden_layers + 2) * heads * width * dtype.itemsize)


# -- one pass, traced --------------------------------------------------------------------------------------------------


class Traced(NamedTuple):
    """What a model takes in one pass, in bytes, and the number of trained weights."""

    weights: int  # parameters and buffers
    trained: int
    gradients: int
    peak: int  # beyond the weights, gradients included
    largest: int  # trained parameter
    scoring: int  # beyond the weights, in a pass without gradients; 0 if there is none
    blocks: int  # of the peak, in blocks that an allocator keeps when they are freed


def trace(config: Any, dtype: torch.dtype, work: Work, lora: LoraOptions | None, quantized: bool) -> Traced:
    """Trace one pass of the model that a configuration describes."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = _stand_in(copy.deepcopy(config), dtype, work.checkpointing, lora, quantized)
    if work.group and prepare(_causal_lm(model)) is not None:
        work = replace(work, group=0)
    with FakeTensorMode():
        # autocast does nothing on the meta device, so the fake tensors claim to be on the CPU
        replace_tensors(model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        trained = [p for p in model.parameters() if p.requires_grad]
        # shared tensors count once
        weights = sum(t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
        scoring, _ = _peak(model, work, work.scored, learns=False) if work.scored else (0, 0)
        peak, blocks = _peak(model, work, work.rows, learns=True)
    sizes = [p.nbytes for p in trained]
    return Traced(weights, sum(p.numel() for p in trained), sum(sizes), peak, max(sizes), scoring, blocks)


def _stand_in(config: Any, dtype: torch.dtype, checkpointing: bool, lora: LoraOptions | None, quantized: bool) -> Any:
    """The model as it will be trained, on the default device."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    trace_experts(model)
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
        self.register_buffer("packed", torch.empty(int(layer.weight.numel() * NF4_BYTES), dtype=torch.uint8))
        self.bias, self.dtype = layer.bias, layer.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return _FourBitProduct.apply(x, self.out_features, self.dtype)  # type: ignore[no-untyped-call]


class _FourBitProduct(torch.autograd.Function):
    """A product with a weight that is made for it, in the forward and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: int, dtype: torch.dtype) -> Tensor:
        ctx.shape, ctx.dtype = (out, x.shape[-1]), dtype
        return nn.functional.linear(x, x.new_empty(ctx.shape, dtype=dtype).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape, dtype=ctx.dtype).to(grad.dtype), None, None


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that were made inside and still exist, and their largest sum.

    ``blocks`` are those of them, at that largest sum, that an allocator keeps when they are freed.
    """

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = self.blocks = self.small = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in ignored)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _add(self, size: int) -> None:
        self.now += size
        self.small += size if size < _KEPT_BLOCK else 0
        if self.now > self.most:
            self.most, self.blocks = self.now, self.small

    def _free(self, size: int) -> None:
        self.now -= size
        self.small -= size if size < _KEPT_BLOCK else 0


def _peak(model: Any, work: Work, rows: int, learns: bool) -> tuple[int, int]:
    """The most bytes beyond the weights in one pass, with its backward pass and gradients where the model learns.

    The second number says how many of them are in blocks that an allocator keeps, gradients apart.

    Gradients exist from the beginning: those of the micro-batch before, or of the step before until the first backward
    pass of the next one.
    """
    lm = _causal_lm(model)
    text = lm.config.get_text_config()
    with _LiveBytes((*model.parameters(), *model.buffers())) as live, torch.set_grad_enabled(learns):
        for parameter in model.parameters() if learns else ():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        lasting = live.small
        with torch.autocast("cpu", dtype=work.autocast, enabled=work.autocast is not None):
            hidden = _packed_pass(decoder(lm), work, rows) if work.group else _padded_pass(decoder(lm), work, rows)
        # the fused log-probs hold tables of logits, and gradients of the hidden states and of the head's weight
        head = lm.get_output_embeddings().weight
        gradient = torch.zeros_like(hidden)
        logits = TABLES * min(table_bytes(work.device), 4 * (hidden.numel() // hidden.shape[-1]) * text.vocab_size)
        head_gradient = torch.zeros_like(head) if learns and head.requires_grad else None
        if live.now + logits > live.most:
            live.most, live.blocks = live.now + logits, live.small
        if learns:
            hidden.backward(gradient)  # type: ignore[no-untyped-call]
        del head_gradient
    return live.most, max(0, live.blocks - lasting)


def _causal_lm(model: Any) -> Any:
    """The model without the wrapper of an adapter."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _padded_pass(run: Any, work: Work, rows: int) -> Tensor:
    """Hidden states of rows of equal length."""
    ids = torch.zeros(rows, work.length, dtype=torch.long)
    return run(input_ids=ids, use_cache=False).last_hidden_state


def _packed_pass(run: Any, work: Work, rows: int) -> Tensor:
    """Hidden states that predict the responses of rows of equal length, in one line with each prompt once."""
    answer, width = work.length - work.prompt, work.length - 1
    prompts = min(rows, -(-rows // work.group) + (rows % work.group > 0))  # a micro-batch may begin inside of a group
    ids = torch.zeros(1, prompts * work.prompt + rows * (answer - 1), dtype=torch.long)
    gather, predictors = torch.zeros(rows * width, dtype=torch.long), torch.zeros(rows * answer, dtype=torch.long)
    with attending(Packed(ids, ids, predictors, gather, ((rows, width),), ids[0])):
        out = run(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=ids, use_cache=False)
    return out.last_hidden_state[0].index_select(0, predictors)
