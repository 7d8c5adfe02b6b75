"""A vote that pays strong agreement only and punishes rare, uncertain answers (SCRL)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from lightning_serl.answers import AnswerGrader
from lightning_serl.errors import InputError, check_range
from lightning_serl.rewards.base import AnswerVote, facts_of
from lightning_serl.rewards.majority import majority
from lightning_serl.types import Group, Verdict


class SelectiveVote(AnswerVote):
    r"""Scores 1 for the top answer if it leads clearly, -1 for rare answers given with high entropy, 0 for all others.

    SCRL (arXiv 2603.19880). With :math:`p_a` the share of answer class :math:`a` among the n responses and
    :math:`H` the mean entropy per token: the top class gets 1 if :math:`p \ge` ``min_share`` and its lead over the
    second class is above ``min_lead``; a class with :math:`p_a <` ``rare`` gets -1 if the :math:`H` of its responses
    is at least that of the group. A weak majority is not paid, because it is often wrong; a rare answer is punished
    only where the policy was uncertain, because a right minority is often certain. Responses without an answer get 0.

    Args:
        grader: As in :class:`~lightning_serl.rewards.MajorityVote`; by default that of the run.
        min_share: Least share of a top class that is paid.
        min_lead: Its share must exceed that of the second class by more than this.
        rare: Classes with a smaller share may be punished.

    Raises:
        InputError: for a share outside [0, 1], and on a call with groups without token entropies, which a run
            provides because ``needs`` lists them.
    """

    needs: frozenset[str] = frozenset({"entropy"})

    def __init__(
        self,
        grader: str | AnswerGrader | None = None,
        min_share: float = 0.5,
        min_lead: float = 0.15,
        rare: float = 0.15,
    ) -> None:
        for name, share in (("min_share", min_share), ("min_lead", min_lead), ("rare", rare)):
            check_range(f"{name} of the selective vote", share, at_least=0, at_most=1)
        super().__init__(grader)
        self.min_share, self.min_lead, self.rare = min_share, min_lead, rare

    def vote(self, group: Group, answers: Sequence[str | None], classes: Sequence[int]) -> Verdict:
        """See :meth:`AnswerVote.vote`."""
        if "entropy" not in group.stats:
            raise InputError("SelectiveVote needs the entropy of every token in Group.stats['entropy']")
        n, info, found = len(group), facts_of(classes), majority(answers, classes)
        if found is None:
            return Verdict(torch.zeros(n), confidence=0.0, info=info)
        label, winner = found
        sizes = Counter(number for number in classes if number >= 0)
        first, second = [*sorted(sizes.values(), reverse=True), 0][:2]
        # in whole responses: shares as 0.5 - 0.35 would exceed 0.15 by rounding
        paid = first >= self.min_share * n - 1e-9 and first - second > self.min_lead * n + 1e-9
        values = {c: -1.0 for c, size in sizes.items() if size < self.rare * n - 1e-9 and _uncertain(group, c)}
        if paid:
            values[winner] = 1.0
        scores = torch.tensor([values.get(number, 0.0) for number in classes])
        info["punished"] = int((scores < 0).sum())
        return Verdict(scores, label if paid else None, first / n, info=info)


def _uncertain(group: Group, number: int) -> bool:
    """Whether the tokens of the class's responses have at least the mean entropy of all tokens of the group."""
    assert group.cluster is not None
    entropies = group.stats["entropy"]
    own = torch.cat([e for e, c in zip(entropies, group.cluster, strict=True) if c == number])
    return bool(own.mean() >= torch.cat(list(entropies)).mean())
