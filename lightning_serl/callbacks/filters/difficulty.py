"""Filters groups by the scores of their responses: outside a difficulty band, or without spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from lightning_serl.callbacks.filters import serl as published
from lightning_serl.callbacks.rollout_hooks import GroupFilter
from lightning_serl.distributed.lightning_internals import callback_state_key
from lightning_serl.errors import InputError, check_choice
from lightning_serl.types import STYLES, Group, Reason, Verdict

# Covers the rounding of float32 scores; means of n scores differ by far more if they differ.
_ROUNDING = 1e-6
# Share of the largest score up to which scores count as equal: those made of log-probs differ by the size of the batch
# that a response was in, and such a difference would be a whole standard deviation.
_EQUAL = 1e-5


class DifficultyFilter(GroupFilter):
    """Drops groups whose problem is too easy or too hard for the policy.

    The mean score of the responses with a weight above 0 must lie between ``low`` and ``high``, bounds included. Only
    problems (role ``solve``) with scores between 0 and 1 are judged, since other scores do not measure difficulty.
    Groups whose scores are advantages already are kept.

    Args:
        low: Smallest mean score that is trained on.
        high: Largest mean score that is trained on.
        style: ``default`` compares without rounding errors (4 of 5 is 0.8); ``serl`` compares the float32 mean, as
            SeRL's published code does (4 of 5 is above 0.8).

    Raises:
        InputError: if ``low`` is above ``high``, or for an unknown style.
    """

    def __init__(self, low: float = 0.2, high: float = 0.8, style: Literal["default", "serl"] = "default") -> None:
        super().__init__()
        if not low <= high:
            raise InputError(f"DifficultyFilter.low must be at most DifficultyFilter.high, got {low} and {high}")
        check_choice("DifficultyFilter.style", style, STYLES)
        self.low, self.high, self.style = low, high, style

    @property
    def state_key(self) -> str:
        """A key that tells filters of this class with other options apart."""
        return callback_state_key(self, "low", "high", "style")

    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[Reason | None]]:
        """Weight 0 and ``too_hard``, ``too_easy`` or ``no_answer`` for groups outside the band.

        A reward that leaves out a whole group gives another reason than ``no_answer`` in ``info["unscored"]``.
        """
        return _weights([self._judge(g, v) for g, v in zip(groups, verdicts, strict=True)])

    def _judge(self, group: Group, verdict: Verdict) -> Reason | None:
        if verdict.centred or group.instruction.role != "solve":
            return None
        scores = verdict.scores[verdict.weight > 0]
        # the published code does not treat missing answers apart from wrong ones
        if not len(scores) or (self.style == "default" and _unanswered(verdict)):
            return _why_unscored(verdict)
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
    """Drops groups whose responses all have the same score, up to rounding.

    Under a baseline per group such responses have no advantage; under a baseline over the batch they are reinforced for
    being unanimous. Responses of weight 0 do not count. Groups with scores per token, or whose scores are advantages
    already, are kept.
    """

    def weigh(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> tuple[list[float], list[Reason | None]]:
        """Weight 0 and ``no_spread`` or ``no_answer`` for groups without spread."""
        return _weights([self._judge(verdict) for verdict in verdicts])

    def _judge(self, verdict: Verdict) -> Reason | None:
        if verdict.centred:
            return None
        if _unanswered(verdict):
            return _why_unscored(verdict)
        scores = verdict.scores[verdict.weight > 0]
        equal = bool((scores == scores[0]).all() or scores.max() - scores.min() <= _EQUAL * scores.abs().max())
        return "no_spread" if equal and verdict.token_scores is None else None


def _unanswered(verdict: Verdict) -> bool:
    """Whether no response has a weight, or the reward found an answer in none of them."""
    return not bool((verdict.weight > 0).any()) or verdict.info.get("no_answer", 0) == len(verdict.scores)


def _why_unscored(verdict: Verdict) -> Reason:
    """Why a group has nothing to train on: what the reward says, else that no answer was found."""
    said: Reason = verdict.info.get("unscored", "no_answer")
    return said


def _weights(reasons: list[Reason | None]) -> tuple[list[float], list[Reason | None]]:
    return [1.0 if reason is None else 0.0 for reason in reasons], reasons
