"""The training stream: rounds cut into micro-batches, with a length, lazily, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning_serl.types import RolloutBatch

if TYPE_CHECKING:
    from lightning_serl.datamodules.self_play import SelfPlayDataModule


class SelfPlayStream:
    """The training stream: sized, lazy, resumable.

    Sized, so that Lightning reads no batch ahead and a rollout is never a step stale. Its position is derived from the
    Trainer's optimizer steps: a micro-batch whose window was not finished is given again.

    Args:
        data: The datamodule that plays the rounds.
    """

    def __init__(self, data: SelfPlayDataModule) -> None:
        self.data = data

    def _per_round(self) -> int:
        module = self.data.trainer.lightning_module
        return int(getattr(module, "steps_per_round", 1)) * self.data.trainer.accumulate_grad_batches

    def __len__(self) -> int:
        return self.data.rounds_per_epoch * self._per_round()

    def __iter__(self) -> Iterator[RolloutBatch]:
        data = self.data
        trainer = data.trainer
        data.table()  # takes over a restored state, the step the stream began at included
        if data._first_step is None:
            data._first_step = trainer.global_step
        per_round = self._per_round()
        position = data._steps_done() * trainer.accumulate_grad_batches
        for now in range(position, position + len(self)):  # Lightning stops where its epoch ends
            data.heed_sigterm()
            number, place = divmod(now, per_round)
            number += data._first_round
            if number != data.rounds - 1 or not data._pending:
                data.rounds = number
                played = data.play()
                data.engine.sleep()
                groups = [*played.groups, *(g for g, _ in played.dropped)]
                verdicts = [*played.verdicts, *(v for _, v in played.dropped)]
                data.commit(played, trainer.lightning_module.experience(groups, verdicts))
                data.work_ahead()
            yield data._pending[data.ranks.rank][place]

    def state_dict(self) -> dict[str, Any]:
        """Empty: the datamodule owns the state. That it exists tells Lightning that the stream can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
