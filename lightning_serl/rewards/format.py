"""A control: the reward for the form of a response, regardless of its content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers import strip_thinking
from lightning_serl.answers.reading.boxed import last_boxed
from lightning_serl.types import Group, Verdict


class FormatReward:
    r"""Scores 1 for a response with a non-empty ``\boxed{...}``, 0 for any other.

    Gains of a run with this reward come from learning the form of an answer. Once every response has the form, all
    groups have equal scores and the run ends with nothing left to train on.
    """

    needs: frozenset[str] = frozenset()

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; ``info["no_answer"]`` counts the responses without a box."""
        return [self._score(group) for group in groups]

    def _score(self, group: Group) -> Verdict:
        boxed = [last_boxed(strip_thinking(text)) is not None for text in group.texts]
        scores = torch.tensor([float(found) for found in boxed])
        info = {"tie": False, "no_answer": boxed.count(False)}
        return Verdict(scores, confidence=sum(boxed) / max(len(boxed), 1), info=info)
