"""FSDP2 on any module: shard it, gather its tensors one at a time, and fill shards from whole tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import InputError, SeRLError


@dataclass(frozen=True)
class Placement:
    """How a policy is sharded, kept so that frozen copies are sharded in the same way."""

    mesh: DeviceMesh  # the data-parallel ranks
    precision: MixedPrecisionPolicy  # of gathered weights and reduced gradients
    device: torch.device  # of the shards
    blank: nn.Module  # the model's structure without weights, since a sharded module cannot be copied


def layers(model: nn.Module) -> list[nn.Module]:
    """The model's decoder layers, as its architecture names them, else the children of its longest list of modules."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [m for m in model.modules() if type(m).__name__ in names]
    if found:
        return found
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=lambda one: len(one), default=[])


def blank_copy(model: nn.Module) -> nn.Module:
    """A copy of the model's structure with its tensors on the meta device; tied weights stay tied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def replace_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replace parameters and buffers in place; unlike with ``to_empty``, tied tensors stay tied.

    ``make`` gives the new tensor for an old one, or the old one to keep it; it is called once per tensor.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the old tensor, whose id would be reused once it is freed
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    new = make(tensor)
                    if isinstance(tensor, nn.Parameter) and new is not tensor:
                        new = nn.Parameter(new, tensor.requires_grad)
                    made[id(tensor)] = tensor, new
                table[name] = made[id(tensor)][1]


def materialise(module: nn.Module) -> None:
    """Allocate tensors on the meta device on the CPU; pages that nothing is written into take no memory."""
    replace_tensors(module, lambda tensor: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor)


def agree_on_structure(policy: nn.Module, ranks: Ranks) -> None:
    """Give weights that are not loaded yet the dtypes of rank 0's files; a SeRLError if the models differ."""
    tensors = [*policy.named_parameters(), *policy.named_buffers()]
    own = {n: (tuple(t.shape), t.dtype) for n, t in tensors}
    first = ranks.gather(own)[0]
    if {n: shape for n, (shape, _) in own.items()} != {n: shape for n, (shape, _) in first.items()}:
        raise SeRLError("the ranks built different models from the same name; give all nodes the same files")
    for name, tensor in tensors:
        if tensor.dtype != first[name][1]:
            tensor.data = tensor.data.to(first[name][1])


def place(policy: nn.Module, model: nn.Module, placement: Placement) -> None:
    """Shard the model's decoder layers and, last, the policy: the group of embedding, final norm and output layer.

    Every rank keeps its shards of the present weights.
    """
    materialise(policy)
    for layer in layers(model):
        fully_shard(layer, mesh=placement.mesh, mp_policy=placement.precision)
    fully_shard(policy, mesh=placement.mesh, mp_policy=placement.precision)


def spread_weights(policy: nn.Module, whole: dict[str, Tensor] | None, ranks: Ranks, device: torch.device) -> None:
    """Fill the shards of all ranks from the ``whole`` weights of rank 0, which alone has read them."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            # one at a time, so that no rank but the first ever holds a whole model
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            fill(parameter, ranks.broadcast(value if whole is None else whole[name].to(device)))
        for buffer in policy.buffers():
            buffer.copy_(ranks.broadcast(buffer))


def reshard(module: nn.Module) -> None:
    """Free the gathered weights of every sharded part."""
    for part in _sharded_parts(module):
        part.reshard()


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gather all weights once for many forward passes; otherwise every generated token would gather them."""
    root: object = module
    parts = _sharded_parts(module)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # FSDP2 keeps the root's weights after a forward pass
            part.set_reshard_after_forward(part is not root, recurse=False)


def _sharded_parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, detached; if it is sharded, all ranks must call this in step."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def fill(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor, equal on all ranks, into a sharded or plain one; no communication."""
    with torch.no_grad():
        target.copy_(like(whole, target))


def like(whole: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, equal on all ranks, sharded as ``target`` is; no communication.

    Raises :class:`InputError` if the shapes differ.
    """
    if whole.shape != target.shape:
        raise InputError(f"a saved tensor has shape {tuple(whole.shape)} where {tuple(target.shape)} is needed")
    whole = whole.to(target.device, target.dtype)
    if not isinstance(target, DTensor):
        return whole
    return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)


def gathered_state(module: nn.Module, ranks: Ranks, only: set[str] | None = None) -> dict[str, Tensor]:
    """A module's state, or ``only`` these names of it, on the CPU of rank 0; empty on the other ranks.

    All ranks must call this; a sharded module is gathered tensor by tensor.
    """
    out = {}
    for name, tensor in module.state_dict().items():
        if only is None or name in only:
            value = full(tensor)
            if ranks.leads:
                out[name] = value.cpu()
    return out


def load_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Fill a sharded or plain module from whole tensors, equal on all ranks.

    Names that the module lacks and names missing from the state are ignored; check them first.
    """
    for name, target in module.state_dict(keep_vars=True).items():
        if name in state:
            fill(target, state[name])
