"""True answers for the tiny language and the world, for measurements; no training without labels uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_serl.rewards import VerifiableReward
from lightning_serl.tiny import world
from lightning_serl.tiny.language import parse
from lightning_serl.types import Group, Verdict


class TrueAnswer:
    """Scores self-written problems against the tiny language's own parser; ill-posed ones get weight 0."""

    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.verify = VerifiableReward("math")

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group."""
        labelled = []
        for group in groups:
            label = self.answer(group.instruction.prompt)
            labelled.append(replace(group, instruction=replace(group.instruction, label=label)))
        return self.verify(labelled, ctx)

    def answer(self, problem: str) -> str | None:
        """The right answer; ``None`` if the problem is ill-posed."""
        truth = parse(problem)
        return None if truth is None else str(truth.answer)


class WorldAnswer(TrueAnswer):
    """The same for the problems of ``tiny:world``."""

    def answer(self, problem: str) -> str | None:
        """The right answer; ``None`` if the problem is ill-posed."""
        return world.answer(problem)
