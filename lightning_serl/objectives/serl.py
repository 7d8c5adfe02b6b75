"""Advantages as SeRL's published code computes them, by algorithm, where the paper leaves the rule open.

Two more of its rules are applied elsewhere. The statistics of a batch are those of one attempt, dropped groups included
(``experience.set_advantages``). A divergence in the loss is averaged response by response, while the policy's loss is
averaged token by token (``ResolvedObjective.kl_aggregation``).
"""

from __future__ import annotations

from typing import Any

#: Scores less baseline, over scale, are clamped to [-10, 10] before a divergence is subtracted.
LARGEST_SCORE = 10.0

_RETURN: dict[str, Any] = {"kl": "k1", "kl_in": "return", "aggregation": "token", "eps": 1e-9}

#: Fields of ``Objective`` by algorithm; the comments name the estimator in the published code.
NAMED: dict[str, dict[str, Any]] = {
    # its training script asks for the divergence in the loss
    "grpo": {**_RETURN, "baseline": "group", "scale": "group", "kl": "k3", "kl_in": "loss"},  # group_norm
    "dr_grpo": {**_RETURN, "baseline": "group", "scale": "none"},  # dr_grpo
    "rloo": {**_RETURN, "baseline": "loo", "scale": "token"},  # rloo
    # no baseline: whitening subtracts one that is weighted by tokens
    "reinforce++": {**_RETURN, "baseline": "none", "scale": "token"},  # reinforce
    "reinforce++_baseline": {**_RETURN, "baseline": "group", "scale": "token"},  # reinforce_baseline
}
