"""A Trainer of the user's own: its loggers, its callbacks, and what it must not be given."""

import csv

import pytest
from helpers.training import rows, selfplay, trainer_for
from lightning.pytorch.loggers import CSVLogger

from lightning_serl.callbacks import Ledger, default_callbacks
from lightning_serl.errors import InputError


def test_every_logger_gets_one_point_per_step_at_lightning_s_defaults(tmp_path, recwarn):
    module, data = selfplay(steps=(1, 2), rounds_per_epoch=2)
    loggers = [CSVLogger(tmp_path, name) for name in ("one", "two")]
    trainer = trainer_for(tmp_path, default_callbacks(), logger=loggers, accumulate_grad_batches=2)
    assert trainer.log_every_n_steps == 50
    trainer.fit(module, data)
    for logger in loggers:
        with open(f"{logger.log_dir}/metrics.csv", encoding="utf-8") as file:
            points = list(csv.DictReader(file))
        assert [int(point["step"]) for point in points] == [0, 1, 2, 3]
        for point, row in zip(points, rows(tmp_path), strict=True):
            assert float(point["loss"]) == pytest.approx(row["loss"])
            assert point["reward"]
    assert {"summary.json", "export", "checkpoints"} <= {path.name for path in tmp_path.iterdir()}
    said = [str(warning.message) for warning in recwarn]
    assert not [line for line in said if "Total length of `list`" in line or "logging interval" in line]


def test_another_interval_is_the_user_s(tmp_path):
    for interval, kept in ((10, 10), (50, 1), (1, 1), (None, 1)):
        trainer = trainer_for(tmp_path, log_every_n_steps=interval)
        Ledger().setup(trainer, None, "validate")
        assert trainer.log_every_n_steps == interval or interval is None
        Ledger().setup(trainer, None, "fit")
        assert trainer.log_every_n_steps == kept


def test_batches_of_problems_are_refused_in_one_sentence():
    module, _ = selfplay()
    for batch in ({"problem": ["What is 1 + 1?"]}, ["What is 1 + 1?"], "What is 1 + 1?", ({}, {}), None):
        kind = type(batch).__name__
        with pytest.raises(InputError, match=rf"^a training batch is a {kind}, not a RolloutBatch: give the Trainer a"):
            module.training_step(batch, 0)
