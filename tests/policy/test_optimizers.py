"""The learning rate follows what is trained, and one option sets it."""

from functools import partial

import pytest
import torch

from lightning_serl import SeRLModule
from lightning_serl.errors import InputError
from lightning_serl.policy import optimizers
from lightning_serl.policy.lora import LoraOptions

ADAM, SGD = partial(torch.optim.Adam, lr=3e-3), partial(torch.optim.SGD, lr=0.5)
FULL, R2, R64 = None, LoraOptions(r=2), LoraOptions(r=64, alpha=128)
RATES = [  # what is trained, optimizer, model.lr, and the rate
    (FULL, None, None, 1e-6),
    (R2, None, None, 1e-4),
    (R64, None, None, 1e-4),
    (LoraOptions(peft={"use_rslora": True}), None, None, 1e-4),
    (FULL, None, 2e-5, 2e-5),
    (R2, None, 2e-5, 2e-5),
    (FULL, None, 0.0, 0.0),
    (R2, None, 0.0, 0.0),
    (FULL, ADAM, None, 3e-3),
    (R2, ADAM, None, 3e-3),
    (FULL, ADAM, 1e-5, 1e-5),
    (R2, ADAM, 1e-5, 1e-5),
    (FULL, SGD, None, 0.5),
    (R2, SGD, 0.1, 0.1),
    (FULL, torch.optim.AdamW, None, 1e-3),
    (R64, torch.optim.AdamW, 4e-4, 4e-4),
]  # fmt: skip


def test_the_rate_follows_what_is_trained():
    for lora, optimizer, lr, rate in RATES:
        made = SeRLModule("tiny:base", lora=lora, optimizer=optimizer, lr=lr).check_optimizer()
        assert made.param_groups[0]["lr"] == rate, (lora, optimizer, lr)
        if optimizer is None:
            assert (type(made), made.defaults["betas"]) == (torch.optim.AdamW, (0.9, 0.95))
            assert made.defaults["weight_decay"] == 0
    with pytest.raises(InputError, match=r"^model\.lr must be at least 0, got -1"):
        SeRLModule("tiny:base", lr=-1)


def test_an_adapter_at_the_rate_of_all_weights_is_warned_of(monkeypatch):
    said = []
    monkeypatch.setattr(optimizers, "rank_zero_warn", lambda line: said.append(("warning", line)))
    monkeypatch.setattr(optimizers, "rank_zero_info", lambda line: said.append(("info", line)))
    for lr, adapter, kind in (
        (1e-6, True, "warning"),
        (1e-6, False, "info"),
        (1e-4, True, "info"),
        (0.0, True, "info"),
    ):
        made = optimizers.optimizer_factory(None, lr, adapter)([torch.nn.Parameter(torch.zeros(1))])
        optimizers.announce_rate(made, adapter)
        assert said[-1][0] == kind, (lr, adapter)
        assert f"{lr:g}" in said[-1][1]
        assert "--model.lr" in said[-1][1]
