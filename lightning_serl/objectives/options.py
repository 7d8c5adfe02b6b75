"""Options of the policy-gradient objective: an algorithm by name, and single choices that win over the name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_serl.errors import InputError, check_choice, check_range
from lightning_serl.types import Style

Name = Literal["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline", "dapo", "gspo", "cispo"]
Baseline = Literal["group", "loo", "batch", "none"]
Scale = Literal["group", "batch", "token", "none"]
Aggregation = Literal["token", "sequence", "constant"]
Ratio = Literal["token", "sequence"]
SurrogateKind = Literal["clip", "cispo"]
KLKind = Literal["k1", "k2", "k3"]
KLIn = Literal["loss", "reward", "return"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
SequenceRatio = Literal["product", "geometric"]

_PPO: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2, "beta": 0.001, "ratio": "token", "surrogate": "clip"}
_IN_LOSS: dict[str, Any] = {**_PPO, "kl": "k3", "kl_in": "loss", "aggregation": "token", "eps": 1e-4}
# without a divergence, as in the papers and in TRL
_FREE: dict[str, Any] = {**_IN_LOSS, "baseline": "group", "scale": "group", "beta": 0.0}
_NAMED: dict[str, dict[str, Any]] = {
    "grpo": {**_IN_LOSS, "baseline": "group", "scale": "group"},
    "dr_grpo": {**_IN_LOSS, "baseline": "group", "scale": "none", "aggregation": "constant"},
    "rloo": {**_IN_LOSS, "baseline": "loo", "scale": "none", "kl": "k1", "kl_in": "reward"},
    "reinforce++": {**_IN_LOSS, "baseline": "batch", "scale": "token", "kl": "k1", "kl_in": "return"},
    "reinforce++_baseline": {**_IN_LOSS, "baseline": "group", "scale": "token", "kl": "k2"},
    "dapo": {**_FREE, "clip_high": 0.28},
    "gspo": {**_FREE, "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "sequence"},
    "cispo": {**_FREE, "surrogate": "cispo", "clip_high": 4.0},
}
_RETURN: dict[str, Any] = {**_PPO, "kl": "k1", "kl_in": "return", "aggregation": "token", "eps": 1e-9}
# The advantages of SeRL's published code, where the paper leaves the rule open; the comments name its estimators.
# Two more of its rules are elsewhere: the statistics of a batch are those of one attempt, dropped groups included
# (experience.set_advantages), and a divergence in the loss is averaged response by response (kl_aggregation).
_PUBLISHED: dict[str, dict[str, Any]] = {
    # its training script asks for the divergence in the loss
    "grpo": {**_RETURN, "baseline": "group", "scale": "group", "kl": "k3", "kl_in": "loss"},  # group_norm
    "dr_grpo": {**_RETURN, "baseline": "group", "scale": "none"},  # dr_grpo
    "rloo": {**_RETURN, "baseline": "loo", "scale": "token"},  # rloo
    # no baseline: whitening subtracts one that is weighted by tokens
    "reinforce++": {**_RETURN, "baseline": "none", "scale": "token"},  # reinforce
    "reinforce++_baseline": {**_RETURN, "baseline": "group", "scale": "token"},  # reinforce_baseline
}
# What a name decides, by style: the fields of Objective that may be null.
_BY_STYLE = {"default": _NAMED, "serl": _PUBLISHED}
#: With ``style=serl`` scores less baseline, over scale, are clamped to [-10, 10] before a divergence is subtracted.
LARGEST_SCORE = 10.0
_CHOICES: dict[str, Any] = {
    "name": Name, "style": Style, "baseline": Baseline, "scale": Scale, "aggregation": Aggregation, "kl": KLKind,
    "kl_in": KLIn, "ratio": Ratio, "surrogate": SurrogateKind, "correction": Correction,
    "correction_ratio": SequenceRatio,
}  # fmt: skip
_OPEN = tuple(_NAMED["grpo"])


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
    ``dapo``                      group     group  none          token
    ``gspo``                      group     group  none          sequence
    ``cispo``                     group     group  none          token
    ============================  ========  =====  ============  ===========

    ``dapo`` clips higher (0.2 and 0.28), ``gspo`` clips the ratio of whole responses (3e-4 and 4e-4), and ``cispo``
    keeps the gradient of every token and bounds its weight by 5; the numbers are those of the papers and of TRL. All
    others clip at 0.2 and have ``beta`` 0.001. ``preset:dapo``, ``preset:gspo`` and ``preset:cispo`` bring what
    belongs to them besides the objective.

    A field that is null is decided by the name, as the table says: :meth:`resolve` fills it in.

    Args:
        name: The algorithm: GRPO (2402.03300), Dr. GRPO (2503.20783), RLOO (2402.14740), REINFORCE++ and its variant
            with a group baseline (2501.03262), DAPO (2503.14476), GSPO (2507.18071), CISPO (2506.13585).
        style: ``default``, or ``serl`` for the advantages of SeRL's published code: shaped scores are clamped to
            [-10, 10]; the divergence is k1 in the return (k3 in the loss for ``grpo``); all but ``grpo`` and
            ``dr_grpo`` are scaled by ``token``; aggregation is ``token``, of a divergence in the loss ``sequence``.
        baseline: What is subtracted from a score: the mean of its ``group`` (GRPO), the mean of the other
            responses of its group (``loo``, RLOO), the mean over the ``batch`` (REINFORCE++), or ``none``.
        scale: What the difference is divided by: the standard deviation of its ``group`` (GRPO), of the
            ``batch``, or ``none`` (Dr. GRPO, RLOO); ``token`` whitens over all tokens of the batch (REINFORCE++).
        clip_low: Lower clip distance; ratios below ``1 - clip_low`` carry no gradient. ``surrogate=cispo`` has none.
        clip_high: Upper clip distance; larger than ``clip_low`` is DAPO's clip-higher. With ``surrogate=cispo`` the
            largest weight of a token is ``1 + clip_high``, TRL's ``epsilon_high``.
        ratio: What is clipped: the ratio of each ``token``, or that of the whole ``sequence``, the geometric mean of
            its tokens' (GSPO, TRL's ``importance_sampling_level``).
        surrogate: ``clip`` is PPO's; ``cispo`` weighs each token's log-prob by its ratio as a constant, see
            :func:`policy_loss`.
        dual_clip: Upper bound of the ratio for negative advantages (above 1), or null for none.
        aggregation: ``token`` divides by all tokens of the optimizer step (DAPO), ``sequence`` averages each
            response first (GRPO as first published), ``constant`` divides by a constant length (Dr. GRPO).
        constant_length: Divisor per response under ``aggregation=constant``, in tokens; Dr. GRPO sets it to the
            most tokens a response may have.
        beta: Weight of the KL divergence to the reference policy; 0 keeps no reference policy.
        kl: Estimator of the divergence: ``k1`` (difference), ``k2`` (half square) or ``k3`` (always positive).
        kl_in: Where the divergence enters: as a term of the ``loss``; its sum over the response subtracted from the
            ``reward``; or its sum from each token on subtracted from that token's advantage (``return``).
        entropy: Weight of the policy's entropy, which is subtracted from the loss and aggregated like it.
        eps: Added to the standard deviation of a ``group`` or ``batch`` before dividing; null is 1e-4, with
            ``style=serl`` 1e-9. Whitening has another floor, see :func:`whiten`.
        correction: How the gap between sampler and trainer is corrected, see :func:`importance_weights`: ``truncate``
            bounds the ratio of each token or of the whole sequence, ``mask`` gives what is out of bounds no gradient,
            ``none`` applies no weights.
        correction_cap: Largest ratio that counts in full; above 1.
        correction_floor: Smallest such ratio, in [0, 1); 0 for none.
        correction_ratio: Ratio of a sequence: the ``product`` of its tokens', or their ``geometric`` mean, which does
            not grow with length; bring the cap close to 1 with it.
    """

    name: Name = "grpo"
    style: Style = "default"
    baseline: Baseline | None = None
    scale: Scale | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    ratio: Ratio | None = None
    surrogate: SurrogateKind | None = None
    dual_clip: float | None = None
    aggregation: Aggregation | None = None
    constant_length: int = 1024
    beta: float | None = None
    kl: KLKind | None = None
    kl_in: KLIn | None = None
    entropy: float = 0.0
    eps: float | None = None
    correction: Correction = "token_truncate"
    correction_cap: float = 3.0
    correction_floor: float = 0.0
    correction_ratio: SequenceRatio = "product"

    def __post_init__(self) -> None:
        for field, kind in _CHOICES.items():
            value = getattr(self, field)
            if value is not None or field not in _OPEN:
                check_choice(f"model.objective.{field}", value, get_args(kind))
        if self.name not in _BY_STYLE[self.style]:
            have = ", ".join(_BY_STYLE[self.style])
            said = f"model.objective.name {self.name} is not among the published code's algorithms ({have})"
            raise InputError(f"{said}; set model.objective.style to default")
        kind = self.surrogate or _BY_STYLE[self.style][self.name]["surrogate"]
        if self.dual_clip is not None and kind == "cispo":
            said = "model.objective.dual_clip bounds the ratio of a clipped surrogate, which cispo has not"
            raise InputError(f"{said}; set dual_clip to null, and cispo's own bound with clip_high")
        check_range("model.objective.clip_low", self.clip_low, above=0, below=1)
        check_range("model.objective.clip_high", self.clip_high, above=0)
        check_range("model.objective.dual_clip", self.dual_clip, above=1)
        check_range("model.objective.constant_length", self.constant_length, at_least=1)
        check_range("model.objective.correction_cap", self.correction_cap, above=1, below=math.inf)
        check_range("model.objective.correction_floor", self.correction_floor, at_least=0, below=1)
        for field in ("beta", "entropy", "eps"):
            check_range(f"model.objective.{field}", getattr(self, field), at_least=0, below=math.inf)

    def resolve(self) -> ResolvedObjective:
        """The same objective with every null field set to what ``name`` and ``style`` say."""
        named = _BY_STYLE[self.style][self.name]
        given = {field: value for field, value in vars(self).items() if field not in _OPEN or value is not None}
        return ResolvedObjective(**{**named, **given})


@dataclass(frozen=True)
class ResolvedObjective(Objective):
    """An objective without open choices, as :meth:`Objective.resolve` returns it and the loss is computed from it."""

    baseline: Baseline = "group"
    scale: Scale = "group"
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio: Ratio = "token"
    surrogate: SurrogateKind = "clip"
    aggregation: Aggregation = "token"
    beta: float = 0.001
    kl: KLKind = "k3"
    kl_in: KLIn = "loss"
    eps: float = 1e-4

    @property
    def kl_aggregation(self) -> Aggregation:
        """How a divergence in the loss is aggregated; SeRL's published code averages response by response."""
        return "sequence" if self.style == "serl" else self.aggregation

    @property
    def kl_in_advantages(self) -> bool:
        """Whether a divergence enters the advantages, so that they need log-probs."""
        return self.beta > 0 and self.kl_in != "loss"

    @property
    def mixes_groups(self) -> bool:
        """Whether the advantages of one group depend on the others."""
        return self.baseline == "batch" or self.scale in ("batch", "token")
