"""The only file that talks to ``torch.distributed``: who am I, gather, and agree on failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_serl.errors import RankFailure

if TYPE_CHECKING:
    import lightning.pytorch as pl

X = TypeVar("X")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """A process among its peers.

    Args:
        rank: Global rank, from 0.
        size: Number of processes that share every round.
        device: Where this rank's collectives on tensors must live.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @classmethod
    def of(cls, trainer: pl.Trainer | None) -> Ranks:
        """The ranks of a trainer, or a process on its own."""
        if trainer is None or trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(trainer.global_rank, trainer.world_size, trainer.strategy.root_device)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the one that writes files."""
        return self.rank == 0

    def share(self, items: list[X]) -> list[X]:
        """This rank's items of a list that is equal on all ranks: every ``size``-th, from ``rank`` on."""
        return items[self.rank :: self.size]

    def gather(self, item: X) -> list[X]:
        """One picklable object of each rank, in rank order, equal on all ranks."""
        if self.size == 1:
            return [item]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, item)
        return out

    def interleave(self, items: list[X]) -> list[X]:
        """The inverse of :meth:`share`: every rank's results in the order of the shared list."""
        if self.size == 1:
            return items
        parts = self.gather(items)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks; (k,) in, (k,) on the CPU out."""
        if self.size == 1:
            return values.detach().cpu()
        values = values.detach().clone().to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    @contextmanager
    def stage(self, doing: str) -> Iterator[None]:
        """A piece of work without collectives; if it fails on any rank, every rank raises within seconds.

        The rank that failed raises its own error, the others a :class:`RankFailure` with its message, or the same
        interrupt. The attribute ``on_every_rank`` of what is raised tells that all ranks are on their way out.

        Args:
            doing: What the ranks were at, for the message.
        """
        if self.size == 1:
            yield
            return
        error: BaseException | None = None
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException as caught:  # Ctrl-C and SIGTERM must reach the others too
            error = caught
        report = None
        if error is not None:
            report = type(error) if not isinstance(error, Exception) else None, f"{type(error).__name__}: {error}"
        reports = self.gather(report)
        first = next(((rank, *r) for rank, r in enumerate(reports) if r is not None), None)
        if first is None:
            return
        rank, kind, message = first
        if error is None:
            error = kind() if kind is not None else RankFailure(f"rank {rank} failed while {doing}: {message}")
        error.on_every_rank = True  # type: ignore[attr-defined]  # so a checkpoint may be saved together
        raise error
