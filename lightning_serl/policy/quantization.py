"""Four-bit weights (QLoRA, Dettmers et al., 2305.14314) through transformers and bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from lightning_serl.errors import InputError

Quantization = Literal["nf4"]


def quantization_config(kind: Quantization, compute: torch.dtype) -> Any:
    """The configuration with which ``from_pretrained`` loads 4-bit layers with double quantisation.

    A weight is dequantised to the dtype ``compute`` for its product. Without bitsandbytes it is an :class:`InputError`.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"model.quantize {kind} needs bitsandbytes, which is not installed; pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def compute_exactly(module: nn.Module, dtype: torch.dtype) -> None:
    """Have 4-bit layers compute with the same weights in training, in scoring and in an export.

    bitsandbytes rounds weights to the dtype of the files in its paths with gradient but not in the others; and on CPUs
    with AVX-512 BF16 a pass in eval mode repacks them and computes in bfloat16.
    """
    for layer in module.modules():
        if (state := getattr(getattr(layer, "weight", None), "quant_state", None)) is not None:
            state.dtype = dtype
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


@torch.no_grad()
def let_go_of_files(module: nn.Module) -> None:
    """Copy the weights that do not have 4 bits: on a CPU they are views of the files, which would stay mapped."""
    for weight in module.parameters():
        if weight.is_floating_point() and weight.device.type == "cpu":
            weight.data = weight.data.clone()


@torch.no_grad()
def dequantized(layer: nn.Module) -> Tensor | None:
    """(out, in) weight of a 4-bit layer, as it computes with it; ``None`` for any other layer."""
    if not hasattr(layer, "quant_state"):
        return None
    import bitsandbytes.functional as bnb

    weight: Any = layer.weight
    state = getattr(weight, "quant_state", None) or layer.quant_state
    return bnb.dequantize_4bit(weight.data, state)
