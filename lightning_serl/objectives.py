"""Advantages, clipped policy losses and KL estimators: pure tensor functions, free of Lightning and of models.

Notation: ``B`` responses, ``T`` tokens of the longest row. A response of weight 0 enters no statistic and no loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Optional, TypeVar, get_args, overload

import torch
from torch import Tensor

from lightning_serl.published import objective as published

Name = Literal["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"]
Baseline = Literal["group", "loo", "batch", "none"]
Scale = Literal["group", "batch", "token", "none"]
Aggregation = Literal["token", "sequence", "constant"]
KLKind = Literal["k1", "k2", "k3"]
KLIn = Literal["loss", "reward", "return"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
SequenceRatio = Literal["product", "geometric"]

# Far outside every clip range, and finite in float32 and bfloat16.
_LARGEST_LOG_RATIO = 60.0

_IN_LOSS: dict[str, Any] = {"kl": "k3", "kl_in": "loss", "aggregation": "token", "eps": 1e-4}
_NAMED: dict[str, dict[str, Any]] = {
    "grpo": {**_IN_LOSS, "baseline": "group", "scale": "group"},
    "dr_grpo": {**_IN_LOSS, "baseline": "group", "scale": "none", "aggregation": "constant"},
    "rloo": {**_IN_LOSS, "baseline": "loo", "scale": "none", "kl": "k1", "kl_in": "reward"},
    "reinforce++": {**_IN_LOSS, "baseline": "batch", "scale": "token", "kl": "k1", "kl_in": "return"},
    "reinforce++_baseline": {**_IN_LOSS, "baseline": "group", "scale": "token", "kl": "k2"},
}
_STYLES = {"default": _NAMED, "serl": published.NAMED}

X = TypeVar("X")


class _AsNamed(Generic[X]):
    """A field that may be left to the algorithm's name: kept as it was given, read as it applies.

    What was given stays in the instance's ``__dict__``, where jsonargparse looks for the defaults of the command
    line: resolved values there would turn into choices that no name could change any more.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, objective: None, owner: type) -> None: ...
    @overload
    def __get__(self, objective: Objective, owner: type) -> X: ...
    def __get__(self, objective: Objective | None, owner: type) -> Any:
        if objective is None:
            return None  # the default of the field
        given = vars(objective)[self.name]
        return _STYLES[objective.style][objective.name][self.name] if given is None else given

    def __set__(self, objective: Objective, value: X | None) -> None:
        vars(objective)[self.name] = value


# For a type checker a reader gets an X and whoever constructs may give None; jsonargparse is told of the latter.
_OrNamed = _AsNamed
if not TYPE_CHECKING:
    _OrNamed = Optional


@dataclass(frozen=True)
class Objective:
    """The policy-gradient objective: an algorithm by name, and single choices that win over the name.

    ============================  ========  =====  ============  ===========
    name                          baseline  scale  divergence    aggregation
    ============================  ========  =====  ============  ===========
    ``grpo``                      group     group  k3 in loss    token
    ``dr_grpo``                   group     none   k3 in loss    constant
    ``rloo``                      loo       none   k1 in reward  token
    ``reinforce++``               batch     token  k1 in return  token
    ``reinforce++_baseline``      group     token  k2 in loss    token
    ============================  ========  =====  ============  ===========

    A field that is null means what the table says, and reads so after construction; ``dataclasses.replace`` therefore
    carries it over as a choice, so construct a new objective to change the name.

    Args:
        name: The algorithm: GRPO (2402.03300), Dr. GRPO (2503.20783), RLOO (2402.14740), REINFORCE++ and its variant
            with a group baseline (2501.03262).
        style: ``default``, or ``serl`` for the advantages of SeRL's published code: shaped scores are clamped to
            [-10, 10]; the divergence is k1 in the return (k3 in the loss for ``grpo``); all but ``grpo`` and
            ``dr_grpo`` are scaled by ``token``; aggregation is ``token``, of a divergence in the loss ``sequence``.
        baseline: What is subtracted from a score: the mean of its ``group`` (GRPO), the mean of the other
            responses of its group (``loo``, RLOO), the mean over the ``batch`` (REINFORCE++), or ``none``.
        scale: What the difference is divided by: the standard deviation of its ``group`` (GRPO), of the
            ``batch``, or ``none`` (Dr. GRPO, RLOO); ``token`` whitens over all tokens of the batch (REINFORCE++).
        clip_low: Lower clip distance; ratios below ``1 - clip_low`` carry no gradient.
        clip_high: Upper clip distance; larger than ``clip_low`` is DAPO's clip-higher.
        dual_clip: Upper bound of the ratio for negative advantages (above 1), or null for none.
        aggregation: ``token`` divides by all tokens of the optimizer step (DAPO), ``sequence`` averages each
            response first (GRPO as first published), ``constant`` divides by a constant length (Dr. GRPO).
        constant_length: Divisor per response under ``aggregation=constant``, in tokens; Dr. GRPO sets it to the
            most tokens a response may have.
        beta: Weight of the KL divergence to the reference policy; 0 holds no reference at all.
        kl: Estimator of the divergence: ``k1`` (difference), ``k2`` (half square) or ``k3`` (always positive).
        kl_in: Whether the divergence is a term of the ``loss``, or its sum over the response is taken off the
            ``reward``, or each token's advantage loses its sum from that token on (``return``).
        entropy: Weight of the policy's entropy, which is taken off the loss, aggregated as the loss is.
        eps: Added to the standard deviation of a ``group`` or ``batch`` before dividing; null is 1e-4, with
            ``style=serl`` 1e-9. Whitening has a floor of its own, see :func:`whiten`.
        correction: How the gap between sampler and trainer is weighed, see :func:`importance_weights`: ``truncate``
            bounds the ratio of each token or of the whole sequence, ``mask`` silences what is out of bounds, ``none``
            trusts the sampler.
        correction_cap: Largest ratio that counts in full; above 1.
        correction_floor: Smallest such ratio, in [0, 1); 0 for none.
        correction_ratio: Ratio of a sequence: the ``product`` of its tokens', or their ``geometric`` mean, which does
            not grow with length; bring the cap close to 1 with it.
    """

    name: Name = "grpo"
    style: Literal["default", "serl"] = "default"
    baseline: _OrNamed[Baseline] = _AsNamed()
    scale: _OrNamed[Scale] = _AsNamed()
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregation: _OrNamed[Aggregation] = _AsNamed()
    constant_length: int = 1024
    beta: float = 0.001
    kl: _OrNamed[KLKind] = _AsNamed()
    kl_in: _OrNamed[KLIn] = _AsNamed()
    entropy: float = 0.0
    eps: _OrNamed[float] = _AsNamed()
    correction: Correction = "token_truncate"
    correction_cap: float = 3.0
    correction_floor: float = 0.0
    correction_ratio: SequenceRatio = "product"

    def __post_init__(self) -> None:
        choices = {"name": Name, "style": Literal["default", "serl"], "baseline": Baseline, "scale": Scale}
        choices |= {"aggregation": Aggregation, "kl": KLKind, "kl_in": KLIn}
        choices |= {"correction": Correction, "correction_ratio": SequenceRatio}
        for field, kind in choices.items():
            value = getattr(self, field)
            if value not in get_args(kind):
                raise ValueError(f"objective.{field} must be one of {', '.join(get_args(kind))}, got {value!r}")
        if not 0 < self.clip_low < 1:
            raise ValueError(f"objective.clip_low must lie between 0 and 1, got {self.clip_low}")
        # not the opposite comparison, which NaN would pass
        if not self.clip_high > 0:
            raise ValueError(f"objective.clip_high must be above 0, got {self.clip_high}")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"objective.dual_clip must be above 1 or null, got {self.dual_clip}")
        if self.constant_length < 1:
            raise ValueError(f"objective.constant_length must be at least 1 token, got {self.constant_length}")
        if not 1 < self.correction_cap < math.inf:
            raise ValueError(f"objective.correction_cap must be a finite number above 1, got {self.correction_cap}")
        if not 0 <= self.correction_floor < 1:
            raise ValueError(f"objective.correction_floor must lie in [0, 1), got {self.correction_floor}")
        for field, number in (("beta", self.beta), ("entropy", self.entropy), ("eps", self.eps)):
            if not 0 <= number < math.inf:
                raise ValueError(f"objective.{field} must be a finite number, 0 or above, got {number}")

    @property
    def kl_aggregation(self) -> Aggregation:
        """How a divergence in the loss is aggregated; SeRL's published code averages response by response."""
        return "sequence" if self.style == "serl" else self.aggregation

    @property
    def kl_off_scores(self) -> bool:
        """Whether a divergence enters the advantages, so that they need log-probs."""
        return self.beta > 0 and self.kl_in != "loss"

    @property
    def mixes_groups(self) -> bool:
        """Whether the advantages of one group depend on the others."""
        return self.baseline == "batch" or self.scale in ("batch", "token")


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
    variant (group, token). Under ``scale="batch"`` the spread is that of the differences after the baseline.

    Args:
        scores: (B,) float.
        group: (B,) integer, equal for responses to one instruction; rows need not be adjacent.
        baseline: See :class:`Objective`.
        scale: See :class:`Objective`; ``token`` is ``none`` here and for :func:`whiten` to do.
        weight: (B,) float; rows of weight 0 leave all statistics untouched and get advantage 0.
        eps: Added to the standard deviation.

    Returns:
        (B,) of the dtype of ``scores``. A group (or batch) without spread, or with a single response of
        positive weight, gets 0 wherever its own statistics are used.

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
    # Compared exactly: rounding must not turn a unanimous group into an advantage.
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
    """(groups,) bool: whether the live scores of a group differ at all (exact comparison)."""
    big = torch.finfo(scores.dtype).max
    low = torch.full((groups,), big, dtype=scores.dtype, device=scores.device)
    low.scatter_reduce_(0, index, torch.where(live > 0, scores, torch.full_like(scores, big)), "amin")
    high = torch.full((groups,), -big, dtype=scores.dtype, device=scores.device)
    high.scatter_reduce_(0, index, torch.where(live > 0, scores, torch.full_like(scores, -big)), "amax")
    return high > low


def returns(advantage: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Each token's advantage: that of its response, less ``beta`` times the divergence from the token on.

    This is the return, undiscounted, where every token pays for its own divergence and the last one earns the score.

    Args:
        advantage: (B,) float, one per response.
        kl: (B, T) divergence of each token.
        mask: (B, T) bool, True on tokens that count.
        beta: Weight of the divergence.

    Returns:
        (B, T) of the dtype of ``advantage``; 0 outside the mask.
    """
    counted = torch.where(mask, kl.to(advantage.dtype), 0.0)
    to_go = counted.flip(-1).cumsum(-1).flip(-1)
    return torch.where(mask, advantage[:, None] - beta * to_go, 0.0)


def whiten(values: Tensor, mask: Tensor, floor: float = 1e-8) -> Tensor:
    """Subtract the mean over all tokens and divide by their standard deviation (REINFORCE++).

    The variance is that of the tokens themselves (divided by their count), as in OpenRLHF.

    Args:
        values: (B, T) float, advantages of tokens.
        mask: (B, T) bool, True on tokens that count.
        floor: The variance counts as at least this much.

    Returns:
        (B, T) of the dtype of ``values``; 0 outside the mask, and everywhere if all tokens are equal.
    """
    kept = values[mask]
    # taken from the first value on, so that rounding earns no advantage where all are equal
    shifted = kept - kept[:1]
    centred = shifted - shifted.mean()
    deviation = (centred**2).mean().clamp(min=floor).sqrt()
    return torch.zeros_like(values).masked_scatter(mask, centred / deviation)


def overlong_penalty(lengths: Tensor, max_tokens: int, buffer: int) -> Tensor:
    """DAPO's soft punishment of long responses (2503.14476, eq. 13), to be added to their scores.

    Args:
        lengths: (B,) tokens of each response.
        max_tokens: Length from which on a response gets -1.
        buffer: Tokens before ``max_tokens`` over which the penalty grows from 0 to -1; 0 punishes only what is longer.

    Returns:
        (B,) float32 in [-1, 0].

    Raises:
        ValueError: if the buffer is negative or longer than ``max_tokens``.
    """
    if not 0 <= buffer <= max_tokens:
        raise ValueError(f"the overlong buffer must lie between 0 and max_tokens = {max_tokens}, got {buffer}")
    over = (lengths - (max_tokens - buffer)).float()
    return -(over / max(buffer, 1)).clamp(0.0, 1.0)


def kl(logp: Tensor, ref: Tensor, kind: KLKind = "k3", mask: Tensor | None = None) -> Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy.

    With x = logp - ref: k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x (Schulman, "Approximating KL divergence").

    Args:
        logp: Log-probs of the sampled tokens under the policy, any shape.
        ref: The same under the reference policy.
        kind: The estimator.
        mask: True on tokens that count; elsewhere value and gradient are 0, whatever ``logp`` and ``ref`` hold there.

    Returns:
        The shape of ``logp``.

    Raises:
        ValueError: for an unknown kind.
    """
    x = logp - ref
    if mask is not None:
        # before the exponential: masking its result would leave a gradient of 0 x inf
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
    """Sum per-token values into one scalar.

    ``token``: sum over tokens / denominator (tokens). ``sequence``: sum over rows of the row's token mean /
    denominator (rows). ``constant``: sum over tokens / (denominator x constant_length), denominator in rows.

    Args:
        values: (B, T) float.
        mask: (B, T) bool, True on tokens that count.
        aggregation: See above.
        denominator: Global count of the whole optimizer step; the count of this batch if absent.
        constant_length: Tokens per row under ``constant``.

    Returns:
        () of the dtype of ``values``; exactly 0 (with a graph) when nothing is masked in.

    Raises:
        ValueError: for an unknown aggregation.
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
) -> Tensor:
    """The clipped surrogate of PPO (Schulman et al. 2017, eq. 7), to be minimised.

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

    Returns:
        () loss.
    """
    adv = adv[:, None] if adv.dim() == 1 else adv
    ratio = _ratio(logp, old, mask)
    gain = torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)
    if dual_clip is not None:
        gain = torch.where(adv < 0, torch.maximum(gain, dual_clip * adv), gain)
    return aggregate(-gain, mask, aggregation, denominator, constant_length)


def _ratio(logp: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """Probability ratio, 1 outside the mask; an infinite one would make the gradient of clipped tokens 0 x inf."""
    return torch.exp(torch.where(mask, logp - old, torch.zeros_like(logp)).clamp(max=_LARGEST_LOG_RATIO))


class ClipCounts(NamedTuple):
    """Sums over the masked tokens of a micro-batch; divide by the token count of the step for TRL's ``clip_ratio``."""

    low: Tensor
    high: Tensor


def clip_counts(logp: Tensor, old: Tensor, adv: Tensor, mask: Tensor, clip_low: float, clip_high: float) -> ClipCounts:
    """How many tokens the clip silenced: below with negative, above with positive advantage.

    Args:
        logp: (B, T).
        old: (B, T).
        adv: (B, T) or (B,).
        mask: (B, T) bool.
        clip_low: As in :func:`policy_loss`.
        clip_high: As in :func:`policy_loss`.
    """
    adv = adv[:, None] if adv.dim() == 1 else adv
    ratio = _ratio(logp, old, mask)
    low = mask & (ratio < 1 - clip_low) & (adv < 0)
    high = mask & (ratio > 1 + clip_high) & (adv > 0)
    return ClipCounts(low.sum(), high.sum())


def importance_weights(
    old: Tensor,
    sampler: Tensor,
    mask: Tensor,
    correction: Correction = "token_truncate",
    cap: float = 3.0,
    floor: float = 0.0,
    ratio: SequenceRatio = "product",
) -> ImportanceWeights:
    """Weights of tokens that another policy sampled than the one whose clip ratio is taken.

    The clip ratio starts from ``old``; the tokens came from ``sampler``, the same policy in other kernels, or an older
    one. Each token's term of the loss, after clipping, is to be multiplied by the importance ratio old / sampler, kept
    in bounds: truncated (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training";
    the decoupled objective of AReaL, 2505.24298) or masked (IcePop; TRL's ``sequence_mask``).

    Args:
        old: (B, T) log-probs under the policy that starts the round.
        sampler: (B, T) log-probs as the sampler reported them; a token where it is NaN counts as ratio 1.
        mask: (B, T) bool, True on tokens that count; each row is one whole response.
        correction: ``token_truncate``, ``token_mask``, ``sequence_truncate`` or ``sequence_mask``.
        cap: Ratios above it are set to it (truncate) or to 0 (mask).
        floor: The same for ratios below it.
        ratio: Of a sequence: ``product`` of its tokens' ratios or their ``geometric`` mean.

    Returns:
        Weights without gradient, and which of them were out of bounds; (B, T) for tokens, (B, 1) for sequences.

    Raises:
        ValueError: for an unknown correction or ratio.
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
    raw = log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp()
    outside = (raw > cap) | (raw < floor)
    weight = raw.clamp(floor, cap) if bound == "truncate" else torch.where(outside, torch.zeros_like(raw), raw)
    return ImportanceWeights(weight, outside)


class ImportanceWeights(NamedTuple):
    """What :func:`importance_weights` returns: (B, T) for tokens, (B, 1) for sequences."""

    weight: Tensor
    outside: Tensor

    def counted(self, mask: Tensor) -> ImportanceWeights:
        """Those of the units that count: the tokens in ``mask`` (B, T), or the sequences with any; each (units,)."""
        units = mask if self.weight.shape == mask.shape else mask.any(-1, keepdim=True)
        return ImportanceWeights(self.weight[units], self.outside[units])


def effective_sample_size(count: float, total: float, squares: float) -> float:
    """Kish's effective sample size of importance weights as a share of their number: 1 if all are equal.

    Args:
        count: Number of weights.
        total: Their sum.
        squares: Sum of their squares.

    Returns:
        In [0, 1]; 0 if every weight is 0.
    """
    return total * total / (count * squares) if squares else 0.0
