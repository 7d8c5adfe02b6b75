"""Rewards for how sure the policy is of its own tokens (Intuitor, RENT); no answer is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.answers import AnswerGrader, resolve_grader
from lightning_serl.errors import InputError
from lightning_serl.rewards.base import fill_answers, grader_of
from lightning_serl.types import Group, Verdict


class SelfCertainty:
    r"""Scores each response by its mean self-certainty.

    Intuitor (arXiv 2505.19590, 2502.18581): :math:`r_i = \frac{1}{T}\sum_t \mathrm{KL}(U \| p_t)` up to a constant,
    with U the uniform distribution over the vocabulary and :math:`p_t` the policy's distribution of token t. The
    present policy scores itself; a frozen scorer was found to be exploited.

    Fragile: accuracy rises first and falls later, with repetition and long responses (arXiv 2506.17219 saw the peak
    near step 20). Watch the signs of health, and use a smaller learning rate than for a vote.

    Raises:
        InputError: on a call with groups without ``stats["certainty"]``, which a run provides.
    """

    needs: frozenset[str] = frozenset({"certainty"})

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group, without a label; an empty response gets 0."""
        return [Verdict(_means(group, "certainty", type(self).__name__)) for group in groups]


class NegativeEntropy:
    r"""Scores each response by minus the mean entropy of its tokens, in nats.

    RENT (arXiv 2505.22660): :math:`r_i = -\frac{1}{T}\sum_t H(p_t)`. Fragile in the same way as
    :class:`SelfCertainty`: the policy can become certain without becoming right.

    Args:
        no_answer: Score of a response without an answer, -7 in the paper's option; ``None`` does not read answers.
        grader: Reads answers if ``no_answer`` is set; by default that of the run.

    Raises:
        InputError: on a call with groups without ``stats["entropy"]``, which a run provides.
    """

    needs: frozenset[str] = frozenset({"entropy"})

    def __init__(self, no_answer: float | None = None, grader: str | AnswerGrader | None = None) -> None:
        self.no_answer = no_answer
        self.grader, self.named = resolve_grader("math" if grader is None else grader), grader is not None

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group, without a label; an empty response gets 0."""
        verdicts = [Verdict(-_means(group, "entropy", type(self).__name__)) for group in groups]
        if self.no_answer is not None:
            fill_answers(groups, grader_of(self.grader, self.named, ctx))
            for group, verdict in zip(groups, verdicts, strict=True):
                assert group.answers is not None
                verdict.scores[[answer is None for answer in group.answers]] = self.no_answer
        return verdicts


def _means(group: Group, statistic: str, name: str) -> torch.Tensor:
    """(n,) mean of a statistic over the tokens of each response."""
    if statistic not in group.stats:
        raise InputError(f"{name} needs the {statistic} of every token in Group.stats[{statistic!r}]")
    return torch.stack([tokens.mean() if len(tokens) else torch.tensor(0.0) for tokens in group.stats[statistic]])
