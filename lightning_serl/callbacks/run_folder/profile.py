"""Where the time of a run goes: seconds of each part of a round, by the clock of this process."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_serl.callbacks.rollout_hooks import RolloutHooks, Tick
from lightning_serl.distributed.ranks import seconds_waited

#: Names of the parts in ``metrics.jsonl``, by the name of a phase where they differ.
_KEYS = {"writing problems": "writing", "voting": "grading", "scoring": "logprobs", "pushing": "sync"}
#: Names of the parts in sentences, where they differ.
_WORDS = {"logprobs": "log-probs", "sync": "pushing weights", "starting": "starting the engine"}


class RoundProfile(RolloutHooks):
    """Measures how many seconds each part of a round takes; parts do not overlap and add up to the whole.

    ``Ledger`` writes them with every optimizer step as ``time/PART``, ``Summary`` prints their shares at the end. A
    part begins and ends where the host has its result, so that no device has to be synchronised for the measurement:
    completions, verdicts and log-probs are read by the host anyway, and an optimizer step ends with a check of the
    weights. ``waiting`` is the time in which this process waits for others, or for a round that is written ahead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open = ["other"]  # the parts that were begun, the innermost last; the first stays
        self._seen, self._waited = time.monotonic(), seconds_waited()
        self._since_row: dict[str, float] = defaultdict(float)
        #: Seconds of each part since the fit began.
        self.totals: dict[str, float] = defaultdict(float)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Context whose time belongs to one part, apart from that of spans inside."""
        self._begin(name)
        depth = len(self._open)
        try:
            yield
        finally:
            self._count()
            del self._open[depth - 1 :]

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Tick]:
        """Measure a phase of a round."""
        with self.span(name):
            yield lambda done: None

    def row(self) -> dict[str, float]:
        """Seconds of each part since the last call, as ``time/PART``; those below 0.1 ms are left out."""
        self._count()
        found, self._since_row = self._since_row, defaultdict(float)
        return {f"time/{name}": round(s, 4) for name, s in sorted(found.items()) if s >= 1e-4}

    def _begin(self, name: str) -> None:
        self._count()
        self._open.append(_KEYS.get(name, name))

    def _count(self) -> None:
        """Add the time since the last call to the innermost part."""
        now, waited = time.monotonic(), seconds_waited()
        spent, idle = now - self._seen, min(waited - self._waited, now - self._seen)
        self._seen, self._waited = now, waited
        for name, seconds in ((self._open[-1], spent - idle), ("waiting", idle)):
            if seconds > 0:
                self._since_row[name] += seconds
                self.totals[name] += seconds

    # -- what is no phase of a round -----------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at zero."""
        self._count()
        self._open[:], self.totals = ["other"], defaultdict(float)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first row counts from here."""
        self._count()
        self._since_row = defaultdict(float)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Micro-batches, optimizer steps and Lightning's loop around them are training."""
        self._count()
        self._open[0] = "training"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What comes after the last step is no training."""
        self._count()
        self._open[0] = "other"

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """An evaluation, with the grading of its answers."""
        self._begin("evaluating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End of the evaluation."""
        self._count()
        del self._open[1:]

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close what an error left open."""
        self._count()
        self._open[:] = ["other"]


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that was in use so far, in GiB: of this process, and on a GPU of torch's allocations there.

    Empty where the system does not count it.
    """
    found: dict[str, float] = {}
    try:
        import resource
    except ImportError:
        pass  # Windows
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    if device.type == "cuda":
        found["gpu_allocated"] = torch.cuda.max_memory_allocated(device) / 2**30
        found["gpu_reserved"] = torch.cuda.max_memory_reserved(device) / 2**30
    return {name: round(gib, 3) for name, gib in found.items()}


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """The share of each part in the whole, the largest first; empty for no time."""
    whole = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda part: (-part[1], part[0]))
    return {name: value / whole for name, value in ordered} if whole else {}


def shares_sentence(seconds: Mapping[str, float]) -> str:
    """The shares from one percent on, such as ``answering 61 %, training 30 %``."""
    return ", ".join(f"{in_words(name)} {100 * s:.0f} %" for name, s in shares(seconds).items() if s >= 0.01)


def in_words(part: str) -> str:
    """The name of a part in a sentence."""
    return _WORDS.get(part, part)
