"""Notices about labels, filters and truncation, logged before or during a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_serl.callbacks.filters.base import InstructionFilter
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import Instruction


def announce_labels(seeds: Sequence[Instruction]) -> None:
    """Log how many seeds are scored against gold labels, if any."""
    labelled = sum(p.label is not None for p in seeds)
    if labelled:
        rank_zero_info(f"labels: {labelled} of {len(seeds)} seeds have one and are scored against it; others vote")


def announce_unlabelled(seeds: Sequence[Instruction]) -> None:
    """Log how many seeds a reward that needs labels cannot be trained on."""
    without = sum(p.label is None for p in seeds)
    if without:
        rank_zero_info(f"labels: {without} of {len(seeds)} seeds have none and are left out: data.reward needs labels")


def announce_filters(seeds: Sequence[Instruction], callbacks: Sequence[pl.Callback]) -> None:
    """Log what the instruction filters would reject among the seeds, because new problems will be like them."""
    filters = [c for c in callbacks if isinstance(c, InstructionFilter)]
    reasons: Counter[str] = Counter()
    seen = InstructionPool()
    for seed in seeds:
        reason = next((r for f in filters if (r := f.reject(seed, seen)) is not None), None)
        seen.add(seed, "seed")
        if reason is not None:
            reasons[reason] += 1
    bad = sum(reasons.values())
    if not bad:
        return
    ranked = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda r: (-r[1], r[0])))
    message = f"the filters would reject {bad} of your {len(seeds)} seeds ({ranked}); the seeds are used anyway"
    if 2 * bad > len(seeds):
        rank_zero_warn(message + ", but problems like them will be rejected: loosen the filters")
    else:
        rank_zero_info(message)


def warn_of_truncation(share: float, max_tokens: int) -> bool:
    """Warn if most answers of a round were cut off by length, which makes votes meaningless.

    Returns:
        Whether it warned.
    """
    if share <= 0.5:
        return False
    rank_zero_warn(f"{100 * share:.0f} % of the answers were cut off at {max_tokens} tokens; raise data.max_tokens")
    return True
