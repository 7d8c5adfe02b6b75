"""Isolates vLLM's process groups, random numbers and environment from the trainer's, in the same process.

vLLM creates and destroys the default group of ``torch.distributed``, seeds every generator, replaces
``torch.set_num_threads`` and sets environment variables that child processes would inherit. :class:`IsolatedGroups`
keeps its process groups apart from the trainer's, and :func:`preserve_process_state` restores the rest.

This is the only file that uses private parts of ``torch.distributed.distributed_c10d``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as torch_distributed
from torch.distributed import distributed_c10d

X = TypeVar("X")
# Names that type checkers do not know.
dist: Any = torch_distributed
c10d: Any = distributed_c10d

# The private parts of torch; tests/test_torch_contract.py has a test of each.
_TorchWorld = distributed_c10d._World
_unregister_group = c10d._unregister_process_group
#: Module variables that hold the process groups of the process: the tables of groups, how the default group was
#: initialised, and what `destroy_process_group` calls to forget the names of all groups.
GROUP_STATE = ("_world", "_default_pg_init_method", "_unregister_all_process_groups")

# Environment variables that the engine reads again while it works keep the values that it set.
_ENGINE_VARIABLES = ("VLLM_", "TORCHINDUCTOR_", "TRITON_", "TILELANG_")
# Groups are named by a counter, and functional collectives look names up in one table for the whole process: the
# engine's names must differ from the trainer's.
_FIRST_NAME = 1 << 20


class _GroupNames(dict[Any, str]):
    """Maps groups to names and keeps every name: torch empties this table before it unregisters the names."""

    def __init__(self) -> None:
        super().__init__()
        self.all_names: list[str] = []

    def __setitem__(self, group: Any, name: str) -> None:
        super().__setitem__(group, name)
        self.all_names.append(name)


class _EngineWorld(_TorchWorld):
    """The tables of process groups of one engine; torch keeps the trainer's in module variables."""

    def __init__(self) -> None:
        super().__init__()
        self._tables: defaultdict[str, dict[Any, Any]] = defaultdict(dict, pg_names=_GroupNames())
        self._count = _FIRST_NAME

    pg_map = property(lambda self: self._tables["pg_map"])
    pg_names = property(lambda self: self._tables["pg_names"])
    pg_group_ranks = property(lambda self: self._tables["pg_group_ranks"])
    pg_backend_config = property(lambda self: self._tables["pg_backend_config"])
    tags_to_pg = property(lambda self: self._tables["tags_to_pg"])
    pg_to_tag = property(lambda self: self._tables["pg_to_tag"])

    @property
    def group_count(self) -> int:
        return self._count

    @group_count.setter
    def group_count(self, value: int) -> None:
        self._count = max(value, self._count)  # torch resets it to 0 when a default group is destroyed


class IsolatedGroups:
    """Process groups of world size 1, which ``torch.distributed`` uses only inside :meth:`active`.

    vLLM is built, used and closed inside, so that it neither joins the trainer's groups, which would be a collective
    call, nor destroys them when it closes. Its collectives run on ``device``.
    """

    def __init__(self, device: torch.device) -> None:
        self._world = _EngineWorld()
        # the second value of GROUP_STATE, as the engine left it
        self._init_method: Any = None
        self._outside: list[tuple[Any, ...]] = []
        with self.active(), _preserve_attributes((sys, "excepthook")):
            backend = dist.get_default_backend_for_device(device)
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make these groups those of ``torch.distributed``; may be nested."""
        outside = _group_state()
        if outside[0] is self._world:
            yield
            return
        self._outside.append(outside)
        _set_group_state((self._world, self._init_method, self._unregister_all))
        try:
            yield
        finally:
            self._init_method = _group_state()[1]
            _set_group_state(self._outside.pop())

    def iterate_outside(self, items: Iterator[X]) -> Iterator[X]:
        """Inside :meth:`active`, advance an iterator under the trainer's groups, which gather sharded weights."""
        while True:
            inside = _group_state()
            _set_group_state(self._outside[-1])
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                _set_group_state(inside)
            yield item

    def _unregister_all(self) -> None:
        """Forget the names of these groups; torch's own function would also forget the names of the trainer's."""
        names: Any = self._world.pg_names
        while names.all_names:
            with suppress(RuntimeError):  # this group was destroyed before
                _unregister_group(names.all_names.pop())

    def close(self) -> None:
        """Destroy the groups, unless the engine did."""
        with self.active():
            if dist.is_initialized():
                dist.destroy_process_group()


def _group_state() -> tuple[Any, ...]:
    return tuple(getattr(c10d, name) for name in GROUP_STATE)


def _set_group_state(values: tuple[Any, ...]) -> None:
    for name, value in zip(GROUP_STATE, values, strict=True):
        setattr(c10d, name, value)


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore generators, thread settings, signal handlers, exception hook and environment on leaving."""
    replaced = _preserve_attributes((torch, "set_num_threads"), (sys, "excepthook"))
    with preserve_rng(), replaced, _preserve_threads(), _preserve_signals(), _preserve_environment():
        yield


@contextmanager
def preserve_rng(accelerators: bool = True) -> Iterator[None]:
    """Restore the generators of Python, numpy, torch and every accelerator in use on leaving.

    Single engine steps leave out ``accelerators``: their requests have generators of their own, and reading the state
    of an accelerator takes time.
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
def _preserve_attributes(*places: tuple[Any, str]) -> Iterator[None]:
    before = [getattr(owner, name) for owner, name in places]
    try:
        yield
    finally:
        for (owner, name), value in zip(places, before, strict=True):
            setattr(owner, name, value)


@contextmanager
def _preserve_threads() -> Iterator[None]:
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
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
def _preserve_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        yield
        return
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)
    before = {number: handler for number in watched if (handler := signal.getsignal(number))}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _preserve_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in {*os.environ, *before}:
            if name.startswith(_ENGINE_VARIABLES):
                continue
            if name not in before:
                del os.environ[name]
            elif os.environ.get(name) != before[name]:
                os.environ[name] = before[name]
