"""The memory that a run will take, from the model's configuration alone, before anything is loaded.

Weights are counted on a model without storage. Activations, gradients and temporaries are those of one forward and
backward pass, traced with fake tensors through the code that will run, so that every architecture, adapter, precision
and kind of checkpointing is covered.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.memory_trace import Traced, Work, trace

# Bytes of the engine's tables per row and entry of the vocabulary: logits, log-probs, and two in float64.
_SAMPLING_BYTES = 28


@dataclass(frozen=True)
class Plan:
    """Bytes per process.

    Attributes:
        weights: Parameters and buffers.
        gradients: Of the trained weights.
        optimizer: State of the optimizer.
        frozen: Frozen copies on the device.
        activations: Activations and temporaries of training.
        engine: What writing completions takes.
        host: Frozen copies on the CPU.
        separate: Whether the engine is separate and holds its memory while training. Where the policy itself writes,
            training and writing take turns, and the peak has the larger of the two.
    """

    weights: int
    gradients: int
    optimizer: int
    frozen: int
    activations: int
    engine: int
    host: int = 0
    separate: bool = False

    @property
    def peak(self) -> int:
        """The most that the device holds at one time."""
        training = self.gradients + self.activations
        lasting = self.weights + self.optimizer + self.frozen
        return lasting + (training + self.engine if self.separate else max(training, self.engine))

    def sentence(self, device: str, room: int | None = None) -> str:
        """The plan as one line.

        Args:
            device: Its name.
            room: Bytes of the device, if known.
        """
        names = ("weights", "gradients", "optimizer", "frozen", "activations", "engine")
        parts = ", ".join(f"{'frozen copies' if n == 'frozen' else n} {gib(getattr(self, n))}" for n in names)
        total = f" of {gib(room)}" if room is not None else ""
        host = f"; frozen copies on the CPU {gib(self.host)}" if self.host else ""
        return f"memory, GiB on {device}: {parts}; peak {gib(self.peak)}{total}{host}"


def gib(amount: int) -> str:
    """Bytes as a number of GiB with about three digits."""
    value = amount / 2**30
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def plan(config: Any, dtype: torch.dtype, work: Work, lora: LoraOptions | None = None, quantized: bool = False) -> Plan:
    """The memory that a process will take.

    Args:
        config: The model's transformers configuration.
        dtype: Of the loaded weights.
        work: What is done with the model.
        lora: Adapter options.
        quantized: Whether linear layers of the base have 4 bits.
    """
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
    writing = _kv_bytes(config, work) + work.sampled * text.vocab_size * _SAMPLING_BYTES
    activations = max(0, traced.peak - gradients) + (gradients if work.replicated else 0)
    # the optimizer's temporaries, once the activations are freed: on a GPU it updates all weights at once
    step = traced.trained * 4 if work.device == "cuda" else 2 * traced.largest
    whole = 0 if ranks == 1 else weights - weights // ranks  # sharded weights are gathered for writing
    return Plan(
        weights // ranks,
        gradients // ranks,
        int(traced.trained * work.state) // ranks,
        0 if work.offload else frozen // ranks,
        max(activations, step // ranks),
        writing + whole if work.engine is None else work.engine,
        frozen // ranks if work.offload else 0,
        work.engine is not None,
    )


def _layers_are_alike(config: Any, lora: LoraOptions | None) -> bool:
    """Whether all layers take the same memory."""
    if lora is not None and (
        lora.start_from or {"rank_pattern", "layers_to_transform", "layers_pattern"} & set(lora.peft)
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


def _kv_bytes(config: Any, work: Work) -> int:
    """Keys and values of all rows that are written at one time, and of two layers more while they are copied."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = 2 if work.autocast is not None else 4
    return 2 * (text.num_hidden_layers + 2) * heads * width * size * work.sampled * work.length
