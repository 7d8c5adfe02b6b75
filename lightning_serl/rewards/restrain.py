"""A vote in which every answer counts by its share, and weak agreement costs all (RESTRAIN)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from lightning_serl.answers import AnswerGrader
from lightning_serl.errors import check_range
from lightning_serl.rewards.base import AnswerVote, facts_of
from lightning_serl.rewards.majority import majority
from lightning_serl.types import Group, Verdict


class RestrainVote(AnswerVote):
    r"""Advantages of a vote in which every answer class is a label of its own, weighted by its share.

    RESTRAIN (arXiv 2510.02172). With :math:`f_j` the share of class j among the n responses and the weights
    :math:`w_j \propto \exp(-(f_j - 1)^2 / 2\sigma^2)`, response i gets

    .. math:: A_i = \sum_j w_j \frac{1[y_i = j] - f_j}{\sqrt{f_j (1 - f_j)}},

    minus ``penalty`` for all responses of a group whose largest share is below ``min_share``. The advantages are final
    (``Verdict.centred``): no baseline is subtracted. A unanimous group, which has no spread, gets 0.

    The paper states the three parts; the mixture above, and the default values, are ours. Its weight per prompt from
    the votes of the base model is left out.

    Args:
        grader: As in :class:`~lightning_serl.rewards.MajorityVote`; by default that of the run.
        sigma: Width of the weights: small values approach the majority vote, large ones equal weights.
        min_share: Groups with a smaller largest share are penalised.
        penalty: What is subtracted from every response of such a group.

    Raises:
        InputError: for ``sigma`` not above 0, a share outside [0, 1] or a negative penalty.
    """

    def __init__(
        self,
        grader: str | AnswerGrader | None = None,
        sigma: float = 0.5,
        min_share: float = 0.25,
        penalty: float = 0.5,
    ) -> None:
        check_range("sigma of the restrained vote", sigma, above=0)
        check_range("min_share of the restrained vote", min_share, at_least=0, at_most=1)
        check_range("penalty of the restrained vote", penalty, at_least=0)
        super().__init__(grader)
        self.sigma, self.min_share, self.penalty = sigma, min_share, penalty

    def vote(self, group: Group, answers: Sequence[str | None], classes: Sequence[int]) -> Verdict:
        """See :meth:`AnswerVote.vote`."""
        n, info, found = len(group), facts_of(classes), majority(answers, classes)
        if found is None:
            return Verdict(torch.zeros(n), confidence=0.0, weight=torch.zeros(n), centred=True, info=info)
        sizes = Counter(number for number in classes if number >= 0)
        top = max(sizes.values())
        shares = {number: size / n for number, size in sizes.items()}
        weights = {number: math.exp(-((f - 1) ** 2) / (2 * self.sigma**2)) for number, f in shares.items()}
        total = sum(weights.values())
        scores = torch.zeros(n)
        for number, f in shares.items():
            if f < 1:
                agrees = torch.tensor([float(c == number) for c in classes])
                scores += weights[number] / total * (agrees - f) / math.sqrt(f * (1 - f))
        if top < self.min_share * n - 1e-9:
            scores -= self.penalty
        return Verdict(scores, found[0], top / n, centred=True, info=info)
