"""Ranks of a run: rank and size, collectives on plain objects, and agreement on failures.

Whatever gathers results, scores or failures does it here. Three other files use ``torch.distributed`` too: ``sharding``
for the weights that FSDP2 distributes, ``strategies`` for the strategies themselves, and ``engines/vllm/isolation``,
which hides the process group from vLLM.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_serl.errors import RankFailure, RankLoss

if TYPE_CHECKING:
    import lightning.pytorch as pl

X = TypeVar("X")
_CPU = torch.device("cpu")
# Seconds between heartbeats; without one after which a rank counts as lost; that the last one may take.
_HEARTBEAT, _LOST_AFTER, _LAST_HEARTBEAT = 1.0, 30.0, 5.0
_LOSS = "loss"  # the key of the store that says which rank has ended


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run."""

    rank: int = 0  # global
    size: int = 1  # processes that share every round; 1 makes every method local
    device: torch.device = _CPU  # of the tensors that this rank reduces or broadcasts

    @classmethod
    def of(cls, trainer: pl.Trainer | None) -> Ranks:
        """The ranks of a trainer; a single rank without a trainer or a process group."""
        if trainer is None or trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(trainer.global_rank, trainer.world_size, trainer.strategy.root_device)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def share(self, items: list[X]) -> list[X]:
        """This rank's part of a list that is equal on all ranks: every ``size``-th item, starting at ``rank``."""
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
        """Whether the flag is true on at least one rank; equal on all ranks."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([float(flag)])))

    def broadcast(self, value: Tensor) -> Tensor:
        """Rank 0's tensor on all ranks, written in place; shape, dtype and device must be equal everywhere."""
        if self.size > 1:
            dist.broadcast(value, src=0)
        return value

    @contextmanager
    def stage(self, doing: str) -> Iterator[None]:
        """Context of work without collectives: if it fails on any rank, every rank raises an error within seconds.

        The rank that failed raises its own error, the others a :class:`RankFailure` with its message and what it was
        ``doing``, or the same interrupt. The error has the attribute ``on_every_rank``: all ranks are ending, so they
        can save together.
        """
        if self.size == 1:
            yield
            return
        error: BaseException | None = None
        try:
            yield
        except GeneratorExit:
            raise
        except RankLoss as loss:  # the lost rank will not come to the rendezvous
            _rendezvous_of(self.rank).tell_loss(loss)
            raise
        except BaseException as caught:  # Ctrl-C and SIGTERM must reach the others too
            error = caught
        report = None
        if error is not None:
            report = type(error) if not isinstance(error, Exception) else None, f"{type(error).__name__}: {error}"
        try:
            with _waiting():
                _rendezvous_of(self.rank).wait(self.rank, self.size)
                reports = self.gather(report)
        except RankLoss as loss:
            raise error or loss from None
        except RuntimeError as lost:  # the process group has lost a rank
            said = (str(lost).splitlines() or [type(lost).__name__])[0][:120]
            raise error or RankFailure(f"another rank was lost while {doing} ({said})") from lost
        first = next(((rank, *r) for rank, r in enumerate(reports) if r is not None), None)
        if first is None:
            return
        rank, kind, message = first
        if error is None:
            error = kind() if kind is not None else RankFailure(f"rank {rank} failed while {doing}: {message}")
        error.on_every_rank = True  # type: ignore[attr-defined]  # see Checkpoints.on_exception
        raise error


_looks: list[Callable[[], None]] = []


def look_while_waiting(look: Callable[[], None]) -> None:
    """Have a function called about every second while this process waits for the other ranks at the end of a stage.

    A process that started other ranks sees that one of them has ended before its heartbeats are missed. The function
    raises a :class:`RankLoss` then, which ends the wait on all ranks.
    """
    _looks.append(look)


_waited = 0.0


def seconds_waited() -> float:
    """Seconds that this process has waited for the other ranks at the ends of stages."""
    return _waited


@contextmanager
def _waiting() -> Iterator[None]:
    global _waited
    began = time.monotonic()
    try:
        yield
    finally:
        _waited += time.monotonic() - began


class _Rendezvous:
    """Waits until all ranks of a process group have arrived, however long one of them works.

    A collective call waits no longer than the time-out of the process group, which should be short, so that a lost node
    is noticed; but ranks may write responses of very different lengths, start a server, or save a checkpoint. So they
    first wait here, as long as every rank sends heartbeats from a thread.
    """

    def __init__(self, store: Any, rank: int) -> None:
        self.store: Any = dist.PrefixStore("serl", store)  # type: ignore[attr-defined]
        self.number = 0
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._send_heartbeats, args=(rank,), daemon=True, name="heartbeat")
        self._heart.start()
        # a thread inside the store while the interpreter shuts down ends the process with SIGABRT
        atexit.register(self.end)

    def _send_heartbeats(self, rank: int) -> None:
        while True:
            try:
                self.store.add(f"heartbeat {rank}", 1)
            except RuntimeError:  # the process group has ended
                return
            if self._ended.wait(_HEARTBEAT):
                return

    def end(self) -> None:
        """Stop the heartbeats."""
        atexit.unregister(self.end)
        self._ended.set()
        self._heart.join(timeout=_LAST_HEARTBEAT)

    def tell_loss(self, loss: RankLoss) -> None:
        """Let the other ranks know that one has ended: their :meth:`wait` raises the same error within seconds."""
        self.store.set(_LOSS, str(loss))

    def _look(self) -> None:
        """Raise a RankLoss if a rank is known to have ended."""
        if self.store.check([_LOSS]):
            raise RankLoss(self.store.get(_LOSS).decode())
        try:
            for look in _looks:
                look()
        except RankLoss as loss:
            self.tell_loss(loss)
            raise

    def wait(self, rank: int, size: int) -> None:
        """Return when all ranks have called this as often as this one.

        Raises:
            RankLoss: A rank is known to have ended.
            RuntimeError: A rank has sent no heartbeat for half a minute, or the store of the process group is gone.
        """
        self.number += 1
        place = f"rendezvous {self.number}"
        self.store.set(f"{place} {rank}", "here")
        arrived = self.store.add(place, 1)
        seen = {other: (-1, time.monotonic()) for other in range(size)}
        pause, looked = 0.0005, time.monotonic()
        while arrived < size:
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
            arrived = self.store.add(place, 0)
            now = time.monotonic()
            if now - looked < _HEARTBEAT:
                continue
            looked = now
            self._look()
            for other, (count, since) in seen.items():
                latest = self.store.add(f"heartbeat {other}", 0)
                if latest != count:
                    seen[other] = latest, now
                elif now - since > _LOST_AFTER and not self.store.check([f"{place} {other}"]):
                    raise RuntimeError(f"rank {other} sent no heartbeat for {_LOST_AFTER:.0f} s")
        if rank == 0 and self.number > 2:  # no rank can still be looking at the one before the last
            former = f"rendezvous {self.number - 2}"
            for name in (former, *(f"{former} {other}" for other in range(size))):
                self.store.delete_key(name)


_rendezvous: dict[int, _Rendezvous] = {}  # of the current process group, by the identity of its store


def _rendezvous_of(rank: int) -> _Rendezvous:
    store = dist.distributed_c10d._get_default_store()  # torch has no public way to the store of a process group
    if id(store) not in _rendezvous:
        while _rendezvous:
            _rendezvous.popitem()[1].end()
        _rendezvous[id(store)] = _Rendezvous(store, rank)
    return _rendezvous[id(store)]
