"""FSDP2: a policy's weights shared out over the ranks, and brought together again one tensor at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import InputError, SeRLError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Placement:
    """How a policy is sharded, kept so that frozen copies are sharded alike.

    Attributes:
        mesh: The data-parallel ranks.
        precision: Of gathered weights and reduced gradients.
        device: Where the shards live.
        blank: The model's structure without weights: a sharded module cannot be copied.
    """

    mesh: DeviceMesh
    precision: MixedPrecisionPolicy
    device: torch.device
    blank: nn.Module


def layers(model: nn.Module) -> list[nn.Module]:
    """The model's decoder layers, as its architecture names them, else the children of its longest list of modules."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [m for m in model.modules() if type(m).__name__ in names]
    if found:
        return found
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=lambda one: len(one), default=[])


def blank_copy(model: nn.Module) -> nn.Module:
    """The model's structure with its tensors on the meta device; tied weights stay tied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def materialise(module: nn.Module) -> None:
    """Give a structure without weights room for them on the CPU; ``to_empty`` would untie what is tied.

    The room is not touched, so that it takes memory only where something is written into it.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and tensor.is_meta:
                    if id(tensor) not in made:
                        room = torch.empty_like(tensor, device="cpu")
                        whole = nn.Parameter(room, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else room
                        made[id(tensor)] = tensor, whole
                    table[name] = made[id(tensor)][1]


def place(policy: nn.Module, model: nn.Module, placement: Placement) -> None:
    """Wrap the decoder layers and, last, the policy itself, whose group holds embedding, final norm and output layer.

    Every rank keeps its shards of whatever the weights are at this moment.

    Args:
        policy: The root.
        model: The Hugging Face model inside it.
        placement: Where and how.
    """
    materialise(policy)
    for layer in layers(model):
        fully_shard(layer, mesh=placement.mesh, mp_policy=placement.precision)
    fully_shard(policy, mesh=placement.mesh, mp_policy=placement.precision)


def spread_weights(policy: nn.Module, whole: dict[str, Tensor] | None, ranks: Ranks, device: torch.device) -> None:
    """Fill the shards of all ranks from rank 0, which alone has read the weights.

    Args:
        policy: The sharded policy; its weights are not set on ranks other than 0.
        whole: Weights by name on rank 0, ``None`` elsewhere.
        ranks: Who takes part.
        device: Where the shards live.
    """
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            # one at a time, so that no rank but the first ever holds a whole model
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            fill(parameter, ranks.broadcast(value if whole is None else whole[name].to(device)))
        for buffer in policy.buffers():
            buffer.copy_(ranks.broadcast(buffer))


def agree_on_structure(policy: nn.Module, ranks: Ranks) -> None:
    """Give weights that are still to come the dtypes that rank 0 found.

    Raises:
        SeRLError: if the ranks have built different models.
    """
    tensors = [*policy.named_parameters(), *policy.named_buffers()]
    mine = {n: (tuple(t.shape), t.dtype) for n, t in tensors}
    theirs = ranks.gather(mine)[0]
    if {n: shape for n, (shape, _) in mine.items()} != {n: shape for n, (shape, _) in theirs.items()}:
        raise SeRLError("the ranks built different models from the same name; give all nodes the same files")
    for name, tensor in tensors:
        if tensor.dtype != theirs[name][1]:
            tensor.data = tensor.data.to(theirs[name][1])


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, detached; all ranks in step where it is sharded."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def fill(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor, equal on all ranks, into a sharded or plain one; no communication."""
    with torch.no_grad():
        target.copy_(like(whole, target))


def like(whole: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, equal on all ranks, sharded as another one is; no communication.

    Raises:
        InputError: if the shapes differ.
    """
    if whole.shape != target.shape:
        raise InputError(f"a saved tensor has shape {tuple(whole.shape)} where {tuple(target.shape)} is needed")
    whole = whole.to(target.device, target.dtype)
    if not isinstance(target, DTensor):
        return whole
    return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)


def gathered_state(module: nn.Module, ranks: Ranks, only: set[str] | None = None) -> dict[str, Tensor]:
    """A module's state on the CPU of rank 0, gathered tensor by tensor; empty on the others.

    Args:
        module: Sharded or not; all ranks must call this.
        ranks: Who takes part.
        only: Names to take; ``None`` takes all.
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

    Names that the module lacks and names that are absent are left alone; check them first.
    """
    for name, target in module.state_dict(keep_vars=True).items():
        if name in state:
            fill(target, state[name])


def unsharded_parts(module: nn.Module) -> Iterator[tuple[FSDPModule, bool]]:
    """Every sharded part with whether it gives its weights up again after its forward pass (the root does not)."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            yield part, part is not module
