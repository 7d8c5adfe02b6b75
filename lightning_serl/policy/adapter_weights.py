"""Names and merged values of the weights of a LoRA adapter."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_serl.distributed import sharding

#: peft's name of the adapter that is trained.
TRAINED = "default"


def base_name(name: str) -> str | None:
    """The Hugging Face name of a weight inside an adapted model; ``None`` for one of an adapter."""
    if ".lora_" in name or ".modules_to_save." in name:
        return None
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def is_factor(path: str) -> bool:
    """Whether a module, by its path, holds one of the two factors of adapters."""
    return not {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}.isdisjoint(path.split("."))


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
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
def merged_layer(layer: Any) -> dict[str, Tensor]:
    """The weights of one of the :func:`adapted_layers` with the adapter merged, by leaf name; the layer stays as it is.

    The sum is made in float32 (float64 for a float64 model) and rounded once to the dtype of the base; 4-bit weights
    are dequantised first. peft's own arithmetic does it, on a copy, so every kind of LoRA is covered. Sharded weights
    are gathered by all ranks in step.
    """
    from peft.tuners import lora
    from peft.utils import ModulesToSaveWrapper

    from lightning_serl.policy.quantization import dequantized

    if isinstance(layer, ModulesToSaveWrapper):
        like = layer.original_module.state_dict()
        return {n: sharding.full(t).to(like[n].dtype) for n, t in layer.modules_to_save[TRAINED].state_dict().items()}
    twin = _detached(layer)
    base = twin.base_layer
    if (weight := dequantized(layer.base_layer)) is not None:
        # the 4-bit layer would round the sum to 4 bits again
        base.__class__, twin.__class__ = nn.Linear, lora.Linear
        base._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    dtypes = {name: p.dtype for name, p in base._parameters.items() if p is not None}
    for name, dtype in dtypes.items():
        wide = torch.promote_types(dtype, torch.float32)
        base._parameters[name] = nn.Parameter(base._parameters[name].detach().clone().to(wide), requires_grad=False)
    twin.merged_adapters = []
    twin.merge(adapter_names=[TRAINED])
    return {name: base._parameters[name].detach().to(dtype) for name, dtype in dtypes.items()}


def _detached(module: nn.Module) -> Any:
    """A module of the same kind around the same, gathered, tensors, whose parameters can be replaced."""
    twin = copy.copy(module)
    twin._parameters = {
        n: None if p is None else nn.Parameter(sharding.full(p), requires_grad=False)
        for n, p in module._parameters.items()
    }
    twin._modules = {n: None if m is None else _detached(m) for n, m in module._modules.items()}
    return twin
