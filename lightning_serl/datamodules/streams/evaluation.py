"""Evaluation streams: problems of a labelled (or unlabelled) set, answered and graded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from lightning_serl.datamodules.problems.rows import Fields
from lightning_serl.evaluation.batch import EvaluationBatch
from lightning_serl.evaluation.graders import SetGrader
from lightning_serl.evaluation.grading import DefaultScoring, Scores, SerlScoring
from lightning_serl.evaluation.metrics import GradedProblem
from lightning_serl.types import Group, Instruction

if TYPE_CHECKING:
    from lightning_serl.datamodules.rounds.setup import Table
    from lightning_serl.datamodules.self_play import SelfPlayDataModule


@dataclass(frozen=True)
class EvaluationOptions:
    """What ``validate``, ``test`` and the evaluations inside ``fit`` measure.

    Args:
        sets: Problem sets by name, each a jsonl file, a directory or a data set of the Hugging Face hub such as
            ``hub:math-500``; labels in them are used for measuring only.
        fields: Names of the fields of these sets; known benchmarks have their own.
        samples: Sampled answers per problem, for mean@k, maj@k and pass@k; 0 for greedy answers only.
        temperature: Of the sampled answers.
        top_p: Nucleus share of the sampled answers.
        batch_size: Problems answered at a time, per process.
        scoring: ``default`` reads answers from the response alone; ``serl`` follows SeRL's published code, which reads
            prompt and response together and votes by pairs. Sets of multiple-choice problems always have the first.
    """

    sets: dict[str, str] = field(default_factory=dict)
    fields: Fields = field(default_factory=Fields)
    samples: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64
    scoring: Literal["default", "serl"] = "default"

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"evaluation.samples must be 0 or above, got {self.samples}")
        if self.batch_size < 1:
            raise ValueError(f"evaluation.batch_size must be at least 1, got {self.batch_size}")
        if not self.temperature > 0:
            raise ValueError(f"evaluation.temperature must be above 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"evaluation.top_p must lie in (0, 1], got {self.top_p}")
        if self.scoring not in ("default", "serl"):
            raise ValueError(f"evaluation.scoring must be default or serl, got {self.scoring!r}")


# what divides a set in the results, and where in ``meta`` it stands
_DIVISIONS = {"by_level": "level", "by_subject": "subject", "by_group": "group"}


def strata_of(problems: Sequence[Instruction]) -> dict[str, list[str]]:
    """The names of the levels, subjects and groups of a set, in order; what no problem carries is absent."""
    found = {division: {p.meta[key] for p in problems if key in p.meta} for division, key in _DIVISIONS.items()}
    return {division: sorted(names, key=_natural) for division, names in found.items() if names}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 10 after 9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


class EvaluationStream:
    """One set, shared out over the ranks; every rank yields the same number of batches, empty ones at the end.

    Args:
        data: The datamodule whose engine answers.
        name: Name of the set.
        problems: Its problems, equal on all ranks.
        grader: How its answers are read and compared; by default as in training.
    """

    def __init__(
        self, data: SelfPlayDataModule, name: str, problems: Sequence[Instruction], grader: SetGrader | None = None
    ) -> None:
        self.data, self.name, self.problems, self.grader = data, name, list(problems), grader
        self.strata = strata_of(self.problems)

    def __len__(self) -> int:
        size = self.data.ranks.size
        return max(1, ceil(ceil(len(self.problems) / size) / self.data.evaluation.batch_size))

    def __iter__(self) -> Iterator[EvaluationBatch]:
        options = self.data.evaluation
        mine = self.data.ranks.share(list(enumerate(self.problems)))
        for number in range(len(self)):
            chosen = mine[number * options.batch_size : (number + 1) * options.batch_size]
            with self.data.rolling() as table:
                if self.grader is not None:
                    table = replace(table, grader=self.grader.grader, grader_name=self.grader.name)
                graded = _Grade(options, table).problems([problem for _, problem in chosen])
            items = [
                replace(item, index=index, strata=self._place(problem))
                for item, (index, problem) in zip(graded, chosen, strict=True)
            ]
            yield EvaluationBatch(self.name, options.samples, items, self.strata)

    def _place(self, problem: Instruction) -> tuple[int, ...]:
        """The problem's stratum in each division."""
        found = ((names, problem.meta.get(_DIVISIONS[division])) for division, names in self.strata.items())
        return tuple(names.index(name) if name in names else -1 for names, name in found)


class _Grade:
    """Answers and grades problems with the run's engine and templates and the set's grader."""

    def __init__(self, options: EvaluationOptions, table: Table) -> None:
        self.options, self.table = options, table
        published = options.scoring == "serl" and table.grader_name != "choice"
        self.score = SerlScoring() if published else DefaultScoring(table.grader)

    def problems(self, chosen: list[Instruction]) -> list[GradedProblem]:
        options = self.options
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
        facts: dict[str, Any] = {"uid": problem.uid, "label": problem.label}
        scores = self.score(sampled) if len(sampled) else Scores([], ())
        facts |= {"answers": scores.answers, "right": list(scores.right)}
        facts |= {"vote": scores.vote, "vote_right": scores.vote_right}
        greedy_right = None
        if greedy is not None:
            one = self.score(greedy) if len(greedy) else Scores([None], (False,))
            greedy_right = one.right[0] if labelled else None
            facts |= {"greedy": one.answers[0], "greedy_right": greedy_right}
        return GradedProblem(
            greedy=greedy_right,
            right=scores.right,
            vote_right=scores.vote_right,
            labelled=labelled,
            agreement=scores.agreement,
            samples=len(sampled),
            no_answer=scores.no_answer,
            facts=facts,
        )
