"""New problems where the policy fails for good (SwS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning_serl.datamodules.rounds.context import Context
from lightning_serl.datamodules.sources.seeded import SeededSource, inheriting
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.distributed.seeding import rng_for
from lightning_serl.errors import check_range
from lightning_serl.pool.pool import InstructionPool
from lightning_serl.types import Group, Instruction, Verdict


class WeakSpots(SeededSource):
    r"""Seeds, and problems written after those seeds that the policy does not learn to solve.

    SwS (arXiv 2506.08989): over the visits of a seed, its accuracies :math:`a_t` are recorded; it is a weak spot if

    .. math:: \max_t a_t < 0.5 \;\wedge\; \mathrm{slope}(a_t) \le 0.

    Part of each round are problems written after weak spots of one category, which is drawn in proportion to the weak
    share of its seeds. The paper writes them after a whole first run, from concepts that a model of 70B takes out of
    the failures and recombines, and has them vetted; here the policy itself writes them after the failed seeds during
    the run, and the instruction filters judge them. The paper's slope must be below 0; here 0 counts too, without
    which a seed that was never solved would be none. Accuracy is the mean score: without labels, agreement.

    Args:
        share: Part of a round that is written once there are weak spots, in (0, 1].
        visits: Times that a seed must have been answered before it is judged, 2 or more.
        below: Accuracy that a weak spot never reaches, in (0, 1].
        by: Field of a seed that names its category; seeds without one make a category together.

    Raises:
        InputError: for an option out of range.
    """

    writes = True

    def __init__(self, share: float = 0.5, visits: int = 2, below: float = 0.5, by: str = "subject") -> None:
        check_range("data.source.share", share, above=0, at_most=1)
        check_range("data.source.visits", visits, at_least=2, hint="a slope needs two visits")
        check_range("data.source.below", below, above=0, at_most=1)
        self.share, self.visits, self.below, self.by = share, visits, below, by

    def begin(self, seeds: Sequence[Instruction], pool: InstructionPool, writing: Writing) -> None:
        """No seed was answered yet."""
        super().begin(seeds, pool, writing)
        self.accuracies: dict[str, list[float]] = {}

    def propose(self, k: int, ctx: Context) -> list[Instruction]:
        """Return problems written after weak spots for a share of ``k``, and seeds for the rest."""
        number, self.calls = self.calls, self.calls + 1
        rng, weak = rng_for(ctx.seed, "source", number), self.weak()
        if not weak:
            return self.seeds.propose(k, ctx)
        wanted = max(1, int(self.share * k + rng.random()))
        sizes = Counter(self._category(seed) for seed in self.seeds.prompts)
        failed = Counter(self._category(seed) for seed in weak)
        drawn = rng.choices(list(failed), [count / sizes[name] for name, count in failed.items()], k=wanted)
        lists = []
        for place, name in enumerate(drawn):
            among = [seed for seed in weak if self._category(seed) == name]
            shown = rng.sample(among, min(len(among), self.writer.writing.exemplars))
            lists.append((f"weak {number} {place}", shown))
        out: list[Instruction] = []
        for (_, shown), found in zip(lists, self.write(lists, 1, ctx), strict=True):
            out += [inheriting(one, shown[0]) for one in found]
        return out + self.seeds.propose(k - wanted, ctx)

    def weak(self) -> list[Instruction]:
        """The weak spots among the seeds, in the order of the seeds."""
        return [seed for seed in self.seeds.prompts if self._fails(self.accuracies.get(seed.prompt, []))]

    def _fails(self, seen: list[float]) -> bool:
        centre = (len(seen) - 1) / 2
        slope = sum((place - centre) * value for place, value in enumerate(seen))  # its sign is that of the fit
        return len(seen) >= self.visits and max(seen) < self.below and slope <= 1e-9

    def observe(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:
        """Record the accuracies of seeds."""
        for group, verdict in zip(groups, verdicts, strict=True):
            scores = verdict.scores[verdict.weight > 0]
            if group.instruction.meta.get("origin") == "seed" and len(scores):
                self.accuracies.setdefault(group.instruction.prompt, []).append(float(scores.mean()))

    def _category(self, seed: Instruction) -> str:
        return str(seed.meta.get(self.by))

    def state_dict(self) -> dict[str, Any]:
        """Seeds and accuracies."""
        return super().state_dict() | {"accuracies": {text: list(seen) for text, seen in self.accuracies.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        super().load_state_dict(state)
        self.accuracies = {text: list(seen) for text, seen in state["accuracies"].items()}
