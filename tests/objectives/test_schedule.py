"""The published schedule against the one in transformers, and its documented numbers."""

import pytest
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from lightning_serl.objectives import CosineWithFloor


def optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=5e-7)


def rates(scheduler, steps):
    out = []
    for _ in range(steps):
        out.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return out


def test_it_is_the_one_the_published_scripts_ask_for():
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer(), 60, 2000, min_lr=5e-8)
    expected = rates(theirs, 2000)
    assert rates(CosineWithFloor(optimizer(), hold=False), 2000) == pytest.approx(expected, rel=1e-12, abs=0)
    assert rates(CosineWithFloor(optimizer()), 2000) == pytest.approx(expected, rel=1e-12, abs=0)


def test_its_landmarks():
    published, ours = rates(CosineWithFloor(optimizer(), hold=False), 2600), rates(CosineWithFloor(optimizer()), 2600)
    assert published[0] == 0
    assert published[60] == max(published) == 5e-7
    assert published[2000] == pytest.approx(5e-8)
    assert published[2500] > 1.1 * 5e-8, "the published cosine rises again"
    assert ours[2500] == pytest.approx(5e-8)


@pytest.mark.parametrize("options", [{"warmup_steps": 2000}, {"warmup_steps": -1}, {"floor": 1.5}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CosineWithFloor(optimizer(), **options)
