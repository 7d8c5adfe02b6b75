"""Rewards that make a run worse, and a callback that records the health probe, for ``benchmarks/guard.py``."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_serl.callbacks import RolloutHooks
from lightning_serl.protocols import data_of
from lightning_serl.rewards.base import AnswerVote, facts_of
from lightning_serl.types import Group, Probed, Round, Verdict


class Turned(AnswerVote, ABC):
    """A majority vote for the first ``after`` rounds, and another rule from then on, as where a fault is found late."""

    def __init__(self, after: int = 6) -> None:
        super().__init__()
        self.after, self.turned = after, False

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """See :meth:`AnswerVote.__call__`."""
        self.turned = int(getattr(ctx, "round", 0) or 0) >= self.after
        return super().__call__(groups, ctx)

    def vote(self, group: Group, answers: Sequence[str | None], classes: Sequence[int]) -> Verdict:
        """See :meth:`AnswerVote.vote`."""
        weights = [1.0 if number >= 0 else 0.0 for number in classes]
        if self.turned:
            weights = [w * self.weigh(group, a) for w, a in zip(weights, answers, strict=True)]
        sizes: dict[int, float] = {}
        for number, weight in zip(classes, weights, strict=True):
            if number >= 0:
                sizes[number] = sizes.get(number, 0.0) + weight
        if not sizes:
            return Verdict(torch.zeros(len(group)), confidence=0.0, info=facts_of(classes))
        winner = min(sizes, key=lambda number: (-sizes[number], number))
        scores = torch.tensor([float(number == winner) for number in classes])
        label = min(a for a, c in zip(answers, classes, strict=True) if c == winner and a is not None)
        return Verdict(scores, label, float(scores.mean()), info=facts_of(classes))

    @abstractmethod
    def weigh(self, group: Group, answer: str | None) -> float:
        """The weight of an answer's vote once the rule has turned."""


class BiasedVote(Turned):
    """A vote that a wrong habit wins: even numbers, or words of at most five letters, outvote all other answers.

    On problems whose true answer is another one, the policy is rewarded for agreeing on a wrong answer.
    """

    def weigh(self, group: Group, answer: str | None) -> float:
        """See :meth:`Turned.weigh`."""
        last = re.findall(r"\w+", answer or "")[-1:] or [""]
        return 1000.0 if (int(last[0]) % 2 == 0 if last[0].isdecimal() else len(last[0]) <= 5) else 1.0


class ShortReward(Turned):
    """Rewards any answer that can be read in fewer tokens than the group's mean, whatever it says."""

    def vote(self, group: Group, answers: Sequence[str | None], classes: Sequence[int]) -> Verdict:
        """See :meth:`AnswerVote.vote`."""
        if not self.turned:
            return super().vote(group, answers, classes)
        lengths = [len(c.token_ids) for c in group.completions]
        bound = sum(lengths) / len(lengths)
        scores = torch.tensor([float(c >= 0 and n < bound) for c, n in zip(classes, lengths, strict=True)])
        return Verdict(scores, None, float(scores.mean()), info=facts_of(classes))

    def weigh(self, group: Group, answer: str | None) -> float:
        """See :meth:`Turned.weigh`; not used."""
        return 1.0


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
