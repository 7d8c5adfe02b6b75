"""Scores a group of answers to an evaluation problem: which are right, what the vote is, and whether it is right."""

from __future__ import annotations

from typing import NamedTuple

from lightning_serl.answers import AnswerGrader
from lightning_serl.rewards import MajorityVote, PairwiseVote, VerifiableReward
from lightning_serl.rewards.serl import RuleReward
from lightning_serl.types import Group, Verdict


class Scores(NamedTuple):
    """Scores of one group of answers; ``right`` is empty and ``vote_right`` is ``None`` without a label."""

    answers: list[str | None]
    right: tuple[bool, ...]
    vote: str | None = None
    vote_right: bool | None = None
    agreement: float = 0.0
    no_answer: int = 0


class DefaultScoring:
    """Reads answers from the responses alone; the vote is the largest class of equal answers."""

    def __init__(self, grader: AnswerGrader) -> None:
        self.verify, self.vote = VerifiableReward(grader), MajorityVote(grader)

    def __call__(self, group: Group) -> Scores:
        """Score one group; a response without a readable answer is wrong."""
        vote = self.vote([group], None)[0]
        assert group.answers is not None
        right = _flags(self.verify([group], None)[0], group)
        scores = Scores(group.answers, right, vote.label, None, vote.confidence, int(vote.info["no_answer"]))
        if vote.label is None or group.instruction.label is None:
            return scores
        problem = group.instruction
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
        winner = int(vote.info["majority_index"])
        answers = list(rule.info["answers"])
        right = _flags(rule, group)
        vote_right = right[winner] if right else None
        return Scores(answers, right, answers[winner], vote_right, vote.confidence, answers.count(None))


def _flags(verdict: Verdict, group: Group) -> tuple[bool, ...]:
    """Which answers are right; empty without a label."""
    return () if group.instruction.label is None else tuple(bool(s > 0) for s in verdict.scores)
