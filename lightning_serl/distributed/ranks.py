"""The only file that talks to ``torch.distributed``: who am I, gather, and agree on failure."""

from __future__ import annotations

import atexit
import threading
import time
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
# Seconds between signs of life, without any after which a rank counts as lost, and that the last one may take.
_BEAT, _SILENCE, _LAST_BEAT = 1.0, 30.0, 5.0


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

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on some rank; equal on all ranks."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([float(flag)])))

    def broadcast(self, value: Tensor) -> Tensor:
        """Rank 0's tensor on all ranks, written in place; shape, dtype and device must be equal everywhere."""
        if self.size > 1:
            dist.broadcast(value, src=0)
        return value

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
        try:
            _meet(self.rank, self.size)
            reports = self.gather(report)
        except RuntimeError as lost:  # the process group has lost somebody
            said = (str(lost).splitlines() or [type(lost).__name__])[0][:120]
            raise error or RankFailure(f"another rank was lost while {doing} ({said})") from lost
        first = next(((rank, *r) for rank, r in enumerate(reports) if r is not None), None)
        if first is None:
            return
        rank, kind, message = first
        if error is None:
            error = kind() if kind is not None else RankFailure(f"rank {rank} failed while {doing}: {message}")
        error.on_every_rank = True  # type: ignore[attr-defined]  # so a checkpoint may be saved together
        raise error


class _Meeting:
    """Where the ranks of a process group wait for each other, however long one of them works.

    A collective call waits no longer than the time-out of the process group, which should be short, so that a lost node
    is noticed; but ranks may write responses of very different lengths, start a server, or save a checkpoint. So they
    first wait here, as long as every rank gives signs of life from a thread of its own.
    """

    def __init__(self, store: Any, rank: int) -> None:
        self.store: Any = dist.PrefixStore("serl", store)  # type: ignore[attr-defined]
        self.number = 0
        self._over = threading.Event()
        self._life = threading.Thread(target=self._beat, args=(rank,), daemon=True, name="signs-of-life")
        self._life.start()
        # a thread that is inside the store when the interpreter goes takes the process down with SIGABRT
        atexit.register(self.end)

    def _beat(self, rank: int) -> None:
        while True:
            try:
                self.store.add(f"beat {rank}", 1)
            except RuntimeError:  # the process group has ended
                return
            if self._over.wait(_BEAT):
                return

    def end(self) -> None:
        """Give no more signs of life."""
        atexit.unregister(self.end)
        self._over.set()
        self._life.join(timeout=_LAST_BEAT)

    def wait(self, rank: int, size: int) -> None:
        """Until all ranks are here.

        Raises:
            RuntimeError: if one of them is lost.
        """
        self.number += 1
        place = f"meeting {self.number}"
        self.store.set(f"{place} {rank}", "here")
        here = self.store.add(place, 1)
        seen = {other: (-1, time.monotonic()) for other in range(size)}
        pause, looked = 0.0005, time.monotonic()
        while here < size:
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
            here = self.store.add(place, 0)
            now = time.monotonic()
            if now - looked < _BEAT:
                continue
            looked = now
            for other, (count, since) in seen.items():
                latest = self.store.add(f"beat {other}", 0)
                if latest != count:
                    seen[other] = latest, now
                elif now - since > _SILENCE and not self.store.check([f"{place} {other}"]):
                    raise RuntimeError(f"rank {other} gave no sign of life for {_SILENCE:.0f} s")
        if rank == 0 and self.number > 2:  # nobody can still be looking at the meeting before the last
            former = f"meeting {self.number - 2}"
            for name in (former, *(f"{former} {other}" for other in range(size))):
                self.store.delete_key(name)


_meetings: dict[int, _Meeting] = {}


def _meet(rank: int, size: int) -> None:
    store = dist.distributed_c10d._get_default_store()
    if id(store) not in _meetings:
        while _meetings:
            _meetings.popitem()[1].end()
        _meetings[id(store)] = _Meeting(store, rank)
    _meetings[id(store)].wait(rank, size)
