"""Rewards that make a run worse, and a callback that records the health probe, for ``benchmarks/guard.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_serl.callbacks import RolloutHooks
from lightning_serl.protocols import data_of
from lightning_serl.rewards.base import AnswerVote, facts_of
from lightning_serl.types import Group, Probed, Round, Verdict


class BiasedVote(AnswerVote):
    """A vote in which every answer of a wrong habit counts four times: even numbers, or words of at most four letters.

    On problems whose true answer is another one, the policy is rewarded for agreeing on a wrong answer.
    """

    def vote(self, group: Group, answers, classes) -> Verdict:
        """See :meth:`AnswerVote.vote`."""
        weights: dict[int, float] = {}
        for answer, number in zip(answers, classes, strict=True):
            if number >= 0:
                weights[number] = weights.get(number, 0.0) + (4.0 if _habit(answer or "") else 1.0)
        if not weights:
            return Verdict(torch.zeros(len(group)), confidence=0.0, info=facts_of(classes))
        winner = min(weights, key=lambda number: (-weights[number], number))
        scores = torch.tensor([float(number == winner) for number in classes])
        label = min(a for a, c in zip(answers, classes, strict=True) if c == winner and a is not None)
        return Verdict(scores, label, float(scores.mean()), info=facts_of(classes))


def _habit(answer: str) -> bool:
    digits = answer.strip().lstrip("-")
    return int(digits) % 2 == 0 if digits.isdigit() else len(answer) <= 4


class ShortReward(AnswerVote):
    """Rewards any answer that can be read in fewer tokens than the group's mean, whatever it says."""

    def vote(self, group: Group, answers, classes) -> Verdict:
        """See :meth:`AnswerVote.vote`."""
        lengths = [len(c.token_ids) for c in group.completions]
        bound = sum(lengths) / len(lengths)
        scores = torch.tensor([float(c >= 0 and n < bound) for c, n in zip(classes, lengths, strict=True)])
        return Verdict(scores, None, float(scores.mean()), info=facts_of(classes))


class Record(RolloutHooks):
    """Writes the responses to every health probe into ``probe.jsonl`` of the run folder."""

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: Round) -> None:
        """Append a row with the step whose weights answered, and the answers by uid."""
        self._write(trainer, played.probe)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Probe the last weights too."""
        self._write(trainer, data_of(trainer).ask_probe())

    def _write(self, trainer: pl.Trainer, probed: Mapping[str, Probed]) -> None:
        if not probed:
            return
        row = {"step": trainer.global_step, "answers": {uid: list(p.answers) for uid, p in probed.items()}}
        row["tokens"] = sum(p.tokens for p in probed.values())
        row["cut"] = sum(p.cut for p in probed.values())
        with (Path(trainer.default_root_dir) / "probe.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
