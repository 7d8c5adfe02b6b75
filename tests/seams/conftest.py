"""Three rounds of the tiny policy through a real Trainer, on record."""

import copy
from collections import Counter

import lightning.pytorch as pl
import pytest
import torch

from lightning_serl import SelfPlayDataModule, SeRLModule
from lightning_serl.callbacks import GroupFilter
from lightning_serl.prompts import SolveTemplate


class Record(GroupFilter):
    """A filter that drops nothing and keeps what it was shown, what was trained on, and the weights of each round."""

    def __init__(self):
        self.rounds, self.trained, self.models, self.teachers = [], [], [], []

    def weigh(self, groups, verdicts):
        self.rounds.append(list(zip(groups, verdicts, strict=True)))
        return [1.0] * len(groups), [None] * len(groups)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        # A round is one optimizer step here, so these weights wrote and scored what is trained on now.
        self.trained.append(Counter(batch.uids))
        self.models.append(copy.deepcopy(pl_module.policy.causal_lm).eval())
        if "teacher" in pl_module.policy.frozen:
            self.teachers.append(copy.deepcopy(pl_module.policy.frozen["teacher"].causal_lm))

    def on_fit_end(self, trainer, pl_module):
        self.models.append(copy.deepcopy(pl_module.policy.causal_lm).eval())


@pytest.fixture
def three_rounds(tmp_path):
    def play(*callbacks, **data):
        record = Record()
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=[record, *callbacks],
        )  # fmt: skip
        module = SeRLModule("tiny:base", optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3))
        solve = SolveTemplate(answer_format="")  # the tiny base knows no instructions
        trainer.fit(module, SelfPlayDataModule(rounds_per_epoch=3, grader="math", solve=solve, seed=0, **data))
        return record

    return play
