"""Rolls a run back to its last healthy checkpoint when the health probe shows that it got worse."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_serl.callbacks.keep_best import KeepBest
from lightning_serl.callbacks.probe_signs import ERRORS, Reading
from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.errors import InputError, check_range
from lightning_serl.protocols import data_of
from lightning_serl.report.signs import DROP

# Entries of a parameter group, and of a scheduler, that are learning rates.
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")


class CollapseGuard(KeepBest):
    """Restores the last healthy weights and lowers the learning rate when the health probe got worse.

    It got worse if the policy gives the answers that it clearly gave before less often than at its best probe, by more
    than ``drop`` and ``errors`` standard errors. Then the weights, the optimizer's state and the problems of the kept
    checkpoint come back, the learning rate is multiplied by ``factor``, and the run goes on with the next round; rounds
    and steps are counted on. ``ledger.jsonl`` gets a row ``rolled_back``. After ``most`` times the run ends.

    Args:
        factor: What the learning rate is multiplied by at each time.
        most: How often the run is rolled back before it ends.
        drop: Fall of the score below its best.
        errors: The same in standard errors, since a small probe varies by chance; both bounds must be passed.
        export: As in :class:`KeepBest`. Without it a run ends with the kept weights only if the last ones got worse.

    Raises:
        InputError: if an option is out of range, or if rounds are written ahead by older weights.
    """

    def __init__(
        self, factor: float = 0.3, most: int = 3, drop: float = DROP, errors: float = ERRORS, export: bool = True
    ) -> None:
        check_range("CollapseGuard.factor", factor, above=0, at_most=1)
        check_range("CollapseGuard.most", most, at_least=0)
        check_range("CollapseGuard.drop", drop, at_least=0)
        check_range("CollapseGuard.errors", errors, at_least=0)
        self.factor, self.most, self.drop, self.errors = factor, most, drop, errors
        super().__init__(export)

    def reset(self) -> None:
        """Forget an earlier run."""
        super().reset()
        #: How often the run was rolled back.
        self.times = 0
        self._resumed_at: int | None = None  # optimizer step of the last time

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See :meth:`KeepBest.setup`; refuse rounds that are written ahead."""
        super().setup(trainer, pl_module, stage)
        engine = data_of(trainer).engine
        if getattr(trainer.datamodule, "max_staleness", 0) and getattr(engine, "concurrent", False):
            raise InputError(
                "trainer.callbacks: CollapseGuard cannot take back a round that was written ahead; set "
                "data.max_staleness 0, or use KeepBest"
            )

    def act(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Keep the weights, or go back to the kept ones."""
        # restored weights answer the probe once more, which must not roll them back again
        if not self.kept or self._resumed_at == trainer.global_step or not reading.fell(self.drop, self.errors):
            super().act(trainer, reading)
            return
        self._roll_back(trainer, reading, ends=self.times >= self.most)

    def finish(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Keep the last weights, or end with the kept ones."""
        if self.kept and reading.fell(self.drop, self.errors):
            self._ends_with_kept = True
            self._enter(trainer, reading, "the run ends with them", None)
        else:
            super().act(trainer, reading)

    def _roll_back(self, trainer: pl.Trainer, reading: Reading, ends: bool) -> None:
        before = [[{k: g[k] for k in _RATES if k in g} for g in o.param_groups] for o in trainer.optimizers]
        checkpoint = self.restore(trainer, optimizer=True)
        factor = 1.0 if ends else self.factor
        for optimizer, groups in zip(trainer.optimizers, before, strict=True):
            for group, rates in zip(optimizer.param_groups, groups, strict=True):
                group.update({name: rate * factor for name, rate in rates.items()})
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [rate * factor for rate in config.scheduler.base_lrs]
        problems = checkpoint.get(type(trainer.datamodule).__qualname__)
        if problems:
            data_of(trainer).rewind(problems)
        if self._previous is not None:
            self._history.load_state_dict(self._previous["history"])  # without the probe of the collapsed weights
        self._resumed_at = trainer.global_step
        self.times += not ends
        self._previous = self.current_state()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        if ends:
            trainer.should_stop = True
            self._enter(trainer, reading, f"the run ends, after {self.times} times (CollapseGuard.most)", None)
        else:
            self._enter(trainer, reading, f"learning rate {rate:g}, time {self.times} of {self.most}", rate)

    def _enter(self, trainer: pl.Trainer, reading: Reading, what: str, rate: float | None) -> None:
        """Tell the ledger and the terminal."""
        change, step = reading.change or 0.0, trainer.global_step
        rank_zero_warn(
            f"collapse: at step {step} the answers of the health probe fell by {-change:.2f} below their best; back to "
            f"the weights of step {self.kept['step']}; {what}"
        )
        row = {"event": "rolled_back", "round": data_of(trainer).rounds, "step": step, "to_step": self.kept["step"]}
        row |= {"change": change, "error": reading.error, "learning_rate": rate}
        for ledger in (c for c in trainer.callbacks if isinstance(c, Ledger)):
            ledger.enter_event(row)

    def current_state(self) -> dict[str, Any]:
        """See :meth:`ProbeWatcher.current_state`; ``lowered`` is the product of all factors so far."""
        more = {"times": self.times, "resumed_at": self._resumed_at, "lowered": self.factor**self.times}
        return {**super().current_state(), **more}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self.times, self._resumed_at = state_dict["times"], state_dict["resumed_at"]
