"""Random numbers from counters, so that a place in a run draws the same numbers on any rank and after any resume."""

from __future__ import annotations

import random

import numpy as np

# One name per stage that draws random numbers, so that no two stages share a stream. Their order is part of the seeds.
# fmt: off
STAGES = (
    "exemplars", "instruction", "rollout", "greedy", "evaluation",
    "reward", "order", "random_reward", "context", "probe", "dropout", "source",
    "documents",
)
# fmt: on


def seed_for(run_seed: int, stage: str, *counters: int) -> int:
    """A 63-bit seed for one place in a run, whose own seed is any non-negative integer.

    ``stage`` is one of :data:`STAGES`; ``counters`` are the place in it, such as round, attempt, index and sample.
    Raises :class:`ValueError` for an unknown stage.
    """
    words = np.random.SeedSequence([run_seed, STAGES.index(stage), *counters]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def rng_for(run_seed: int, stage: str, *counters: int) -> random.Random:
    """A ``random.Random`` seeded by :func:`seed_for`."""
    return random.Random(seed_for(run_seed, stage, *counters))


def uniforms(seed: int, count: int) -> np.ndarray:
    """``count`` float64 draws from [0, 1) that depend only on ``seed``; a sampler uses one per token."""
    return np.random.Generator(np.random.Philox(seed)).random(count)
