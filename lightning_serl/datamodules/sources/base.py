"""The base class of instruction sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import Group, Instruction, Reason, Verdict


class InstructionSource(ABC):
    """Proposes instructions, derives follow-ups of answered ones, and observes the results.

    ``propose`` and ``observe`` run alike on all ranks: same arguments, same results. ``derive`` gets the groups of one
    rank. A source that samples proposals in another way rolls them out in ``propose`` and returns the groups. An
    instruction without a uid gets one from the round, which also applies filters and pool.

    On the command line a source is ``--data.source package.module.Name``, with the arguments of its ``__init__`` as
    ``--data.source.NAME``. Set ``filtered = False`` where problems may come again, as from a fixed list: the novelty
    filter rejects what the pool holds already. Put ``"origin": "self"`` into ``meta`` of problems that the policy
    wrote, so that the log counts them as written.
    """

    #: Policies that the source's rollouts need besides the live one (``reference``, ``teacher``).
    needs: frozenset[str] = frozenset()

    #: Whether proposed problems (role ``solve``) pass the instruction filters and enter the pool.
    filtered: bool = True

    #: Whether the policy writes problems with the few-shot prompts of ``data.writing``.
    writes: bool = False

    #: Roles of its groups besides ``solve``; each needs a reward in ``data.role_rewards``.
    roles: tuple[str, ...] = ()

    #: Waves of follow-ups (``data.round.max_waves``) and follow-ups of a group (``data.round.max_derived``) that it
    #: needs, at least.
    waves: int = 0
    follow_ups: int = 0

    @abstractmethod
    def propose(self, k: int, ctx: Context) -> Sequence[Instruction | Group]:
        """Return about ``k`` new instructions; fewer, more or none are fine.

        A returned :class:`Group` was rolled out already, through ``ctx.generate``, and is rewarded without another
        rollout. In this way a proposal can itself be trained on.
        """

    def check(self, seeds: Sequence[Instruction]) -> None:  # noqa: B027 - optional
        """Refuse the seeds of ``data.seeds``, or their absence, with an InputError; no model is loaded yet."""

    def begin(self, seeds: Sequence[Instruction], pool: InstructionPool, writing: Writing) -> None:  # noqa: B027
        """Called before the first round, and before ``load_state_dict`` if the run is resumed.

        Args:
            seeds: Those of ``data.seeds``, with their labels unless the run votes on all (``predict``).
            pool: Every accepted problem; filled by the rounds.
            writing: ``data.writing``.
        """

    def reject(self, instruction: Instruction) -> Reason | None:
        """Why a proposed problem that passed the instruction filters cannot be used; ``None`` if it can."""
        return None

    def lanes(self, want: int) -> list[tuple[InstructionSource, int]]:
        """Which sources bring how many of the next ``want`` root instructions; by default this one brings all."""
        return [(self, want)]

    def derive(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> Iterable[Instruction]:
        """Return follow-ups to a wave of groups, each with a ``link`` to its parent's uid.

        Called only if ``data.round.max_waves`` is above 0.

        Args:
            groups: This rank's groups of the wave.
            verdicts: Their gate verdicts: the label if one is known, else the vote.
            ctx: Works on this rank only.
        """
        return ()

    def observe(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:  # noqa: B027 - optional
        """Called with every group of a finished round, including those that were dropped."""

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Continue from the state that :meth:`state_dict` returned."""
