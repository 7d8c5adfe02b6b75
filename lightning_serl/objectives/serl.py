"""The advantages of SeRL's published code, by algorithm: what its estimators decide where the paper leaves it open.

Apart from this table and the clamp, two rules are applied where they belong: the statistics of a batch are those of one
attempt, dropped groups included (``experience.set_advantages``), and a divergence in the loss is averaged response by
response while the policy's loss is averaged token by token (``Objective.kl_aggregation``).
"""

from __future__ import annotations

from typing import Any

#: Shaped scores are clamped to this distance from 0 before any divergence is taken off.
LARGEST = 10.0

_RETURN: dict[str, Any] = {"kl": "k1", "kl_in": "return", "aggregation": "token", "eps": 1e-9}

#: Fields of ``Objective`` by algorithm; the estimator's name in the published code stands behind each.
NAMED: dict[str, dict[str, Any]] = {
    # the training script of this one asks for the divergence in the loss
    "grpo": {**_RETURN, "baseline": "group", "scale": "group", "kl": "k3", "kl_in": "loss"},  # group_norm
    "dr_grpo": {**_RETURN, "baseline": "group", "scale": "none"},  # dr_grpo
    "rloo": {**_RETURN, "baseline": "loo", "scale": "token"},  # rloo
    # no baseline: whitening subtracts one that is weighted by tokens
    "reinforce++": {**_RETURN, "baseline": "none", "scale": "token"},  # reinforce
    "reinforce++_baseline": {**_RETURN, "baseline": "group", "scale": "token"},  # reinforce_baseline
}
