"""Keeps the checkpoint that the health probe finds best, and can end the run with its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.callbacks.averaging import averages
from lightning_serl.callbacks.checkpoints import save_together
from lightning_serl.callbacks.export import Export
from lightning_serl.callbacks.probe_signs import LEAST_PROMPTS, ProbeHistory, Reading
from lightning_serl.callbacks.rollout_hooks import RolloutHooks, span_of
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.errors import InputError
from lightning_serl.policy import frozen_copies
from lightning_serl.protocols import data_of, module_of
from lightning_serl.types import Probed


class ProbeWatcher(RolloutHooks):
    """Base class of callbacks that act on what the health probe says, before the round that follows it.

    The datamodule probes more often where one of them is listed. What rank 0 reads counts on all ranks. A checkpoint
    that is made during a round holds the state before the probe of this round, which a resumed run makes again.
    """

    #: Tells the datamodule that something depends on the probe.
    asks_probe = True

    def __init__(self) -> None:
        super().__init__()
        self._trainer: pl.Trainer | None = None
        self.reset()

    def reset(self) -> None:
        """Forget an earlier run."""
        self._history = ProbeHistory()
        self._read_at: int | None = None  # optimizer step of the last probe
        self._previous: dict[str, Any] | None = None  # state before the probe of the round that is being played

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the Trainer for :meth:`state_dict`, and begin a fit without the state of another one."""
        self._trainer = trainer
        if stage == "fit":
            self.reset()

    def on_probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule, probed: Mapping[str, Probed]) -> None:
        """Read a probe and act on it."""
        if not probed:  # every problem is too long for the model's context
            return
        self._previous = self.current_state()
        self.act(trainer, self.read(trainer, probed))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The round was played; from now on checkpoints hold the present state."""
        self._previous = None

    def act(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Do what follows from a probe."""
        raise NotImplementedError

    def read(self, trainer: pl.Trainer, probed: Mapping[str, Probed]) -> Reading:
        """What a probe says; the same on all ranks, whose graders may run into different time limits."""
        ranks, reading = Ranks.of(trainer), self._history.enter(probed, data_of(trainer).grader.same)
        if reading.change is None and self._read_at is None:
            rank_zero_warn(
                f"{type(self).__name__}: fewer than {LEAST_PROMPTS} problems of the health probe have a clear answer, "
                "so that it cannot be seen whether the policy gets worse; give more seeds, a higher data.probe.prompts "
                "or data.probe.samples, or easier problems"
            )
        self._read_at = trainer.global_step
        if ranks.size > 1:
            reading, state = ranks.gather((reading, self._history.state_dict()))[0]
            self._history.load_state_dict(state)
        return reading

    def current_state(self) -> dict[str, Any]:
        """The present state, as primitives."""
        return {"history": self._history.state_dict(), "read_at": self._read_at}

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: that before the probe while a round is played."""
        if self._previous is not None and data_of(self._trainer).playing:
            return copy.deepcopy(self._previous)
        return self.current_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._history.load_state_dict(state_dict["history"])
        self._read_at = state_dict["read_at"]


class KeepBest(ProbeWatcher):
    """Keeps the latest checkpoint whose health probe is not worse than the best one, without labels.

    Each probe is compared with the best before it: how often responses give the answers that the policy clearly gave
    before (:class:`~lightning_serl.callbacks.probe_signs.ProbeHistory`). If the mean change is not below 0 by more than
    half its standard error, the weights that answered are saved in ``checkpoints/kept-step=N.ckpt``; the former file
    is removed once no checkpoint needs it. The last weights are probed when training ends.

    Args:
        export: Whether the run ends with the kept weights, which the export and the last evaluation then have. The
            checkpoints to continue from are not affected.
    """

    def __init__(self, export: bool = False) -> None:
        self.export = export
        super().__init__()

    def reset(self) -> None:
        """Forget an earlier run."""
        super().reset()
        #: Optimizer step, score of the probe and path of the kept checkpoint; empty before the first probe.
        self.kept: dict[str, Any] = {}
        #: Optimizer step whose weights the policy has after the fit, if they are not the last ones.
        self.restored_step: int | None = None
        self._ends_with_kept = self.export
        self._needed: list[str] = []  # files that the last two checkpoints of the run may need
        self._writing = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse averaged weights; move behind the other callbacks and before the export, which may get kept weights.

        Raises:
            InputError: beside another callback of this kind, or one that averages weights.
        """
        super().setup(trainer, pl_module, stage)
        if averages(trainer):
            raise InputError(
                f"trainer.callbacks: {type(self).__name__} keeps the trained weights, but a callback averages "
                "them and replaces them at the end; remove one of the two"
            )
        if any(isinstance(c, KeepBest) and c is not self for c in trainer.callbacks):
            raise InputError(
                "trainer.callbacks: KeepBest and CollapseGuard are listed together or twice; list one of them once "
                "(CollapseGuard keeps the best checkpoint too)"
            )
        exports = [c for c in trainer.callbacks if isinstance(c, Export)]
        others = [c for c in trainer.callbacks if c is not self and c not in exports]
        trainer.callbacks = [*others, self, *exports]

    def act(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Save the weights that answered the probe, unless they are worse than the best ones."""
        if module_of(trainer).steps_not_taken or trainer.fast_dev_run:
            return
        if not self.kept or reading.as_good:
            self._save(trainer, reading)

    def _save(self, trainer: pl.Trainer, reading: Reading) -> None:
        step = trainer.global_step
        path = Path(trainer.default_root_dir).absolute() / "checkpoints" / f"kept-step={step}.ckpt"
        self._writing = True
        try:
            save_together(trainer, path, False)
        finally:
            self._writing = False
        self.kept = {"step": step, "score": reading.signs.get("score"), "path": str(path)}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remove kept files that neither the checkpoint being written nor the one before it needs."""
        if self._writing or not self.kept:
            return
        held = self.state_dict()["kept"].get("path")
        self._needed = [*self._needed, *([held] if held else [])][-2:]
        if trainer.is_global_zero:
            needed = {*self._needed, self.kept["path"]}
            for file in Path(self.kept["path"]).parent.glob("kept-step=*.ckpt"):
                if str(file) not in needed:
                    file.unlink(missing_ok=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Probe the last weights, say which are kept, and load them if they are to be exported."""
        if trainer.fast_dev_run:
            return
        if self._read_at != trainer.global_step and (probed := data_of(trainer).ask_probe()):
            self.finish(trainer, self.read(trainer, probed))
        if not self.kept:
            rank_zero_warn(
                f"{type(self).__name__}: nothing was kept, since the run has no health probe (data.probe.every, and "
                "data.seeds to probe with)"
            )
            return
        step, last = self.kept["step"], trainer.global_step
        if self._ends_with_kept and step != last:
            self.restore(trainer, optimizer=False)
            self.restored_step = step
            pl_module.evaluated_at = None  # the last evaluation was of other weights
        end = "the run ends with its weights" if self._ends_with_kept else "--ckpt_path continues from it"
        rank_zero_info(f"kept: step {step} of {last}, {self.kept['path']}; {end}")

    def finish(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Do what follows from the probe of the last weights."""
        self.act(trainer, reading)

    def restore(self, trainer: pl.Trainer, optimizer: bool) -> Mapping[str, Any]:
        """Load the kept weights, and the optimizer's state if wanted, into the policy; returns the checkpoint."""
        policy, strategy = module_of(trainer).policy, trainer.strategy
        with span_of(trainer.callbacks, "saving"):
            checkpoint = strategy.load_checkpoint(self.kept["path"], weights_only=True)
            strategy.load_model_state_dict(checkpoint, strict=False)
            if optimizer:
                strategy.load_optimizer_state_dict(checkpoint)
            frozen = checkpoint.get("serl_policy", {}).get("frozen", {})
            frozen_copies.load_moved(policy, frozen, trainer.precision_plugin.convert_module)
            policy.version += 1
        return checkpoint

    def current_state(self) -> dict[str, Any]:
        """See :meth:`ProbeWatcher.current_state`."""
        return {**super().current_state(), "kept": dict(self.kept)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`; a kept file that is gone is kept no longer."""
        super().load_state_dict(state_dict)
        self.kept = dict(state_dict["kept"])
        if self.kept and not Path(self.kept["path"]).exists():
            rank_zero_warn(
                f"{type(self).__name__}: {self.kept['path']} of the checkpoint's run is gone; the next probe keeps "
                "another one"
            )
            self.kept = {}
        self._needed = [self.kept["path"]] if self.kept else []
