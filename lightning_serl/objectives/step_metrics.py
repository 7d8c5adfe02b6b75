"""What an optimizer step measures: sums and largest values over its micro-batches and ranks, and their metric names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_serl.distributed.ranks import Ranks
from lightning_serl.objectives.importance import effective_sample_size
from lightning_serl.objectives.options import ResolvedObjective
from lightning_serl.objectives.surrogate import Surrogate
from lightning_serl.types import RolloutBatch, TokenStats

_SUMS = (
    "loss", "entropy", "low", "high", "kl", "padding", "positions",
    "gap", "sampled", "fresh_gap", "fresh", "weights", "ratio", "squares", "outside", "faults", "wild_norms",
)  # fmt: skip
_PEAKS = ("gap", "ratio", "least")
# Mean difference of log-probs per token, in nats, up to which the kernels of a dtype explain it.
_EXPLAINED_GAP = {"float64": 5e-4, "float32": 5e-4, "float16": 0.01, "bfloat16": 0.05}


@dataclass
class StepTotals:
    """Totals of an optimizer step, over the micro-batches of this rank or over all of them."""

    sums: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)  # "least": the smallest weight, with its sign changed
    tokens: int = 1  # loss tokens of the whole optimizer step
    fault: str = ""  # the first value of this rank's micro-batches that is not finite, in words

    def add(self, surrogate: Surrogate, loss: Tensor, stats: TokenStats) -> None:
        """Add one micro-batch: its loss function, () loss, log-probs and entropies."""
        batch, logp = surrogate.batch, stats.logp
        assert stats.entropy is not None
        if batch.ref_logp is not None:
            self._sum(kl=torch.where(batch.mask, surrogate.divergence(logp.detach()), 0.0).sum())
        elif surrogate.objective.beta > 0:
            self._sum(kl=torch.tensor(batch.kl_in_reward))
        low, high = surrogate.clip_counts(logp)
        self._sum(loss=loss * batch.num_tokens, entropy=stats.entropy.sum(), low=low, high=high)
        self._sum(padding=batch.padding, positions=batch.positions)
        self.tokens = batch.num_tokens
        old = surrogate.old(logp)
        if batch.sampler_logp is not None:
            sampler = batch.sampler_logp.to(old.dtype)
            gap = (old - sampler).abs()[batch.mask & ~torch.isnan(sampler)]
            self._sum(gap=gap.sum(), sampled=gap.numel())
            self._peak(gap=gap)
            if not batch.stale:
                self._sum(fresh_gap=gap.sum(), fresh=gap.numel())
        if (importance := surrogate.importance(old)) is not None:
            weight, outside = importance.counted(batch.mask)
            weight = weight.double()
            self._sum(weights=weight.numel(), ratio=weight.sum(), squares=(weight**2).sum(), outside=outside.sum())
            self._peak(ratio=weight, least=-weight)
        if not self.fault and (batch.fault or not math.isfinite(self.sums["loss"])):
            self.fault = batch.fault or _fault(batch, logp)
            self._sum(faults=1.0)

    def add_norm(self, norm: float) -> None:
        """Add this rank's value of the gradient's norm, which should be equal on all ranks."""
        self._sum(wild_norms=not math.isfinite(norm))

    def _sum(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach() if isinstance(value, Tensor) else value)

    def _peak(self, **values: Tensor) -> None:
        for name, value in values.items():
            if value.numel():
                self.peaks[name] = max(self.peaks.get(name, -math.inf), float(value.max()))

    def reduced(self, ranks: Ranks) -> StepTotals:
        """The totals over all ranks, from one collective; every rank must call it.

        The peaks travel in the same sum: each rank fills its row of a table whose other rows are 0, so that the sum of
        the tables holds the peaks of every rank.
        """
        table = torch.zeros(ranks.size, len(_PEAKS), dtype=torch.float64)
        table[ranks.rank] = torch.tensor([self.peaks.get(name, -math.inf) for name in _PEAKS], dtype=torch.float64)
        sums = torch.tensor([self.sums.get(name, 0.0) for name in _SUMS], dtype=torch.float64)
        summed = ranks.sum(torch.cat([sums, table.flatten()]))
        count = len(_SUMS)
        peaks = summed[count:].reshape(table.shape).amax(0)
        return StepTotals(
            dict(zip(_SUMS, summed[:count].tolist(), strict=True)),
            dict(zip(_PEAKS, peaks.tolist(), strict=True)),
            self.tokens,
            self.fault,
        )


def _fault(batch: RolloutBatch, logp: Tensor) -> str:
    """What made the loss of a micro-batch NaN or infinite, with the problem of the first response that did."""
    rows = (batch.mask & ~torch.isfinite(logp.detach())).any(-1).nonzero().flatten().tolist()
    if not rows:
        return f"the loss of {len(batch)} responses from problem {batch.uids[0]} on" if batch.uids else "the loss"
    return f"a log-prob of the policy on problem {batch.uids[rows[0]]}" if batch.uids else "a log-prob of the policy"


def step_metrics(
    totals: StepTotals, objective: ResolvedObjective, grad_norm: float, learning_rate: float
) -> dict[str, float]:
    """The metrics of an optimizer step from totals over all ranks, under TRL's names where TRL has one.

    ``grad_norm`` is that of the whole gradient, before clipping. Values that are not finite are left out.
    """
    sums, peaks, tokens = totals.sums, totals.peaks, max(1, totals.tokens)
    metrics = {
        "loss": sums["loss"] / tokens,
        "entropy": sums["entropy"] / tokens,
        "clip_ratio/low_mean": sums["low"] / tokens,
        "clip_ratio/high_mean": sums["high"] / tokens,
        "clip_ratio/region_mean": (sums["low"] + sums["high"]) / tokens,
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "num_tokens": float(tokens),
        "serl/batch/pad_frac": sums["padding"] / max(1.0, sums["positions"]),
        "serl/batch/positions": sums["positions"],
    }
    if objective.beta > 0:
        metrics["kl"] = sums["kl"] / tokens
    if sums["sampled"]:
        metrics["sampling/sampling_logp_difference/mean"] = sums["gap"] / sums["sampled"]
        metrics["sampling/sampling_logp_difference/max"] = peaks["gap"]
    if sums["weights"]:
        metrics["sampling/importance_sampling_ratio/min"] = -peaks["least"]
        metrics["sampling/importance_sampling_ratio/mean"] = sums["ratio"] / sums["weights"]
        metrics["sampling/importance_sampling_ratio/max"] = peaks["ratio"]
        size = effective_sample_size(sums["weights"], sums["ratio"], sums["squares"])
        metrics["serl/sampling/effective_sample_size"] = size
        changed = "masked" if objective.correction.endswith("mask") else "truncated"
        metrics[f"serl/sampling/{changed}_frac"] = sums["outside"] / sums["weights"]
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def gap_warning(totals: StepTotals, dtype: torch.dtype) -> str | None:
    """The warning that the sampler differs by more than rounding in the dtype of forward passes explains, or ``None``.

    Only completions of the current weights count: those of older weights are meant to differ.
    """
    sums, name = totals.sums, str(dtype).removeprefix("torch.")
    mean = sums["fresh_gap"] / sums["fresh"] if sums["fresh"] else 0.0
    if mean <= _EXPLAINED_GAP.get(name, math.inf):
        return None
    return (
        f"the engine's log-probs differ from the trainer's by {mean:.2g} per token on average, more than {name} "
        f"explains ({_EXPLAINED_GAP[name]:g}): use one dtype and temperature for both, no top_p or top_k, and check "
        "that pushed weights arrive"
    )
