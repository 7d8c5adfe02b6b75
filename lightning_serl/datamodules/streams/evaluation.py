"""The evaluation stream: the problems of a set, answered and graded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal

from lightning_serl.datamodules.problems.rows import Fields
from lightning_serl.datamodules.rounds.setup import RoundSetup
from lightning_serl.datamodules.session import Session
from lightning_serl.errors import check_choice, check_range
from lightning_serl.evaluation.grading import DefaultScoring, Scores, SerlScoring, SetGrader
from lightning_serl.evaluation.metrics import GradedProblem
from lightning_serl.evaluation.results import EvaluationBatch
from lightning_serl.types import STYLES, Group, Instruction


@dataclass(frozen=True)
class EvaluationOptions:
    """What ``validate``, ``test`` and the evaluations inside ``fit`` measure.

    Args:
        sets: Problem sets by name, each a jsonl file, a directory or a data set of the Hugging Face hub such as
            ``hub:math-500``; their labels are used for measuring only. null or {} for none.
        fields: Names of the fields of these sets; known benchmarks have their own.
        samples: Sampled answers per problem, for mean@k, maj@k and pass@k; 0 for greedy answers only.
        temperature: Temperature of the sampled answers.
        top_p: Probability mass of the nucleus that answers are sampled from.
        batch_size: Problems answered at a time, per process.
        scoring: ``default`` reads answers from the response alone; ``serl`` follows SeRL's published code, which reads
            prompt and response together and votes by pairs. Multiple-choice sets are always scored by ``default``.
    """

    sets: dict[str, str] | None = field(default_factory=dict)
    fields: Fields = field(default_factory=Fields)
    samples: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64
    scoring: Literal["default", "serl"] = "default"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sets", self.sets or {})
        check_range("data.evaluation.samples", self.samples, at_least=0)
        check_range("data.evaluation.batch_size", self.batch_size, at_least=1)
        check_range("data.evaluation.temperature", self.temperature, above=0)
        check_range("data.evaluation.top_p", self.top_p, above=0, at_most=1)
        check_choice("data.evaluation.scoring", self.scoring, STYLES)


# the divisions of a set in the results, and the key in ``meta`` of each
_DIVISIONS = {"by_level": "level", "by_subject": "subject", "by_group": "group"}


def strata_of(problems: Sequence[Instruction]) -> dict[str, list[str]]:
    """The names of the levels, subjects and groups of a set, in order; a division that no problem has is left out."""
    found = {division: {p.meta[key] for p in problems if key in p.meta} for division, key in _DIVISIONS.items()}
    return {division: sorted(names, key=_natural) for division, names in found.items() if names}


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts 10 after 9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


class EvaluationStream:
    """One set, divided among the ranks; all ranks yield the same number of batches, the last ones possibly empty.

    ``problems`` are equal on all ranks. Without a ``grader``, answers are read and compared as in training.
    """

    def __init__(
        self,
        session: Session,
        options: EvaluationOptions,
        name: str,
        problems: Sequence[Instruction],
        grader: SetGrader | None = None,
    ) -> None:
        self.session, self.options = session, options
        self.name, self.problems, self.grader = name, list(problems), grader
        self.strata = strata_of(self.problems)

    def __len__(self) -> int:
        size = self.session.ranks.size
        return max(1, ceil(ceil(len(self.problems) / size) / self.options.batch_size))

    def __iter__(self) -> Iterator[EvaluationBatch]:
        options = self.options
        mine = self.session.ranks.share(list(enumerate(self.problems)))
        for number in range(len(self)):
            chosen = mine[number * options.batch_size : (number + 1) * options.batch_size]
            with self.session.rolling() as setup:
                if self.grader is not None:
                    setup = replace(setup, grader=self.grader.grader, grader_name=self.grader.name)
                graded = _BatchGrader(options, setup).grade([problem for _, problem in chosen])
            items = [
                replace(item, index=index, strata=self._place(problem))
                for item, (index, problem) in zip(graded, chosen, strict=True)
            ]
            yield EvaluationBatch(self.name, options.samples, items, self.strata)

    def _place(self, problem: Instruction) -> tuple[int, ...]:
        """The index of the problem's stratum in each division; -1 for none."""
        found = ((names, problem.meta.get(_DIVISIONS[division])) for division, names in self.strata.items())
        return tuple(names.index(name) if name in names else -1 for names, name in found)


class _BatchGrader:
    """Answers and grades problems with the run's engine and templates and the set's grader."""

    def __init__(self, options: EvaluationOptions, setup: RoundSetup) -> None:
        self.options, self.setup = options, setup
        published = options.scoring == "serl" and setup.grader_name != "choice"
        self.score = SerlScoring() if published else DefaultScoring(setup.grader)

    def grade(self, chosen: list[Instruction]) -> list[GradedProblem]:
        options, setup = self.options, self.setup
        responses = len(chosen) * options.samples + len(chosen)
        with setup.phase("evaluating", responses) as tick, setup.ranks.stage("evaluating"):
            sampled = self._answer(chosen, options.samples, "evaluation", options.temperature, options.top_p, tick)
            greedy: list[Group | None] = [None] * len(chosen)
            if setup.engine.samples_policy:
                greedy = list(self._answer(chosen, 1, "greedy", 0.0, 1.0, tick))
            return [self._graded(p, g, s) for p, g, s in zip(chosen, greedy, sampled, strict=True)]

    def _answer(
        self, chosen: list[Instruction], n: int, stage: str, temperature: float, top_p: float, tick: Any
    ) -> list[Group]:
        """``n`` answers to each problem; prompts that do not fit the context get none, which counts as wrong."""
        ctx = self.setup.context(0, stage, spread=False, tick=tick)
        fits = [not self.setup.too_long(p) for p in chosen]
        asked = [p for p, ok in zip(chosen, fits, strict=True) if ok] if n else []
        groups = iter(ctx.generate(asked, n, temperature=temperature, top_p=top_p))
        return [next(groups) if ok and n else Group(p, (), []) for p, ok in zip(chosen, fits, strict=True)]

    def _graded(self, problem: Instruction, greedy: Group | None, sampled: Group) -> GradedProblem:
        labelled = problem.label is not None
        facts: dict[str, Any] = {"uid": problem.uid, "label": problem.label}
        scores = self.score(sampled) if len(sampled) else Scores([], ())
        facts |= {"answers": scores.answers, "right": list(scores.right)}
        facts |= {"vote": scores.vote, "vote_right": scores.vote_right, "distinct": scores.distinct}
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
