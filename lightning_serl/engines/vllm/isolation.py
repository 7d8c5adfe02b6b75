"""A room of its own for an engine that lives in the trainer's process and believes the process to be its own.

vLLM makes and destroys ``torch.distributed``'s default group, reseeds every generator, replaces
``torch.set_num_threads``, and sets environment variables that child processes would inherit. The trainer next door must
notice none of it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as torch_distributed
from torch.distributed import distributed_c10d

# Private parts of torch among them, which no type checker is told of.
dist: Any = torch_distributed
c10d: Any = distributed_c10d

X = TypeVar("X")
# Variables the engine reads again while it works stay as it set them.
_ENGINE_VARIABLES = ("VLLM_", "TORCHINDUCTOR_", "TRITON_", "TILELANG_")
# Groups are named by a counter, and functional collectives look them up by name in one table per process.
_FIRST_NAME = 1 << 20


class _Names(dict[Any, str]):
    """Group to name; remembers every name, since torch empties the table before it forgets the names."""

    def __init__(self) -> None:
        super().__init__()
        self.ever: list[str] = []

    def __setitem__(self, group: Any, name: str) -> None:
        super().__setitem__(group, name)
        self.ever.append(name)


class _World(distributed_c10d._World):
    """The process-group state of one engine; torch keeps that of the trainer in module variables."""

    def __init__(self) -> None:
        super().__init__()
        self._maps: dict[str, dict[Any, Any]] = {"pg_names": _Names()}
        self._count = _FIRST_NAME

    def _map(self, name: str) -> dict[Any, Any]:
        return self._maps.setdefault(name, {})

    pg_map = property(lambda self: self._map("pg_map"))
    pg_names = property(lambda self: self._map("pg_names"))
    pg_group_ranks = property(lambda self: self._map("pg_group_ranks"))
    pg_backend_config = property(lambda self: self._map("pg_backend_config"))
    tags_to_pg = property(lambda self: self._map("tags_to_pg"))
    pg_to_tag = property(lambda self: self._map("pg_to_tag"))

    @property
    def group_count(self) -> int:
        return self._count

    @group_count.setter
    def group_count(self, value: int) -> None:
        self._count = max(value, self._count)  # torch starts again at 0 when a default group is destroyed


class Room:
    """Process groups of a world of one, seen only inside :meth:`entered`.

    The engine is built, used and closed in here, so that it neither joins the trainer's groups (which would be a
    collective call) nor takes them with it when it goes.

    Args:
        device: Where the engine's collectives run.
    """

    def __init__(self, device: torch.device) -> None:
        self._world = _World()
        self._init_method: Any = None
        self._outside: list[tuple[Any, Any, Any]] = []
        with self.entered(), _kept_attributes((sys, "excepthook")):
            backend = dist.get_default_backend_for_device(device)
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside, ``torch.distributed`` is the engine's; entering twice is harmless."""
        outside = c10d._world, c10d._default_pg_init_method, c10d._unregister_all_process_groups
        if outside[0] is self._world:
            yield
            return
        self._outside.append(outside)
        c10d._world, c10d._default_pg_init_method = self._world, self._init_method
        c10d._unregister_all_process_groups = self._unregister
        try:
            yield
        finally:
            self._init_method = c10d._default_pg_init_method
            c10d._world, c10d._default_pg_init_method, c10d._unregister_all_process_groups = self._outside.pop()

    def outside(self, items: Iterator[X]) -> Iterator[X]:
        """Walk an iterator of the trainer's (sharded weights are gathered by its groups) from inside the room."""
        while True:
            with self._left():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    @contextmanager
    def _left(self) -> Iterator[None]:
        inside = c10d._world, c10d._default_pg_init_method, c10d._unregister_all_process_groups
        c10d._world, c10d._default_pg_init_method, c10d._unregister_all_process_groups = self._outside[-1]
        try:
            yield
        finally:
            c10d._world, c10d._default_pg_init_method, c10d._unregister_all_process_groups = inside

    def _unregister(self) -> None:
        """In place of torch's, which would also forget the names of the trainer's groups."""
        names: Any = self._world.pg_names
        while names.ever:
            with suppress(RuntimeError):  # destroyed one by one before
                c10d._unregister_process_group(names.ever.pop())

    def close(self) -> None:
        """Destroy the room's groups, unless the engine did."""
        with self.entered():
            if dist.is_initialized():
                dist.destroy_process_group()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Generators, thread settings, signal handlers, hooks and environment are afterwards what they were before."""
    with ExitStack() as stack:
        stack.enter_context(random_numbers_kept())
        stack.enter_context(_kept_attributes((torch, "set_num_threads"), (sys, "excepthook")))
        stack.enter_context(_threads_kept())
        stack.enter_context(_signals_kept())
        stack.enter_context(_environment_kept())
        yield


@contextmanager
def random_numbers_kept(accelerators: bool = True) -> Iterator[None]:
    """The generators of Python, numpy, torch and every accelerator in use.

    Args:
        accelerators: Off for single steps, whose requests bring generators of their own; reading these takes time.
    """
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    in_use = accelerators and torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if in_use else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _kept_attributes(*places: tuple[Any, str]) -> Iterator[None]:
    before = [getattr(owner, name) for owner, name in places]
    try:
        yield
    finally:
        for (owner, name), value in zip(places, before, strict=True):
            setattr(owner, name, value)


@contextmanager
def _threads_kept() -> Iterator[None]:
    set_threads, threads, precision = (
        torch.set_num_threads,
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
    )
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        yield
    finally:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        if torch.get_num_threads() != threads:
            set_threads(threads)
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _signals_kept() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # nobody can set handlers here
        yield
        return
    watched = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD) if signal.getsignal(s)]
    before = {s: signal.getsignal(s) for s in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            if not name.startswith(_ENGINE_VARIABLES):
                del os.environ[name]
        for name, value in before.items():
            if not name.startswith(_ENGINE_VARIABLES) and os.environ.get(name) != value:
                os.environ[name] = value
