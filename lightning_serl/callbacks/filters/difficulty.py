"""Group filters by how the responses were scored: the difficulty band, and groups without spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from lightning_serl.callbacks.filters import serl as published
from lightning_serl.callbacks.filters.base import GroupFilter
from lightning_serl.errors import InputError
from lightning_serl.types import STYLES, Group, Verdict

# float32 scores, summed: shares of n responses that differ at all differ by far more.
_ROUNDING = 1e-6


class DifficultyFilter(GroupFilter):
    """Drops groups that nearly all or hardly any responses solve.

    The mean score of the responses that count (weight above 0) must lie in the band, bounds included. Only problems
    (role ``solve``) whose scores are shares, between 0 and 1, are judged: a mean log-prob or the score of a proposal
    says nothing of difficulty. Groups whose scores are advantages already are left alone.

    Args:
        low: The smallest mean score that is trained on.
        high: The largest mean score that is trained on.
        style: ``default`` takes the bounds as the numbers they are written as (4 of 5 is 0.8); ``serl`` compares the
            float32 mean as SeRL's published code does (4 of 5 is above 0.8).

    Raises:
        InputError: if ``low`` is above ``high``, or for an unknown style.
    """

    def __init__(self, low: float = 0.2, high: float = 0.8, style: Literal["default", "serl"] = "default") -> None:
        super().__init__()
        if not low <= high:
            raise InputError(f"DifficultyFilter: low {low} is above high {high}; low must be at most high")
        if style not in STYLES:
            raise InputError(f"DifficultyFilter: unknown style {style!r}; use default or serl")
        self.low, self.high, self.style = low, high, style

    @property
    def state_key(self) -> str:
        """Tells filters of one class apart by their options."""
        return self._generate_state_key(low=self.low, high=self.high, style=self.style)

    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[str | None]]:
        """Weight 0 and ``too_hard``, ``too_easy`` or ``no_answer`` for groups outside the band.

        Args:
            groups: The groups of a round.
            verdicts: What the reward said of each.

        Returns:
            Weights and reasons.
        """
        return _weights([self._judge(g, v) for g, v in zip(groups, verdicts, strict=True)])

    def _judge(self, group: Group, verdict: Verdict) -> str | None:
        if verdict.centred or group.instruction.role != "solve":
            return None
        live = bool((verdict.weight > 0).any())
        # the published code knows no answer as a case of its own: its mean says it all
        if not live or (self.style == "default" and _unanswered(verdict)):
            return "no_answer"
        scores = verdict.scores[verdict.weight > 0]
        if bool((scores < 0).any()) or bool((scores > 1).any()):
            return None
        if self.style == "serl":
            mean, slack = published.mean_score(scores), 0.0
        else:
            mean, slack = math.fsum(scores.tolist()) / len(scores), _ROUNDING
        if mean < self.low - slack:
            return "too_hard"
        return "too_easy" if mean > self.high + slack else None


class ZeroSpread(GroupFilter):
    """Drops groups whose responses all score the same: they teach nothing, and under batch baselines they lock in.

    Responses of weight 0 do not count. Groups with scores per token, or whose scores are advantages already, are left
    alone.
    """

    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[str | None]]:
        """Weight 0 and ``no_spread`` or ``no_answer`` for groups without a difference.

        Args:
            groups: The groups of a round.
            verdicts: What the reward said of each.

        Returns:
            Weights and reasons.
        """
        return _weights([self._judge(verdict) for verdict in verdicts])

    def _judge(self, verdict: Verdict) -> str | None:
        if verdict.centred:
            return None
        if _unanswered(verdict):
            return "no_answer"
        scores = verdict.scores[verdict.weight > 0]
        equal = bool((scores == scores[0]).all())
        return "no_spread" if equal and verdict.token_scores is None else None


def _unanswered(verdict: Verdict) -> bool:
    """Whether no response counts, or the reward says that none of them holds an answer."""
    return not bool((verdict.weight > 0).any()) or verdict.info.get("no_answer", 0) == len(verdict.scores)


def _weights(reasons: list[str | None]) -> tuple[list[float], list[str | None]]:
    return [1.0 if reason is None else 0.0 for reason in reasons], reasons
