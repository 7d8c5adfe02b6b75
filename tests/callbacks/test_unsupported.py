"""Lightning's own callbacks that cannot take part in a fit are refused before anything is loaded."""

import pytest
from helpers.training import selfplay, trainer_for
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    LearningRateMonitor,
    ModelPruning,
)
from lightning.pytorch.loggers import CSVLogger

from lightning_serl.callbacks import Checkpoints
from lightning_serl.datamodules.checks import check_fit
from lightning_serl.errors import InputError


@pytest.mark.parametrize(
    ("callback", "options", "words"),
    [
        (LearningRateFinder(), {}, "LearningRateFinder searches .* set model.lr"),
        (BatchSizeFinder(), {}, "BatchSizeFinder searches .* model.micro_batch auto"),
        (ModelPruning("l1_unstructured"), {}, "ModelPruning looks for weights"),
        (BackboneFinetuning(), {}, "BackboneFinetuning freezes parts"),
        (LearningRateMonitor(), {}, "LearningRateMonitor needs a logger; give trainer.logger"),
        (Checkpoints(2), {"gradient_clip_val": -1.0}, "trainer.gradient_clip_val must be at least 0, got -1"),
    ],
)
def test_refused(tmp_path, callback, options, words):
    module, data = selfplay()
    with pytest.raises(InputError, match=words) as caught:
        check_fit(trainer_for(tmp_path, [callback], **options), module, data)
    assert len(str(caught.value)) < 290


def test_a_callback_that_logs_works_with_a_logger(tmp_path):
    module, data = selfplay()
    check_fit(trainer_for(tmp_path, [LearningRateMonitor()], logger=CSVLogger(tmp_path)), module, data)
