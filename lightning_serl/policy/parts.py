"""Parts of a model that training treats apart: what text does not reach, experts, their routers, Mamba's mixers."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# The last part of a module's name by which a router, or the gate of a shared expert, is known beside experts.
_ROUTER = re.compile(r"router|gate|wg|\w+_(?:router|gate)")


def beside_text(model: Any) -> list[str]:
    """Names of the largest modules with weights that a text does not pass, such as a vision tower and its projector."""
    if model.config.get_text_config() is model.config:
        return []
    ends = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    used = {id(p) for end in ends for p in end.parameters()}
    return _largest(model, lambda module: used.isdisjoint(id(p) for p in module.parameters()))


def freeze_beside_text(model: Any) -> None:
    """Do not train what a text does not pass: it would get no gradient, for which data parallelism waits in vain."""
    for name in beside_text(model):
        model.get_submodule(name).requires_grad_(False)


def experts(model: nn.Module) -> list[str]:
    """Names of the modules that hold the weights of several experts, fused in one tensor or as a list."""
    found = []
    for name, module in model.named_modules():
        fused = any(p is not None and p.dim() == 3 for p in module._parameters.values())
        if name.rpartition(".")[2] == "experts" or (fused and "expert" in type(module).__name__.lower()):
            found.append(name)
    return found


def routers(model: nn.Module) -> list[str]:
    """Names of the modules that choose or weigh experts, in a model that has some."""
    blocks = {name.rpartition(".")[0] for name in experts(model)}
    found = []
    for name, module in model.named_modules():
        block, _, last = name.rpartition(".")
        if block in blocks and _ROUTER.fullmatch(last) and next(module.parameters(), None) is not None:
            found.append(name)
    return found


def read_by_kernels(model: nn.Module) -> list[str]:
    """Names of projections in Mamba's mixers whose weights its kernels read, past an adapter around them."""
    mixers = [(name, m) for name, m in model.named_modules() if {"A_log", "D"} <= set(m._parameters)]
    return [f"{name}.{own}" for name, m in mixers for own in ("dt_proj", "out_proj") if own in m._modules]


def decoder(causal_lm: Any) -> Any:
    """The model without its output layer, whose result has a ``last_hidden_state``."""
    base = causal_lm.base_model
    return getattr(base, "model", base) if base is causal_lm else base  # where the class misnames its decoder


def _largest(model: nn.Module, chosen: Any, prefix: str = "") -> list[str]:
    """Names of modules with weights that are chosen, but not those inside of one that is."""
    found = []
    for name, module in model.named_children():
        if next(module.parameters(), None) is None:
            continue
        found += [prefix + name] if chosen(module) else _largest(module, chosen, f"{prefix}{name}.")
    return found
