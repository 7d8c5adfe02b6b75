"""Importance weights that correct for the gap between the policy that sampled and the policy that is trained."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from lightning_serl.objectives.losses import LARGEST_LOG_RATIO
from lightning_serl.objectives.options import Correction, SequenceRatio


def importance_weights(
    old: Tensor,
    sampler: Tensor,
    mask: Tensor,
    correction: Correction = "token_truncate",
    cap: float = 3.0,
    floor: float = 0.0,
    ratio: SequenceRatio = "product",
) -> ImportanceWeights:
    """Weights for tokens that were sampled by another policy than ``old``, from which the clip ratio starts.

    The sampler is the same policy in other kernels, or an older version of it. Each token's term of the loss is
    multiplied, after clipping, by the importance ratio old / sampler, kept in bounds: truncated (Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training"; the decoupled objective of AReaL, 2505.24298) or
    masked (IcePop; TRL's ``sequence_mask``).

    Args:
        old: (B, T) log-probs under the policy that starts the round.
        sampler: (B, T) log-probs as the sampler reported them; a token where it is NaN counts as ratio 1.
        mask: (B, T) bool, True on tokens that count; each row is one whole response.
        correction: ``token_truncate``, ``token_mask``, ``sequence_truncate`` or ``sequence_mask``, else ``ValueError``.
        cap: Ratios above it are set to it (truncate) or to 0 (mask).
        floor: The same for ratios below it.
        ratio: Of a sequence: ``product`` of its tokens' ratios or their ``geometric`` mean, else ``ValueError``.
    """
    level, _, bound = correction.partition("_")
    if correction not in get_args(Correction) or not bound:
        raise ValueError(f"correction must be one of {', '.join(get_args(Correction)[1:])}, got {correction!r}")
    if ratio not in get_args(SequenceRatio):
        raise ValueError(f"ratio must be product or geometric, got {ratio!r}")
    known = mask & ~torch.isnan(sampler)
    log_ratio = torch.where(known, old.detach() - sampler, torch.zeros_like(old))
    if level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True)
        if ratio == "geometric":
            log_ratio = log_ratio / known.sum(-1, keepdim=True).clamp(min=1)
    raw = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    outside = (raw > cap) | (raw < floor)
    weight = raw.clamp(floor, cap) if bound == "truncate" else torch.where(outside, torch.zeros_like(raw), raw)
    return ImportanceWeights(weight, outside)


class ImportanceWeights(NamedTuple):
    """Weights without gradient, and whether each ratio was out of bounds; (B, T) for tokens, (B, 1) for sequences."""

    weight: Tensor
    outside: Tensor

    def counted(self, mask: Tensor) -> ImportanceWeights:
        """Only the tokens in ``mask`` (B, T), or only the sequences with a token in it; each (k,)."""
        units = mask if self.weight.shape == mask.shape else mask.any(-1, keepdim=True)
        return ImportanceWeights(self.weight[units], self.outside[units])


def effective_sample_size(count: float, total: float, squares: float) -> float:
    """Kish's effective sample size of importance weights, divided by their number: 1 if all are equal, 0 if all are 0.

    Args:
        count: Number of weights.
        total: Their sum.
        squares: Sum of their squares.
    """
    return total * total / (count * squares) if squares else 0.0
