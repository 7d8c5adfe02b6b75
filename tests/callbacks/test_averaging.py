"""Lightning's averaging callbacks work with the module, or are refused in a sentence."""

import pytest
import torch
from helpers.nonfinite import Run
from helpers.training import selfplay, sharded, trainer_for
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging

from lightning_serl.callbacks import Checkpoints
from lightning_serl.datamodules.checks import check_fit
from lightning_serl.errors import InputError


class Kept(EMAWeightAveraging):
    """Keeps what the weights were before each exchange."""

    def on_train_end(self, trainer, pl_module):
        self.trained = {n: p.detach().clone() for n, p in pl_module.policy.named_parameters()}
        super().on_train_end(trainer, pl_module)


def test_the_average_is_exported_pushed_and_continued(tmp_path):
    average = Kept(decay=0.5)
    run = Run(tmp_path, [average], rounds=2)
    assert run.error is None
    final = dict(run.module.policy.named_parameters())
    assert any(not torch.equal(final[n], average.trained[n]) for n in final)
    assert run.module.policy.version == 3, "an engine would be given the average"
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["state_dict"].keys() == state["current_model_state"].keys()
    for name, weight in average.trained.items():
        assert torch.equal(state["current_model_state"][f"policy.{name}"], weight)
        assert torch.equal(state["state_dict"][f"policy.{name}"], final[name])
    again = Run(tmp_path, [Kept(decay=0.5)], rounds=2, ckpt=tmp_path / "checkpoints" / "step=1.ckpt")
    for name, weight in again.module.policy.named_parameters():
        assert torch.equal(weight, final[name]), name


@pytest.mark.parametrize(
    ("callback", "options", "words"),
    [
        (StochasticWeightAveraging(1e-4), {}, "StochasticWeightAveraging copies the module before"),
        (WeightAveraging(), {"strategy": sharded(), "devices": 2}, "cannot copy sharded weights"),
    ],
)
def test_refused(tmp_path, callback, options, words):
    module, data = selfplay()
    with pytest.raises(InputError, match=words) as caught:
        check_fit(trainer_for(tmp_path, [callback, Checkpoints()], **options), module, data)
    assert len(str(caught.value)) < 290
