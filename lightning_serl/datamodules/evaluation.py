"""Evaluation streams: problems of a labelled (or unlabelled) set, answered and graded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from lightning_serl.answers import AnswerGrader, detect_grader, resolve_grader
from lightning_serl.datamodules.problems import Fields
from lightning_serl.metrics import GradedProblem
from lightning_serl.published.scoring import RuleReward
from lightning_serl.rewards import MajorityVote, PairwiseVote, VerifiableReward
from lightning_serl.types import Group, Instruction, Verdict

if TYPE_CHECKING:
    from lightning_serl.datamodules.round import Table
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


class SetGrader(NamedTuple):
    """How the answers of one set are read and compared; ``name`` decides the answer-format sentence."""

    grader: AnswerGrader
    name: str


def set_graders(
    sets: Mapping[str, Sequence[Instruction]], run: SetGrader | None
) -> tuple[dict[str, SetGrader], list[str]]:
    """Choose the grader of each set.

    Args:
        sets: The problems of each set.
        run: The grader that the run was told to use; ``None`` looks at each set.

    Returns:
        ``choice`` for a set whose problems all have choices, else the run's grader, else the one that fits the set;
        and a sentence for each set whose grader is not simply the run's.
    """
    made: dict[str, SetGrader] = {} if run is None else {run.name: run}
    out: dict[str, SetGrader] = {}
    said: list[str] = []
    for name, problems in sets.items():
        chosen = run.name if run is not None else None
        if chosen is None or all("choices" in p.meta for p in problems):
            choices = [p.meta.get("choices") for p in problems]
            found, sentence = detect_grader([p.prompt for p in problems], [p.label for p in problems], choices)
            if found != chosen:
                said.append(f"{name}: {sentence if run is None else sentence.partition(';')[0]}")
            chosen = found
        if chosen not in made:
            made[chosen] = SetGrader(resolve_grader(chosen), chosen)
        out[name] = made[chosen]
    return out, said


# what divides a set in the results, and where in ``meta`` it stands
_DIVISIONS = {"by_level": "level", "by_subject": "subject", "by_group": "group"}


def strata_of(problems: Sequence[Instruction]) -> dict[str, list[str]]:
    """The names of the levels, subjects and groups of a set, in order; what no problem carries is absent."""
    found = {division: {p.meta[key] for p in problems if key in p.meta} for division, key in _DIVISIONS.items()}
    return {division: sorted(names, key=_natural) for division, names in found.items() if names}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 10 after 9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


class EvaluationBatch:
    """Some graded problems of one set; a plain class, so that no precision plugin touches it.

    Attributes:
        set_name: Name of the set.
        k: Samples per problem.
        items: The graded problems; may be empty.
        strata: Names of the strata of each of the set's divisions.
    """

    def __init__(
        self, set_name: str, k: int, items: Sequence[GradedProblem], strata: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.set_name, self.k, self.items, self.strata = set_name, k, list(items), dict(strata or {})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvaluationBatch:
        """Nothing in it lives on a device."""
        return self


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


class _Scores(NamedTuple):
    """What is known of one group of answers."""

    answers: list[str | None]
    right: tuple[bool, ...]
    vote: str | None = None
    vote_right: bool | None = None
    agreement: float = 0.0
    no_answer: int = 0


class _Default:
    """Answers are read from the responses alone; the vote is the largest class of equal answers."""

    def __init__(self, grader: AnswerGrader) -> None:
        self.verify, self.vote = VerifiableReward(grader), MajorityVote(grader)

    def __call__(self, group: Group) -> _Scores:
        vote = self.vote([group], None)[0]
        assert group.answers is not None
        right = _flags(self.verify([group], None)[0], group)
        scores = _Scores(group.answers, right, vote.label, None, vote.confidence, int(vote.info["no_answer"]))
        if vote.label is None or group.instruction.label is None:
            return scores
        problem = group.instruction
        choices = problem.meta.get("choices")
        voted = Group.from_texts(problem.prompt, [f"\\boxed{{{vote.label}}}"], problem.label, choices=choices)
        return scores._replace(vote_right=_flags(self.verify([voted], None)[0], voted)[0])


class _Published:
    """SeRL's published rules; the vote is right if the response that won it is."""

    def __init__(self) -> None:
        self.rule, self.vote = RuleReward(), PairwiseVote()

    def __call__(self, group: Group) -> _Scores:
        rule, vote = self.rule([group], None)[0], self.vote([group], None)[0]
        winner = int(vote.info["majority_index"])
        answers = list(rule.info["answers"])
        right = _flags(rule, group)
        vote_right = right[winner] if right else None
        return _Scores(answers, right, answers[winner], vote_right, vote.confidence, answers.count(None))


def _flags(verdict: Verdict, group: Group) -> tuple[bool, ...]:
    """Which answers are right; empty without a label."""
    return () if group.instruction.label is None else tuple(bool(s > 0) for s in verdict.scores)


class _Grade:
    """Answers and grades problems with the run's engine and templates and the set's grader."""

    def __init__(self, options: EvaluationOptions, table: Table) -> None:
        self.options, self.table = options, table
        published = options.scoring == "serl" and table.grader_name != "choice"
        self.score = _Published() if published else _Default(table.grader)

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
        scores = self.score(sampled) if len(sampled) else _Scores([], ())
        facts |= {"answers": scores.answers, "right": list(scores.right)}
        facts |= {"vote": scores.vote, "vote_right": scores.vote_right}
        greedy_right = None
        if greedy is not None:
            one = self.score(greedy) if len(greedy) else _Scores([None], (False,))
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
