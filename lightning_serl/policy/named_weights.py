"""The policy's weights under their Hugging Face names, for engines and export, with or without the adapter merged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_serl.distributed import sharding
from lightning_serl.policy.lora import TRAINED
from lightning_serl.policy.quantization import dequantized


def base_name(name: str) -> str | None:
    """The Hugging Face name of a weight inside an adapted model; ``None`` for an adapter's own weight."""
    if ".lora_" in name or ".modules_to_save." in name:
        return None
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def named_weights(causal_lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the base of a Hugging Face model, one at a time, sharded ones gathered by all ranks in step.

    The output layer is included even if it is tied to the embedding, since engines keep two copies. A 4-bit weight
    comes dequantised, as its layer computes with it.
    """
    four_bit = {f"{n}.weight": m for n, m in causal_lm.named_modules() if hasattr(m, "quant_state")}
    for name, tensor in causal_lm.state_dict().items():
        plain = base_name(name)
        owner, scale, _ = name.partition(".weight.")
        if plain is None or (scale and f"{owner}.weight" in four_bit):
            continue  # an adapter's weight, or the scale of a 4-bit weight
        weight = dequantized(four_bit[name]) if name in four_bit else tensor
        assert weight is not None
        yield plain, sharding.full(weight)


def merged_weights(causal_lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """As :func:`named_weights`, with the trained adapter merged into copies, one layer at a time."""
    layers, last, merged = _adapted_layers(causal_lm), "", dict[str, Tensor]()
    for name, tensor in named_weights(causal_lm):
        layer, _, leaf = name.rpartition(".")
        if layer in layers and layer != last:
            last, merged = layer, _merged_layer(layers[layer])
        yield name, merged[leaf] if layer in layers else tensor


def _adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that the trained adapter changes, by their Hugging Face names."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, ModulesToSaveWrapper) and TRAINED in module.modules_to_save)
        or (isinstance(module, LoraLayer) and TRAINED in {*module.lora_A, *module.lora_embedding_A})
    }


@torch.no_grad()
def _merged_layer(layer: Any) -> dict[str, Tensor]:
    """The weights of an adapted layer with the adapter merged, by leaf name; the layer itself is not changed.

    peft merges into a copy of the layer, so that every kind of LoRA is covered. The sum is made in float32 (float64 for
    a float64 model) and rounded once to the dtype of the base. Sharded weights are gathered by all ranks in step.
    """
    from peft.utils import ModulesToSaveWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        like = layer.original_module.state_dict()
        return {n: sharding.full(t).to(like[n].dtype) for n, t in layer.modules_to_save[TRAINED].state_dict().items()}
    copied = _copy_with_own_parameters(layer)
    if (weight := dequantized(layer.base_layer)) is not None:
        _become_plain(copied, weight)
    parameters = copied.base_layer._parameters
    dtypes = {name: p.dtype for name, p in parameters.items() if p is not None}
    for name, dtype in dtypes.items():
        wide = torch.promote_types(dtype, torch.float32)
        parameters[name] = nn.Parameter(parameters[name].detach().clone().to(wide), requires_grad=False)
    copied.merged_adapters = []
    copied.merge(adapter_names=[TRAINED])
    return {name: parameters[name].detach().to(dtype) for name, dtype in dtypes.items()}


def _copy_with_own_parameters(module: nn.Module) -> Any:
    """A copy of a module whose parameters share the (gathered) tensors but can be replaced one by one."""
    copied = copy.copy(module)
    copied._parameters = {
        n: None if p is None else nn.Parameter(sharding.full(p), requires_grad=False)
        for n, p in module._parameters.items()
    }
    copied._modules = {n: None if m is None else _copy_with_own_parameters(m) for n, m in module._modules.items()}
    return copied


def _become_plain(layer: Any, weight: Tensor) -> None:
    """Turn a copied 4-bit LoRA layer into one around a plain linear layer, in place.

    The 4-bit classes would round the merged sum to 4 bits; new layers would need the adapter's options a second time.
    """
    from peft.tuners import lora

    layer.__class__, layer.base_layer.__class__ = lora.Linear, nn.Linear
    layer.base_layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
