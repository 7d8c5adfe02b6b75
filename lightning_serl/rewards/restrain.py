"""A vote in which every answer counts by its share, and weak agreement costs all (RESTRAIN)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers import AnswerGrader, resolve_grader
from lightning_serl.errors import check_range
from lightning_serl.rewards.base import fill_answers, grader_of
from lightning_serl.rewards.majority import majority
from lightning_serl.types import Group, Verdict


class RestrainVote:
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

    needs: frozenset[str] = frozenset()

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
        self.grader, self.named = resolve_grader("math" if grader is None else grader), grader is not None
        self.sigma, self.min_share, self.penalty = sigma, min_share, penalty

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group; ``label`` and ``confidence`` are those of the majority vote."""
        fill_answers(groups, grader_of(self.grader, self.named, ctx))
        return [self._vote(group) for group in groups]

    def _vote(self, group: Group) -> Verdict:
        assert group.answers is not None
        assert group.cluster is not None
        n, sizes = len(group), Counter(number for number in group.cluster if number >= 0)
        info = {"tie": False, "unique_answers": len(sizes), "no_answer": n - sum(sizes.values())}
        found = majority(group.answers, group.cluster)
        if found is None:
            return Verdict(torch.zeros(n), confidence=0.0, weight=torch.zeros(n), centred=True, info=info)
        top = max(sizes.values())
        info["tie"] = list(sizes.values()).count(top) > 1
        shares = {number: size / n for number, size in sizes.items()}
        weights = {number: math.exp(-((f - 1) ** 2) / (2 * self.sigma**2)) for number, f in shares.items()}
        total = sum(weights.values())
        scores = torch.zeros(n)
        for number, f in shares.items():
            if f < 1:
                agrees = torch.tensor([float(c == number) for c in group.cluster])
                scores += weights[number] / total * (agrees - f) / math.sqrt(f * (1 - f))
        if top < self.min_share * n - 1e-9:
            scores -= self.penalty
        return Verdict(scores, found[0], top / n, centred=True, info=info)
