"""The objective: an algorithm by name, and single choices that win over the name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Optional, TypeVar, get_args, overload

from lightning_serl.objectives import serl as published

Name = Literal["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"]
Baseline = Literal["group", "loo", "batch", "none"]
Scale = Literal["group", "batch", "token", "none"]
Aggregation = Literal["token", "sequence", "constant"]
KLKind = Literal["k1", "k2", "k3"]
KLIn = Literal["loss", "reward", "return"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
SequenceRatio = Literal["product", "geometric"]

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
