"""The health probe: a fixed set of seeds, answered repeatedly to see whether the policy's votes change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_serl.datamodules.rounds.setup import RoundSetup
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.errors import check_range
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Instruction, Vote


@dataclass(frozen=True)
class Probe:
    """The health probe: some seeds, answered with the same sampling seeds every time and never trained on.

    Args:
        prompts: Seeds in the probe.
        samples: Answers to each.
        every: Rounds between two probes; 0 for none.
    """

    prompts: int = 32
    samples: int = 8
    every: int = 5

    def __post_init__(self) -> None:
        check_range("data.probe.every", self.every, at_least=0)
        check_range("data.probe.prompts", self.prompts, at_least=1, hint="set data.probe.every to 0 for no probe")
        check_range("data.probe.samples", self.samples, at_least=2, hint="one answer is no vote")

    def choose(self, seeds: Sequence[Instruction], seed: int) -> list[Instruction]:
        """The probe's problems: the same for every call with the same seeds and run seed."""
        return rng_for(seed, "probe").sample(list(seeds), min(self.prompts, len(seeds)))


def probe_votes(setup: RoundSetup, problems: Sequence[Instruction], samples: int) -> dict[str, Vote]:
    """Answer each problem ``samples`` times and vote; every rank does its share. Returns all votes by uid."""
    fits = [p for p in problems if not setup.too_long(p)]
    mine = setup.ranks.share(fits)
    vote = MajorityVote(setup.grader, ties="abstain")
    with setup.phase("probing", len(mine) * samples) as tick, setup.ranks.stage("answering the health probe"):
        # the counters are those of round 0 every time, so that equal weights give equal votes
        groups = setup.context(0, "probe", tick=tick).generate(mine, samples)
        votes = [(verdict.label, verdict.confidence) for verdict in vote(groups, None)]
    return dict(zip((p.uid for p in fits), setup.ranks.interleave(votes), strict=True))
