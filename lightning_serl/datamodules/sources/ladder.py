"""Easier variants of problems that are too hard for the policy (LADDER)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.seeded import SeededSource, inheriting
from lightning_serl.errors import check_range
from lightning_serl.types import Group, Instruction, Link, Verdict

#: The request for easier variants; the first item of the list is the problem that was too hard.
EASIER = (
    "Continue this numbered list with variants of its first problem that are easier to solve: smaller numbers, fewer "
    "steps, or a part of it alone. Every variant must be complete in itself and have one short answer that can be "
    "checked. Write down the problems only; do not solve them."
)
#: Temperatures of the prompts for variants, in turn, in the paper's range.
TEMPERATURES = (0.8, 1.0, 1.2, 1.4)


class EasierVariants(SeededSource):
    """Seeds, and for each one that is too hard a tree of easier variants, all of which are trained on.

    LADDER (arXiv 2503.00735): a problem that is not solved gets easier variants, written at temperatures between 0.8
    and 1.4 in turn; those that are too hard get variants themselves, down to a depth of 3 (``data.round.max_waves``).
    A problem is too hard if its confidence, the share of right responses where it has a label, else that of the
    majority, is below ``weak``. The paper writes all variants beforehand and checks answers numerically, so that a
    variant without a solution pays nothing; here variants have no label and are voted on, unless a grader of yours
    tells. Its prompts from several personas are left out. Variants are not judged by the instruction filters.

    Args:
        variants: Easier variants of one problem, at most.
        weak: Confidence below which a problem is too hard, in [0, 1].
        header: The request above the problem.

    Raises:
        InputError: for an option out of range.
    """

    filtered = False
    writes = True
    waves = 1

    def __init__(self, variants: int = 2, weak: float = 0.5, header: str = EASIER) -> None:
        check_range("data.source.variants", variants, at_least=1)
        check_range("data.source.weak", weak, at_least=0, at_most=1)
        self.variants, self.weak, self.header = variants, weak, header
        self.follow_ups = variants

    def propose(self, k: int, ctx: Context) -> list[Instruction]:
        """Return the next ``k`` seeds."""
        return self.seeds.propose(k, ctx)

    def derive(self, groups: Sequence[Group], verdicts: Sequence[Verdict], ctx: Context) -> Iterator[Instruction]:
        """Yield the easier variants of each problem that is too hard."""
        hard = [
            group.instruction
            for group, verdict in zip(groups, verdicts, strict=True)
            if group.instruction.role == "solve" and verdict.confidence < self.weak
        ]
        for turn, temperature in enumerate(TEMPERATURES):
            mine = [one for one in hard if self._turn(one) == turn]
            written = self.write([(f"easier {one.uid}", [one]) for one in mine], self.variants, ctx, temperature)
            for parent, found in zip(mine, written, strict=True):
                for variant in found:
                    yield replace(inheriting(variant, parent), link=Link("easier", parent.uid))

    def _turn(self, problem: Instruction) -> int:
        """Place of a problem's temperature; it depends on the uid, which is equal on any number of processes."""
        return sum(problem.uid.encode()) % len(TEMPERATURES)
