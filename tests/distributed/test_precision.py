"""The dtypes of a run, against what Lightning's precision plugins do."""

import lightning.pytorch as pl
import pytest
import torch

from lightning_serl.distributed.strategies import compute_dtype, precision_of


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "16-true", "bf16-mixed"])
def test_the_dtypes_of_a_precision(precision, tmp_path):
    trainer = pl.Trainer(accelerator="cpu", precision=precision, logger=False, default_root_dir=tmp_path)
    plugin = trainer.precision_plugin
    layer = plugin.convert_module(torch.nn.Linear(2, 2))
    found = precision_of(trainer)
    assert layer.weight.dtype == (found.weights or torch.float32)
    with plugin.forward_context():
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        computed = layer(torch.zeros(1, 2, dtype=layer.weight.dtype)).dtype
    assert autocast == found.autocast
    assert computed == compute_dtype(trainer, torch.float32)


def test_without_a_trainer_weights_stay_as_they_were_loaded():
    assert precision_of(None) == (None, None)
    assert compute_dtype(None, torch.float16) == torch.float16
