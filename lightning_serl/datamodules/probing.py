"""The stream of ``lightning-serl probe``: answers some problems before a run, within a bound of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning.pytorch as pl

from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.datamodules.rounds.answer import answer
from lightning_serl.datamodules.rounds.propose import Proposals
from lightning_serl.datamodules.rounds.report import RoundLog
from lightning_serl.datamodules.rounds.select import weigh
from lightning_serl.datamodules.rounds.setup import RoundSetup
from lightning_serl.datamodules.self_play import SelfPlayDataModule
from lightning_serl.datamodules.session import Session
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.errors import InputError
from lightning_serl.rewards.base import fill_answers
from lightning_serl.types import Group, Instruction, Verdict

#: Most problems that are answered at the run's temperature, and at each of the others.
PROBLEMS, SWEPT = 32, 16
# Answers to a problem: those of the run within these bounds; fewer where the bound of tokens leaves few problems.
_MOST, _FEWER, _LEAST = 16, 8, 4
_ENOUGH = 6  # problems whose answers are all of the greatest length
AT_ONCE = 8
# Written problems that are answered, few-shot prompts of a call, and calls without an accepted problem.
_WRITTEN, _PROMPTS, _BARREN = 8, 4, 2
# Shares of the bound for the answers at the run's temperature: where problems are written too, and where none are.
_MAIN, _MAIN_ALONE = 0.5, 0.65
# Share of what is left then for the other temperatures, where problems are written too.
_SWEEP = 0.5


class BoundReached(Exception):
    """The probe may write no further token."""


class TokenBound(RolloutHooks):
    """Ends the writing at a number of tokens of the datamodule's engine, by a :class:`BoundReached`."""

    def __init__(self, data: SelfPlayDataModule, most: int) -> None:
        super().__init__()
        self.data, self.most = data, most

    def poll(self, trainer: pl.Trainer) -> None:
        """Raise :class:`BoundReached` if the bound is reached."""
        if self.data.engine.tokens_written >= self.most:
            raise BoundReached


@dataclass
class Judged:
    """Answered groups with their verdicts, and what the run's group filters would do with them.

    Attributes:
        groups: With answers and their classes filled in.
        reasons: Why each would be dropped; ``None`` for those that would be trained on.
    """

    groups: list[Group] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """Share of the groups that would be trained on; 0 without groups."""
        return sum(reason is None for reason in self.reasons) / max(1, len(self.reasons))


@dataclass
class Probed:
    """What a probe has measured so far.

    Attributes:
        temperature: Of the run.
        longest: Most tokens of an answer.
        samples: Answers to each problem.
        seeds: Seeds answered at the run's temperature.
        other: The first of the same seeds at other temperatures, by temperature.
        written: Problems that the source brought besides seeds, answered.
        proposed: Problems that it brought, rejected ones included.
        rejected: Why they were rejected, with counts.
        texts: Tokens that the source wrote for them.
        calls: Times that the source was asked.
        stopped: What the bound of tokens cut short: ``seeds``, ``other temperatures`` or ``writing``.
        tokens: All tokens that were written.
    """

    temperature: float
    longest: int
    samples: int = 0
    seeds: Judged = field(default_factory=Judged)
    other: dict[float, list[Group]] = field(default_factory=dict)
    written: Judged = field(default_factory=Judged)
    proposed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    calls: int = 0
    stopped: list[str] = field(default_factory=list)
    tokens: int = 0


class ProbeStream:
    """Answers seeds at the run's temperature and at others, and problems that the source brings.

    The bound holds for every engine: nothing is begun that could take more tokens than are left, and
    :class:`TokenBound` ends sources and rewards that write more than is known before.
    """

    def __init__(self, session: Session, data: ProbeDataModule, tokens: int, temperatures: Sequence[float]) -> None:
        self.session, self.data, self.bound, self.temperatures = session, data, tokens, temperatures
        #: What was measured; ``None`` before the first answer.
        self.probed: Probed | None = None

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[str]:
        with self.session.rolling() as setup:
            self.probed = Probed(setup.sampling.temperature, setup.sampling.longest)
            parts = {"seeds": self._seeds, "other temperatures": self._other_temperatures, "writing": self._written}
            for name, part in parts.items():
                try:
                    part(setup, self.probed)
                except BoundReached:
                    self.probed.stopped.append(name)
                finally:
                    self.probed.tokens = self.data.engine.tokens_written
                yield name

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self.bound - self.data.engine.tokens_written

    def _seeds(self, setup: RoundSetup, probed: Probed) -> None:
        """Answer seeds at the run's temperature, as a round does."""
        bound = int(self.bound * (_MAIN if self.data.brings else _MAIN_ALONE))
        probed.samples = answers_of(setup.options.samples_per_prompt, probed.longest, bound)
        each, problems = self._each(setup, probed), self._problems(setup)
        while problems and self.left - (self.bound - bound) >= each:
            now = problems[: min(AT_ONCE, (self.left - (self.bound - bound)) // each)]
            problems = problems[len(now) :]
            _extend(probed.seeds, *self._judged(setup, now, probed.samples))
        if problems:
            probed.stopped.append("seeds")

    @staticmethod
    def _each(setup: RoundSetup, probed: Probed) -> int:
        """Most tokens of the answers to a problem and to its follow-ups."""
        options = setup.options
        return probed.samples * probed.longest * (1 + (options.max_derived if options.max_waves else 0))

    def _problems(self, setup: RoundSetup) -> list[Instruction]:
        """The seeds to answer, in an order of the run's seed."""
        seeds = [one for one in self.data.seed_problems if not setup.too_long(one)]
        if self.data.seed_problems and not seeds:
            raise InputError("every seed is too long for the model's context beside data.max_tokens; lower it")
        return rng_for(setup.seed, "probe").sample(seeds, min(PROBLEMS, len(seeds)))

    def _other_temperatures(self, setup: RoundSetup, probed: Probed) -> None:
        """Answer the first seeds at the other temperatures, with the same random numbers."""
        others = [t for t in self.temperatures if abs(t - probed.temperature) > 1e-6]
        first = [group.instruction for group in probed.seeds.groups[:SWEPT]]
        if not first:
            return
        budget = int(self.left * (_SWEEP if self.data.brings else 1.0))
        count = min(len(first), budget // max(1, len(others) * probed.samples * probed.longest))
        if others and count < min(len(first), _LEAST):
            probed.stopped.append("other temperatures")
            return
        for temperature in others:
            mine = setup.ranks.share(first[:count])
            with setup.phase("answering", len(mine) * probed.samples) as tick, setup.ranks.stage("answering"):
                groups = setup.context(0, "rollout", tick=tick).generate(mine, probed.samples, temperature=temperature)
                fill_answers(groups, setup.grader)
            probed.other[temperature] = setup.ranks.interleave(groups)

    def _written(self, setup: RoundSetup, probed: Probed) -> None:
        """Ask the source for problems and answer those that pass the filters."""
        if not self.data.brings or setup.source is None:
            return
        state, log = self.session.state, RoundLog(0, 0)
        proposals = Proposals(setup, state, setup.source, log)
        proposals.barren_calls = 1
        each, barren = self._each(setup, probed), 0
        roots: list[Instruction | Group] = []
        call = self.data.writing.prompts_per_call * self.data.writing.sampling.fitted(None).longest
        before = self.data.engine.tokens_written
        while len(roots) < _WRITTEN and barren < _BARREN and self.left >= call + each * (len(roots) + 1):
            taken = [r for r in proposals.take(1) if isinstance(r, Group) or r.meta.get("origin") != "seed"]
            probed.calls += 1
            barren = 0 if taken else barren + 1
            roots += taken
            while len(roots) < _WRITTEN and state.queue:
                roots += [r for r in proposals.take(1) if isinstance(r, Group) or r.meta.get("origin") != "seed"]
        probed.texts = self.data.engine.tokens_written - before
        _count(log, probed)
        roots = roots[: max(0, min(_WRITTEN, self.left // each))]
        if not roots and not probed.proposed:
            probed.stopped.append("writing")
        elif roots:
            _extend(probed.written, *self._judged(setup, roots, probed.samples, log))

    def _judged(
        self, setup: RoundSetup, roots: Sequence[Instruction | Group], samples: int, log: RoundLog | None = None
    ) -> tuple[list[Group], list[str | None]]:
        """Groups of answers to some problems, and the reasons of the run's reward and group filters against them."""
        less = replace(setup, options=replace(setup.options, samples_per_prompt=samples))
        source = setup.source
        assert source is not None, "seeds make a source"
        found: list[tuple[Group, Verdict]] = answer(less, source, roots, log or RoundLog(0, 0))
        groups, verdicts = [g for g, _ in found], [v for _, v in found]
        fill_answers(groups, setup.grader)
        _, reasons = weigh(less, groups, verdicts)
        return groups, list(reasons)


class ProbeDataModule(SelfPlayDataModule):
    """The datamodule of a run, whose predictions are the parts of a probe."""

    stream: ProbeStream

    @property
    def brings(self) -> bool:
        """Whether the source brings problems that are not the seeds."""
        return self.writes or isinstance(self.source, InstructionSource)

    def begin_probe(self, tokens: int, temperatures: Sequence[float]) -> ProbeStream:
        """The stream of the next ``Trainer.predict``; new problems are written in small calls."""
        few = min(_PROMPTS, self.writing.prompts_per_call)
        self.writing = replace(self.writing, prompts_per_call=few)
        self.stream = ProbeStream(self.session, self, tokens, temperatures)
        return self.stream

    def predict_dataloader(self) -> Any:
        """The stream of :meth:`begin_probe`."""
        return self.stream


def check_bound(tokens: int, samples: int, longest: int, brings: bool) -> None:
    """Refuse a bound of tokens that would not do for the answers to four problems; no model is needed to know it.

    ``brings`` tells whether problems are written too, which takes a part of the bound.
    """
    bound = int(tokens * (_MAIN if brings else _MAIN_ALONE))
    n = answers_of(samples, longest, bound)
    if _LEAST * n * longest > bound:
        least = -(-_LEAST * n * longest * tokens // max(1, bound))
        raise InputError(
            f"probe.tokens is {tokens}, too few for {n} answers of at most {longest} tokens to {_LEAST} problems; give "
            f"at least {least}, or lower data.max_tokens"
        )


def answers_of(samples: int, longest: int, bound: int) -> int:
    """Answers to a problem, for a run of ``samples`` each and a bound of tokens."""
    for n in (max(_LEAST, min(samples, _MOST)), _FEWER, _LEAST):
        if n * longest * _ENOUGH <= bound:
            return n
    return _LEAST


def _extend(judged: Judged, groups: list[Group], reasons: list[str | None]) -> None:
    """Add problems; their follow-ups count for the run, but not as problems."""
    for group, reason in zip(groups, reasons, strict=True):
        if group.instruction.link is None and group.instruction.role == "solve":
            judged.groups.append(group)
            judged.reasons.append(reason)


def _count(log: RoundLog, probed: Probed) -> None:
    """What became of the proposals that are not seeds."""
    seeds = log.round.taken
    probed.proposed = log.counts["proposed"] - seeds
    probed.rejected = Counter(e["reason"] for e in log.round.events if e["event"] == "rejected")
