"""What a round is played with: its options and other fixed inputs, and the state that moves from round to round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_serl.answers import AnswerGrader
from lightning_serl.callbacks.rollout_hooks import GroupFilter, InstructionFilter
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.base import InstructionSource
from lightning_serl.distributed.ranks import Ranks
from lightning_serl.engines.base import RolloutEngine, Sampling
from lightning_serl.errors import InputError, check_choice, check_range
from lightning_serl.policy.policy import Policy
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.prompts.solve import SolveTemplate
from lightning_serl.types import STYLES, Group, Instruction, Verdict

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
class RoundOptions:
    """The size of a round.

    Args:
        prompts_per_round: Groups that a round trains on, over all ranks.
        samples_per_prompt: Completions of each prompt.
        max_attempts: How often a round proposes and answers to fill up, at most; then it trains on the groups it has.
        max_waves: Waves of follow-up instructions after the first answers; 0 for SeRL.
        max_derived: Follow-ups of one group, at most.
        max_prompt_tokens: Longer solve prompts are skipped and counted, never cut; null allows what fits the model.
        mask_truncated: Whether responses that were cut off by length stay out of loss, baseline and difficulty.
        overlong_buffer: Number of tokens before ``data.max_tokens`` over which a response's score falls linearly by up
            to one point (DAPO's soft punishment, 2503.14476, eq. 13), or below 1 their share of it (DAPO: 0.2); 0 for
            none. Filters see the scores without it.
        style: ``serl`` follows SeRL's published code: every attempt answers ``prompts_per_round`` problems, its
            advantages are normalised over all its groups before the difficulty filter drops some, surplus groups
            still serve as exemplars, and problems left unanswered at the end of the round are dropped.
    """

    prompts_per_round: int = 16
    samples_per_prompt: int = 16
    max_attempts: int = 4
    max_waves: int = 0
    max_derived: int = 4
    max_prompt_tokens: int | None = None
    mask_truncated: bool = False
    overlong_buffer: int | float = 0
    style: Literal["default", "serl"] = "default"

    def __post_init__(self) -> None:
        hint = "one response has nothing to be compared with"
        check_range("data.round.samples_per_prompt", self.samples_per_prompt, at_least=2, hint=hint)
        for name in ("prompts_per_round", "max_attempts", "max_derived", "max_prompt_tokens"):
            check_range(f"data.round.{name}", getattr(self, name), at_least=1)
        for name in ("max_waves", "overlong_buffer"):
            check_range(f"data.round.{name}", getattr(self, name), at_least=0)
        if self.overlong_buffer > 1 and self.overlong_buffer != int(self.overlong_buffer):
            said = (
                f"data.round.overlong_buffer must be a number of tokens or a share below 1, got {self.overlong_buffer}"
            )
            raise InputError(said)
        check_choice("data.round.style", self.style, STYLES)

    def overlong_tokens(self, longest: int) -> int:
        """``overlong_buffer`` in tokens, for answers of at most ``longest`` tokens."""
        share = 0 < self.overlong_buffer < 1
        return round(self.overlong_buffer * longest) if share else int(self.overlong_buffer)

    @property
    def published(self) -> bool:
        """Whether the round follows SeRL's published code."""
        return self.style == "serl"


@dataclass(frozen=True)
class Carried:
    """A root group with its follow-ups that a round had no room for. It keeps its scores, never its advantages."""

    pairs: list[tuple[Group, Verdict]]  # group weights included
    round: int  # number of the round that began with the weights that wrote it
    step: int  # optimizer step of these weights


@dataclass
class RoundState:
    """What rounds change and checkpoints keep."""

    pool: InstructionPool = field(default_factory=InstructionPool)
    queue: list[Instruction] = field(default_factory=list)  # accepted, and not answered yet
    carried: list[Carried] = field(default_factory=list)  # wait for the next round


@dataclass(frozen=True)
class RoundSetup:
    """The fixed inputs of a round."""

    options: RoundOptions
    source: InstructionSource | None  # None where nothing is proposed, as in validation
    engine: RolloutEngine
    policy: Policy | None  # the live one; None under replay
    rewards: Mapping[str, Score]  # by role, in the order in which they are called
    gate: Score  # the verdict that ``derive`` sees: the label where one is known, else the vote
    grader: AnswerGrader
    grader_name: str  # selects the answer-format sentence of solve prompts
    templates: Mapping[str, SolveTemplate]  # by role
    sampling: Sampling  # of answers
    instruction_filters: Sequence[InstructionFilter] = ()  # called in order, with one instruction at a time
    group_filters: Sequence[GroupFilter] = ()  # called in order, with the groups of all ranks
    ranks: Ranks = field(default_factory=Ranks)
    seed: int = 0  # the run's
    phase: Phase = silent
    #: How many rounds old the weights that wrote a group may be when it is trained on. At 0, groups that a round has no
    #: room for are dropped.
    max_staleness: int = 0
    step: int = 0  # optimizer step whose weights write
    age: int = 0  # rounds between these weights and those that the round trains: 1 if it is played ahead

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
            room = context - self.sampling.longest
            limit = room if limit is None else min(limit, room)
        return limit is not None and len(self.context(0, "rollout").encode(instruction)) > limit
