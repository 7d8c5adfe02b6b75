"""Watches every run for signs of collapse, without labels."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_serl.callbacks.health.signs import SLOPE_STEPS, Watch, round_signs, same_share, slope
from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.types import Vote

if TYPE_CHECKING:
    from lightning_serl.types import Round

_FIRST = 3  # rounds, or steps, that later ones are compared with


class Health(RolloutHooks):
    """Enters label-free signs as ``serl/health/*`` and warns once when one leaves its band.

    It only warns; ``docs/health.md`` says what each sign means and what to do. The signs of a round come from all its
    answered groups, ``same_vote_share`` from the datamodule's probe, ``kl_slope`` and ``entropy_ratio`` from the
    optimizer steps. Equal on all ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watches: dict[str, Watch] = {}
        self._start: dict[str, Vote] = {}  # votes of the starting policy on the probe problems
        self._lengths: list[float] = []
        self._entropies: list[float] = []
        self._kl: list[float] = []
        self._previous: dict[str, Any] | None = None  # the state before the round at hand
        self._last_step: int | None = None

    @property
    def outside(self) -> list[str]:
        """A sentence for every sign that is outside its band now."""
        return [w.outside for w in self._watches.values() if w.outside is not None]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the place before the ledger, which writes what is found here."""
        others = [c for c in trainer.callbacks if c is not self]
        place = next((i for i, c in enumerate(others) if isinstance(c, Ledger)), len(others))
        trainer.callbacks = [*others[:place], self, *others[place:]]
        self._last_step = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Steps count from here."""
        self._last_step = trainer.global_step

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """The signs of a round, and of the probe where one was made."""
        if not played.stats:
            return  # a round that failed
        self._previous = self.state_dict()
        groups = [g for g, _ in played.answered]
        signs = round_signs(groups)
        if "length" in signs:
            signs["length_ratio"] = _ratio(self._lengths, signs.pop("length"))
        if played.probe:
            self._start = self._start or dict(played.probe)
            same = same_share(self._start, played.probe, trainer.datamodule.grader.same)
            if same is not None:
                signs["same_vote_share"] = same
        played.stats.update(self._watch(signs, len(groups), f"round {played.number + 1}"))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The signs of an optimizer step."""
        signs = self._enter_step(trainer, pl_module)
        if signs:
            pl_module.log_dict(signs, on_step=True, on_epoch=False, batch_size=1)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Forget a round that will be played again; catch up with a step that was made."""
        if getattr(trainer.datamodule, "playing", False) and self._previous is not None:
            self.load_state_dict(self._previous)
        elif trainer.state.fn == "fit":
            self._enter_step(trainer, pl_module)

    def _enter_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        if self._last_step is None or trainer.global_step == self._last_step:
            return {}
        self._last_step, self._previous = trainer.global_step, None
        metrics: dict[str, float] = getattr(pl_module, "step_metrics", {})
        signs = {}
        if "entropy" in metrics:
            signs["entropy_ratio"] = _ratio(self._entropies, metrics["entropy"])
        if "kl" in metrics:
            least, most = SLOPE_STEPS
            self._kl = [*self._kl, metrics["kl"]][-most:]
            if len(self._kl) >= least:
                signs["kl_slope"] = slope(self._kl)
        found = self._watch(signs, 1, f"step {trainer.global_step}")
        metrics.update(found)
        return found

    def _watch(self, signs: dict[str, float], weight: int, where: str) -> dict[str, float]:
        """Judge some signs, warn, and name them for the log."""
        for name, value in signs.items():
            warning = self._watches.setdefault(name, Watch(name)).enter(value, weight)
            if warning is not None:
                rank_zero_warn(f"health, {where}: {warning}")
        return {f"serl/health/{name}": value for name, value in signs.items()}

    def state_dict(self) -> dict[str, Any]:
        """Where every sign began and where it is, and the starting policy's votes; primitives only."""
        state = {
            "watches": {name: w.state_dict() for name, w in self._watches.items()},
            "start": self._start,
            "lengths": self._lengths,
            "entropies": self._entropies,
            "kl": self._kl,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        state = copy.deepcopy(state_dict)
        self._watches = {}
        for name, saved in state["watches"].items():
            self._watches[name] = Watch(name)
            self._watches[name].load_state_dict(saved)
        self._start, self._kl = state["start"], state["kl"]
        self._lengths, self._entropies = state["lengths"], state["entropies"]


def _ratio(first: list[float], value: float) -> float:
    """A value over the mean of the first ones, which it joins while they are few."""
    if len(first) < _FIRST:
        first.append(value)
    start = sum(first) / len(first)
    return value / start if start else 1.0
