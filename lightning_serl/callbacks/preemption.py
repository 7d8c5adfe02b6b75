"""Ends all ranks, with a checkpoint, after SIGTERM or the loss of a rank."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
import time
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.distributed.lightning_internals import replace_sigterm_handler, started_processes
from lightning_serl.distributed.ranks import look_while_waiting
from lightning_serl.errors import RankLoss

# Seconds that a child rank may take to end: longer than a process group waits for a lost rank, or little where the
# ranks did not agree to end and would wait for this one.
_PATIENCE, _GRACE = 150.0, 5.0


class Preemption(RolloutHooks):
    """Listens for SIGTERM and watches the ranks that this process started, in place of Lightning.

    Lightning answers SIGTERM with a collective call inside the signal handler, while the other ranks may be in the
    middle of another one; and it kills the whole job as soon as one rank is gone. Here both are only noted. The stream
    and the engine ask between micro-batches and between completion tokens, and the run ends with a checkpoint.
    """

    # of the process, not of the instance: a second Trainer starts no ranks
    _children: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self) -> None:
        super().__init__()
        self._sigterm = False
        self._patience = _PATIENCE

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace Lightning's SIGTERM handler before it is registered."""
        self._sigterm = False
        if trainer.world_size == 1:
            return
        children = started_processes(trainer)
        if children:
            self._children.extend(children)
            children.clear()  # Lightning's watching thread looks at this very list
            threading.Thread(target=_end_if_stuck, args=(self._children,), daemon=True).start()
            atexit.register(self._wait_for_ranks)
            look_while_waiting(self.check_ranks)

        def note(number: int, frame: Any) -> None:
            if not self._sigterm:
                for child in self._children:
                    child.send_signal(number)
            self._sigterm = True

        replace_sigterm_handler(trainer, note)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Do not wait long for ranks that did not agree to end: they are waiting for this one."""
        if not getattr(exception, "on_every_rank", False):
            self._patience = _GRACE

    @classmethod
    def children(cls, trainer: pl.Trainer) -> list[subprocess.Popen[bytes]]:
        """The ranks that this process started, whether or not :meth:`setup` has taken them over."""
        return [*cls._children, *started_processes(trainer)]

    def _wait_for_ranks(self) -> None:
        """Wait for ranks that are ending; kill them after the patience, or once one was killed, since others hang."""
        end = time.monotonic() + self._patience
        while any(child.poll() is None for child in self._children):
            if time.monotonic() > end or any((child.poll() or 0) < 0 for child in self._children):
                for child in self._children:
                    child.kill()
            time.sleep(0.05)

    def heard(self, trainer: pl.Trainer) -> bool:
        """Whether this process received SIGTERM."""
        return self._sigterm or trainer.received_sigterm

    def check_ranks(self) -> None:
        """Raise a RankLoss if a rank that this process started has failed or was killed."""
        for number, child in enumerate(self._children, start=1):
            if code := child.poll():
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                raise RankLoss(f"rank {number} is gone ({how})")

    def poll(self, trainer: pl.Trainer) -> None:
        """Raise what ends the run: SIGTERMException if this process received SIGTERM, RankLoss if a rank is gone."""
        if self.heard(trainer):
            raise SIGTERMException
        self.check_ranks()


def _end_if_stuck(children: list[subprocess.Popen[bytes]]) -> None:
    """Kill this process if a rank failed and it still runs after the patience: it may wait for that rank for ever."""
    while not any(child.poll() for child in children):
        if all(child.poll() is not None for child in children):
            return
        time.sleep(1)
    time.sleep(_PATIENCE)
    for child in children:
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL)
