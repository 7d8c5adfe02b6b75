"""The dtypes of a Trainer's precision."""

import lightning.pytorch as pl
import pytest
import torch

from lightning_serl.distributed.precision import autocast_dtype, converted_dtype


@pytest.mark.parametrize(
    ("precision", "autocast", "converted"),
    [
        ("32-true", None, None),
        ("bf16-mixed", torch.bfloat16, None),
        ("bf16-true", None, torch.bfloat16),
        ("64-true", None, torch.float64),
        (64, None, torch.float64),
    ],
)
def test_dtypes_are_those_that_lightning_computes_in(tmp_path, precision, autocast, converted):
    trainer = pl.Trainer(accelerator="cpu", precision=precision, logger=False, default_root_dir=tmp_path)
    assert (autocast_dtype(trainer), converted_dtype(trainer)) == (autocast, converted)
    plugin = trainer.precision_plugin
    with plugin.forward_context():
        assert torch.is_autocast_enabled("cpu") is (autocast is not None)
        assert autocast is None or torch.get_autocast_dtype("cpu") is autocast
    layer = plugin.convert_module(torch.nn.Linear(2, 2))
    assert layer.weight.dtype is (converted or torch.float32)


def test_without_a_trainer_nothing_is_converted():
    assert autocast_dtype(None) is converted_dtype(None) is None
