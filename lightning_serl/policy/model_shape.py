"""The sizes of a model that say how long its passes take, from its configuration alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lightning_serl.policy.loading import prepare_for_training
from lightning_serl.policy.lora import LoraOptions
from lightning_serl.policy.memory_plan import NF4_BYTES
from lightning_serl.policy.parts import decoder, experts
from lightning_serl.policy.roofline import Shape

# What configurations call the experts of a layer, and those of them that a token passes.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")


def model_shape(
    config: Any, dtype: torch.dtype, lora: LoraOptions | None, compute: torch.dtype | None, quantized: bool = False
) -> Shape:
    """The shape of the model that a transformers configuration describes; nothing is loaded.

    ``dtype`` is that of the weights, ``compute`` that of products where it differs (mixed precision).
    """
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        head = int(model.get_output_embeddings().weight.numel())
        products, weights = _counted(model, text)
        trained = total = sum(p.numel() for p in model.parameters())
        adapter = 0
        if lora is not None:
            model = prepare_for_training(model, False, lora, load=False)
            trained = adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    used = compute or dtype
    return Shape(
        products=products,
        weights=weights,
        head=head,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=width * text.num_attention_heads,
        kv_heads=width * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        inner=_inner(text),
        vocab=text.vocab_size,
        width=width,
        itemsize=used.itemsize,
        # the weights are read as they are held, and 4-bit ones are written once more for the product
        weight_bytes=round(NF4_BYTES + 2 * used.itemsize) if quantized else dtype.itemsize,
        adapter=adapter,
        trained=trained,
        total=total,
    )


def _counted(model: Any, text: Any) -> tuple[int, int]:
    """Weights that a token is multiplied with in the decoder, and all weights of its layers."""
    one = decoder(model)
    groups = experts(one)
    chosen = _first(text, _CHOSEN) / max(1, _first(text, _EXPERTS)) if groups else 1.0
    products, weights = 0.0, 0
    for name, module in one.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        share = chosen if any(name == group or name.startswith(f"{group}.") for group in groups) else 1.0
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1:
                products += share * parameter.numel()
            weights += parameter.numel()
    return round(products), weights


def _inner(text: Any) -> int:
    """Elements of the inner layer that a token passes."""
    dense = int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    each = int(getattr(text, "moe_intermediate_size", None) or dense)
    return each * _first(text, _CHOSEN) if _first(text, _EXPERTS) > 1 else dense


def _first(text: Any, names: tuple[str, ...]) -> int:
    return next((int(value) for name in names if (value := getattr(text, name, None))), 1)
