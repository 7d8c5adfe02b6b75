"""Advantages: baselines, scales, returns, whitening and the overlong penalty, as pure tensor functions.

Notation: ``B`` responses, ``T`` tokens of the longest row. A response of weight 0 enters no statistic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_serl.objectives.options import Baseline, Scale


def advantages(
    scores: Tensor,
    group: Tensor,
    baseline: Baseline = "group",
    scale: Scale = "group",
    weight: Tensor | None = None,
    eps: float = 1e-4,
) -> Tensor:
    """Score minus baseline, over scale; standard deviations are unbiased (divide by count - 1).

    GRPO is (group, group), Dr. GRPO (group, none), RLOO (loo, none), REINFORCE++ (batch, token) and its baseline
    variant (group, token). ``scale="batch"`` divides by the deviation of the scores after the baseline was subtracted.

    Args:
        scores: (B,) float.
        group: (B,) integer, equal for responses to one instruction; rows need not be adjacent.
        baseline: See :class:`Objective`.
        scale: See :class:`Objective`; ``token`` acts as ``none`` here, and :func:`whiten` does the rest.
        weight: (B,) float; rows of weight 0 are left out of all statistics and get advantage 0.
        eps: Added to the standard deviation.

    Returns:
        (B,) of the dtype of ``scores``. A group (or batch) of equal scores, or with one response of positive weight,
        gets 0 wherever its own statistics are used.

    Raises:
        ValueError: for an unknown baseline or scale, integer scores, or shapes that differ.
    """
    if scores.shape != group.shape or (weight is not None and weight.shape != scores.shape):
        raise ValueError("scores, group and weight must all have shape (B,)")
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating point, got {scores.dtype}")
    live = torch.ones_like(scores) if weight is None else (weight > 0).to(scores.dtype)
    # where, not a product: a row of weight 0 may hold a non-finite score
    scores = torch.where(live > 0, scores, torch.zeros_like(scores))
    index = torch.unique(group, return_inverse=True)[1]
    groups = int(index.max()) + 1 if index.numel() else 0

    def per_group(values: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=scores.dtype, device=scores.device).index_add_(0, index, values * live)[index]

    count, total = per_group(torch.ones_like(scores)), per_group(scores)
    number = live.sum()
    # compared exactly: rounding must not give a unanimous group an advantage
    flat = (count < 2) | ~_spread(scores, index, groups, live)[index]
    if baseline == "group":
        centred = torch.where(flat, 0.0, scores - total / count.clamp(min=1))
    elif baseline == "loo":
        centred = torch.where(flat, 0.0, scores - (total - scores) / (count - 1).clamp(min=1))
    elif baseline == "batch":
        whole = torch.zeros_like(index)
        differs = bool(_spread(scores, whole, 1, live)) if index.numel() else False
        centred = scores - (scores * live).sum() / number.clamp(min=1) if differs else torch.zeros_like(scores)
    elif baseline == "none":
        centred = scores.clone()
    else:
        raise ValueError(f"baseline must be group, loo, batch or none, got {baseline!r}")

    if scale == "group":
        mean = total / count.clamp(min=1)
        deviation = (per_group((scores - mean) ** 2) / (count - 1).clamp(min=1)).sqrt()
        centred = torch.where(flat, torch.zeros_like(centred), centred / (deviation + eps))
    elif scale == "batch":
        mean = (centred * live).sum() / number.clamp(min=1)
        deviation = ((((centred - mean) ** 2) * live).sum() / (number - 1).clamp(min=1)).sqrt()
        flat_batch = bool(number < 2) or not bool((centred[live > 0] != centred[live > 0][0]).any())
        centred = torch.zeros_like(centred) if flat_batch else centred / (deviation + eps)
    elif scale not in ("token", "none"):
        raise ValueError(f"scale must be group, batch, token or none, got {scale!r}")
    return centred * live


def _spread(scores: Tensor, index: Tensor, groups: int, live: Tensor) -> Tensor:
    """(groups,) bool: whether the scores of positive weight of a group differ, by exact comparison."""
    big = torch.finfo(scores.dtype).max
    low = scores.new_full((groups,), big).scatter_reduce_(0, index, torch.where(live > 0, scores, big), "amin")
    high = scores.new_full((groups,), -big).scatter_reduce_(0, index, torch.where(live > 0, scores, -big), "amax")
    return high > low


def returns(advantage: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """(B, T) advantages of tokens: that of the response, minus ``beta`` times the divergence from that token on.

    This is the undiscounted return where a token's reward is minus ``beta`` times its divergence, and the last token's
    also has the score.

    Args:
        advantage: (B,) float, one per response; gives the dtype.
        kl: (B, T) divergence of each token.
        mask: (B, T) bool, True on tokens that count; the result is 0 elsewhere.
        beta: Weight of the divergence.
    """
    counted = torch.where(mask, kl.to(advantage.dtype), 0.0)
    to_go = counted.flip(-1).cumsum(-1).flip(-1)
    return torch.where(mask, advantage[:, None] - beta * to_go, 0.0)


def whiten(values: Tensor, mask: Tensor, floor: float = 1e-8) -> Tensor:
    """Subtract the mean over all tokens and divide by their standard deviation (REINFORCE++).

    The variance is biased (divided by the count), as in OpenRLHF.

    Args:
        values: (B, T) float, advantages of tokens; the result has this shape and dtype.
        mask: (B, T) bool, True on tokens that count; elsewhere, and if all tokens are equal, the result is 0.
        floor: Smallest variance to divide by.
    """
    kept = values[mask]
    # relative to the first value, so that rounding gives no advantage where all are equal
    shifted = kept - kept[:1]
    centred = shifted - shifted.mean()
    deviation = (centred**2).mean().clamp(min=floor).sqrt()
    return torch.zeros_like(values).masked_scatter(mask, centred / deviation)


def overlong_penalty(lengths: Tensor, max_tokens: int, buffer: int) -> Tensor:
    """DAPO's soft penalty of long responses (2503.14476, eq. 13), (B,) float32 in [-1, 0], to be added to their scores.

    Args:
        lengths: (B,) tokens of each response.
        max_tokens: Length at and above which a response gets -1.
        buffer: Tokens before ``max_tokens`` over which the penalty falls from 0 to -1; 0 for a step. Negative or above
            ``max_tokens`` it raises ``ValueError``.
    """
    if not 0 <= buffer <= max_tokens:
        raise ValueError(f"the overlong buffer must lie between 0 and max_tokens = {max_tokens}, got {buffer}")
    over = (lengths - (max_tokens - buffer)).float()
    return -(over / max(buffer, 1)).clamp(0.0, 1.0)
