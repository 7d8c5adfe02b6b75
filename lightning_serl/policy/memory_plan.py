"""What a run will hold where, from the model's configuration alone, before anything is loaded.

Weights are counted on a model without storage. Activations, gradients and temporaries are those of one real forward and
backward pass, traced with tensors that have shapes and dtypes but no content, so any architecture, adapter, precision
and checkpointing is covered by the code that will run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.memory_trace import Work, _trace

# Bytes of the engine's tables per row and entry of the vocabulary: logits, log-probs, and two in float64.
_CHOOSING = 28


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
        said = ", ".join(f"{'frozen copies' if n == 'frozen' else n} {gib(getattr(self, n))}" for n in parts)
        there = f" of {gib(room)}" if room is not None else ""
        host = f"; frozen copies on the CPU {gib(self.host)}" if self.host else ""
        return f"memory, GiB on {device}: {said}; peak {gib(self.peak)}{there}{host}"


def gib(amount: int) -> str:
    """Bytes as GiB, with at least two digits."""
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


def _kv_bytes(config: Any, work: Work) -> int:
    """Keys and values of all rows in flight, with two layers more while they are copied."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = 2 if work.autocast is not None else 4
    return 2 * (text.num_hidden_layers + 2) * heads * width * size * work.sampled * work.length
