"""What a run will hold where, from the model's configuration alone, before anything is loaded.

Weights are counted on a model without storage. Activations, gradients and temporaries are those of one real forward and
backward pass, traced with tensors that have shapes and dtypes but no content, so any architecture, adapter, precision
and checkpointing is covered by the code that will run.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_serl.adapters import LoraOptions, add_lora
from lightning_serl.engines.transformers import TransformersEngine
from lightning_serl.errors import InputError, reason
from lightning_serl.loading import check_model_path

# Bytes of the engine's tables per row and entry of the vocabulary: logits, log-probs, and two in float64.
_CHOOSING = 28
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


@dataclass(frozen=True)
class Plan:
    """Bytes per process; ``activations`` includes whatever exists for a moment only, ``engine`` what writing takes.

    Training and writing take turns where the policy itself writes, so the peak holds the larger of the two.
    """

    weights: int
    gradients: int
    optimizer: int
    frozen: int
    activations: int
    engine: int
    host: int = 0
    beside: bool = False

    @property
    def peak(self) -> int:
        """The most that the device holds at one time."""
        training = self.gradients + self.activations
        lasting = self.weights + self.optimizer + self.frozen
        return lasting + (training + self.engine if self.beside else max(training, self.engine))

    def sentence(self, device: str, room: int | None = None) -> str:
        """The plan as one line.

        Args:
            device: Its name.
            room: Bytes of the device, if known.
        """
        parts = ("weights", "gradients", "optimizer", "frozen", "activations", "engine")
        said = ", ".join(f"{'frozen copies' if n == 'frozen' else n} {_gib(getattr(self, n))}" for n in parts)
        there = f" of {_gib(room)}" if room is not None else ""
        host = f"; frozen copies on the CPU {_gib(self.host)}" if self.host else ""
        return f"memory, GiB on {device}: {said}; peak {_gib(self.peak)}{there}{host}"


def _gib(amount: int) -> str:
    value = amount / 2**30
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def plan(config: Any, dtype: torch.dtype, work: Work, lora: LoraOptions | None = None, quantized: bool = False) -> Plan:
    """What a process will hold.

    Args:
        config: The model's transformers configuration.
        dtype: Of the loaded weights.
        work: What is done with it.
        lora: Adapter options.
        quantized: Whether linear layers of the base have 4 bits.
    """
    text, per_layer = config.get_text_config(), _alike(config, lora)
    if per_layer and text.num_hidden_layers > 4:
        # every layer takes the same, so two small models tell what each costs
        two, three = (_trace(_shortened(config, n), dtype, work, lora, quantized) for n in (2, 3))
        more = text.num_hidden_layers - 2
        weights, count, gradients, peak, largest = (a + more * (b - a) for a, b in zip(two, three, strict=True))
    else:
        weights, count, gradients, peak, largest = _trace(config, dtype, work, lora, quantized)
    kv = _kv_bytes(config, work)
    frozen = weights if work.reference else 0
    writing = kv + work.sampled * text.vocab_size * _CHOOSING
    activations = max(0, peak - gradients) + (gradients if work.replicated else 0)
    # the optimizer's own temporaries, when the activations are gone: it works on all weights at once on a GPU
    step = count * 4 if work.device == "cuda" else 2 * largest
    sharded = work.ranks
    whole = 0 if sharded == 1 else weights - weights // sharded  # all of it while tokens are written
    return Plan(
        weights // sharded,
        gradients // sharded,
        int(count * work.state) // sharded,
        0 if work.offload else frozen // sharded,
        max(activations, step // sharded),
        writing + whole if work.engine is None else work.engine,
        frozen // sharded if work.offload else 0,
        work.engine is not None,
    )


def _alike(config: Any, lora: LoraOptions | None) -> bool:
    """Whether all layers take the same memory."""
    if lora is not None and (
        lora.start_from or {"rank_pattern", "layers_to_transform", "layers_pattern"} & set(lora.peft)
    ):
        return False
    return len(set(getattr(config.get_text_config(), "layer_types", None) or ("",))) == 1


def _shortened(config: Any, layers: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


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


def _kv_bytes(config: Any, work: Work) -> int:
    """Keys and values of all rows in flight, with two layers more while they are copied."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = 2 if work.autocast is not None else 4
    return 2 * (text.num_hidden_layers + 2) * heads * width * size * work.sampled * work.length


# -- of a run ----------------------------------------------------------------------------------------------------------

# Where nothing limits the length of prompts, they are taken for this long.
_PROMPT = 256


def announce(module: Any, trainer: Any, data: Any) -> None:
    """Say in one line what a fit will hold where, and warn if it cannot fit the device.

    Nothing is said where the rounds are not ours, or where the model's architecture cannot be traced.
    """
    if not hasattr(data, "round_options") or module.model_name_or_path is None:
        return
    try:
        foreseen, room = plan_run(module, trainer, data)
    except InputError:
        raise
    except Exception as error:  # a model that transformers knows and this file does not must train all the same
        rank_zero_info(f"memory: not foreseen for this model ({reason(error)})")
        return
    device = trainer.strategy.root_device
    rank_zero_info(foreseen.sentence(str(device), room))
    if foreseen.peak > room:
        rank_zero_warn(
            f"this run needs about {_gib(foreseen.peak)} GiB on {device}, which has {_gib(room)}; see docs/memory.md: "
            "model.lora, model.quantize, model.gradient_checkpointing, model.offload_frozen or more "
            "trainer.accumulate_grad_batches make it smaller"
        )


def plan_run(module: Any, trainer: Any, data: Any) -> tuple[Plan, int]:
    """The plan of a fit, and the bytes of its device."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(check_model_path(module.model_name_or_path), trust_remote_code=False)
    named = module.load_options["dtype"]
    dtype = (config.dtype or torch.float32) if named == "auto" else getattr(torch, named)
    precision = str(trainer.precision)
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    if precision.endswith("-true"):
        dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(precision, dtype)
    device, options = trainer.strategy.root_device, data.round_options
    responses = options.prompts_per_round * options.samples_per_prompt
    slots = module.minibatches * trainer.accumulate_grad_batches * trainer.world_size
    length = (options.max_prompt_tokens or _PROMPT) + data.sampling.max_tokens
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    room = _room(device)
    writes_itself = isinstance(data.engine, TransformersEngine)
    share = 0
    if hasattr(data.engine, "memory_share"):  # on CPUs the cache is set by its size
        cache = (data.engine.kv_cache_gb or 1) * 2**30
        share = int(data.engine.memory_share * room if device.type == "cuda" else cache)
    return plan(
        config,
        dtype,
        Work(
            rows=-(-responses // slots),
            length=min(length, longest or length),
            sampled=min(getattr(data.engine, "max_rows", responses), -(-responses // trainer.world_size)),
            autocast=mixed,
            checkpointing=module.load_options["gradient_checkpointing"],
            state=state_per_weight(module),
            reference=module.lora is None and module.objective.beta > 0,
            offload=module.offload_frozen,
            ranks=trainer.world_size if sharded else 1,
            replicated=trainer.world_size > 1 and not sharded,
            engine=None if writes_itself else share,
            device="cuda" if device.type == "cuda" else "cpu",
        ),
        module.lora,
        module.quantize is not None,
    ), room


def state_per_weight(module: Any) -> float:
    """Bytes of optimizer state per trained weight, by a step on a small stand-in."""
    weight = nn.Parameter(torch.zeros(128, 128))
    optimizer = module._make_optimizer([weight])
    if type(optimizer).__module__.startswith("bitsandbytes"):  # steps on GPUs alone
        return 2 + 8 / 256 if "8bit" in type(optimizer).__name__ else 8
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    state = [t for t in tree_leaves(optimizer.state[weight]) if isinstance(t, Tensor)]
    return sum(t.nbytes for t in state) / weight.numel()


def _room(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
