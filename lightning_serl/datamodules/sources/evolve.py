"""Prompts evolve from those whose responses differ most in reward (eva)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_serl.checkpoints.serialize import instruction_state, load_instruction
from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.seeded import SeededSource, inheriting
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.errors import check_range
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import Group, Instruction, Verdict

#: The request for evolved problems; the first item of the list is the problem that they evolve from.
EVOLVED = (
    "Continue this numbered list with problems that evolve from its first one: add a condition or a step, go deeper, "
    "or move it to another situation. Every problem must be complete in itself and have one short answer that can be "
    "checked. Write down the problems only; do not solve them."
)


class EvolvedPrompts(SeededSource):
    r"""Seeds, and problems that evolve from the most informative ones answered so far.

    eva (arXiv 2411.00062): the informativeness of a problem is the largest score among its responses less their mean,
    :math:`\max_i r_i - \bar r`. Problems are drawn in proportion to it, and the policy writes evolved ones after each.
    A part of each round stays with the seeds, and all of it while nothing is informative. The paper scores by an
    outside reward model and evolves between iterations; here the run's own reward scores, and a round's problems are
    drawn from the latest ones answered. Sizes are ours by default. Evolved problems pass the instruction filters.

    Args:
        share: Part of a round that is evolved, in (0, 1].
        variants: Problems that are taken from one completion, at most.
        remembered: How many problems, the latest, can be drawn.
        header: The request above the problem.

    Raises:
        InputError: for an option out of range.
    """

    writes = True

    def __init__(self, share: float = 0.8, variants: int = 2, remembered: int = 512, header: str = EVOLVED) -> None:
        check_range("data.source.share", share, above=0, at_most=1)
        check_range("data.source.variants", variants, at_least=1)
        check_range("data.source.remembered", remembered, at_least=1)
        self.share, self.variants, self.remembered, self.header = share, variants, remembered, header

    def begin(self, seeds: Sequence[Instruction], pool: InstructionPool, writing: Writing) -> None:
        """Nothing is informative yet."""
        super().begin(seeds, pool, writing)
        self.known: list[tuple[Instruction, float]] = []

    def propose(self, k: int, ctx: Context) -> list[Instruction]:
        """Return evolved problems for a share of ``k``, and seeds for the rest."""
        number, self.calls = self.calls, self.calls + 1
        rng = rng_for(ctx.seed, "source", number)
        wanted = int(self.share * k + rng.random()) if self.known else 0  # the share holds on average
        weights = [info for _, info in self.known]
        drawn = rng.choices([p for p, _ in self.known], weights, k=-(-wanted // self.variants)) if wanted else []
        lists = [(f"evolve {number} {place}", [problem]) for place, problem in enumerate(drawn)]
        written = self.write(lists, self.variants, ctx)
        out: list[Instruction] = []
        for parent, found in zip(drawn, written, strict=True):
            out += [inheriting(one, parent) for one in found]
        return out[:wanted] + self.seeds.propose(k - wanted, ctx)

    def observe(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:
        """Keep the problems whose responses differ in score, with what they showed last."""
        latest: dict[str, tuple[Instruction, float]] = {}
        for group, verdict in zip(groups, verdicts, strict=True):
            scores = verdict.scores[verdict.weight > 0]
            if group.instruction.role == "solve":
                problem = replace(group.instruction, label=None, link=None)
                latest[problem.prompt] = problem, float(scores.max() - scores.mean()) if len(scores) else 0.0
        known = [pair for pair in self.known if pair[0].prompt not in latest]
        self.known = [*known, *(pair for pair in latest.values() if pair[1] > 0)][-self.remembered :]

    def state_dict(self) -> dict[str, Any]:
        """Seeds and the problems that can be drawn."""
        return super().state_dict() | {"known": [[instruction_state(one), info] for one, info in self.known]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        super().load_state_dict(state)
        self.known = [(load_instruction(one), info) for one, info in state["known"]]
