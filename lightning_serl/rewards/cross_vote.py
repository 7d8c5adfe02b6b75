"""The vote on a paraphrase is the label of the problem, and the other way round (Co-Reward)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers import AnswerGrader
from lightning_serl.rewards.base import grader_of
from lightning_serl.rewards.majority import MajorityVote
from lightning_serl.rewards.verifiable import scores_against
from lightning_serl.types import Group, Reason, Verdict


class CrossVote:
    r"""Scores 1 for the answer that most responses to the other wording of the problem give, 0 for all others.

    Co-Reward (arXiv 2508.00410, eq. 5): with :math:`q'` a paraphrase of :math:`q`,
    :math:`r(q)_i = 1[y_i = \mathrm{vote}(q')]` and :math:`r(q')_i = 1[y'_i = \mathrm{vote}(q)]`. A wrong answer that
    only one wording suggests is not confirmed by the other. Both views are trained on. Use it with
    ``--data.source Paraphrase``, as ``preset:method-co-reward`` does.

    Answers are compared by the run's grader, where the published code compares the boxed strings. A group without a
    second view (dropped as ``no_view``), or whose second view has no answer (``no_answer``), gets weights 0.

    Args:
        grader: As in :class:`MajorityVote`; by default that of the run.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, grader: str | AnswerGrader | None = None) -> None:
        self.vote = MajorityVote(grader, min_answers=1)

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; labels of the problems are not read."""
        grader = grader_of(self.vote.grader, self.vote.named, ctx)
        votes = {g.instruction.uid: v for g, v in zip(groups, self.vote(groups, ctx), strict=True)}
        return [self._score(group, votes, grader) for group in groups]

    def _score(self, group: Group, votes: dict[str, Verdict], grader: AnswerGrader) -> Verdict:
        info, other = votes[group.instruction.uid].info, votes.get(other_view(group) or "")
        if other is None or other.label is None:
            return unscored(group, "no_view" if other is None else "no_answer", info)
        scores = scores_against(group, other.label, grader)
        return Verdict(scores, other.label, float(scores.mean()), info=info)


def other_view(group: Group) -> str | None:
    """The uid of the problem that a paraphrase was made of, or of the first paraphrase of a problem."""
    link = group.instruction.link
    if link is not None:
        return link.parent if link.relation == "view" else None
    views = group.links.get(("view", None))
    return views[0].instruction.uid if views else None


def unscored(group: Group, reason: Reason, info: dict[str, Any]) -> Verdict:
    """A verdict that leaves all responses of a group out, for a reason that filters and ledger then give."""
    n = len(group)
    return Verdict(torch.zeros(n), confidence=0.0, weight=torch.zeros(n), info={**info, "unscored": reason})
