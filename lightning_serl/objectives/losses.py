"""Clipped policy losses and KL estimators, as pure tensor functions.

Notation: ``B`` responses, ``T`` tokens of the longest row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_serl.objectives.options import Aggregation, KLKind, Ratio, SurrogateKind

#: Log-ratios are clamped to it: far outside every clip range, and its exponential is finite in float32 and bfloat16.
LARGEST_LOG_RATIO = 60.0


def kl(logp: Tensor, ref: Tensor, kind: KLKind = "k3", mask: Tensor | None = None) -> Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy, in the shape of ``logp``.

    With x = logp - ref: k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x (Schulman, "Approximating KL divergence").

    Args:
        logp: Log-probs of the sampled tokens under the policy, any shape.
        ref: The same under the reference policy.
        kind: The estimator; an unknown one raises ``ValueError``.
        mask: True on tokens that count; elsewhere value and gradient are 0, even if ``logp`` or ``ref`` is NaN.
    """
    x = logp - ref
    if mask is not None:
        # masked before the exponential: masking its result would leave a gradient of 0 x inf
        x = torch.where(mask, x, torch.zeros_like(x))
    if kind == "k1":
        return x
    if kind == "k2":
        return x * x / 2
    if kind == "k3":
        return torch.exp(-x) - 1 + x
    raise ValueError(f"kl must be k1, k2 or k3, got {kind!r}")


def aggregate(
    values: Tensor,
    mask: Tensor,
    aggregation: Aggregation = "token",
    denominator: float | Tensor | None = None,
    constant_length: int = 1,
) -> Tensor:
    """Sum per-token values into one () scalar of their dtype; exactly 0, with a gradient graph, for an empty mask.

    ``token``: sum over tokens / denominator (tokens). ``sequence``: sum over rows of the row's token mean /
    denominator (rows). ``constant``: sum over tokens / (denominator x constant_length), denominator in rows.

    Args:
        values: (B, T) float.
        mask: (B, T) bool, True on tokens that count.
        aggregation: One of the three above; any other raises ``ValueError``.
        denominator: Tokens or rows of the whole optimizer step; those of this batch if absent.
        constant_length: Tokens per row under ``constant``.
    """
    # where, not a product: a padded position may hold a non-finite value
    kept = torch.where(mask, values, torch.zeros_like(values))
    lengths = mask.sum(-1)
    if denominator is None:
        denominator = mask.sum() if aggregation == "token" else (lengths > 0).sum()
    divisor = denominator.to(values.dtype).clamp(min=1) if isinstance(denominator, Tensor) else max(denominator, 1)
    if aggregation == "token":
        return kept.sum() / divisor
    if aggregation == "sequence":
        return (kept.sum(-1) / lengths.clamp(min=1)).sum() / divisor
    if aggregation == "constant":
        return kept.sum() / (divisor * constant_length)
    raise ValueError(f"aggregation must be token, sequence or constant, got {aggregation!r}")


def policy_loss(
    logp: Tensor,
    old: Tensor,
    adv: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregation: Aggregation = "token",
    denominator: float | Tensor | None = None,
    constant_length: int = 1,
    ratio: Ratio = "token",
    surrogate: SurrogateKind = "clip",
) -> Tensor:
    """The () clipped surrogate of PPO (Schulman et al. 2017, eq. 7), or that of CISPO, to be minimised.

    With the ratio r of policy and old policy and the advantage A, a token's term is -min(r A, clip(r) A). GSPO
    (2507.18071, eq. 5 to 7) takes the ratio of the whole response in its place, the exponential of the mean of its
    tokens' log-ratios, whose gradient reaches all of them. CISPO (2506.13585, eq. 4 and 5) has the term
    -min(r, 1 + clip_high) A log p with the ratio as a constant, so that no token loses its gradient; like the paper's
    runs and TRL it has no lower bound.

    Args:
        logp: (B, T) log-probs under the policy being trained.
        old: (B, T) log-probs under the policy that wrote the responses (no gradient).
        adv: (B, T) advantages, or (B,) for one per response.
        mask: (B, T) bool, True on tokens that count.
        clip_low: Ratios below ``1 - clip_low`` are clipped.
        clip_high: Ratios above ``1 + clip_high`` are clipped.
        dual_clip: For negative advantages the ratio counts at most this much (Ye et al. 2020).
        aggregation: See :func:`aggregate`.
        denominator: See :func:`aggregate`.
        constant_length: See :func:`aggregate`.
        ratio: ``token`` or ``sequence``; each row is one whole response.
        surrogate: ``clip`` or ``cispo``, which takes no ``clip_low`` and no ``dual_clip``.

    Raises:
        ValueError: for an unknown ratio or surrogate.
    """
    adv = adv[:, None] if adv.dim() == 1 else adv
    ratios = _ratio(logp, old, mask, ratio)
    if surrogate == "cispo":
        gain = ratios.clamp(max=1 + clip_high).detach() * adv * torch.where(mask, logp, torch.zeros_like(logp))
        return aggregate(-gain, mask, aggregation, denominator, constant_length)
    if surrogate != "clip":
        raise ValueError(f"surrogate must be clip or cispo, got {surrogate!r}")
    gain = torch.minimum(ratios * adv, ratios.clamp(1 - clip_low, 1 + clip_high) * adv)
    if dual_clip is not None:
        gain = torch.where(adv < 0, torch.maximum(gain, dual_clip * adv), gain)
    return aggregate(-gain, mask, aggregation, denominator, constant_length)


def _ratio(logp: Tensor, old: Tensor, mask: Tensor, ratio: Ratio) -> Tensor:
    """(B, T) probability ratios, 1 outside the mask, or (B, 1) those of sequences.

    All are finite, since clipped tokens would get a gradient of 0 x inf.
    """
    log_ratio = torch.where(mask, logp - old, torch.zeros_like(logp))
    if ratio == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    elif ratio != "token":
        raise ValueError(f"ratio must be token or sequence, got {ratio!r}")
    return torch.exp(log_ratio.clamp(max=LARGEST_LOG_RATIO))


class ClipCounts(NamedTuple):
    """Sums over the masked tokens of a micro-batch; divide by the token count of the step for TRL's ``clip_ratio``."""

    low: Tensor
    high: Tensor


def clip_counts(
    logp: Tensor,
    old: Tensor,
    adv: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    ratio: Ratio = "token",
    surrogate: SurrogateKind = "clip",
) -> ClipCounts:
    """Count the tokens whose gradient the clip removed: below with negative, above with positive advantage.

    All tokens of a clipped sequence count. Under CISPO, whose gradient is bounded and not removed, those above its
    bound with a positive advantage count, and none below. Arguments, (B, T) or (B,), are those of :func:`policy_loss`.
    """
    adv = adv[:, None] if adv.dim() == 1 else adv
    ratios = _ratio(logp, old, mask, ratio)
    low = mask & (ratios < 1 - clip_low) & (adv < 0) & (surrogate == "clip")
    high = mask & (ratios > 1 + clip_high) & (adv > 0)
    return ClipCounts(low.sum(), high.sum())
