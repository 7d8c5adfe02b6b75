"""Evaluation streams: problems of a labelled (or unlabelled) set, answered and graded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from lightning_serl.datamodules.problems import Fields
from lightning_serl.metrics import GradedProblem
from lightning_serl.rewards import MajorityVote, VerifiableReward
from lightning_serl.types import Group, Instruction

if TYPE_CHECKING:
    from lightning_serl.datamodules.self_play import SelfPlayDataModule


@dataclass(frozen=True)
class EvaluationOptions:
    """What ``validate``, ``test`` and the evaluations inside ``fit`` measure.

    Args:
        sets: Problem files by name; labels in them are used for measuring only.
        fields: Names of the fields of these files.
        samples: Sampled answers per problem, for mean@k, maj@k and pass@k; 0 for greedy answers only.
        temperature: Of the sampled answers.
        top_p: Nucleus share of the sampled answers.
        batch_size: Problems answered at a time, per process.
    """

    sets: dict[str, str] = field(default_factory=dict)
    fields: Fields = field(default_factory=Fields)
    samples: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"evaluation.samples must be 0 or above, got {self.samples}")
        if self.batch_size < 1:
            raise ValueError(f"evaluation.batch_size must be at least 1, got {self.batch_size}")
        if not self.temperature > 0:
            raise ValueError(f"evaluation.temperature must be above 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"evaluation.top_p must lie in (0, 1], got {self.top_p}")


class EvaluationBatch:
    """Some graded problems of one set; a plain class, so that no precision plugin touches it.

    Attributes:
        set_name: Name of the set.
        k: Samples per problem.
        items: The graded problems; may be empty.
    """

    def __init__(self, set_name: str, k: int, items: Sequence[GradedProblem]) -> None:
        self.set_name, self.k, self.items = set_name, k, list(items)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvaluationBatch:
        """Nothing in it lives on a device."""
        return self


class EvaluationStream:
    """One set, shared out over the ranks; every rank yields the same number of batches, empty ones at the end.

    Args:
        data: The datamodule whose engine answers.
        name: Name of the set.
        problems: Its problems, equal on all ranks.
    """

    def __init__(self, data: SelfPlayDataModule, name: str, problems: Sequence[Instruction]) -> None:
        self.data, self.name, self.problems = data, name, list(problems)

    def __len__(self) -> int:
        size = self.data.ranks.size
        return max(1, ceil(ceil(len(self.problems) / size) / self.data.evaluation.batch_size))

    def __iter__(self) -> Iterator[EvaluationBatch]:
        mine = self.data.ranks.share(self.problems)
        size = self.data.evaluation.batch_size
        for number in range(len(self)):
            chosen = mine[number * size : (number + 1) * size]
            with self.data.rolling() as table:
                items = _Grade(self.data, table).problems(chosen)
            yield EvaluationBatch(self.name, self.data.evaluation.samples, items)


class _Grade:
    """Answers and grades problems with the run's engine, templates and grader."""

    def __init__(self, data: SelfPlayDataModule, table: Any) -> None:
        self.data, self.table = data, table
        self.verify, self.vote = VerifiableReward(table.grader), MajorityVote(table.grader)

    def problems(self, chosen: list[Instruction]) -> list[GradedProblem]:
        options = self.data.evaluation
        table = self.table
        responses = len(chosen) * options.samples + len(chosen)
        with table.phase("evaluating", responses) as tick, table.ranks.stage("evaluating"):
            sampled = self.answer(chosen, options.samples, "evaluation", options.temperature, options.top_p, tick)
            greedy: list[Group | None] = [None] * len(chosen)
            if table.engine.samples_policy:
                greedy = list(self.answer(chosen, 1, "greedy", 0.0, 1.0, tick))
            return [self.grade(p, g, s) for p, g, s in zip(chosen, greedy, sampled, strict=True)]

    def answer(
        self, chosen: list[Instruction], n: int, stage: str, temperature: float, top_p: float, tick: Any
    ) -> list[Group]:
        """``n`` answers to each problem; prompts that do not fit get none, and so count as wrong."""
        ctx = self.table.context(0, stage, spread=False, tick=tick)
        fits = [not self.table.too_long(p) for p in chosen]
        asked = [p for p, ok in zip(chosen, fits, strict=True) if ok] if n else []
        groups = iter(ctx.generate(asked, n, temperature=temperature, top_p=top_p))
        return [next(groups) if ok and n else Group(p, (), []) for p, ok in zip(chosen, fits, strict=True)]

    def grade(self, problem: Instruction, greedy: Group | None, sampled: Group) -> GradedProblem:
        labelled = problem.label is not None
        greedy_right = None
        if labelled and greedy is not None:
            greedy_right = bool(len(greedy)) and bool(self.verify([greedy], None)[0].scores[0] > 0)
        vote = self.vote([sampled], None)[0] if len(sampled) else None
        right: tuple[bool, ...] = ()
        vote_right = None
        if labelled and vote is not None:
            right = tuple(bool(s > 0) for s in self.verify([sampled], None)[0].scores)
            if vote.label is not None:
                chosen = Group.from_texts(
                    problem.prompt,
                    [f"\\boxed{{{vote.label}}}"],
                    label=problem.label,
                    choices=problem.meta.get("choices"),
                )
                vote_right = bool(self.verify([chosen], None)[0].scores[0] > 0)
        return GradedProblem(
            greedy=greedy_right,
            right=right,
            vote_right=vote_right,
            labelled=labelled,
            agreement=0.0 if vote is None else vote.confidence,
            samples=len(sampled),
            no_answer=0 if vote is None else int(vote.info.get("no_answer", 0)),
        )
