"""A bandit chooses the category of the next problem by how much the policy learns from it (SEC)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.prompt_set import PromptSet
from lightning_serl.datamodules.sources.seeded import SeededSource
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.errors import InputError, check_range
from lightning_serl.objectives.advantages import advantages
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import Group, Instruction, Verdict


class CategoryBandit(SeededSource):
    r"""Draws seeds by category, and draws a category more often the larger its advantages were.

    SEC (arXiv 2505.14970): categories are arms of a bandit. After each round the value of an arm moves towards the mean
    absolute advantage of its responses, :math:`Q \leftarrow \alpha r + (1 - \alpha) Q`, and the next problem's
    category has probability proportional to :math:`\exp(Q / \tau)`. Advantages are those of GRPO (score less the mean
    of the group, over its deviation); a group without spread has 0, and counts, before any filter drops it. An arm that
    a round did not draw keeps its value; all begin at 0. Within a category seeds come in a random order, as with
    ``data.source seeds``. Rate and temperature are ours by default. With a vote in place of labels advantages are
    largest where answers are split, which may be noise.

    Args:
        by: What names the category of a seed: ``subject`` or ``level``, whose fields in the file are
            ``data.fields.subject`` and ``data.fields.level``.
        rate: :math:`\alpha`, in (0, 1].
        temperature: :math:`\tau`, above 0; small values prefer the best arm.

    Raises:
        InputError: for an option out of range, and for seeds without two categories.
    """

    filtered = False

    def __init__(self, by: str = "subject", rate: float = 0.5, temperature: float = 1.0) -> None:
        check_range("data.source.rate", rate, above=0, at_most=1)
        check_range("data.source.temperature", temperature, above=0)
        self.by, self.rate, self.temperature = by, rate, temperature

    def check(self, seeds: Sequence[Instruction]) -> None:
        """Refuse seeds of fewer than two categories."""
        super().check(seeds)
        found = {self._arm(seed) for seed in seeds} - {""}
        if len(found) < 2:
            have = f"all of one {self.by}, {found.pop()!r}" if found else f"without a {self.by}"
            raise InputError(
                f"data.source CategoryBandit chooses among categories, but the seeds are {have}; name their field with "
                f"--data.fields.subject FIELD (or level), give another --data.source.by, or set data.source to seeds"
            )

    def begin(self, seeds: Sequence[Instruction], pool: InstructionPool, writing: Writing) -> None:
        """Sort the seeds into arms; those without a category make one of their own."""
        super().begin(seeds, pool, writing)
        names = sorted({self._arm(seed) for seed in seeds})
        self.arms = {name: PromptSet([seed for seed in seeds if self._arm(seed) == name]) for name in names}
        self.values = dict.fromkeys(names, 0.0)

    def propose(self, k: int, ctx: Context) -> list[Instruction]:
        """Draw ``k`` seeds."""
        out = []
        for _ in range(k):
            top = max(self.values.values())  # subtracted from all, so that no exponential overflows
            weights = [math.exp((value - top) / self.temperature) for value in self.values.values()]
            (arm,) = rng_for(ctx.seed, "source", self.calls).choices(list(self.values), weights)
            self.calls += 1
            out += self.arms[arm].propose(1, ctx)
        return out

    def observe(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:
        """Move the values of the arms that the round drew."""
        found: dict[str, list[float]] = {}
        for group, verdict in zip(groups, verdicts, strict=True):
            arm = self._arm(group.instruction)
            if group.instruction.role == "solve" and group.instruction.link is None and arm in self.arms:
                scores, weight = verdict.scores.double(), verdict.weight.double()
                index = torch.zeros(len(group), dtype=torch.int64)
                size = scores if verdict.centred else advantages(scores, index, "group", "group", weight)
                found.setdefault(arm, []).extend(size.abs()[weight > 0].tolist() or [0.0])
        for arm, sizes in found.items():
            self.values[arm] += self.rate * (math.fsum(sizes) / len(sizes) - self.values[arm])

    def _arm(self, problem: Instruction) -> str:
        value = problem.meta.get(self.by)
        return "" if value is None else str(value)

    def state_dict(self) -> dict[str, Any]:
        """Values and places of the arms."""
        places = {name: arm.state_dict() for name, arm in self.arms.items()}
        return {"values": dict(self.values), "arms": places, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`; arms that the checkpoint does not know begin at 0."""
        self.calls = state["calls"]
        for name in self.arms.keys() & state["values"].keys():
            self.values[name] = state["values"][name]
            self.arms[name].load_state_dict(state["arms"][name])
