"""Ends a run by what the health probe says, without labels."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_serl.callbacks.collapse_guard import CollapseGuard
from lightning_serl.callbacks.keep_best import ProbeWatcher
from lightning_serl.callbacks.probe_signs import ERRORS, Reading
from lightning_serl.errors import check_range
from lightning_serl.report.signs import DROP


class StopEarly(ProbeWatcher):
    """Ends the run when its health probe got worse, or shows nothing more to learn.

    It got worse if the policy gives the answers that it clearly gave before less often than at its best probe, by more
    than ``drop`` and ``errors`` standard errors. Nothing is learnt any more if neither this nor the agreement has
    risen by ``least_gain`` for ``patience`` probes. The run then ends before the next round, as after its last one.
    Beside a ``CollapseGuard`` a probe that got worse is left to that.

    Args:
        patience: Probes without a gain after which the run ends.
        least_gain: Smallest rise of the score or of the agreement that counts as a gain.
        drop: Fall of the score below its best that ends the run.
        errors: The same in standard errors, since a small probe varies by chance; both bounds must be passed.

    Raises:
        InputError: if an option is out of range.
    """

    def __init__(self, patience: int = 3, least_gain: float = 0.02, drop: float = DROP, errors: float = ERRORS) -> None:
        check_range("StopEarly.patience", patience, at_least=1)
        check_range("StopEarly.least_gain", least_gain, at_least=0)
        check_range("StopEarly.drop", drop, at_least=0)
        check_range("StopEarly.errors", errors, at_least=0)
        self.patience, self.least_gain, self.drop, self.errors = patience, least_gain, drop, errors
        super().__init__()

    def reset(self) -> None:
        """Forget an earlier run."""
        super().reset()
        self._best: dict[str, float] = {}  # highest score and agreement at the last gain
        self._waited = 0  # probes since then

    def act(self, trainer: pl.Trainer, reading: Reading) -> None:
        """End the run if the probe says so."""
        guarded = any(isinstance(c, CollapseGuard) for c in trainer.callbacks)
        if guarded and reading.fell(self.drop, self.errors):
            if self._previous is not None:
                self._history.load_state_dict(self._previous["history"])  # other weights answer the probe once more
            return
        why = self._why(reading)
        if why:
            rank_zero_info(f"StopEarly: the run ends after step {trainer.global_step}, since {why}")
            trainer.should_stop = True

    def _why(self, reading: Reading) -> str:
        if reading.fell(self.drop, self.errors):
            return f"the probe got worse by {-(reading.change or 0.0):.2f} (StopEarly.drop {self.drop:g})"
        now = {name: reading.signs[name] for name in ("score", "agreement") if name in reading.signs}
        if any(value > self._best.get(name, -1.0) + self.least_gain for name, value in now.items()):
            self._best, self._waited = {n: max(v, self._best.get(n, -1.0)) for n, v in now.items()}, 0
            return ""
        self._waited += 1
        if self._waited < self.patience:
            return ""
        return f"{self._waited} probes in a row showed no gain (StopEarly.patience)"

    def current_state(self) -> dict[str, Any]:
        """See :meth:`ProbeWatcher.current_state`."""
        return {**super().current_state(), "best": dict(self._best), "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self._best, self._waited = dict(state_dict["best"]), state_dict["waited"]
