"""A fixed set of the seeds that is answered again and again, to see whether the policy still votes as it began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_serl.distributed.seeding import rng_for
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Instruction, Vote

if TYPE_CHECKING:
    from lightning_serl.datamodules.rounds.setup import Table


@dataclass(frozen=True)
class Probe:
    """The health probe: some seeds, answered with the same sampling seeds every time; never trained on.

    Args:
        prompts: Seeds in the probe.
        samples: Answers to each.
        every: Rounds between two probes; 0 for none.
    """

    prompts: int = 32
    samples: int = 8
    every: int = 5

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"probe.every must be 0 or above, got {self.every}")
        if self.prompts < 1:
            raise ValueError(f"probe.prompts must be at least 1, got {self.prompts}; set probe.every to 0 for no probe")
        if self.samples < 2:
            raise ValueError(f"probe.samples must be at least 2, got {self.samples}: one answer is no vote")

    def choose(self, seeds: Sequence[Instruction], seed: int) -> list[Instruction]:
        """The probe's problems: the same for every call with the same seeds and run seed."""
        return rng_for(seed, "probe").sample(list(seeds), min(self.prompts, len(seeds)))


def probe_votes(table: Table, problems: Sequence[Instruction], samples: int) -> dict[str, Vote]:
    """Answer the probe and vote; every rank does its share, then all hold all votes.

    Args:
        table: The run's parts, its engine up to date.
        problems: What to answer.
        samples: Answers to each.

    Returns:
        The votes by uid.
    """
    fits = [p for p in problems if not table.too_long(p)]
    mine = table.ranks.share(fits)
    vote = MajorityVote(table.grader, ties="abstain")
    with table.phase("probing", len(mine) * samples) as tick, table.ranks.stage("answering the health probe"):
        # always as in round 0: equal weights give equal votes
        groups = table.context(0, "probe", tick=tick).generate(mine, samples)
        votes = [(verdict.label, verdict.confidence) for verdict in vote(groups, None)]
    return dict(zip((p.uid for p in fits), table.ranks.interleave(votes), strict=True))
