"""Several ranks told to end, or one of them lost: noticed within seconds, agreed on, a checkpoint saved."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
import time
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.errors import RankFailure

# Seconds that a rank on its way out may take, longer than a process group waits for a lost peer; and where it is not.
_PATIENCE, _GRACE = 150.0, 5.0


class Preemption(RolloutHooks):
    """Listens for SIGTERM and watches the ranks that this process has started, in place of Lightning.

    Lightning answers SIGTERM with a collective call inside the signal handler, while the other ranks may be in the
    middle of another one; and it kills the whole job as soon as one rank is gone. Here both are only noted. The stream
    and the engine ask between micro-batches and between completion tokens, and the run ends with a checkpoint.
    """

    # of the process: a second Trainer starts none
    _children: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self) -> None:
        super().__init__()
        self._heard = False
        self._patience = _PATIENCE

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take Lightning's place before it registers its handler."""
        self._heard = False
        if trainer.world_size == 1:
            return
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher) and launcher.procs:
            self._children.extend(launcher.procs)
            launcher.procs.clear()  # what Lightning's watching thread looks at
            threading.Thread(target=_end_with, args=(self._children,), daemon=True).start()
            atexit.register(self._see_off)

        def note(number: int, frame: Any) -> None:
            if not self._heard:
                for child in self._children:
                    child.send_signal(number)
            self._heard = True

        trainer._signal_connector._sigterm_notifier_fn = note

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Ranks that did not agree to end are waiting for this one, and need not be waited for."""
        if not getattr(exception, "on_every_rank", False):
            self._patience = _GRACE

    def _see_off(self) -> None:
        """Wait for ranks that are on their way out; where one was killed the others cannot end in order."""
        end = time.monotonic() + self._patience
        while any(child.poll() is None for child in self._children):
            if time.monotonic() > end or any((child.poll() or 0) < 0 for child in self._children):
                for child in self._children:
                    child.kill()
            time.sleep(0.05)

    def heard(self, trainer: pl.Trainer) -> bool:
        """Whether this process was told to end."""
        return self._heard or trainer.received_sigterm

    def check_ranks(self) -> None:
        """Look after the ranks that this process has started.

        Raises:
            RankFailure: if one of them is gone.
        """
        for number, child in enumerate(self._children, start=1):
            if child.poll():
                raise RankFailure(f"rank {number} is gone ({_status(child.returncode)})")

    def poll(self, trainer: pl.Trainer) -> None:
        """Ask whether to go on.

        Raises:
            SIGTERMException: if this process was told to end.
            RankFailure: see :meth:`check_ranks`.
        """
        if self.heard(trainer):
            raise SIGTERMException
        self.check_ranks()


def _status(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _end_with(children: list[subprocess.Popen[bytes]]) -> None:
    """End this process if a rank is gone and it did not notice: it may be waiting for that one for ever."""
    while not any(child.poll() for child in children):
        if all(child.poll() is not None for child in children):
            return
        time.sleep(1)
    time.sleep(_PATIENCE)
    for child in children:
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL)
