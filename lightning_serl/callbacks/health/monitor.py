"""Warns when label-free signs of a run's health leave their bands."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_serl.callbacks.health.signs import SLOPE_STEPS, Sign, round_signs, same_share, slope
from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.protocols import data_of, module_of
from lightning_serl.types import Vote

if TYPE_CHECKING:
    from lightning_serl.types import Round

# Number of first rounds or steps whose mean later ones are compared with.
_FIRST = 3


class Health(RolloutHooks):
    """Logs label-free signs as ``serl/health/*`` and warns once when one of them leaves its band.

    It changes nothing in the run; ``docs/health.md`` says what each sign means and what to do. The signs of a round are
    computed from all its answered groups, ``same_vote_share`` from the datamodule's probe, ``kl_slope`` and
    ``entropy_ratio`` from the metrics of the optimizer steps. All ranks compute the same values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._signs: dict[str, Sign] = {}
        self._start: dict[str, Vote] = {}  # votes of the starting policy on the probe problems
        self._lengths: list[float] = []  # of the first rounds
        self._entropies: list[float] = []  # of the first steps
        self._kl: list[float] = []  # of the last steps
        self._previous: dict[str, Any] | None = None  # state before the current round
        self._last_step: int | None = None

    @property
    def outside(self) -> list[str]:
        """The warnings of all signs that are outside their bands now."""
        return [s.outside for s in self._signs.values() if s.outside is not None]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Move before the ledger in the Trainer's list, since the ledger writes the signs."""
        others = [c for c in trainer.callbacks if c is not self]
        place = next((i for i, c in enumerate(others) if isinstance(c, Ledger)), len(others))
        trainer.callbacks = [*others[:place], self, *others[place:]]
        self._last_step = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting steps."""
        self._last_step = trainer.global_step

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Compute the signs of a round, and of the probe where one was made."""
        if not played.stats:
            return  # a failed round
        self._previous = self.state_dict()
        groups = [g for g, _ in played.answered]
        signs = round_signs(groups)
        if "length" in signs:
            signs["length_ratio"] = _ratio(self._lengths, signs.pop("length"))
        if played.probe:
            self._start = self._start or dict(played.probe)
            same = same_share(self._start, played.probe, data_of(trainer).grader.same)
            if same is not None:
                signs["same_vote_share"] = same
        played.stats.update(self._enter(signs, len(groups), f"round {played.number + 1}"))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compute and log the signs of an optimizer step."""
        signs = self._enter_step(trainer)
        if signs:
            pl_module.log_dict(signs, on_step=True, on_epoch=False, batch_size=1)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Go back to the state before a round that is played again; add a step made before another callback raised."""
        if data_of(trainer).playing and self._previous is not None:
            self.load_state_dict(self._previous)
        elif trainer.state.fn == "fit":
            self._enter_step(trainer)

    def _enter_step(self, trainer: pl.Trainer) -> dict[str, float]:
        if self._last_step is None or trainer.global_step == self._last_step:
            return {}
        self._last_step, self._previous = trainer.global_step, None
        metrics, signs = module_of(trainer).step_metrics, {}
        if "entropy" in metrics:
            signs["entropy_ratio"] = _ratio(self._entropies, metrics["entropy"])
        if "kl" in metrics:
            least, most = SLOPE_STEPS
            self._kl = [*self._kl, metrics["kl"]][-most:]
            if len(self._kl) >= least:
                signs["kl_slope"] = slope(self._kl)
        logged = self._enter(signs, 1, f"step {trainer.global_step}")
        if logged:
            metrics.update(logged)  # which the ledger writes
        return logged

    def _enter(self, signs: dict[str, float], weight: int, where: str) -> dict[str, float]:
        """Add values to their signs and warn of those that left their bands; the values under their metric names."""
        for name, value in signs.items():
            warning = self._signs.setdefault(name, Sign(name)).enter(value, weight)
            if warning is not None:
                rank_zero_warn(f"health, {where}: {warning}")
        return {f"serl/health/{name}": value for name, value in signs.items()}

    def state_dict(self) -> dict[str, Any]:
        """First and latest values of every sign, and the starting policy's votes, as primitives."""
        state = {
            "watches": {name: sign.state_dict() for name, sign in self._signs.items()},
            "start": self._start,
            "lengths": self._lengths,
            "entropies": self._entropies,
            "kl": self._kl,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        state = copy.deepcopy(state_dict)
        self._signs = {}
        for name, saved in state["watches"].items():
            self._signs[name] = Sign(name)
            self._signs[name].load_state_dict(saved)
        self._start, self._kl = state["start"], state["kl"]
        self._lengths, self._entropies = state["lengths"], state["entropies"]


def _ratio(first: list[float], value: float) -> float:
    """A value divided by the mean of the first values, to which it is added while they are few."""
    if len(first) < _FIRST:
        first.append(value)
    start = sum(first) / len(first)
    return value / start if start else 1.0
