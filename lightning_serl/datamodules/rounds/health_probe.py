"""The health probe: a fixed set of seeds, answered repeatedly to see whether the policy's votes change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite

from lightning_serl.datamodules.rounds.setup import RoundSetup
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.errors import check_range
from lightning_serl.rewards.base import fill_answers
from lightning_serl.types import Group, Instruction, Probed

# What all probes of a run may cost where nothing else is asked for, as a share of the answers that it trains on, and
# where a callback acts on them.
_SHARE, _SHARE_ACTED_ON = 0.03, 0.1
# (seeds, answers to each) in the order in which they are tried, and fewest rounds between two probes.
_SIZES = ((32, 8), (24, 8), (16, 8), (16, 4), (8, 4))
_OFTEN = 5
# (seeds, answers to each), probes of a run, and fewest rounds between two, where a callback acts on them.
_ACTED_ON, _TIMES, _NEVER_OFTENER = (32, 4), 8, 2


@dataclass(frozen=True)
class Probe:
    """The health probe: some seeds, answered with the same sampling seeds every time and never trained on.

    Numbers that are left open (null) are chosen so that all probes of the run cost at most 3 % of its answers; there is
    none where two probes of the smallest size would cost more. Where ``KeepBest``, ``StopEarly`` or ``CollapseGuard``
    is listed, 32 seeds are answered 4 times each, after every eighth of the run, or more often where that is at most
    10 % of its answers, but not oftener than every second round.

    Args:
        prompts: Seeds in the probe; null for at most 32.
        samples: Answers to each; null for at most 8, and 4 where a callback acts on the probe.
        every: Rounds between two probes; 0 for none.
    """

    prompts: int | None = None
    samples: int | None = None
    every: int | None = None

    def fitted(self, rounds: float, answers: int, seeds: int, acted_on: bool = False) -> Probe:
        """The probe of a run with so many rounds (perhaps without end), answers in each, and seeds; no number open.

        ``acted_on`` if a callback needs it.
        """
        if acted_on and seeds:
            one = replace(self, prompts=self.prompts or _ACTED_ON[0], samples=self.samples or _ACTED_ON[1])
            cheap = ceil(min(one.prompts or 0, seeds) * (one.samples or 0) / (_SHARE_ACTED_ON * answers))
            most = int(rounds // _TIMES) if isfinite(rounds) else cheap
            return one if one.every is not None else replace(one, every=max(_NEVER_OFTENER, min(cheap, most)))
        given = replace(self, prompts=self.prompts or _SIZES[0][0], samples=self.samples or _SIZES[0][1])
        if self.every is not None or not seeds:
            return replace(given, every=self.every or 0)
        for prompts, samples in _SIZES:
            cost = (self.prompts or min(prompts, seeds)) * (self.samples or samples)
            one = replace(self, prompts=self.prompts or prompts, samples=self.samples or samples)
            if not isfinite(rounds):
                return replace(one, every=max(_OFTEN, ceil(cost / (_SHARE * answers))))
            times = int(_SHARE * rounds * answers / cost)
            if times >= 2:
                return replace(one, every=max(_OFTEN, ceil(rounds / times)))
        asked = self.prompts is not None or self.samples is not None
        return replace(given, every=max(_OFTEN, ceil(rounds / 2)) if asked else 0)

    def __post_init__(self) -> None:
        check_range("data.probe.every", self.every, at_least=0)
        check_range("data.probe.prompts", self.prompts, at_least=1, hint="set data.probe.every to 0 for no probe")
        check_range("data.probe.samples", self.samples, at_least=2, hint="one answer is no vote")

    def choose(self, seeds: Sequence[Instruction], seed: int) -> list[Instruction]:
        """The probe's problems: the same for every call with the same seeds and run seed."""
        return rng_for(seed, "probe").sample(list(seeds), min(self.prompts or _SIZES[0][0], len(seeds)))


def answer_probe(setup: RoundSetup, problems: Sequence[Instruction], samples: int) -> dict[str, Probed]:
    """Answer each problem ``samples`` times; every rank does its share. Returns all responses by uid."""
    fits = [p for p in problems if not setup.too_long(p)]
    mine = setup.ranks.share(fits)
    with setup.phase("probing", len(mine) * samples) as tick, setup.ranks.stage("answering the health probe"):
        # the counters are those of round 0 every time, so that equal weights give equal answers
        groups = setup.context(0, "probe", tick=tick).generate(mine, samples)
        fill_answers(groups, setup.grader)
        probed = [_probed(group) for group in groups]
    return dict(zip((p.uid for p in fits), setup.ranks.interleave(probed), strict=True))


def _probed(group: Group) -> Probed:
    answers, classes = group.answers or [], group.cluster or []
    names: dict[int, str] = {}
    for answer, number in zip(answers, classes, strict=True):
        if answer is not None and number >= 0:
            names[number] = min(answer, names.get(number, answer))
    tokens = sum(len(c.token_ids) for c in group.completions)
    return Probed(tuple(map(names.get, classes)), tokens, sum(not c.finished for c in group.completions))
