"""The memory plan that a fit logs before it loads the model."""

import pytest
import torch
from helpers.command_line import cli, problems, small, write_rows
from helpers.training import selfplay, trainer_for
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_serl import SeRLModule
from lightning_serl.callbacks import memory_plan
from lightning_serl.callbacks.memory_plan import report_memory_plan, state_per_weight
from lightning_serl.protocols import LoadsPolicy, SelfPlay


@pytest.fixture
def logged(monkeypatch):
    """What is logged, counted at its source: in a process with other tests a line can reach several handlers."""
    lines = []

    def inform(line):
        lines.append(line)
        rank_zero_info(line)

    monkeypatch.setattr(memory_plan, "rank_zero_info", inform)
    return lines


def test_optimizer_state_is_that_of_the_optimizer():
    def state(optimizer):
        return state_per_weight(SeRLModule("tiny:base", optimizer=optimizer).check_optimizer())

    assert state(lambda p: torch.optim.SGD(p, lr=1)) == 0
    assert state(lambda p: torch.optim.SGD(p, lr=1, momentum=0.9)) == 4
    assert state(lambda p: torch.optim.AdamW(p)) == pytest.approx(8, abs=0.01)


def test_a_fit_logs_its_plan_once_and_warns(tmp_path, monkeypatch, logged):
    held_out = write_rows(tmp_path / "held_out.jsonl", problems(2))
    ended = cli("fit", *small(tmp_path / "a", held_out, rounds=1))  # the evaluation before the fit loads the model
    assert ended.status == 0, ended.err
    (line,) = logged
    assert line.startswith("memory, GiB on cpu: weights 0.00")
    assert line in ended.err
    monkeypatch.setattr(memory_plan, "_device_bytes", lambda device: 10_000)
    with pytest.warns(UserWarning, match=r"which has 0\.000; see docs/memory\.md"):
        ended = cli("fit", *small(tmp_path / "b", rounds=1))
    assert ended.status == 0
    assert len(logged) == 2


def test_there_is_no_plan_of_a_loaded_model_nor_of_foreign_parts(tmp_path, logged):
    trainer = trainer_for(tmp_path)
    module, data = selfplay()
    assert isinstance(module, LoadsPolicy)
    assert isinstance(data, SelfPlay)
    report_memory_plan(trainer, LightningModule(), data)
    report_memory_plan(trainer, module, LightningDataModule())
    report_memory_plan(trainer, SeRLModule(), data)
    module.configure_model()
    report_memory_plan(trainer, module, data)
    assert logged == []


def test_a_model_that_cannot_be_traced_is_trained_all_the_same(tmp_path, monkeypatch, logged):
    def fail(*arguments):
        raise RuntimeError("no such layer\nmore")

    monkeypatch.setattr(memory_plan, "plan", fail)
    report_memory_plan(trainer_for(tmp_path), *selfplay())
    assert logged == ["memory: no plan for this model (no such layer)"]
