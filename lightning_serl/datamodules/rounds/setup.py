"""What a round is played with: the fixed inputs, and the state that moves from round to round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_serl.answers import AnswerGrader
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.rounds.options import RoundOptions
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import RolloutEngine, Sampling
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.prompts.solve import SolveTemplate
from lightning_serl.types import Group, Instruction, Verdict

if TYPE_CHECKING:
    from lightning_serl.callbacks.filters.base import GroupFilter, InstructionFilter
    from lightning_serl.policy.policy import Policy

#: A reward when it is called. Plain functions are rewards too, so there is no class to name here.
Score = Callable[[Sequence[Group], Any], list[Verdict]]
#: Opens a phase, given its name and total; what it yields is called with the number of units that were done.
Phase = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def silent(name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """The :data:`Phase` of callers without a terminal: it shows nothing."""
    return nullcontext(lambda done: None)


def needs_of(*parts: object) -> frozenset[str]:
    """What sources and rewards use besides the policy's completions: ``reference``, ``teacher``, ``certainty`` ..."""
    # a reward may be a plain function, which has no needs
    return frozenset[str]().union(*(getattr(part, "needs", frozenset()) for part in parts))


@dataclass(frozen=True)
class Carried:
    """A root group with its follow-ups that a round had no room for. It keeps its scores, never its advantages.

    Attributes:
        pairs: The groups with their verdicts, group weights included.
        round: Number of the round that began with the weights that wrote it.
        step: Optimizer step whose weights wrote it.
    """

    pairs: list[tuple[Group, Verdict]]
    round: int
    step: int


@dataclass
class RoundState:
    """What rounds change and checkpoints keep.

    Attributes:
        pool: All accepted instructions.
        queue: Accepted instructions that were not answered yet; they wait for the next round.
        carried: Groups that wait for the next round.
    """

    pool: InstructionPool = field(default_factory=InstructionPool)
    queue: list[Instruction] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)


@dataclass(frozen=True)
class RoundSetup:
    """The fixed inputs of a round.

    Attributes:
        options: The size of a round.
        source: Proposes instructions; ``None`` where nothing is proposed, as in validation.
        engine: Writes completions.
        policy: The live policy, or ``None`` under replay.
        rewards: The reward of each role, in the order in which they are called.
        gate: The verdict that ``derive`` sees: the label where one is known, else the vote.
        grader: Decides which answers are equal.
        grader_name: Selects the answer-format sentence of solve prompts.
        templates: Solve template of each role.
        sampling: How answers are drawn.
        instruction_filters: Called in order, with one instruction at a time.
        group_filters: Called in order, with the groups of all ranks.
        ranks: This process among the others.
        seed: The run's seed.
        phase: Shows what is being done.
        max_staleness: How many rounds old the weights that wrote a group may be when it is trained on. At 0, groups
            that a round has no room for are dropped.
        step: Optimizer step whose weights write.
        age: How many rounds older those weights are than the weights that the round is trained with: 1 if the round
            is played ahead.
    """

    options: RoundOptions
    source: InstructionSource | None
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
    max_staleness: int = 0
    step: int = 0
    age: int = 0

    def context(
        self, number: int, stage: str, spread: bool = False, tick: Callable[[int], None] = lambda done: None
    ) -> Context:
        """The :class:`Context` of round ``number``."""
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
