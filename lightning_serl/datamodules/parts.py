"""The parts that a run's rounds are made of: pool, source, probe and the fixed inputs of a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import lightning.pytorch as pl

from lightning_serl.callbacks.rollout_hooks import GroupFilter, InstructionFilter, phase_of
from lightning_serl.datamodules.problems.passages import Passage
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.datamodules.rounds.setup import RoundSetup, RoundState
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.datamodules.sources.documents import DocumentQuestions, Reading
from lightning_serl.datamodules.sources.few_shot import FewShotSelfInstruction
from lightning_serl.datamodules.sources.follow_ups import FollowUps
from lightning_serl.datamodules.sources.prompt_set import Mixture, PromptSet
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.prompts.passages import OpenBookTemplate
from lightning_serl.prompts.solve import SolveTemplate
from lightning_serl.protocols import module_of
from lightning_serl.rewards import Reward
from lightning_serl.types import OPEN_BOOK, Instruction


@dataclass(frozen=True)
class Ground:
    """The documents that problems are written from; without passages there are none."""

    passages: Sequence[Passage]
    reading: Reading
    imitates: bool  # whether answers with the passage in view may be trained on
    solve: SolveTemplate

    @property
    def rewards(self) -> dict[str, Reward]:
        """The reward of the answers with the passage in view, called after the others."""
        return {OPEN_BOOK: self.reading.vote(self.imitates)} if self.passages else {}

    @property
    def templates(self) -> dict[str, SolveTemplate]:
        """The template of problems with the passage in view."""
        if not self.passages:
            return {}
        texts = {passage.key: passage.text for passage in self.passages}
        return {OPEN_BOOK: OpenBookTemplate.over(self.solve, self.reading.frame, texts)}


@dataclass(frozen=True)
class Parts:
    """What the ``setup`` of ``SelfPlayDataModule`` made of its options and read from files."""

    setup: RoundSetup  # without a source and what :func:`with_trainer` adds
    source: InstructionSource | None  # the user's own
    follow_ups: FollowUps | None  # added to the problems of the source
    needs: frozenset[str]  # what source and rewards use besides the policy's completions
    mix_ratio: float  # share of each round that comes from the seeds themselves
    labelled_only: bool  # whether the reward scores labelled problems only
    seeds: Sequence[Instruction]
    ground: Ground
    earlier: Sequence[Sequence[tuple[Instruction, str]]]  # problems with their status, one list for each run
    writing: Writing | None  # None if no problems are written
    probe: Probe

    @property
    def source_kind(self) -> str | None:
        """Class name of the source; ``None`` without one."""
        kind = self._kind_of_problems
        return kind if self.follow_ups is None else f"{type(self.follow_ups).__name__} of {kind}"

    @property
    def _kind_of_problems(self) -> str | None:
        if self.source is not None:
            return type(self.source).__name__
        if not self.seeds and not self.ground.passages:
            return None
        made = DocumentQuestions if self.ground.passages else FewShotSelfInstruction
        return {1.0: PromptSet, 0.0: made}.get(self.mix_ratio, Mixture).__name__

    def make_state(self) -> RoundState:
        """An empty queue, and a pool of the seeds and of the problems of earlier runs."""
        pool = InstructionPool(list(self.seeds))
        # the seeds and several earlier runs may have problems in common
        held = {_wording(problem) for problem in pool.seeds}
        for place, problems in enumerate(self.earlier):
            for problem, status in problems:
                if (wording := _wording(problem)) not in held:
                    held.add(wording)
                    pool.add(replace(problem, uid=f"earlier-{place}-{problem.uid}"), status)
        return RoundState(pool)

    def make_source(self, pool: InstructionPool, labels: bool) -> InstructionSource | None:
        """The source of the rounds, ``None`` without seeds; seeds lose their labels for ``predict``, which votes."""
        made = self._make_source_of_problems(pool, labels)
        return made if made is None or self.follow_ups is None else self.follow_ups.around(made)

    def _make_source_of_problems(self, pool: InstructionPool, labels: bool) -> InstructionSource | None:
        fixed = list(self.seeds)
        if not labels:
            fixed = [replace(p, label=None) for p in fixed]
        elif self.labelled_only:
            fixed = [p for p in fixed if p.label is not None]
        if self.source is not None:
            self.source.begin(fixed, pool, self.writing or Writing())
            return self.source
        if self.mix_ratio == 1.0 or not (self.seeds or self.ground.passages):
            return PromptSet(fixed) if self.seeds else None
        ground, writing = self.ground, self.writing or Writing()
        made: InstructionSource
        if ground.passages:
            made = DocumentQuestions(ground.passages, ground.reading, writing, labels, ground.imitates)
        else:
            made = FewShotSelfInstruction(pool, writing)
        return made if self.mix_ratio == 0.0 else Mixture(made, PromptSet(fixed), self.mix_ratio)


def with_trainer(setup: RoundSetup, trainer: pl.Trainer) -> RoundSetup:
    """The inputs of the next round: policy, filters, ranks, progress display and step are the Trainer's now."""
    module, callbacks = module_of(trainer), trainer.callbacks
    policy = module.policy if setup.engine.samples_policy or module.has_policy else None
    sampling = setup.sampling
    if policy is not None:
        sampling = replace(sampling, temperature=policy.temperature)
        sampling = sampling.fitted(setup.engine.shared_context(policy))
    return replace(
        setup,
        policy=policy,
        sampling=sampling,
        instruction_filters=[c for c in callbacks if isinstance(c, InstructionFilter)],
        group_filters=[c for c in callbacks if isinstance(c, GroupFilter)],
        ranks=Ranks.of(trainer),
        phase=partial(phase_of, callbacks),
        step=trainer.global_step,
    )


def _wording(problem: Instruction) -> tuple[str, tuple[str, ...]]:
    """What makes two problems the same: text and options."""
    return problem.prompt, tuple(problem.meta.get("choices") or ())
