"""The training stream: plays rounds and yields their micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning_serl.callbacks.rollout_hooks import phase_of, span_of
from lightning_serl.datamodules.engine_session import stop_if_asked
from lightning_serl.datamodules.session import Session
from lightning_serl.protocols import module_of
from lightning_serl.types import RolloutBatch


class SelfPlayStream:
    """The micro-batches of one Lightning epoch; sized, lazy and resumable.

    It has a length, so that Lightning does not read a batch ahead, which would play the next round with weights that
    are one step too old. The position is derived from the Trainer's optimizer steps: micro-batches of a step that was
    not finished are yielded again.
    """

    def __init__(self, session: Session, rounds: int) -> None:
        self.session, self.rounds = session, rounds

    def _per_round(self) -> int:
        trainer = self.session.trainer
        return module_of(trainer).steps_per_round * trainer.accumulate_grad_batches

    def __len__(self) -> int:
        return self.rounds * self._per_round()

    def __iter__(self) -> Iterator[RolloutBatch]:
        session = self.session
        position = session.begin_stream() * session.trainer.accumulate_grad_batches
        for now in range(position, position + len(self)):  # Lightning stops where its epoch ends
            stop_if_asked(session.trainer, session.ranks)
            number, place = divmod(now, self._per_round())
            if session.must_play(session.progress.first_round + number):
                with span_of(session.trainer.callbacks, "other"):
                    goes_on = self._play()
                if not goes_on:
                    return
            yield session.pending_batch(place)

    def _play(self) -> bool:
        """Play the next round and make its micro-batches; ``False`` if the fit ends before it."""
        session, callbacks = self.session, self.session.trainer.callbacks
        # the gradients of the last step would take memory while completions are written
        session.trainer.lightning_module.zero_grad(set_to_none=True)
        played = session.play()
        if played is None:
            return False
        session.parts.setup.engine.sleep()
        groups = [*played.groups, *(g for g, _ in played.dropped)]
        verdicts = [*played.verdicts, *(v for _, v in played.dropped)]
        with phase_of(callbacks, "scoring", len(groups)) as tick:
            batches = module_of(session.trainer).experience(groups, verdicts)
            tick(len(groups))
        session.commit(played, batches)
        session.prefetch()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Empty: the datamodule saves the state. The method tells Lightning that the stream can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
