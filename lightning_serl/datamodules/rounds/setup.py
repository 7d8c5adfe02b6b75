"""Inputs of a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_serl.answers.base import AnswerGrader
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import RolloutEngine, Sampling
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.prompts.solve import SolveTemplate
from lightning_serl.types import Group, Instruction, Verdict

if TYPE_CHECKING:
    from lightning_serl.callbacks.filters.base import GroupFilter, InstructionFilter
    from lightning_serl.policy.policy import Policy
from lightning_serl.datamodules.rounds.options import RoundOptions

# What a reward is when it is called; a plain function is one too, so there is no class to ask for.
Score = Callable[[Sequence[Group], Any], list[Verdict]]
Phase = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def silent(name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """The phase announcer for callers without a terminal."""
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Carried:
    """A family of groups that a round had no room for; it keeps its scores, never its advantages.

    Attributes:
        pairs: The groups with their verdicts, group weights folded in.
        round: Number of the round that began with the weights that wrote it.
        step: Optimizer step whose weights wrote it.
    """

    pairs: list[tuple[Group, Verdict]]
    round: int
    step: int


@dataclass
class Table:
    """Everything a round needs, set once per run.

    Attributes:
        options: The size of a round.
        source: Proposes instructions; ``None`` where nothing is proposed, as in validation.
        pool: Remembers them.
        engine: Writes completions.
        policy: The live policy, or ``None`` under replay.
        rewards: Reward of each role, in the order they are asked.
        gate: The free verdict that ``derive`` sees: the label where one is known, else the vote.
        grader: Decides which answers are equal.
        grader_name: Which answer-format sentence solve prompts carry.
        templates: Solve template of each role.
        sampling: How answers are drawn.
        instruction_filters: Asked in order, one instruction at a time.
        group_filters: Asked in order, on the groups of all ranks.
        ranks: This process among its peers.
        seed: The run's seed.
        phase: Announces what is being done.
        queue: Accepted instructions that were not answered yet; they are carried from round to round.
        max_staleness: Rounds between the weights that write a group and those it is trained on, at most; 0 drops what a
            round has no room for.
        carried: The groups that wait.
        step: Optimizer step whose weights write.
        age: Rounds that those weights are behind the round that is played: 1 if it is played ahead.
    """

    options: RoundOptions
    source: InstructionSource | None
    pool: InstructionPool
    engine: RolloutEngine
    policy: Policy | None
    rewards: Mapping[str, Score]
    gate: Score
    grader: AnswerGrader
    grader_name: str
    templates: Mapping[str, SolveTemplate]
    sampling: Sampling
    instruction_filters: Sequence[InstructionFilter] = ()
    group_filters: Sequence[GroupFilter] = ()
    ranks: Ranks = field(default_factory=Ranks)
    seed: int = 0
    phase: Phase = silent
    queue: list[Instruction] = field(default_factory=list)
    max_staleness: int = 0
    carried: list[Carried] = field(default_factory=list)
    step: int = 0
    age: int = 0

    def context(
        self, number: int, stage: str, spread: bool = False, tick: Callable[[int], None] = lambda done: None
    ) -> Context:
        """The services of round ``number``; see :class:`Context`."""
        return Context(
            engine=self.engine,
            policy=self.policy,
            ranks=self.ranks,
            seed=self.seed,
            round=number,
            stage=stage,
            sampling=self.sampling,
            templates=self.templates,
            grader_name=self.grader_name,
            grader=self.grader,
            spread=spread,
            tick=tick,
        )

    def too_long(self, instruction: Instruction) -> bool:
        """Whether the solve prompt leaves no room for an answer; such prompts are skipped, never cut."""
        if self.policy is None:
            return False
        limit = self.options.max_prompt_tokens
        context = self.engine.shared_context(self.policy)
        if context is not None:
            room = context - self.sampling.max_tokens
            limit = room if limit is None else min(limit, room)
        return limit is not None and len(self.context(0, "rollout").encode(instruction)) > limit
