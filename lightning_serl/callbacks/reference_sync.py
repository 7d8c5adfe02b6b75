"""Moves a frozen copy of the policy towards the policy."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl

from lightning_serl.errors import InputError


class ReferenceSync(pl.Callback):
    """Keeps ``reference`` or ``teacher`` where it is, copies the policy into it, or lets it follow slowly.

    Acts after the optimizer step of every ``every_n_steps``-th step, so that the next rollout already sees it. Under
    LoRA the copy is a second adapter, whose two factors are mixed each on its own.

    Args:
        mode: ``never`` moves nothing, ``copy`` takes the policy's weights, ``ema`` mixes them in.
        every_n_steps: Optimizer steps between moves.
        alpha: Under ``ema`` the share of the policy in each move (Co-rewarding uses 0.01 and less).
        who: The copy to move.
    """

    def __init__(
        self,
        mode: Literal["never", "copy", "ema"] = "never",
        every_n_steps: int = 1,
        alpha: float = 0.01,
        who: Literal["reference", "teacher"] = "reference",
    ) -> None:
        super().__init__()
        if mode not in ("never", "copy", "ema"):
            raise InputError(f"ReferenceSync mode must be never, copy or ema, got {mode!r}")
        if every_n_steps < 1:
            raise InputError(f"ReferenceSync every_n_steps must be at least 1, got {every_n_steps}")
        if not 0 < alpha <= 1:
            raise InputError(f"ReferenceSync alpha must lie in (0, 1], got {alpha}")
        self.mode, self.every_n_steps, self.alpha, self.who = mode, every_n_steps, alpha, who
        self._last = 0

    @property
    def moves(self) -> tuple[str, ...]:
        """The copies that this callback needs to exist."""
        return () if self.mode == "never" else (self.who,)

    @property
    def state_key(self) -> str:
        """One state per copy."""
        return self._generate_state_key(who=self.who)

    def state_dict(self) -> dict[str, Any]:
        """The last step at which the copy moved."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._last = state_dict["last"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Steps made before are done with."""
        self._last = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the copy if it is time."""
        self._move(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The last step may have been made without this callback hearing of it."""
        if trainer.state.fn == "fit" and trainer.training:
            self._move(trainer, pl_module)

    def _move(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if self.mode == "never" or step == self._last or step % self.every_n_steps:
            return
        self._last = step
        pl_module.policy.move_copy(self.who, 1.0 if self.mode == "copy" else self.alpha)
