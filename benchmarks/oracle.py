"""True answers for the tiny language, for measurements; the quickstart itself never uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_serl.rewards import VerifiableReward
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
            truth = parse(group.instruction.prompt)
            label = None if truth is None else str(truth.answer)
            labelled.append(replace(group, instruction=replace(group.instruction, label=label)))
        return self.verify(labelled, ctx)
