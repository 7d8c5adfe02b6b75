"""Updates a frozen copy of the policy, such as the reference policy, during training."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl

from lightning_serl.distributed.lightning_internals import callback_state_key
from lightning_serl.errors import check_choice, check_range
from lightning_serl.protocols import module_of


class ReferenceSync(pl.Callback):
    """Leaves the reference policy or the teacher unchanged, copies the policy into it, or averages it with the policy.

    The update follows every ``every_n_steps``-th optimizer step, so that the next rollout uses it. Under LoRA the copy
    is a second adapter, and each of its two factors is averaged separately.

    Args:
        mode: ``never`` changes nothing, ``copy`` copies the policy's weights, ``ema`` takes an exponential moving
            average of them.
        every_n_steps: Optimizer steps between updates.
        alpha: Weight of the policy in each update under ``ema`` (at most 0.01 in Co-rewarding).
        who: The copy to update.

    Raises:
        InputError: if an option is out of range.
    """

    def __init__(
        self,
        mode: Literal["never", "copy", "ema"] = "never",
        every_n_steps: int = 1,
        alpha: float = 0.01,
        who: Literal["reference", "teacher"] = "reference",
    ) -> None:
        super().__init__()
        check_choice("ReferenceSync.mode", mode, ("never", "copy", "ema"))
        check_range("ReferenceSync.every_n_steps", every_n_steps, at_least=1)
        check_range("ReferenceSync.alpha", alpha, above=0, at_most=1)
        self.mode, self.every_n_steps, self.alpha, self.who = mode, every_n_steps, alpha, who
        self._last = 0

    @property
    def moves(self) -> tuple[str, ...]:
        """The frozen copies that this callback needs."""
        return () if self.mode == "never" else (self.who,)

    @property
    def state_key(self) -> str:
        """One state per copy."""
        return callback_state_key(self, "who")

    def state_dict(self) -> dict[str, Any]:
        """The last step at which the copy was updated."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._last = state_dict["last"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting from the present step."""
        self._last = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the copy if it is due."""
        self._update(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Update the copy for a step that was made before another callback raised."""
        if trainer.state.fn == "fit" and trainer.training:
            self._update(trainer)

    def _update(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if self.mode == "never" or step == self._last or step % self.every_n_steps:
            return
        self._last = step
        module_of(trainer).policy.move_copy(self.who, 1.0 if self.mode == "copy" else self.alpha)
