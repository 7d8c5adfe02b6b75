"""A control: random rewards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from lightning_serl.distributed.seeding import rng_for
from lightning_serl.types import Group, Verdict


class RandomReward:
    """Scores each response 1 or 0 with equal probability, regardless of its content.

    Gains of a run with this reward do not come from the reward. Scores depend only on the seed, the round, the
    instruction and the index of the response, so they are the same for any order of groups and on every rank.

    Args:
        seed: By default that of the run (``data.seed``), and without a run 0.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def __call__(self, groups: Sequence[Group], ctx: Any) -> list[Verdict]:
        """One verdict for each group."""
        # The round makes a fixed problem get other scores in a later round.
        current = int(getattr(ctx, "round", 0) or 0)
        seed = int(getattr(ctx, "seed", 0) or 0) if self.seed is None else self.seed
        return [_draw(group, seed, current) for group in groups]


def _draw(group: Group, seed: int, current: int) -> Verdict:
    # Recorded groups share one uid, so the prompt enters too.
    name = f"{group.instruction.uid}\0{group.instruction.prompt}".encode("utf-8", "surrogatepass")
    key = int.from_bytes(hashlib.sha256(name).digest()[:8], "big")
    rng = rng_for(seed, "random_reward", current, key)
    scores = torch.tensor([float(rng.random() < 0.5) for _ in range(len(group))])
    return Verdict(scores, confidence=float(scores.sum()) / max(len(group), 1), info={"tie": False})
