"""The loss of one micro-batch: clipped surrogate, divergence in the loss and entropy bonus."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_serl.objectives.importance import ImportanceWeights, importance_weights
from lightning_serl.objectives.losses import ClipCounts, aggregate, clip_counts, kl, policy_loss
from lightning_serl.objectives.options import Aggregation, ResolvedObjective
from lightning_serl.types import RolloutBatch, TokenStats


class Surrogate:
    """The loss of one micro-batch, as a function of its (B, T) log-probs.

    Sums are divided by counts of the whole optimizer step, so that the losses of its micro-batches add up to that of
    all its responses.
    """

    def __init__(self, objective: ResolvedObjective, batch: RolloutBatch) -> None:
        self.objective, self.batch = objective, batch

    def evaluate(self, policy: Callable[..., TokenStats]) -> tuple[Tensor, TokenStats]:
        """The () loss and the statistics of the forward pass that it was computed from, called as ``Policy.forward``.

        The pass also computes the gradient where the loss is a sum over tokens of functions of their log-prob.
        """
        objective = self.objective
        bonus = objective.entropy > 0
        # the importance weight of a whole response depends on all its tokens, and without old log-probs it is computed
        # from those of the pass itself; the ratio of a whole response does so once the policy has moved
        fresh = self.batch.old_logp is None
        separable = not (objective.correction.startswith("sequence") if fresh else objective.ratio == "sequence")
        stats = policy(self.batch, spread_gradient=bonus, loss=self.of_logprobs if separable else None)
        assert stats.entropy is not None
        loss = self.of_logprobs(stats.logp)
        if bonus:
            loss = loss - objective.entropy * self._aggregate(stats.entropy, objective.aggregation)
        return loss, stats

    def of_logprobs(self, logp: Tensor) -> Tensor:
        """() loss without the entropy bonus, from (B, T) log-probs."""
        objective, batch = self.objective, self.batch
        old, adv = self.old(logp), batch.advantages.to(logp.dtype)
        importance = self.importance(old)
        if importance is not None:
            # no weight is negative, so scaling the advantage scales the loss after clipping
            adv = adv * importance.weight
        loss = policy_loss(
            logp, old, adv, batch.mask, objective.clip_low, objective.clip_high, objective.dual_clip,
            objective.aggregation, self._denominator(objective.aggregation), objective.constant_length,
            objective.ratio, objective.surrogate,
        )  # fmt: skip
        if batch.ref_logp is None:
            return loss
        return loss + objective.beta * self._aggregate(self.divergence(logp), objective.kl_aggregation)

    def old(self, logp: Tensor) -> Tensor:
        """(B, T) log-probs at the start of the round; those given, detached, where the round is a single step."""
        return logp.detach() if self.batch.old_logp is None else self.batch.old_logp.to(logp.dtype)

    def divergence(self, logp: Tensor) -> Tensor:
        """(B, T) KL estimates in the loss; the batch must have reference log-probs."""
        assert self.batch.ref_logp is not None
        return kl(logp, self.batch.ref_logp.to(logp.dtype), self.objective.kl, self.batch.mask)

    def importance(self, old: Tensor) -> ImportanceWeights | None:
        """Weights for the gap between sampler and trainer; ``None`` without a correction.

        Denominators stay those of the step: a masked token counts as one without gradient, as in TRL.
        """
        objective, batch = self.objective, self.batch
        if batch.sampler_logp is None or objective.correction == "none":
            return None
        return importance_weights(
            old, batch.sampler_logp.to(old.dtype), batch.mask, objective.correction, objective.correction_cap,
            objective.correction_floor, objective.correction_ratio,
        )  # fmt: skip

    def clip_counts(self, logp: Tensor) -> ClipCounts:
        """How many tokens lose their gradient to the clip, below and above."""
        objective, adv = self.objective, self.batch.advantages.to(logp.dtype)
        return clip_counts(
            logp, self.old(logp), adv, self.batch.mask, objective.clip_low, objective.clip_high, objective.ratio,
            objective.surrogate,
        )  # fmt: skip

    def _aggregate(self, values: Tensor, aggregation: Aggregation) -> Tensor:
        denominator = self._denominator(aggregation)
        return aggregate(values, self.batch.mask, aggregation, denominator, self.objective.constant_length)

    def _denominator(self, aggregation: Aggregation) -> int:
        return self.batch.num_tokens if aggregation == "token" else self.batch.num_sequences
