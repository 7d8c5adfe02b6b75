"""Chooses the grader of each evaluation set, and scores groups of answers: which are right, and is the vote right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning_serl.answers import AnswerGrader, expected_kind, resolve_grader
from lightning_serl.rewards import MajorityVote, PairwiseVote, VerifiableReward
from lightning_serl.rewards.serl import RuleReward
from lightning_serl.types import Group, Instruction, Verdict

_EXPECTED = {"choice": "have options", "math": "ask for numbers or formulas", "text": "for words"}


class SetGrader(NamedTuple):
    """How the answers of one set are read and compared; ``name`` chooses the sentence on the answer format."""

    grader: AnswerGrader
    name: str


def set_graders(sets: Mapping[str, Sequence[Instruction]], run: SetGrader) -> tuple[dict[str, SetGrader], list[str]]:
    """The grader of each set, and for the log a sentence for each set with another than the run's (``data.grader``).

    It is ``choice`` for a set whose problems all have choices, else the run's.
    """
    choice = run if run.name == "choice" else SetGrader(resolve_grader("choice"), "choice")
    out = {name: choice if all("choices" in p.meta for p in problems) else run for name, problems in sets.items()}
    return out, [
        f"{name}: grader: choice (all {len(sets[name])} problems come with choices)"
        for name, chosen in out.items()
        if chosen.name != run.name
    ]


def expectation(problems: Sequence[Instruction]) -> str:
    """A sentence on how the default grader will read the answers to problems, as far as these show it."""
    kinds: Counter[str] = Counter(expected_kind(p.prompt, p.meta.get("choices")) for p in problems)
    shares = ", ".join(f"{kinds[kind]} {named}" for kind, named in _EXPECTED.items() if kinds[kind])
    return (
        f"grader: auto reads each problem's answers by what they are; of {len(problems)} problems, {shares}; "
        "set --data.grader math, choice or text to read all alike"
    )


class Scores(NamedTuple):
    """Scores of one group of answers; ``right`` is empty and ``vote_right`` is ``None`` without a label."""

    answers: list[str | None]
    right: tuple[bool, ...]
    vote: str | None = None
    vote_right: bool | None = None
    agreement: float = 0.0
    no_answer: int = 0
    distinct: int = 0  # classes of equal answers


class DefaultScoring:
    """Reads answers from the responses alone; the vote is the largest class of equal answers."""

    def __init__(self, grader: AnswerGrader) -> None:
        self.verify, self.vote = VerifiableReward(grader), MajorityVote(grader, min_answers=1)

    def __call__(self, group: Group) -> Scores:
        """Score one group; a response without a readable answer is wrong."""
        vote, problem = self.vote([group], None)[0], group.instruction
        assert group.answers is not None
        right = _flags(self.verify([group], None)[0], group)
        missing, distinct = int(vote.info["no_answer"]), int(vote.info["unique_answers"])
        scores = Scores(group.answers, right, vote.label, None, vote.confidence, missing, distinct)
        if vote.label is None or problem.label is None:
            return scores
        choices = problem.meta.get("choices")
        voted = Group.from_texts(problem.prompt, [f"\\boxed{{{vote.label}}}"], problem.label, choices=choices)
        return scores._replace(vote_right=_flags(self.verify([voted], None)[0], voted)[0])


class SerlScoring:
    """SeRL's published rules; the vote is right if the response that it chose is right."""

    def __init__(self) -> None:
        self.rule, self.vote = RuleReward(), PairwiseVote()

    def __call__(self, group: Group) -> Scores:
        """Score one group by the published rules."""
        rule, vote = self.rule([group], None)[0], self.vote([group], None)[0]
        winner, answers, right = int(vote.info["majority_index"]), list(rule.info["answers"]), _flags(rule, group)
        vote_right = right[winner] if right else None
        missing, distinct = answers.count(None), len({answer for answer in answers if answer is not None})
        return Scores(answers, right, answers[winner], vote_right, vote.confidence, missing, distinct)


def _flags(verdict: Verdict, group: Group) -> tuple[bool, ...]:
    """Which answers are right; empty without a label."""
    return () if group.instruction.label is None else tuple(bool(s > 0) for s in verdict.scores)
