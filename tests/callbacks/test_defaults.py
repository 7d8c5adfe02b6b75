"""The callbacks that a run adds by itself."""

import pytest
from helpers.training import trainer_for

from lightning_serl.callbacks import (
    DifficultyFilter,
    Health,
    Ledger,
    MemoryPlan,
    NoveltyFilter,
    QualityFilter,
    RolloutRefresh,
    RoundProfile,
    RoundProgress,
    TrackerTables,
    ZeroSpread,
    defaults,
)
from lightning_serl.callbacks.defaults import missing_callbacks
from lightning_serl.callbacks.preemption import Preemption


def kinds(callbacks):
    return {type(c) for c in callbacks}


def test_missing_callbacks_are_added():
    always = {MemoryPlan, Preemption, RolloutRefresh, Health, RoundProfile, Ledger, RoundProgress, ZeroSpread}
    always |= {TrackerTables}
    assert kinds(missing_callbacks(None)) == always | {QualityFilter, NoveltyFilter, DifficultyFilter}
    trainer = trainer_for(".", [QualityFilter(), Ledger()])
    assert kinds(missing_callbacks(trainer)) == always - {Ledger}
    # the one filter that comes by default is no choice of filters
    trainer = trainer_for(".", [ZeroSpread()])
    assert kinds(missing_callbacks(trainer)) == always - {ZeroSpread} | {
        QualityFilter,
        NoveltyFilter,
        DifficultyFilter,
    }


@pytest.mark.parametrize(
    ("listed", "writes", "off"),
    [
        ([DifficultyFilter()], True, "QualityFilter, NoveltyFilter"),
        ([DifficultyFilter()], False, None),  # nothing is written that the others could judge
        ([NoveltyFilter(), QualityFilter()], False, "DifficultyFilter"),
        ([QualityFilter(), NoveltyFilter(), DifficultyFilter()], True, None),
        ([ZeroSpread()], True, None),
        ([], True, None),
    ],
)
def test_default_filters_that_are_off_are_named(listed, writes, off, monkeypatch):
    said = []
    monkeypatch.setattr(defaults, "rank_zero_info", said.append)
    defaults.announce_choice(listed, writes)
    assert [line.partition("; off: ")[2].partition(" (")[0] for line in said] == ([off] if off else [])


def test_a_subclass_of_the_users_stands_for_ours():
    class Mine(Ledger):
        pass

    assert Ledger not in kinds(missing_callbacks(trainer_for(".", [Mine()])))
