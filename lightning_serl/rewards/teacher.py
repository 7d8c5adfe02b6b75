"""The vote of a slow teacher is the label (Co-rewarding-II)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_serl.answers import AnswerGrader
from lightning_serl.errors import InputError, check_range
from lightning_serl.rewards.base import fill_answers, grader_of
from lightning_serl.rewards.majority import MajorityVote
from lightning_serl.rewards.verifiable import scores_against
from lightning_serl.types import Group, Verdict


class TeacherVote:
    """Scores 1 for the answer that most of a teacher's own responses give, 0 for every other and for no answer.

    Co-rewarding-II (arXiv 2508.00410): the teacher is a slow average of the policy's weights and answers each problem
    by itself, so that the policy cannot raise its reward by agreeing with itself alone. Add
    ``ReferenceSync(mode="ema", alpha=0.01, who="teacher")``, which moves the teacher after each step, as
    ``preset:method-teacher-vote`` does. The paper lowers ``alpha`` from 0.01 to 1e-5 along a cosine; here it is fixed.

    Args:
        grader: As in :class:`~lightning_serl.rewards.MajorityVote`; by default that of the run.
        votes: Responses of the teacher to each problem, 8 in the paper; they are not trained on.

    Raises:
        InputError: for ``votes`` below 1, and on a call outside a run, where there is no teacher.
    """

    needs: frozenset[str] = frozenset({"teacher"})

    def __init__(self, grader: str | AnswerGrader | None = None, votes: int = 8) -> None:
        check_range("votes of the teacher", votes, at_least=1)
        self.vote, self.votes = MajorityVote(grader, min_answers=1), votes

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; the teacher's responses are linked to it as ``("teacher", None)``."""
        if ctx is None:
            raise InputError("TeacherVote needs a run, whose teacher votes; MajorityVote works without one")
        grader = grader_of(self.vote.grader, self.vote.named, ctx)
        fill_answers(groups, grader)
        taught = ctx.generate([group.instruction for group in groups], self.votes, who="teacher")
        for group, teacher in zip(groups, taught, strict=True):
            group.links["teacher", None] = [teacher]
        votes = self.vote(taught, ctx)
        return [
            Verdict(scores_against(group, vote.label, grader), vote.label, vote.confidence, info=vote.info)
            for group, vote in zip(groups, votes, strict=True)
        ]
