"""The hooks of a rollout when several callbacks have them."""

from contextlib import contextmanager

import lightning.pytorch as pl
import pytest

from lightning_serl.callbacks import RolloutHooks
from lightning_serl.callbacks.rollout_hooks import hooks, phase_of


class Shows(RolloutHooks):
    """Notes its phases and what they are told."""

    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    @contextmanager
    def phase(self, name, total):
        self.seen.append((self.name, name, total))
        try:
            yield lambda done: self.seen.append((self.name, done))
        finally:
            self.seen.append((self.name, "end"))


def test_every_callback_is_shown_the_phase():
    seen = []
    with phase_of([pl.Callback(), RolloutHooks(), Shows("a", seen), Shows("b", seen)], "voting", 3) as tick:
        tick(2)
    assert seen == [("a", "voting", 3), ("b", "voting", 3), ("a", 2), ("b", 2), ("b", "end"), ("a", "end")]


def test_phases_end_when_their_work_fails():
    seen = []
    with pytest.raises(KeyError), phase_of([Shows("a", seen)], "voting", 3):
        raise KeyError
    assert seen[-1] == ("a", "end")


def test_without_callbacks_there_is_nothing_to_show():
    with phase_of([], "voting", 3) as tick:
        tick(1)


def test_a_callback_takes_part_by_defining_the_method():
    class Plain(pl.Callback):
        def on_round_end(self, trainer, pl_module, played):
            return played

    callbacks = [pl.Callback(), Plain(), RolloutHooks()]
    assert [hook(None, None, "a round") for hook in hooks(callbacks, "on_round_end")] == ["a round", None]
    assert len(hooks(callbacks, "on_rollout_start")) == 1
